"""torch's side of iteration.py, in a process of its own.

usage: iteration_torch.py FOLDER lrm WHERE       a reward model for lpo-train
       iteration_torch.py FOLDER DTYPE SIDE PROMPTS STEPS REPEAT

PROMPTS is a file, a prompt a line.

Prints the least seconds of an iteration and the process's peak memory.  As
fast as eager PyTorch can: channels last, scaled_dot_product_attention; one
pair at a time, which is what memory is for.
"""
import sys
import time

import torch
from fullsize_torch import DTYPES, Folder, load_unet, lrm_folder, peak_bytes, \
    ready
from lrm_torch import Lrm
from steps import Ddim, guided

CANDIDATES, GUIDANCE, BETA, CLIP = 4, 5.0, 500.0, 0.1


class Model(Folder):
    """What steps.Ddim asks of a model."""
    schedule = {}


class Trainer:
    def __init__(self, folder, dtype, side, prompts, steps):
        from peft import LoraConfig
        from transformers import CLIPTokenizer
        self.m, self.dtype, self.steps = Model(folder), dtype, steps
        self.shape = (len(prompts), 4, side, side)
        unet = load_unet(folder).requires_grad_(False)
        unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=[
            "to_q", "to_k", "to_v", "to_out.0"]))
        self.unet = ready(unet, dtype)
        self.params = [p for p in self.unet.parameters() if p.requires_grad]
        self.adamw = torch.optim.AdamW(self.params, 6e-5, weight_decay=1e-4)
        tokenizer = CLIPTokenizer.from_pretrained(f"{folder}/tokenizer")
        self.ids = tokenizer(prompts, padding="max_length",
                             return_tensors="pt").input_ids
        with torch.no_grad():
            text = self.m.text(dtype)
            self.cond, self.uncond = (text(x).last_hidden_state for x in (
                self.ids, self.m.empty()))
        self.lrm = Lrm(self.m, dtype).requires_grad_(False)

    def eps(self, x, t, rows):
        return guided(self.unet, x.to(self.dtype), t, (
            self.cond[rows], None, None), (self.uncond, None, None),
            GUIDANCE).float()

    @torch.no_grad()
    def rollout(self):
        """(x_t, win, lose, t, prompt) of every transition"""
        n, out = self.shape[0], []
        rows = torch.arange(n)
        x = torch.randn(self.shape)
        for i in reversed(range(self.steps)):
            t = torch.full((n,), 1 + i * (1000 // self.steps))
            d = Ddim(self.m, torch.float32, t, self.steps, 1)
            mu = d.mean(x, self.eps(x, t, rows))
            c = mu + d.sigma * torch.randn(CANDIDATES, *self.shape)
            score = self.lrm.score(
                c.flatten(0, 1), t.repeat(CANDIDATES),
                [self.ids.repeat(CANDIDATES, 1)])[0]
            score = score.reshape(CANDIDATES, n)
            out += [(x[j], c[score[:, j].argmax(), j],
                     c[score[:, j].argmin(), j], t[j], j) for j in range(n)]
            x = c[torch.randint(CANDIDATES, (n,)), rows]
        return out

    def both(self, x, t, rows):
        """Policy's and reference's noise."""
        self.unet.disable_adapters()
        with torch.no_grad():
            ref = self.eps(x, t, rows)
        self.unet.enable_adapters()
        return self.eps(x, t, rows), ref

    def train(self, pairs):
        self.adamw.zero_grad()
        for x, win, lose, t, j in pairs:
            x, t, rows = x[None], t[None], [j]
            d = Ddim(self.m, torch.float32, t, self.steps, 1)
            ratio = []
            for y in win, lose:         # each has its own two evaluations
                mine, ref = self.both(x, t, rows)
                ratio.append(d.logp(y[None], d.mean(x, mine))
                             - d.logp(y[None], d.mean(x, ref)))
            r = [v.exp().clamp(1 - CLIP, 1 + CLIP) for v in ratio]
            h = BETA * (r[0].log() - r[1].log())
            (torch.nn.functional.softplus(-h).sum() / len(pairs)).backward()
        self.adamw.step()

    def iteration(self):
        self.train(self.rollout())


def main():
    folder, what = sys.argv[1:3]
    if what == "lrm":
        return lrm_folder(folder, sys.argv[3])
    side, steps, repeat = (int(sys.argv[i]) for i in (3, 5, 6))
    with open(sys.argv[4], encoding="utf8") as f:
        prompts = f.read().splitlines()
    torch.manual_seed(0)
    trainer = Trainer(folder, DTYPES[what], side, prompts, steps)
    seconds = []
    for _ in range(1 + repeat):
        start = time.monotonic()
        trainer.iteration()
        seconds.append(time.monotonic() - start)
    print(min(seconds[1:]), peak_bytes())


main()

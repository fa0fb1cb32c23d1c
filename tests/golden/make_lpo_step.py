#!/usr/bin/env python3
"""One LPO step on the demo's base model, by diffusers and torch in float64.

usage: make_lpo_step.py        (writes tests/golden/lpo_step.safetensors)

Three pairs: reference without the LoRA, policy with it, both with guidance 5;
log-probabilities as means over elements, ratios clamped, gradient of the mean
loss with respect to every LoRA tensor by autograd.  Also the largest error of
the same computation in float32, which bounds what a test may ask for.
Made with torch 2.15, diffusers 0.42, transformers 5.23.
"""
import math
import sys
import torch
from diffusers import UNet2DConditionModel, DDIMScheduler
from transformers import CLIPTextModel, CLIPTokenizer
from safetensors.torch import save_file

MODEL = "demo/model"
PROMPTS = ["a red circle", "two large blue squares",
           "a green cross left of a pink triangle"]
T = [901, 451, 51]
GUIDANCE, BETA, CLIP, RANK = 5.0, 500.0, 0.1, 2


class Lora(torch.nn.Module):
    def __init__(self, base, a, b):
        super().__init__()
        self.base, self.a, self.b, self.on = base, a, b, True

    def forward(self, x):
        y = self.base(x)
        return y + (x @ self.a.T) @ self.b.T if self.on else y


def draw(gen, *shape):
    return torch.randn(*shape, generator=gen, dtype=torch.float32)


def run(dtype):
    gen = torch.Generator().manual_seed(7)
    unet = UNet2DConditionModel.from_pretrained(
        MODEL + "/unet", torch_dtype=torch.float32).to(dtype).eval()
    text = CLIPTextModel.from_pretrained(
        MODEL + "/text_encoder", torch_dtype=torch.float32).to(dtype).eval()
    tok = CLIPTokenizer.from_pretrained(MODEL + "/tokenizer")
    unet.requires_grad_(False)
    lora = {}
    for name, m in list(unet.named_modules()):
        if not name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            continue
        a = (draw(gen, RANK, m.in_features) * 0.2).to(dtype)
        b = (draw(gen, m.out_features, RANK) * 0.02).to(dtype)
        a.requires_grad_(), b.requires_grad_()
        parent, _, leaf = name.rpartition(".")
        setattr(unet.get_submodule(parent), leaf, Lora(m, a, b))
        lora[f"unet.{name}.lora_A.weight"] = a
        lora[f"unet.{name}.lora_B.weight"] = b

    def encode(p):
        ids = tok(p, padding="max_length", truncation=True,
                  max_length=tok.model_max_length, return_tensors="pt")
        return text(ids.input_ids)[0]

    with torch.no_grad():
        ctx, unc = encode(PROMPTS), encode([""]).expand(3, -1, -1)
    x = draw(gen, 3, 4, 8, 8)
    z = draw(gen, 2, 3, 4, 8, 8)
    t = torch.tensor(T)

    def eps(on):
        for m in unet.modules():
            if isinstance(m, Lora):
                m.on = on
        xx = x.to(dtype)
        e = unet(torch.cat([xx, xx]), torch.cat([t, t]),
                 torch.cat([unc, ctx])).sample
        u, c = e.chunk(2)
        return u + GUIDANCE * (c - u)

    abar = DDIMScheduler.from_pretrained(
        MODEL + "/scheduler").alphas_cumprod.double()
    a = abar[t].view(3, 1, 1, 1)
    p = abar[(t - 50).clamp(min=0)].view(3, 1, 1, 1)
    sigma = torch.sqrt((1 - p) / (1 - a) * (1 - a / p)).to(dtype)
    a, p = a.to(dtype), p.to(dtype)

    def mean(e):
        x0 = (x.to(dtype) - torch.sqrt(1 - a) * e) / torch.sqrt(a)
        return torch.sqrt(p) * x0 + torch.sqrt(1 - p - sigma ** 2) * e

    with torch.no_grad():
        ref = eps(False)
    pol = eps(True)
    nxt = (mean(ref) + sigma * z.to(dtype)).float().to(dtype)

    def logp(xn, e):
        v = -(xn - mean(e)) ** 2 / (2 * sigma ** 2) - torch.log(sigma)
        return v.mean(dim=(1, 2, 3))

    r = [torch.exp(logp(n, pol) - logp(n, ref)).clamp(1 - CLIP, 1 + CLIP)
         for n in nxt]
    loss = torch.nn.functional.softplus(
        -BETA * (torch.log(r[0]) - torch.log(r[1])))
    loss.mean().backward()
    out = {"loss": loss.detach(), "eps": pol.detach(), "eps_ref": ref,
           "ratio_win": r[0].detach(), "ratio_lose": r[1].detach()}
    out.update({"grad." + k: v.grad for k, v in lora.items()})
    ins = {"x_t": x, "x_win": nxt[0].float(), "x_lose": nxt[1].float()}
    return ins, {k: v.detach().float() for k, v in lora.items()}, out


ins, lora, want = run(torch.float64)
_, _, f32 = run(torch.float32)
err = {k: (f32[k].double() - v).abs().max().item() for k, v in want.items()}
worst = max(err[k] / max(v.abs().max().item(), 1e-30)
            for k, v in want.items())
print("loss", want["loss"].tolist(), "ratios", want["ratio_win"].tolist(),
      want["ratio_lose"].tolist())
print("torch's own f32, largest relative error:", worst, file=sys.stderr)
tensors = {k: v.float().contiguous() for k, v in {**ins, **want}.items()}
tensors["f32_error"] = torch.tensor(worst)
save_file(tensors, "tests/golden/lpo_step.safetensors")
save_file({k: v.contiguous() for k, v in lora.items()},
          "tests/golden/lpo_step_lora.safetensors")

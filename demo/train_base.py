#!/usr/bin/env python3
"""Trains the demo's base model and writes it as a diffusers folder.

    demo-world train-set --n 40000 --seed 1 -o DATA
    train_base.py train DATA -w WORK -o MODEL
    train_base.py sample MODEL prompts.csv -o images.tar

Training is by wall clock, not by steps, so it fits the machine it runs on;
the learning rate falls to zero at the end of each part.  WORK keeps the VAE
and a checkpoint, and a second run with the same WORK trains the UNet on from
there.  MODEL is rewritten every few minutes, and is always complete.
"""
import argparse
import copy
import csv
import io
import json
import os
import tarfile
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 16
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
    "prediction_type": "epsilon", "trained_betas": None,
    "timestep_spacing": "leading",
}


# Tokenizer.  A vocabulary of this world, in CLIP's format: all bytes, so any
# text has tokens, and merges learnt until each caption word is one token.

def byte_letters():
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(len(rest))]


def learn_merges(words):
    splits = {w: [*w[:-1], w[-1] + "</w>"] for w in words}
    merges = []
    while True:
        count = {}
        for s in splits.values():
            for pair in zip(s, s[1:]):
                count[pair] = count.get(pair, 0) + 1
        if not count:
            return merges, splits
        best = min(count, key=lambda p: (-count[p], p))
        merges.append(best)
        for s in splits.values():
            i = 0
            while i + 1 < len(s):
                if (s[i], s[i + 1]) == best:
                    s[i:i + 2] = [s[i] + s[i + 1]]
                i += 1


class Tokenizer:
    def __init__(self, words):
        self.merges, splits = learn_merges(sorted(words))
        assert all(len(s) == 1 for s in splits.values())
        letters = byte_letters()
        tokens = letters + [c + "</w>" for c in letters]
        tokens += ["".join(m) for m in self.merges] + [BOS, EOS]
        self.vocab = {}
        for t in tokens:
            self.vocab.setdefault(t, len(self.vocab))

    def encode(self, caption):
        ids = [self.vocab[w + "</w>"] for w in caption.split()]
        ids = [self.vocab[BOS], *ids[:MAX_TOKENS - 2], self.vocab[EOS]]
        return ids + [self.vocab[EOS]] * (MAX_TOKENS - len(ids))

    def save(self, folder):
        os.makedirs(folder, exist_ok=True)
        write_json(f"{folder}/vocab.json", self.vocab)
        with open(f"{folder}/merges.txt", "w", encoding="utf-8") as f:
            f.write("#version: 0.2\n")
            f.writelines(f"{a} {b}\n" for a, b in self.merges)
        marked = {"content": EOS, "lstrip": False, "normalized": True,
                  "rstrip": False, "single_word": False}
        begin = dict(marked, content=BOS)
        write_json(f"{folder}/special_tokens_map.json", {
            "bos_token": begin, "eos_token": marked, "pad_token": EOS,
            "unk_token": marked})
        write_json(f"{folder}/tokenizer_config.json", {
            "add_prefix_space": False, "bos_token": begin,
            "do_lower_case": True, "eos_token": marked, "errors": "replace",
            "model_max_length": MAX_TOKENS, "pad_token": EOS,
            "tokenizer_class": "CLIPTokenizer", "unk_token": marked})


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


# The three networks, as small as the world allows.

def new_vae():
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=32,
        block_out_channels=(16, 32, 64), layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3, norm_num_groups=8)


def new_text(tok):
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tok.vocab), hidden_size=64, intermediate_size=256,
        num_hidden_layers=2, num_attention_heads=4, projection_dim=64,
        max_position_embeddings=MAX_TOKENS, hidden_act="quick_gelu",
        bos_token_id=tok.vocab[BOS], eos_token_id=tok.vocab[EOS],
        pad_token_id=tok.vocab[EOS]))


def new_unet():
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4,
        block_out_channels=(48, 80), layers_per_block=1,
        down_block_types=["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2, norm_num_groups=16,
        attention_head_dim=4, cross_attention_dim=64)


class Clock:
    """Share of a time budget that has passed, and the rate that goes with
    it: a short warm-up, a plateau, a straight line to zero."""

    def __init__(self, minutes, rate, flat=0.5):
        self.begin, self.seconds = time.monotonic(), minutes * 60
        self.rate, self.flat = rate, flat

    def share(self):
        return (time.monotonic() - self.begin) / self.seconds

    def set_rate(self, opt, step, share):
        left = (1 - share) / (1 - self.flat)
        rate = self.rate * min(1, (step + 1) / 100, max(left, 0.002))
        for group in opt.param_groups:
            group["lr"] = rate


class Average:
    """Exponential moving average of a module's weights."""

    def __init__(self, module, decay):
        self.module, self.decay = copy.deepcopy(module), decay

    @torch.no_grad()
    def update(self, module, step):
        decay = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.module.parameters()),
                             list(module.parameters()), 1 - decay)


def to_float(images, rows):
    x = torch.from_numpy(images[rows].copy()).permute(0, 3, 1, 2).float()
    return (x / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def train_vae(images, a, rng):
    vae = (torch.load(a.start_vae, weights_only=False) if a.start_vae else
           new_vae().to(memory_format=torch.channels_last))
    average = Average(vae, 0.998)
    opt = torch.optim.AdamW(vae.parameters(), 2e-3, weight_decay=0.01)
    clock, step = Clock(a.vae_minutes, 2e-3), 0
    while clock.share() < 1:
        clock.set_rate(opt, step, clock.share())
        x = to_float(images, rng.integers(len(images), size=a.batch))
        with torch.autocast("cpu", torch.bfloat16, enabled=a.bf16):
            post = vae.encode(x).latent_dist
            y = vae.decode(post.sample()).sample
        err = y.float() - x
        fit = 2 * err.square().mean() + 0.5 * err.abs().mean()
        loss = fit + a.kl * post.kl().mean() / 1024
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        opt.step()
        average.update(vae, step)
        if step % 100 == 0:
            print(f"vae {clock.share():.3f} step {step} fit {fit:.4f} "
                  f"kl {post.kl().mean():.1f}", flush=True)
        step += 1
    return average.module.eval()


@torch.no_grad()
def encode_all(vae, images):
    """Means and standard deviations of all latents, and one over the
    latents' overall deviation: the VAE's scaling factor."""
    mean, std = [], []
    for i in range(0, len(images), 500):
        post = vae.encode(to_float(images, slice(i, i + 500))).latent_dist
        mean.append(post.mean)
        std.append(post.std)
    mean, std = torch.cat(mean), torch.cat(std)
    power = mean.var() + std.square().mean()
    return mean, std, round(1 / power.sqrt().item(), 4)


def alphas_bar():
    beta = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000) ** 2
    return torch.cumprod(1 - beta.double(), 0).float()


def mean_over_workers(module, share):
    """Averages gradients over the workers, and hands all of them rank 0's
    share of time, so that they agree on when to stop.  One exchange a step:
    threads that meet in every operation wait for each other far longer when
    the machine has other work."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    head = torch.tensor([share if dist.get_rank() == 0 else 0.0])
    flat = torch.cat([head, *(g.flatten() for g in grads)])
    dist.all_reduce(flat)
    share = flat[0].item()
    flat /= dist.get_world_size()
    at = 1
    for g in grads:
        g.copy_(flat[at:at + g.numel()].view_as(g))
        at += g.numel()
    return share


def noisy_batch(latents, ids, empty, n, rng, abar):
    mean, std, factor = latents
    rows = torch.from_numpy(rng.integers(len(ids), size=n))
    z = (mean[rows] + std[rows] * torch.randn(mean[rows].shape)) * factor
    # Stratified timesteps: less noise in the gradient than drawing each.
    # Every second one has density 6 u (1 - u): captions matter in the middle,
    # and below t = 100 most of the loss is the VAE's own noise.
    u = (torch.arange(n) + torch.rand(n)) / n
    middle = 0.5 - torch.sin(torch.asin(1 - 2 * u) / 3)
    t = (torch.where(torch.arange(n) % 2 == 0, u, middle) * 1000).long()
    t = t.clamp(0, 999)
    k = abar[t].view(-1, 1, 1, 1)
    noise = torch.randn_like(z)
    x = (k.sqrt() * z + (1 - k).sqrt() * noise).contiguous(
        memory_format=torch.channels_last)
    # One caption in ten is dropped: guidance needs the empty prompt.
    words = torch.where(torch.rand(n, 1) < 0.1, empty, ids[rows])
    return x, t, words, noise


def train_unet(rank, a, latents, ids, tok, vae):
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    unet = new_unet().to(memory_format=torch.channels_last)
    both = torch.nn.ModuleList([unet, new_text(tok)])
    average = Average(both, 0.998)
    opt = torch.optim.AdamW(both.parameters(), 1e-3, weight_decay=0.01)
    first, kept = 0, f"{a.work}/unet.pt"
    if os.path.exists(kept):
        was = torch.load(kept)
        first = was["step"]
        both.load_state_dict(was["live"])
        average.module.load_state_dict(was["average"])
        opt.load_state_dict(was["opt"])
    store = dist.FileStore(f"{a.work}/meet", a.workers)
    dist.init_process_group("gloo", store=store, rank=rank,
                            world_size=a.workers)
    torch.manual_seed(a.seed + 1000 * rank + first)
    rng = np.random.default_rng(a.seed + 1000 * rank + first)
    empty, abar = torch.tensor([tok.encode("")]), alphas_bar()
    clock, step, share, saved = Clock(a.unet_minutes, a.unet_rate), first, 0, 0
    running = 0.3
    while share < 1:
        clock.set_rate(opt, step - first, share)
        x, t, words, noise = noisy_batch(latents, ids, empty,
                                         a.batch // a.workers, rng, abar)
        out = unet(x, t, both[1](words).last_hidden_state).sample
        loss = F.mse_loss(out, noise)
        opt.zero_grad()
        loss.backward()
        share = mean_over_workers(both, clock.share())
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        opt.step()
        average.update(both, step)
        running += (loss.item() - running) * 0.01
        step += 1
        if rank == 0 and step % 100 == 0:
            print(f"unet {share:.3f} step {step} loss {running:.4f}",
                  flush=True)
        if rank == 0 and (share - saved > 0.12 or share >= 1):
            saved = share
            save_model(a.model, tok, vae, *average.module)
            torch.save({"step": step, "live": both.state_dict(), "average":
                        average.module.state_dict(), "opt": opt.state_dict()},
                       kept)
    # Nobody hangs up while rank 0 may still be reading the last exchange.
    if rank == 0:
        store.set("saved", "1")
    store.wait(["saved"])
    dist.destroy_process_group()


# Writing the folder.  Weights are written key by key: what the libraries'
# own save does with names has changed between versions, files on the web
# keep the old names.

def save_part(folder, module, config, stem):
    os.makedirs(folder, exist_ok=True)
    state = {k: v.detach().half().contiguous()
             for k, v in module.state_dict().items()
             if not k.endswith("position_ids")}
    if stem == "model":
        state = {k if k.startswith("text_model.") else f"text_model.{k}": v
                 for k, v in state.items()}
    write_json(f"{folder}/config.json", config)
    path = f"{folder}/{stem}.safetensors"
    save_file(state, path + ".tmp", {"format": "pt"})
    os.chmod(path + ".tmp", 0o644)
    os.replace(path + ".tmp", path)


def clean_config(module, name, extra=()):
    drop = {"_use_default_values", "_name_or_path", "dtype",
            "transformers_version"}
    config = dict(module.config if name != "CLIPTextModel"
                  else module.config.to_diff_dict())
    config = {k: v for k, v in config.items() if k not in drop}
    return {"_class_name": name, **config, **dict(extra)}


def save_model(folder, tok, vae, unet, text):
    tok.save(f"{folder}/tokenizer")
    save_part(f"{folder}/vae", vae, clean_config(vae, "AutoencoderKL"),
              "diffusion_pytorch_model")
    save_part(f"{folder}/unet", unet,
              clean_config(unet, "UNet2DConditionModel"),
              "diffusion_pytorch_model")
    config = clean_config(text, "CLIPTextModel")
    del config["_class_name"]
    config.update(architectures=["CLIPTextModel"], model_type="clip_text_model",
                  layer_norm_eps=1e-5)
    save_part(f"{folder}/text_encoder", text, config, "model")
    os.makedirs(f"{folder}/scheduler", exist_ok=True)
    write_json(f"{folder}/scheduler/scheduler_config.json", SCHEDULER)
    write_json(f"{folder}/model_index.json", {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"]})


def train(a):
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    rng = np.random.default_rng(a.seed)
    images = np.fromfile(f"{a.data}/images.u8", np.uint8)
    images = images.reshape(-1, 32, 32, 3)
    with open(f"{a.data}/captions.txt", encoding="utf-8") as f:
        captions = f.read().splitlines()
    assert len(captions) == len(images), "images and captions differ"
    tok = Tokenizer({w for c in captions for w in c.split()})
    os.makedirs(a.work, exist_ok=True)
    kept = f"{a.work}/vae.pt"
    if os.path.exists(kept):
        vae = torch.load(kept, weights_only=False)
    else:
        vae = train_vae(images, a, rng)
        torch.save(vae, kept)
    latents = encode_all(vae, images)
    vae.register_to_config(scaling_factor=latents[2])
    print("scaling factor", latents[2], flush=True)
    ids = torch.tensor([tok.encode(c) for c in captions])
    if os.path.exists(f"{a.work}/meet"):
        os.remove(f"{a.work}/meet")
    torch.multiprocessing.spawn(train_unet, (a, latents, ids, tok, vae),
                                a.workers)


# Sampling with the libraries' own loaders: it checks the folder, too.

@torch.no_grad()
def sample(a):
    from diffusers import StableDiffusionPipeline
    torch.set_num_threads(a.threads)
    pipe = StableDiffusionPipeline.from_pretrained(a.model,
                                                   torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with open(a.prompts, newline="", encoding="utf-8") as f:
        prompts = [row["prompt"] for row in csv.DictReader(f)]
    gen = torch.Generator().manual_seed(a.seed)
    with tarfile.open(a.output, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(0, len(prompts), 50):
            part = prompts[i:i + 50]
            noise = torch.randn(len(part), 4, 8, 8, generator=gen)
            out = pipe(part, latents=noise, num_inference_steps=20,
                       guidance_scale=a.guidance, height=32, width=32)
            for k, image in enumerate(out.images):
                png = io.BytesIO()
                image.save(png, "PNG")
                add(tar, f"{i + k:06d}.png", png.getvalue())
                add(tar, f"{i + k:06d}.json",
                    json.dumps({"prompt": part[k]}).encode())


@torch.no_grad()
def autoencode(a):
    torch.set_num_threads(a.threads)
    vae = AutoencoderKL.from_pretrained(a.model, subfolder="vae").float()
    with tarfile.open(a.input) as src, tarfile.open(
            a.output, "w", format=tarfile.USTAR_FORMAT) as dst:
        for member in src:
            data = src.extractfile(member).read()
            if member.name.endswith(".png"):
                x = np.asarray(Image.open(io.BytesIO(data)))[None]
                z = vae.encode(to_float(x, slice(None))).latent_dist.mean
                y = vae.decode(z).sample[0].permute(1, 2, 0)
                y = ((y + 1) * 127.5).round().clamp(0, 255).byte().numpy()
                png = io.BytesIO()
                Image.fromarray(y).save(png, "PNG")
                data = png.getvalue()
            add(dst, member.name, data)


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sub = p.add_subparsers(required=True)
    t = sub.add_parser("train", help="train and write the model folder")
    t.add_argument("data", help="folder from demo-world train-set")
    t.add_argument("-w", "--work", required=True)
    t.add_argument("-o", "--model", required=True)
    t.add_argument("--vae-minutes", type=float, default=8)
    t.add_argument("--start-vae", help="WORK/vae.pt of an earlier training")
    t.add_argument("--unet-minutes", type=float, default=40)
    t.add_argument("--workers", type=int, default=2,
                   help="processes that train the UNet")
    t.add_argument("--batch", type=int, default=64)
    t.add_argument("--unet-rate", type=float, default=1.5e-3)
    t.add_argument("--kl", type=float, default=0.02)
    t.add_argument("--bf16", action="store_true", help="in the VAE; the "
                   "UNet's maps are so small that bf16 is slower there")
    t.set_defaults(run=train)
    s = sub.add_parser("sample", help="images of prompts, as a tar")
    s.add_argument("model")
    s.add_argument("prompts")
    s.add_argument("--guidance", type=float, default=5.0)
    s.set_defaults(run=sample)
    v = sub.add_parser("autoencode", help="a tar's images through the VAE")
    v.add_argument("model")
    v.add_argument("input")
    v.set_defaults(run=autoencode)
    for q in (s, v):
        q.add_argument("-o", "--output", required=True)
    for q in (t, s, v):
        q.add_argument("--seed", type=int, default=1)
        q.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    a.run(a)


if __name__ == "__main__":
    main()

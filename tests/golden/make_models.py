#!/usr/bin/env python3
"""Small random models run by diffusers, transformers and peft.

    make_models.py OUTDIR      (tests/golden/models)

Weights and inputs come from a counter generator that the C tests have too
(golden.h), so only shapes and results are stored.  Per model one file:

  metadata  config (config.json's text), keys ("KEY SHAPE..." a line), versions
  NAME      a result computed in f64, stored as f32
  NAME.err  [1] largest error of the same computation in f32
  grads     [keys, 15] a digest of each weight's gradient: 8 elements, dot
            products with two vectors of signs, largest absolute value, norm,
            largest f32 error of an element, of each dot product
"""
import json
import sys
from pathlib import Path

import diffusers
import numpy as np
import peft
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _maybe_map_sgm_blocks_to_diffusers)
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import (CLIPTextConfig, CLIPTextModel,
                          CLIPTextModelWithProjection)

VERSIONS = " ".join(f"{m.__name__} {m.__version__}" for m in
                    (torch, diffusers, transformers, peft))
SAMPLES = 8
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def words(name, n):
    """splitmix64 of (fnv1a(name), 0..n-1)"""
    h = 0xcbf29ce484222325
    for b in name.encode():
        h = (h ^ b) * 0x100000001b3 & 0xffffffffffffffff
    with np.errstate(over="ignore"):
        z = np.uint64(h) + (np.arange(n, dtype=np.uint64) + np.uint64(1)) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(name, shape, scale=1.0):
    """f32 in [-scale, scale)"""
    n = int(np.prod(shape))
    u = (words(name, n) >> np.uint64(40)).astype(np.float32)
    u = u * np.float32(2.0 ** -23) - np.float32(1)
    return torch.from_numpy((u * np.float32(scale)).reshape(shape))


def weight(key, shape):
    if len(shape) >= 2 and "embedding.weight" not in key:
        fan_in = int(np.prod(shape[1:]))
        return uniform(key, shape, np.float32((3.0 / fan_in) ** 0.5))
    if len(shape) >= 2:
        return uniform(key, shape, 0.5)
    if key.endswith(".weight"):
        return uniform(key, shape, 0.25) + 1
    return uniform(key, shape, 0.125)


def fill(model):
    state = model.state_dict()
    for k, v in state.items():
        if not k.endswith("position_ids"):
            state[k] = weight(k, tuple(v.shape))
    model.load_state_dict(state)
    return model.eval()


def digest(key, g64, g32):
    g64, g32 = g64.flatten().double(), g32.flatten().double()
    n = g64.numel()
    at = (words("at." + key, SAMPLES) % np.uint64(n)).astype(np.int64)
    out = [g64[i] for i in at.tolist()]
    errs = [(g64 - g32).abs().max()]
    for s in ("sign0.", "sign1."):
        bit = (words(s + key, n) >> np.uint64(63)).astype(np.float64)
        sign = torch.from_numpy(1 - 2 * bit)
        out.append((g64 * sign).sum())
        errs.append(((g64 - g32) * sign).sum().abs())
    return [float(x) for x in (*out, g64.abs().max(), g64.norm(), *errs)]


def run(make, forward, inputs):
    """forward(model, inputs) -> {name: tensor}, in f64 and in f32; the loss
    is the sum of each output times uniform("d_" + name)."""
    results = []
    for dtype in (torch.float64, torch.float32):
        model = make().to(dtype)
        x = {}
        for k, v in inputs.items():
            v = v.to(dtype) if v.is_floating_point() else v
            x[k] = v.clone().requires_grad_(v.is_floating_point())
        outs = forward(model, x)
        loss = sum((o * uniform("d_" + k, tuple(o.shape)).to(o.dtype)).sum()
                   for k, o in outs.items())
        loss.backward()
        got = {k: o.detach() for k, o in outs.items()}
        got |= {"grad_" + k: v.grad for k, v in x.items() if v.grad is not None}
        grads = {k: p.grad for k, p in model.named_parameters()
                 if p.grad is not None}
        results.append((got, grads))
    return results


def store(path, config, keys, results, extra_meta=None):
    (r64, g64), (r32, g32) = results
    out = {}
    for k in r64:
        out[k] = r64[k].float().contiguous()
        out[k + ".err"] = (r64[k] - r32[k].double()).abs().max().float().reshape(1)
    out["grads"] = torch.tensor([digest(k, g64[k], g32[k]) for k in keys],
                                dtype=torch.float64).float()
    meta = {"config": json.dumps(config), "versions": VERSIONS,
            "keys": "\n".join(" ".join([k, *map(str, s)])
                              for k, s in keys.items())}
    save_file(out, path, metadata=meta | (extra_meta or {}))
    print(path, Path(path).stat().st_size)


# ------------------------------------------------------------------- UNets

COMMON = {"in_channels": 4, "out_channels": 4, "norm_num_groups": 8,
          "act_fn": "silu", "sample_size": 8}
C, D, U, X = ("CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D",
              "CrossAttnUpBlock2D")
UNETS = {
    "unet15": (COMMON | {
        "block_out_channels": [16, 32, 32], "down_block_types": [C, C, D],
        "up_block_types": [U, X, X], "layers_per_block": 2,
        "attention_head_dim": 2, "cross_attention_dim": 24}, (7, 9)),
    "unet21": (COMMON | {
        "block_out_channels": [16, 32], "down_block_types": [C, D],
        "up_block_types": [U, X], "layers_per_block": [1, 2],
        "attention_head_dim": [2, 4], "cross_attention_dim": 20,
        "use_linear_projection": True}, (8, 8)),
    "unetxl": (COMMON | {
        "block_out_channels": [16, 24, 32], "down_block_types": [D, C, C],
        "up_block_types": [X, X, U], "layers_per_block": 1,
        "attention_head_dim": [1, 3, 4], "cross_attention_dim": 28,
        "transformer_layers_per_block": [1, 1, 2],
        "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 48}, (8, 12)),
}
TIMESTEPS = [7, 401]
TIME_IDS = [[64, 96, 0, 8, 64, 96], [48, 48, 4, 0, 64, 64]]


def unet_inputs(config, size):
    x = {"sample": uniform("sample", (2, 4, *size), 2),
         "context": uniform("context", (2, 5, config["cross_attention_dim"]))}
    if "addition_embed_type" in config:
        x["text_embeds"] = uniform("text_embeds", (2, 20))
    return x


def unet_forward(model, x, pooled=True):
    rows = {}
    hooks = []
    added = None
    if "text_embeds" in x:
        added = {"text_embeds": x["text_embeds"],
                 "time_ids": torch.tensor(TIME_IDS)}
    if pooled:
        for i, b in enumerate([*model.down_blocks, model.mid_block]):
            last = b.attentions[-1] if hasattr(b, "attentions") else b.resnets[-1]
            if b is model.mid_block:
                last = b
            def hook(_m, _a, out, i=i):
                out = out[0] if isinstance(out, tuple) else out
                out = getattr(out, "sample", out)
                rows[f"pooled{i}"] = out.mean(dim=(2, 3))
            hooks.append(last.register_forward_hook(hook))
    out = model(x["sample"], torch.tensor(TIMESTEPS), x["context"],
                added_cond_kwargs=added).sample
    for h in hooks:
        h.remove()
    return {"out": out, **rows}


def make_unet(config):
    torch.manual_seed(0)
    return fill(UNet2DConditionModel(**config))


def shapes(model):
    return {k: tuple(v.shape) for k, v in model.state_dict().items()
            if not k.endswith("position_ids")}


def unets(out):
    for name, (config, size) in UNETS.items():
        results = run(lambda: make_unet(config), unet_forward,
                      unet_inputs(config, size))
        store(out / f"{name}.safetensors", config, shapes(make_unet(config)),
              results)


# -------------------------------------------------------------------- LoRA

def lora_targets(model, everything):
    att = [n for n, m in model.named_modules()
           if n.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))]
    if not everything:
        return att
    ends = (".ff.net.0.proj", ".ff.net.2", ".proj_in", ".proj_out", ".conv1",
            ".conv2", ".conv_shortcut", "samplers.0.conv")
    return att + [n for n, m in model.named_modules() if n.endswith(ends)]


def make_lora(config, everything, rank, alpha):
    model = make_unet(config)
    model.requires_grad_(False)
    model.add_adapter(peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=lora_targets(model, everything)))
    for k, p in model.named_parameters():
        if "lora_" in k:
            k = k.replace(".default", "")
            p.data = uniform(k, tuple(p.shape), 0.25)
    return model.eval()


def ldm_names(config, paths):
    """kohya names with LDM blocks -> diffusers paths, as diffusers maps them:
    every name that could be is put to it."""
    blocks = [f"input_blocks_{i}_{j}" for i in range(1, 12) for j in (0, 1)]
    blocks += [f"output_blocks_{i}_{j}" for i in range(12) for j in (0, 1, 2)]
    blocks += [f"middle_block_{i}" for i in (0, 1, 2)]
    wanted = {p.replace(".", "_"): p for p in paths}
    inside = {p.split(".", 4)[-1] for p in paths} | {
        p.split(".", 3)[-1] for p in paths}
    inside -= {"conv1", "conv2", "conv_shortcut"}
    inside |= {"in_layers_2", "out_layers_3", "skip_connection", "conv"}
    unet = type("Config", (), {"layers_per_block": config["layers_per_block"]})
    found = {}
    for b in blocks:
        for tail in inside:
            if b.startswith("input") and b.endswith("_0") and tail == "conv":
                tail = "op"
            key = f"lora_unet_{b}_{tail.replace('.', '_')}"
            try:
                new = _maybe_map_sgm_blocks_to_diffusers({key: 0}, unet)
            except (IndexError, ValueError):
                continue
            (new,) = new
            if "resnets" in new:
                new = (new.replace("in_layers_2", "conv1")
                       .replace("out_layers_3", "conv2")
                       .replace("skip_connection", "conv_shortcut"))
            new = (new.removeprefix("lora_unet_")
                   .replace("input_blocks", "down_blocks")
                   .replace("middle_block", "mid_block")
                   .replace("output_blocks", "up_blocks")
                   .replace("downsamplers_0_op", "downsamplers_0_conv"))
            if new in wanted:
                found[wanted[new]] = key
    return found


def forms(config, state, ldm):
    """Lines "FORM NAME PATH": what a layer is called in kohya's files."""
    down = {k.removesuffix(".lora_A.weight"): v for k, v in state.items()
            if k.endswith(".lora_A.weight")}
    path = {id(v): k for k, v in down.items()}
    kohya = convert_state_dict_to_kohya(
        {f"base_model.model.{k}.lora_A.weight": v for k, v in down.items()})
    lines = [("kohya", k.replace("base_model_model_", "lora_unet_")
              .removesuffix(".lora_down.weight"), path[id(v)])
             for k, v in kohya.items() if id(v) in path]
    if ldm:
        names = ldm_names(config, down)
        lines += [("ldm", names[k], k) for k in down]
    return "\n".join(" ".join(x) for x in lines)


def loras(out):
    for name, base, everything, rank, alpha in (
            ("lora15", "unet15", True, 3, 4), ("loraxl", "unetxl", True, 4, 4)):
        config, size = UNETS[base]
        results = run(lambda: make_lora(config, everything, rank, alpha),
                      lambda m, x: unet_forward(m, x, False),
                      unet_inputs(config, size))
        results = [(r, {k.replace(".default", ""): v for k, v in g.items()})
                   for r, g in results]
        model = make_lora(config, everything, rank, alpha)
        state = get_peft_model_state_dict(model)
        state = {k.replace(".default", ""): v.clone() for k, v in state.items()}
        keys = {k: tuple(v.shape) for k, v in state.items()}
        store(out / f"{name}.safetensors", config, keys, results,
              {"rank": str(rank), "alpha": str(alpha),
               "forms": forms(config, state, base == "unetxl")})


# --------------------------------------------------------------------- CLIP

CLIPS = {
    "clip": dict(hidden_act="quick_gelu", projection_dim=24),
    "clip_projection": dict(hidden_act="gelu", projection_dim=20),
}
IDS = [[90, 5, 17, 3, 91, 91, 91], [90, 44, 91, 0, 0, 0, 0],
       [90, 1, 2, 3, 4, 5, 91]]


def clips(out):
    for name, more in CLIPS.items():
        config = dict(vocab_size=92, hidden_size=32, intermediate_size=56,
                      num_hidden_layers=3, num_attention_heads=4,
                      max_position_embeddings=9, bos_token_id=90,
                      eos_token_id=91, pad_token_id=91,
                      layer_norm_eps=1e-5) | more
        cls = CLIPTextModelWithProjection if "proj" in name else CLIPTextModel

        def make():
            torch.manual_seed(0)
            return fill(cls(CLIPTextConfig(**config)))

        def forward(model, x):
            o = model(x["ids"], output_hidden_states=True)
            got = {"last_hidden": o.last_hidden_state,
                   "penultimate": o.hidden_states[-2]}
            if hasattr(o, "text_embeds"):
                return got | {"projected": o.text_embeds}
            return got | {"pooled": o.pooler_output}

        results = run(make, forward, {"ids": torch.tensor(IDS)})
        model = make()
        conf = model.config.to_dict() | {"architectures": [cls.__name__]}
        keep = set(config) | {"architectures", "model_type", "dropout"}
        store(out / f"{name}.safetensors",
              {k: v for k, v in conf.items() if k in keep}, shapes(model),
              results)


# ---------------------------------------------------------------------- VAE

VAE = {"block_out_channels": [8, 16, 16], "layers_per_block": 1,
       "down_block_types": ["DownEncoderBlock2D"] * 3,
       "up_block_types": ["UpDecoderBlock2D"] * 3, "latent_channels": 4,
       "norm_num_groups": 4, "sample_size": 32, "scaling_factor": 0.5}


def vaes(out):
    def make():
        torch.manual_seed(0)
        return fill(AutoencoderKL(**VAE))

    def forward(model, x):
        return {"moments": model.encode(x["image"]).latent_dist.parameters,
                "decoded": model.decode(x["latent"]).sample}

    # no multiples of 4: each downsampler rounds down
    inputs = {"image": uniform("image", (2, 3, 23, 18)),
              "latent": uniform("latent", (2, 4, 3, 5), 2)}
    results = run(make, forward, inputs)
    store(out / "vae.safetensors", VAE, shapes(make()), results)


def main():
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    unets(out)
    loras(out)
    clips(out)
    vaes(out)


if __name__ == "__main__":
    main()

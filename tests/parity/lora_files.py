"""LoRA files both ways, against peft and diffusers.

A random LoRA of peft, with other ranks and alphas for some layers, is written
in every form that users have, safetensors and pickles, and read by lpo-probe;
lpo-train writes it again as kohya, diffusers and both, and diffusers reads
each.  All give the UNet's output that peft itself gives.
"""
import copy
import json

import models
import parity
import torch
from reward import reward_model
from safetensors.torch import save_file

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
WRITTEN = ("sd-four-levels", "sd21-lists", "xl")


def evaluate(net, x, dtype):
    more = {k: x[k].to(dtype) for k in ("text_embeds", "time_ids") if k in x}
    with torch.no_grad():
        return net(x["sample"].to(dtype), x["timestep"],
                   x["encoder_hidden_states"].to(dtype),
                   added_cond_kwargs=more or None).sample


def with_adapter(m, config, dtype):
    """A UNet with a random LoRA, and its state under PEFT's own keys."""
    from peft.utils import get_peft_model_state_dict
    net = copy.deepcopy(m.unet(torch.float32))
    net.add_adapter(config)
    gen = torch.Generator().manual_seed(60 + m.seed)
    for k, p in sorted(net.named_parameters()):
        if ".lora_" in k:
            # small, or f32's own error would hide a wrong scale
            p.data = 0.3 * torch.randn(p.shape, generator=gen) / \
                p[0].numel() ** 0.5
    state = get_peft_model_state_dict(net)
    return models.exact_time(net.to(dtype)), {
        k: v.detach().float() for k, v in state.items()}


def both(m, config, x):
    """Output in f64 and f32, and the state."""
    (truth, state), (own, _) = (
        (evaluate(net, x, dtype), s) for dtype in (torch.float64,
                                                   torch.float32)
        for net, s in [with_adapter(m, config, dtype)])
    return truth, own, state


def old_processors(state):
    """The oldest form: keys inside attention processors."""
    out = {}
    for k, v in state.items():
        head, tail = k.rsplit(".to_", 1)
        what, part = tail.split(".lora_")
        out[f"unet.{head}.processor.to_{what.removesuffix('.0')}_lora."
            f"{'down' if part[0] == 'A' else 'up'}.weight"] = v
    return out


def kohya(state, alpha):
    """As diffusers' own converter names them, with these alphas."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
    out = convert_state_dict_to_kohya(
        {f"base_model.model.{k}": v for k, v in state.items()})
    out = {k.replace("base_model_model_", "lora_unet_"): v
           for k, v in out.items() if not k.endswith(".alpha")}
    for k in [k for k in out if k.endswith(".lora_up.weight")]:
        out[k.replace(".lora_up.weight", ".alpha")] = torch.tensor(alpha)
    return out


def ldm(state):
    """Kohya's names with the original model's blocks, of two layers."""
    out = {}
    for k, v in state.items():
        p = k.removeprefix("lora_unet_").split("_")
        if p[0] == "mid":
            p = ["middle", "block", "1", *p[4:]]
        elif p[0] == "down":
            p = ["input", "blocks", str(3 * int(p[2]) + int(p[4]) + 1), "1",
                 *p[5:]]
        else:
            p = ["output", "blocks", str(3 * int(p[2]) + int(p[4])), "1",
                 *p[5:]]
        out["lora_unet_" + "_".join(p)] = v
    return out


def forms(m, state, alpha):
    from diffusers.utils import convert_state_dict_to_diffusers
    prefixed = {"unet." + k: v for k, v in state.items()}
    yield "PEFT, no prefix", state
    yield "PEFT, unet.", prefixed
    yield "diffusers, new", {"unet." + k: v for k, v in
                             convert_state_dict_to_diffusers(state).items()}
    yield "diffusers, attention processors", old_processors(state)
    yield "kohya", kohya(state, alpha)
    if m.config["layers_per_block"] == 2:
        yield "kohya, LDM blocks", ldm(kohya(state, alpha))


def probe(m, path, x):
    return parity.probe("unet", x, "--lora", path, model=m.folder)["out"]


def read(m, x):
    from peft import LoraConfig
    truth, own, state = both(m, LoraConfig(
        r=3, lora_alpha=3, target_modules=TARGETS), x)
    for name, tensors in forms(m, state, 3.0):
        tensors = {k: v.contiguous() for k, v in tensors.items()}
        save_file(tensors, parity.path("lora.safetensors"))
        torch.save(tensors, parity.path("lora.bin"))
        for end in ("safetensors", "bin"):
            parity.check(f"LoRA read: {name}", m.name,
                         probe(m, parity.path("lora." + end), x), truth, own)
    first = sorted({k.split(".lora_")[0] for k in state})[0]
    for rslora in (False, True):
        config = LoraConfig(
            r=2, lora_alpha=5, target_modules=TARGETS, use_rslora=rslora,
            rank_pattern={first: 4}, alpha_pattern={first: 3})
        truth, own, state = both(m, config, x)
        meta = {"unet." + k: sorted(v) if isinstance(v, set) else v
                for k, v in config.to_dict().items()}
        save_file({"unet." + k: v for k, v in state.items()},
                  parity.path("pattern"), metadata={
                      "format": "pt", "lora_adapter_metadata":
                      json.dumps(meta, default=str)})
        parity.check("LoRA read: PEFT's settings in the metadata", m.name,
                     probe(m, parity.path("pattern"), x), truth, own)


def write(m, x):
    from diffusers.loaders import (StableDiffusionLoraLoaderMixin,
                                   StableDiffusionXLLoraLoaderMixin)
    from peft import LoraConfig
    mixin = StableDiffusionXLLoraLoaderMixin if m.xl else \
        StableDiffusionLoraLoaderMixin
    truth, own, state = both(m, LoraConfig(
        r=4, lora_alpha=10, target_modules=TARGETS), x)
    save_file(kohya(state, 10.0), parity.path("init.safetensors"))
    lrm = reward_model(m)
    with open(parity.path("prompts.txt"), "w", encoding="utf8") as f:
        f.write("a red circle\na blue square\n")
    for form in ("kohya", "diffusers", "both"):
        path = parity.path(f"{m.name}-{form}.safetensors")
        # a learning rate of 0: the LoRA goes through as it is
        parity.tool(
            "lpo-train", "-q", "-m", m.folder, "-r", lrm, "-p",
            parity.path("prompts.txt"), "-o", path, "--init-lora",
            parity.path("init.safetensors"), "--lr", 0, "--lora-format", form,
            "--lora-f32", "--iterations", 1, "--prompts-per-iteration", 2,
            "--steps", 2, "--candidates", 2, "--batch", 1, "--db", "none",
            "--threshold", "static:0", "--precision", "f32")
        parity.check(f"LoRA written: {form}, read here", m.name,
                     probe(m, path, x), truth, own)
        got, alphas = mixin.lora_state_dict(
            path, unet_config=m.unet(torch.float32).config)
        net = copy.deepcopy(m.unet(torch.float32))
        mixin.load_lora_into_unet(got, network_alphas=alphas, unet=net)
        parity.check(f"LoRA written: {form}, by load_lora_weights", m.name,
                     evaluate(net, x, torch.float32), truth, own)
        if form == "diffusers":
            net = copy.deepcopy(m.unet(torch.float32))
            net.load_lora_adapter(path, prefix="unet")
            parity.check(f"LoRA written: {form}, by load_lora_adapter",
                         m.name, evaluate(net, x, torch.float32), truth, own)


def main():
    for m in models.all():
        gen = torch.Generator().manual_seed(80 + m.seed)
        context, more = m.conditioning(2, gen)
        x = dict(sample=torch.randn(2, 4, m.h, m.w, generator=gen),
                 timestep=torch.tensor([11, 701]),
                 encoder_hidden_states=context, **more)
        read(m, x)
        if m.name in WRITTEN:
            write(m, x)


parity.run(main)

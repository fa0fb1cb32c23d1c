"""torch's side of fullsize.py: one work in a process of its own.

usage: fullsize_torch.py WORK FOLDER DTYPE REPEAT IN OUT

Reads IN, writes OUT, both safetensors, and prints the least seconds of REPEAT
runs and the process's peak memory in bytes.  f32 and bf16 run as fast as eager
PyTorch can: channels last, attention by scaled_dot_product_attention.  f64 is
the truth: weights stay f32 and become f64 layer by layer, and what a backward
pass needs is computed twice, or a model of 2.6e9 weights would need 60 GB.
"""
import json
import os
import sys
import time

import models                           # sets diffusers' verbosity
import torch
import transformers
from lrm_torch import Lrm
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

DTYPES = dict(f64=torch.float64, f32=torch.float32, bf16=torch.bfloat16)


def wide(module):
    """f64 activations over f32 weights."""
    def d(p):
        return None if p is None else p.double()

    nn = torch.nn
    ways = {
        nn.Linear: lambda m, x, *_: F.linear(x, d(m.weight), d(m.bias)),
        nn.Conv2d: lambda m, x, *_: F.conv2d(
            x, d(m.weight), d(m.bias), m.stride, m.padding),
        nn.GroupNorm: lambda m, x: F.group_norm(
            x, m.num_groups, d(m.weight), d(m.bias), m.eps),
        nn.LayerNorm: lambda m, x: F.layer_norm(
            x, m.normalized_shape, d(m.weight), d(m.bias), m.eps),
        nn.Embedding: lambda m, x: d(F.embedding(x, m.weight))}
    for m in module.modules():
        # not by name: PEFT has a Linear too
        way = next((w for c, w in ways.items() if isinstance(m, c)), None)
        if way:
            m.forward = lambda *x, m=m, way=way: way(m, *x)
        elif next(m.parameters(recurse=False), None) is not None:
            raise RuntimeError(f"{type(m).__name__}: no f64 for its weights")
    if hasattr(module, "time_proj"):
        models.exact_sinusoids(module)
    return module


def twice(module):
    """No activation inside a residual block or a transformer is kept."""
    for m in module.modules():
        if type(m).__name__ in ("ResnetBlock2D", "Transformer2DModel"):
            m.forward = lambda *x, f=m.forward, **kw: checkpoint(
                f, *x, use_reentrant=False, **kw)
    return module


def ready(module, dtype):
    """A network for this run."""
    if dtype == torch.float64:
        return wide(module.eval())
    return module.to(dtype, memory_format=torch.channels_last).eval()


def config(folder, part):
    with open(f"{folder}/{part}/config.json", encoding="utf8") as f:
        return json.load(f)


def load_unet(folder):
    from diffusers import UNet2DConditionModel
    return UNet2DConditionModel.from_pretrained(f"{folder}/unet")


def load_text(folder, which):
    from transformers import CLIPTextModel, CLIPTextModelWithProjection
    cls = CLIPTextModelWithProjection if which else CLIPTextModel
    return cls.from_pretrained(f"{folder}/text_encoder{'_2' * which}")


class Folder:
    """A folder as lrm_torch.Lrm wants a model of the zoo."""

    def __init__(self, folder):
        self.folder = folder
        self.xl = os.path.exists(f"{folder}/text_encoder_2")
        self.texts = [config(folder, "text_encoder" + "_2" * i)
                      for i in range(1 + self.xl)]
        self.pooled = self.texts[-1]["projection_dim"]
        self.vae_config = config(folder, "vae")
        self.factor = 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    def unet(self, dtype):
        net = load_unet(self.folder)
        net.up_blocks = net.conv_out = net.conv_norm_out = None
        return ready(net, dtype)

    def text(self, dtype, which=0):
        return ready(load_text(self.folder, which), dtype)

    def empty(self, which=0):
        from transformers import CLIPTokenizer
        return CLIPTokenizer.from_pretrained(
            f"{self.folder}/tokenizer{'_2' * which}")(
            [""], padding="max_length", return_tensors="pt").input_ids


def given(x, dtype):
    """Inputs in this run's type, pictures channels last."""
    if not x.is_floating_point():
        return x
    return x.to(dtype).contiguous(memory_format=torch.channels_last) \
        if x.dim() == 4 else x.to(dtype)


def unet(folder, dtype, x, net=None):
    net = net or ready(load_unet(folder), dtype)
    more = {k: x[k] for k in ("text_embeds", "time_ids") if k in x}
    return lambda: dict(out=net(
        x["sample"], x["timestep"], x["encoder_hidden_states"],
        added_cond_kwargs=more or None).sample)


def lora(folder, dtype, x):
    """Gradients of a LoRA that lies in the inputs under PEFT's keys."""
    from peft import LoraConfig
    net = load_unet(folder).requires_grad_(False)
    rank = next(v.shape[0] for k, v in x.items() if ".lora_A." in k)
    net.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=[
        "to_q", "to_k", "to_v", "to_out.0"]))
    params = {}
    for k, p in net.named_parameters():
        if ".lora_" in k:
            key = "unet." + k.replace(".default", "")
            p.data, params[key] = x[key].clone(), p
    net = ready(net, dtype)
    if dtype == torch.float64:
        twice(net)
    forward = unet(folder, dtype, x, net)
    x["sample"].requires_grad_()        # ours has its gradient too

    def run():
        for p in params.values():
            p.grad = None
        x["sample"].grad = None
        out = forward()["out"]
        out.backward(x["d_out"])
        return dict(out=out, d_sample=x["sample"].grad) | {
            f"grad.{k}": p.grad for k, p in params.items()}

    return run


def vae(folder, dtype, name):
    from diffusers import AutoencoderKL
    net = AutoencoderKL.from_pretrained(f"{folder}/vae")
    if name == "encode":
        net.decoder = net.post_quant_conv = None
    else:
        net.encoder = net.quant_conv = None
    return ready(net, dtype)


def encode(folder, dtype, x):
    net = vae(folder, dtype, "encode")
    return lambda: dict(
        moments=net.encode(x["image"]).latent_dist.parameters)


def decode(folder, dtype, x):
    net = vae(folder, dtype, "decode")
    return lambda: dict(image=net.decode(x["latent"]).sample)


def text(folder, dtype, x, which=0):
    net = ready(load_text(folder, which), dtype)

    def run():
        o = net(x["input_ids"], output_hidden_states=True)
        return dict(last_hidden_state=o.last_hidden_state,
                    penultimate=o.hidden_states[-2]) | (
            dict(projected=o.text_embeds) if which else {})

    return run


def text_2(folder, dtype, x):
    return text(folder, dtype, x, 1)


def ids(x):
    return [x[k] for k in ("input_ids", "input_ids_2") if k in x]


def lrm(folder, dtype, x):
    model = Lrm(Folder(folder), dtype)

    def run():
        score, visual, words = model.score(x["sample"], x["timestep"], ids(x))
        return dict(score=score, visual=visual, text=words)

    return run


def lrm_loss(folder, dtype, x):
    """Loss and every gradient of the reward model."""
    model = Lrm(Folder(folder), dtype)
    if dtype == torch.float64:
        twice(model.unet)
    latents = torch.stack([x["sample_0"], x["sample_1"]])
    t, y = (torch.stack([x[a], x[b]]) for a, b in (
        ("timestep", "timestep"), ("label_0", "label_1")))
    named = model.named()

    def run():
        model.zero_grad()
        loss, _ = model.loss(latents, t, ids(x), y,
                             x["num_example_per_prompt"])
        loss.backward()
        # what no score depends on has none: SDXL's last layer of text
        return dict(loss=loss) | {
            f"grad.{k}": torch.zeros_like(p) if p.grad is None else p.grad
            for k, p in named.items()}

    return run


def lrm_folder(folder, where):
    """The reward model's folder for ours; its big files are links."""
    Lrm(Folder(folder), torch.float32).save(where, os.symlink)


WORKS = dict(unet=unet, lora=lora, encode=encode, decode=decode, text=text,
             text_2=text_2, lrm=lrm, lrm_loss=lrm_loss)


def peak_bytes():
    with open("/proc/self/status", encoding="ascii") as f:
        return next(1024 * int(line.split()[1]) for line in f
                    if line.startswith("VmHWM"))


def main():
    work, folder, dtype, repeat, source, to = sys.argv[1:]
    transformers.utils.logging.disable_progress_bar()
    if work == "lrm-folder":
        return lrm_folder(folder, to)
    dtype = DTYPES[dtype]
    x = {k: given(v, dtype) for k, v in load_file(source).items()}
    seconds = []
    with torch.set_grad_enabled(work in ("lora", "lrm_loss")):
        run = WORKS[work](folder, dtype, x)
        for _ in range(int(repeat)):
            out = None                  # two of them would be peak memory
            start = time.monotonic()
            out = run()
            seconds.append(time.monotonic() - start)
    print(min(seconds), peak_bytes())
    # f32 holds every bf16, and of f64 more than the errors looked for;
    # nothing is copied that is so already, or gradients would be there twice
    save_file({k: v.detach().float().contiguous() for k, v in out.items()},
              to)


if __name__ == "__main__":
    main()

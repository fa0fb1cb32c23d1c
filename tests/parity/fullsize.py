"""Models of the published sizes: errors, seconds and memory of both sides.

usage: fullsize.py [KIND ...]           sd15, sd21, sdxl; also tiny ...

Not one of the checks that tests/parity/run makes unasked: it takes hours, and
memory; `tests/parity/run fullsize` or `tests/parity/run fullsize:sd15`.  Each
model is -m random:KIND, written by lpo-probe --save, so that diffusers and
transformers read the same weights.  Errors are by the rule of parity.py in f32
and in bf16; gradients of the reward model are compared as one vector and by
their norm.  Seconds are the least of FULLSIZE_REPEAT runs (3) of either side,
one after the other on all cores, weights loaded; memory is each process's
peak.  What needs more memory than there is is left out, and said.

FULLSIZE_TMP    a folder for 20 GB of files; else the system's for such
FULLSIZE_WORKS  only these, of the list in WORKS below, by commas
FULLSIZE_SIDE   another side of the UNet's latents than the model's own
FULLSIZE_TYPES  f32,bf16
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import parity
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

THREADS = len(os.sched_getaffinity(0))
REPEAT = os.environ.get("FULLSIZE_REPEAT", "3")
TYPES = os.environ.get("FULLSIZE_TYPES", "f32,bf16").split(",")
TOKENS = 77
PROMPTS = ["a photo of an astronaut riding a horse on the moon", ""]


class Kind:
    """A folder of a random model, and inputs of its networks."""

    def __init__(self, name, scratch):
        self.name, self.scratch = name, scratch
        self.folder = os.path.join(scratch, name)
        parity.tool("lpo-probe", "--save", self.folder, "-m",
                    f"random:{name}")
        with open(f"{self.folder}/unet/config.json", encoding="utf8") as f:
            self.config = json.load(f)
        self.xl = os.path.exists(f"{self.folder}/text_encoder_2")
        self.side = int(os.environ.get("FULLSIZE_SIDE",
                                       self.config["sample_size"]))
        # with gradients, SDXL at 128x128 takes torch more than 32 GB
        self.grad_side = min(self.side, 64) if self.xl else self.side
        self.gen = torch.Generator().manual_seed(7)

    def path(self, name):
        return os.path.join(self.scratch, name)

    def weights(self, *parts):
        """Their bytes in f32."""
        return sum(os.path.getsize(os.path.join(self.folder, p, f))
                   for p in parts for f in os.listdir(
                       os.path.join(self.folder, p)) if "safetensors" in f
                   ) * (1 + self.xl)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.gen)

    def ids(self, n, which=0):
        text = "\n".join((PROMPTS * n)[:n]) + "\n"
        out = parity.tool("lpo-probe", "-c", "tokenizer" + "_2" * which, "-m",
                          self.folder, input=text, text=True)
        return torch.tensor([[int(i) for i in line.split()]
                             for line in out.splitlines()])

    def both_ids(self, n):
        return {"input_ids" + "_2" * i: self.ids(n, i)
                for i in range(1 + self.xl)}

    def unet(self, side):
        """A guidance pair: one latent, two contexts."""
        x = dict(sample=self.normal(1, 4, side, side).repeat(2, 1, 1, 1),
                 timestep=torch.tensor([501, 501]),
                 encoder_hidden_states=self.normal(
                     2, TOKENS, self.config["cross_attention_dim"]))
        if self.xl:
            px = 8. * side
            x["time_ids"] = torch.tensor([[px, px, 0, 0, px, px]] * 2)
            x["text_embeds"] = self.normal(
                2, self.config["projection_class_embeddings_input_dim"]
                - 6 * self.config["addition_time_embed_dim"])
        return x

    def lora(self):
        out = {}
        with safe_open(f"{self.folder}/unet/diffusion_pytorch_model"
                       ".safetensors", "pt") as f:
            for k in sorted(f.keys()):
                if k.endswith(("to_q.weight", "to_k.weight", "to_v.weight",
                               "to_out.0.weight")):
                    o, i = f.get_slice(k).get_shape()
                    k = "unet." + k.removesuffix("weight")
                    out[k + "lora_A.weight"] = self.normal(4, i) * i ** -0.5
                    out[k + "lora_B.weight"] = self.normal(o, 4) * 0.05
        return out


def run_torch(kind, work, precision, repeat):
    """Seconds, bytes and the name of what came out."""
    out = kind.path(f"{work}.{precision}")
    done = subprocess.run(
        [sys.executable, os.path.join(parity.HERE, "fullsize_torch.py"), work,
         kind.folder, precision, repeat, kind.path("in"), out], check=True,
        stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(THREADS)})
    if work == "lrm-folder":
        return None
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak), out


def run_ours(kind, component, precision, more):
    out = kind.path("ours")
    line = parity.tool(
        "lpo-probe", "-c", component, "-m", kind.folder, "-i",
        kind.path("in"), "-o", out, "--force", "--precision", precision, "-j",
        THREADS, "--repeat", REPEAT, *more, small=True, text=True)
    _, ms, _, peak = line.split("\t")
    return float(ms) / 1e3, int(peak), out


def compare(what, kind, ours, truth, own):
    parity.check(what, kind.name, ours, truth, own)


def compare_scores(what, kind, ours, truth, own):
    """Scores are dot products of unit vectors, a few numbers only, in which
    torch's bf16 may be right by luck: an error of V makes one of about its
    length by the square root of the size, times e^s."""
    for k in ("visual", "text"):
        parity.check(f"{what}, {k}", kind.name, ours[k], truth[k], own[k])
    off = (own["visual"] - truth["visual"]).norm(dim=-1).max().item()
    scale = (truth["score"] / (truth["visual"] * truth["text"]).sum(-1))
    mine = max((own["score"] - truth["score"]).abs().max().item(),
               scale.abs().max().item() * off / own["visual"].shape[1] ** 0.5)
    error = (ours["score"] - truth["score"]).abs().max().item()
    parity.add(f"{what}, score", kind.name, error, mine,
               4 * mine + 1e-5 * truth["score"].abs().max().item())


def compare_lora(what, kind, ours, truth, own):
    """LoRA gradients: in bf16 as one vector, a tensor's error is luck."""
    for key, name in (("out", "forward"), ("d_sample", "input gradient")):
        parity.check(f"{what}, {name}", kind.name, ours[key], truth[key],
                     own[key])
    if "bf16" in what:
        return compare_vector(what, kind, ours, truth, own)
    parity.check(f"{what}, LoRA gradients", kind.name, *(
        {k: v for k, v in x.items() if k.startswith("grad.")}
        for x in (ours, truth, own)))


def compare_vector(what, kind, ours, truth, own):
    """All gradients as one: the error's and its own norm, by parts of it."""
    total = error = mine = ours_norm = own_norm = 0
    for k in (k for k in truth if k.startswith("grad.")):
        a, t, b = (x[k].double().flatten() for x in (ours, truth, own))
        total += t.square().sum().item()
        error += (a - t).square().sum().item()
        mine += (b - t).square().sum().item()
        ours_norm += a.square().sum().item()
        own_norm += b.square().sum().item()
    total, error, mine, ours_norm, own_norm = (
        v ** 0.5 for v in (total, error, mine, ours_norm, own_norm))
    parity.add(f"{what}, gradients", kind.name, error / total, mine / total,
               4 * mine / total + 1e-5, f"of a norm of {total:.6g}")
    off, own_off = (abs(n - total) / total for n in (ours_norm, own_norm))
    # the norms' errors may cancel in one and not in the other
    parity.add(f"{what}, gradients' norm", kind.name, off, own_off,
               4 * max(own_off, (mine / total) ** 2) + 1e-5,
               f"{ours_norm:.6g} for {total:.6g}")
    if "bf16" not in what:              # a single number: see the scores
        parity.check(f"{what}, loss", kind.name, ours["loss"].reshape(()),
                     truth["loss"], own["loss"])


class Lazy:
    """A file's tensors, read when asked for."""

    def __init__(self, path):
        self.file = safe_open(path, "pt")

    def __iter__(self):
        return iter(self.file.keys())

    def __contains__(self, key):
        return key in self.file.keys()

    def __getitem__(self, key):
        return self.file.get_tensor(key)


def free_bytes():
    with open("/proc/meminfo", encoding="ascii") as f:
        return next(1024 * int(line.split()[1]) for line in f
                    if line.startswith("MemAvailable"))


def work(kind, name, what, component, inputs, need, how=compare, more=()):
    """Both sides of one work, in f32 and bf16; need: bytes of the f64 run"""
    asked = os.environ.get("FULLSIZE_WORKS")
    if asked and name not in asked.split(","):
        return
    label = f"{what}, {kind.name}"
    if need > free_bytes():
        parity.skip(label, f"needs {need / 1e9:.0f} GB of memory")
        return
    print(f"  {label}", file=sys.stderr, flush=True)
    save_file({k: v.contiguous() for k, v in inputs.items()},
              kind.path("in"))
    try:
        truth = run_torch(kind, name, "f64", "1")[2]
        read = Lazy if how is compare_vector else load_file
        for precision in TYPES:
            a = run_ours(kind, component, precision, more)
            b = run_torch(kind, name, precision, REPEAT)
            print(f"    {precision}: {a[0]:.2f} s, torch's {b[0]:.2f} s",
                  file=sys.stderr, flush=True)
            parity.timing(f"{precision}: {what}", kind.name, a[:2], b[:2])
            how(f"{precision}: {what}", kind,
                *(read(f) for f in (a[2], truth, b[2])))
    except (RuntimeError, subprocess.CalledProcessError) as e:
        parity.add(label, kind.name, float("nan"), 0, 0, str(e)[:300])
    for f in ("ours", f"{name}.f64", f"{name}.f32", f"{name}.bf16"):
        if os.path.exists(kind.path(f)):
            os.remove(kind.path(f))


def reward(kind):
    """Scores of two latents; loss and gradients of a pair."""
    where = kind.path("lrm")
    run_torch(kind, "lrm-folder", "f32", "1")
    os.rename(kind.path("lrm-folder.f32"), where)
    parts = ["unet", "text_encoder"] + ["text_encoder_2"] * kind.xl
    size, side, small = kind.weights(*parts), kind.side, kind.grad_side
    work(kind, "lrm", f"LRM scores, {side}x{side}", "lrm", dict(
        sample=kind.normal(2, 4, side, side), timestep=torch.tensor([501, 51]),
        **kind.both_ids(2)), size + 4e9, compare_scores, ("-r", where))
    x = kind.normal(2, 1, 4, small, small)
    # half the weights, gradients and a file of them
    work(kind, "lrm_loss", f"LRM step, {small}x{small}", "lrm-loss", dict(
        sample_0=x[0], sample_1=x[1], timestep=torch.tensor([201]),
        label_0=torch.tensor([1.]), label_1=torch.tensor([0.]),
        num_example_per_prompt=torch.tensor([1.]), **kind.both_ids(1)),
        1.5 * size + 5e9 * (small / 64) ** 2, compare_vector,
        ("-r", where, "--grad"))
    shutil.rmtree(where)


def model(kind):
    side, small, size = kind.side, kind.grad_side, kind.weights("unet")
    work(kind, "unet", f"UNet forward, pair at {side}x{side}", "unet",
         kind.unet(side), size + 4e9)
    lora = kind.lora()
    save_file(lora, kind.path("lora"))
    work(kind, "lora", f"UNet LoRA gradients, pair at {small}x{small}", "unet",
         kind.unet(small) | lora | dict(
             d_out=kind.normal(2, 4, small, small)),
         1.2 * size + 6e9 * (small / 64) ** 2, compare_lora,
         ("--grad", "--lora", kind.path("lora")))
    for i in range(1 + kind.xl):
        tail = "_2" * i
        work(kind, "text" + tail, f"text encoder {i + 1}, 2 prompts",
             "text" + tail, dict(input_ids=kind.ids(2, i)),
             kind.weights("text_encoder" + tail) + 1e9)
    reward(kind)
    px = 8 * side
    image = torch.rand(1, 3, px, px, generator=kind.gen) * 2 - 1
    work(kind, "encode", f"VAE encode, {px} px", "vae-encode",
         dict(image=image), 7e9 * (px / 512) ** 2)
    work(kind, "decode", f"VAE decode, {px} px", "vae-decode",
         dict(latent=kind.normal(1, 4, side, side)), 8e9 * (px / 512) ** 2)


WORKS = ("unet", "lora", "text", "text_2", "lrm", "lrm_loss", "encode",
         "decode")


def main():
    for name in sys.argv[1:] or ("sd15", "sd21", "sdxl"):
        with tempfile.TemporaryDirectory(
                dir=os.environ.get("FULLSIZE_TMP")) as scratch:
            model(Kind(name, scratch))


parity.run(main)

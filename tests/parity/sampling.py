"""lpo-sample against diffusers' own pipelines, pixel by pixel.

Every model of the zoo and the demo's: sizes, step counts, guidance and none,
LoRA strengths, SDXL's empty prompt as zeros and encoded; the three generators
(torch's own; torch's on CUDA and ours from draws.py's NumPy); eta 0 and 1.
Pictures may differ by one level, and may not hide in black and white.
"""
import io
import json
import os
import shutil
import sys
import tarfile

import numpy as np
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, StableDiffusionPipeline,
                       StableDiffusionXLPipeline, UNet2DConditionModel)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizerFast

import models
import parity
from draws import ETA, LATENT, normals, torch_cuda

PROMPTS = ["a red circle", "two LARGE  blue crosses, weird!", ""]


def pipeline(m):
    """diffusers' pipeline of a folder of the zoo."""
    parts = dict(vae=m.vae(torch.float32), unet=m.unet(torch.float32),
                 text_encoder=m.text(torch.float32),
                 tokenizer=CLIPTokenizerFast.from_pretrained(
                     f"{m.folder}/tokenizer"),
                 scheduler=DDIMScheduler.from_pretrained(
                     f"{m.folder}/scheduler"))
    if not m.xl:
        return sd(parts)
    return StableDiffusionXLPipeline(
        **parts, text_encoder_2=m.text(torch.float32, 1),
        tokenizer_2=CLIPTokenizerFast.from_pretrained(
            f"{m.folder}/tokenizer_2"), add_watermarker=False)


def sd(parts):
    return StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)


def demo():
    d = parity.ROOT + "/demo/model"
    return sd(dict(
        vae=AutoencoderKL.from_pretrained(d + "/vae").float(),
        unet=UNet2DConditionModel.from_pretrained(d + "/unet").float(),
        text_encoder=CLIPTextModel.from_pretrained(
            d + "/text_encoder").float(),
        tokenizer=CLIPTokenizerFast.from_pretrained(d + "/tokenizer"),
        scheduler=DDIMScheduler.from_pretrained(d + "/scheduler")))


def sample(folder, *args):
    """Pictures and their text chunks, by key."""
    with open(parity.path("prompts.csv"), "w", encoding="utf8") as f:
        f.write("prompt\n" + "".join(f'"{p}"\n' for p in PROMPTS))
    tar = tarfile.open(fileobj=io.BytesIO(parity.tool(
        "lpo-sample", "-q", "--db", "none", "--precision", "f32", "-m",
        folder, "-p", parity.path("prompts.csv"), "-o", "-", *args)))
    out = {}
    for name in tar.getnames():
        if name.endswith(".png"):
            im = Image.open(io.BytesIO(tar.extractfile(name).read()))
            im.load()
            out[name[:-4]] = im
    return out


class Noise:
    """What diffusers is to draw from: latents, then a step's noise."""
    def __init__(self, rng, seed, number):
        self.rng, self.seed, self.number, self.calls = rng, seed, number, 0
        self.generator = torch.Generator().manual_seed(seed + number)

    def __call__(self, shape, generator=None, device=None, dtype=None,
                 layout=None):
        n, k = int(np.prod(shape)), self.calls
        self.calls += 1
        if self.rng == "torch-cpu":
            return torch.randn(shape, generator=self.generator)
        if self.rng == "torch-cuda":
            x = torch_cuda(n, self.seed + self.number, k)
        elif k == 0:
            x = normals(n, self.seed, LATENT, self.number, 0)
        else:
            x = normals(n, self.seed, ETA, self.number, 0, k - 1)
        return torch.tensor(x, dtype=torch.float32).reshape(shape)


def theirs(pipe, prompt, number, size, steps, guidance, eta, rng, scale):
    """diffusers' picture; the pipeline's and scheduler's randn replaced."""
    noise = Noise(rng, 42, number)
    places = [sys.modules[type(x).__module__] for x in
              (pipe, pipe.scheduler)]
    kept = [p.randn_tensor for p in places]
    for p in places:
        p.randn_tensor = noise
    try:
        return pipe(prompt, height=size, width=size,
                    num_inference_steps=steps, guidance_scale=guidance,
                    eta=eta, cross_attention_kwargs={"scale": scale},
                    output_type="pil").images[0]
    finally:
        for p, k in zip(places, kept):
            p.randn_tensor = k


def compare(what, name, pipe, folder, size, steps=6, guidance=5.0, eta=0.0,
            rng="torch-cpu", lora=None, scale=1.0):
    args = ["-s", size, "--steps", steps, "-g", guidance, "--eta", eta,
            "--rng", rng, "--seed", 42]
    if lora:
        args += ["--lora", f"{lora}:{scale}"]
    got = sample(folder, *args)
    case = f"{size} px, {steps} steps, guidance {guidance:g}, eta {eta:g}, " \
        f"{rng}" + (f", LoRA {scale:g}" if lora else "")
    grey = []
    for i, prompt in enumerate(PROMPTS):
        ours = np.asarray(got[f"{i:09d}-0"]).astype(int)
        im = np.asarray(theirs(pipe, prompt, i, size, steps, guidance, eta,
                               rng, scale)).astype(int)
        parity.add(what, name, float(np.abs(ours - im).max()), 0, 1.0, case)
        grey.append(np.mean((im > 0) & (im < 255)))
    if max(grey) < 0.1:
        parity.add(what, name, float("nan"), 0, 0, f"saturated, {case}")


def random_lora(unet, where):
    gen = torch.Generator().manual_seed(5)
    out = {}
    for name, m in unet.named_modules():
        if ".attn" in name and isinstance(m, torch.nn.Linear):
            o, i = m.weight.shape
            out[f"unet.{name}.lora_A.weight"] = torch.randn(
                3, i, generator=gen) * i ** -0.5
            out[f"unet.{name}.lora_B.weight"] = 0.3 * torch.randn(
                o, 3, generator=gen)
    save_file(out, where)


def chunks(folder, size):
    """`parameters` and `lpo`, as Pillow reads them."""
    for key, im in sample(folder, "-s", size, "--steps", 3, "-g", 7.5,
                          "--rng", "torch-cpu").items():
        i = int(key.split("-")[0])
        text = im.text
        parity.equal("PNG text chunks", "demo",
                     text["parameters"].startswith(PROMPTS[i] + "\n"), True)
        parity.equal("PNG text chunks", "demo", all(
            part in text["parameters"] for part in (
                "Steps: 3", "CFG scale: 7.5", f"Seed: {42 + i}",
                f"Size: {size}x{size}")), True, text["parameters"])
        record = json.loads(text["lpo"])
        parity.equal("PNG text chunks", "demo", [record[k] for k in (
            "key", "number", "steps", "guidance", "eta")],
            [key, i, 3, 7.5, 0.0])


def empty_prompt(m, pipe, size):
    """force_zeros_for_empty_prompt both ways, as model_index.json says."""
    for zeros in False, True:
        other = parity.path(f"{m.name}-zeros{zeros:d}")
        shutil.copytree(m.folder, other)
        with open(f"{other}/model_index.json", "w", encoding="utf8") as f:
            json.dump(dict(_class_name="StableDiffusionXLPipeline",
                           force_zeros_for_empty_prompt=zeros), f)
        pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
        compare("lpo-sample, SDXL's empty prompt", m.name, pipe, other, size)
        shutil.rmtree(other)


def zoo(m):
    pipe = pipeline(m)
    pipe.set_progress_bar_config(disable=True)
    # the pipelines want multiples of 8; latents of odd sides among them
    size = 40 if m.factor == 8 else 24
    for steps, guidance in ((6, 5.0), (3, 1.0)):
        compare("lpo-sample", m.name, pipe, m.folder, size, steps, guidance)
    if m.xl:
        empty_prompt(m, pipe, size)
    random_lora(pipe.unet, parity.path("lora.safetensors"))
    pipe.load_lora_weights(parity.path("lora.safetensors"))
    for scale in 1.0, 0.6:
        compare("lpo-sample --lora", m.name, pipe, m.folder, size, 4,
                lora=parity.path("lora.safetensors"), scale=scale)


def main():
    pipe, folder = demo(), parity.ROOT + "/demo/model"
    pipe.set_progress_bar_config(disable=True)
    for steps, guidance, size in ((20, 5.0, 32), (50, 7.5, 40), (7, 1.0, 56),
                                  (1, 3.0, 32)):
        compare("lpo-sample", "demo", pipe, folder, size, steps, guidance)
    for rng in "torch-cpu", "torch-cuda", "philox":
        for eta in 0.0, 0.5, 1.0:
            compare("lpo-sample, generators", "demo", pipe, folder, 32, 10,
                    eta=eta, rng=rng)
    chunks(folder, 32)
    for m in models.all():
        if not os.environ.get("ONLY") or m.name == os.environ["ONLY"]:
            zoo(m)


parity.run(main)

"""lpo-eval's built-in scorers: CLIP, the aesthetic head, a reward model.

Two CLIPModels of 257 tokens with heads of 64 and of 80, random pictures of
every size, shape and kind, prepared by transformers' CLIPImageProcessor with
Pillow; a reward model's scores by diffusers and torch.
"""
import csv
import io
import json
import os
import shutil

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import models
import parity

PICTURES = 24
WORDS = "red blue circle square two three large small above below".split()
TEXT = dict(vocab_size=models.VOCABULARY, bos_token_id=models.BOS,
            eos_token_id=models.EOS, pad_token_id=models.EOS,
            max_position_embeddings=models.TOKENS)
CLIPS = {
    "heads of 64": dict(
        projection_dim=96, logit_scale_init_value=4.6052, text_config=TEXT |
        dict(hidden_size=128, intermediate_size=512, num_attention_heads=2,
             num_hidden_layers=4),
        vision_config=dict(hidden_size=256, intermediate_size=1024,
                           num_attention_heads=4, num_hidden_layers=6,
                           image_size=224, patch_size=14)),
    "heads of 80": dict(
        projection_dim=128, logit_scale_init_value=4.6052, text_config=TEXT |
        dict(hidden_size=96, intermediate_size=384, num_attention_heads=3,
             num_hidden_layers=3, hidden_act="gelu"),
        vision_config=dict(hidden_size=320, intermediate_size=1280,
                           num_attention_heads=4, num_hidden_layers=5,
                           image_size=224, patch_size=14,
                           hidden_act="gelu")),
}


def pillow_12():
    """Pillow 13 swaps the passes where the height shrinks more than the
    width, and differs there by a level in places; all before it never did."""
    resize = Image.Image.resize

    def two(self, size, resample=None, box=None, reducing_gap=None):
        wide = resize(self, (size[0], self.height), resample)
        return resize(wide, size, resample)
    Image.Image.resize = two


def picture(rng, i):
    """A file's bytes: sides from 3 to 900, tall and wide, all kinds."""
    w, h = (int(np.exp(rng.uniform(np.log(3), np.log(900))))
            for _ in range(2))
    if i < 3:           # what is left alone, or of one side
        w, h = ((224, 224), (224, 300), (500, 224))[i]
    y, x = np.mgrid[0:h, 0:w]
    wave = np.stack([np.sin(x / rng.uniform(1, 40) + y / rng.uniform(1, 40))
                     for _ in range(4)], -1)
    a = np.clip(128 + 100 * wave + rng.normal(0, 20, wave.shape), 0, 255)
    rgba = Image.fromarray(a.astype(np.uint8), "RGBA")
    rgb = rgba.convert("RGB")
    kind = [(rgb, "PNG", {}), (rgba, "PNG", {}), (rgb.convert("L"), "PNG", {}),
            (rgb.quantize(100), "PNG", {}), (rgb, "JPEG", {"quality": 80}),
            (rgb.convert("CMYK"), "JPEG", {}), (rgb, "WEBP", {"quality": 80}),
            (rgba, "WEBP", {"lossless": True})][i % 8]
    f = io.BytesIO()
    kind[0].save(f, kind[1], **kind[2])
    return f.getvalue(), {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}[kind[1]]


def pictures():
    """prefs.csv with its images; the images and prompts in turn."""
    rng = np.random.default_rng(7)
    files, prompts = [], []
    with open(parity.path("prefs.csv"), "w", newline="",
              encoding="utf8") as f:
        rows = csv.writer(f)
        rows.writerow(["prompt", "image_0", "image_1", "preferred"])
        for i in range(PICTURES // 2):
            prompt = " ".join(rng.choice(WORDS, rng.integers(0, 9)))
            names = []
            for k in range(2):
                data, ext = picture(rng, 2 * i + k)
                names.append(f"{i}-{k}.{ext}")
                with open(parity.path(names[k]), "wb") as out:
                    out.write(data)
                files.append(Image.open(io.BytesIO(data)).convert("RGB"))
                prompts.append(prompt)
            rows.writerow([prompt, *names, i % 2])
    return files, prompts


def scores(*args):
    """Columns of lpo-eval --images, image_0 and image_1 in turn."""
    out = parity.tool("lpo-eval", "--images", parity.path("prefs.csv"),
                      "--json", "-q", *args)
    rows = [json.loads(line) for line in out.splitlines()]
    names = [k[:-2] for k in rows[0] if k.endswith("_0")]
    return {n: torch.tensor([r[f"{n}_{k}"] for r in rows for k in (0, 1)],
                            dtype=torch.float64) for n in names}


def head(width, gen):
    sizes = [width, 1024, 128, 64, 16, 1]
    out = {}
    for k, a, b in zip((0, 2, 4, 6, 7), sizes, sizes[1:]):
        out[f"layers.{k}.weight"] = torch.randn(b, a, generator=gen) / a**0.5
        out[f"layers.{k}.bias"] = torch.randn(b, generator=gen)
    return out


def clip(name, config, files, prompts):
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import (
        CLIPImageProcessorPil)
    folder = parity.path(name.replace(" ", "-"))

    def make():
        model = models.randomise(CLIPModel(CLIPConfig(**config)), 5)
        model.logit_scale.data.fill_(4.6052)
        return model
    shutil.copytree(f"{parity.ROOT}/demo/model/tokenizer", folder)
    make().save_pretrained(folder)
    processor = CLIPImageProcessorPil()
    processor.save_pretrained(folder)
    weights = head(config["projection_dim"], torch.Generator().manual_seed(3))
    torch.save(weights, f"{folder}/head.pth")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer(
        prompts, padding="max_length", truncation=True,
        max_length=models.TOKENS).input_ids)
    pixels = torch.cat([torch.as_tensor(np.array(
        processor(f)["pixel_values"])) for f in files])

    def run(dtype):
        model = make().to(dtype)
        with torch.no_grad():
            out = model(input_ids=ids, pixel_values=pixels.to(dtype))
            y = out.image_embeds
            for k in (0, 2, 4, 6, 7):
                y = torch.nn.functional.linear(
                    y, weights[f"layers.{k}.weight"].to(dtype),
                    weights[f"layers.{k}.bias"].to(dtype))
        return {"clip": (out.image_embeds * out.text_embeds).sum(-1),
                "clip.logit": out.logits_per_image.diagonal(),
                "aesthetic": y[:, 0]}

    ours = scores("--scorer", f"clip:{folder}", "--scorer",
                  f"aesthetic:{folder}/head.pth,{folder}")
    truth, own = parity.both(run)
    for what, key in (("CLIP cosine", "clip"), ("CLIP logit", "clip.logit"),
                      ("aesthetic score", "aesthetic")):
        parity.check(what, name, ours[key], truth[key], own[key])
    one = scores("--scorer", f"clip:{folder}", "-j", "1", "--memory", "64M")
    parity.equal("scores, any threads and memory", name, one["clip"],
                 ours["clip"])


def features(unet, x, t, context):
    """Means of the last layer before each downsampler, and of the middle."""
    emb = unet.time_embedding(unet.time_proj(t).to(x.dtype))
    h, pooled = unet.conv_in(x), []
    for block in unet.down_blocks:
        if getattr(block, "has_cross_attention", False):
            h, kept = block(h, emb, encoder_hidden_states=context)
        else:
            h, kept = block(h, emb)
        pooled.append(kept[len(block.resnets) - 1].mean((2, 3)))
    h = unet.mid_block(h, emb, encoder_hidden_states=context)
    return pooled, h.mean((2, 3))


def reward(m, files, prompts, size):
    """lrm: at t = 1, of the scaled mean of the posterior, without noise."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    quiet = ["-m", m.folder, "--db", "none", "-q", "--precision", "f32"]
    lrm = parity.path("lrm-" + m.name)
    enc, pairs = parity.path("enc.tar"), parity.path("pairs.tar")
    parity.tool("lpo-encode", *quiet, "-s", size, "--force", "-o", enc,
                parity.path("prefs.csv"))
    parity.tool("lpo-pairs", *quiet, "--force", "-o", pairs, enc)
    parity.tool("lpo-lrm", *quiet, "--batch", 4, "--lr", "1e-3", "-o", lrm,
                pairs)
    state = torch.load(f"{lrm}/state_dict.pt", weights_only=True)
    scale = torch.as_tensor(state["logit_scale"]).double().exp()
    tokenizer = CLIPTokenizer.from_pretrained(f"{m.folder}/tokenizer")
    ids = torch.tensor(tokenizer(
        prompts + [""], padding="max_length", truncation=True,
        max_length=models.TOKENS).input_ids)
    x = np.stack([np.asarray(f.resize((size, size), Image.BILINEAR))
                  for f in files]).astype(np.float32) / 255 * 2 - 1

    def run(dtype):
        unet = models.exact_time(UNet2DConditionModel.from_pretrained(
            f"{lrm}/unet").to(dtype).eval())
        text = CLIPTextModel.from_pretrained(
            f"{lrm}/text_encoder").to(dtype).eval()
        vae = m.vae(dtype)
        image = torch.from_numpy(x).permute(0, 3, 1, 2).to(dtype)
        with torch.no_grad():
            z = vae.encode(image).latent_dist.mean * vae.config.scaling_factor
            out = text(ids)
            context = out.last_hidden_state
            t = torch.ones(len(z), dtype=torch.long)
            v, c = features(unet, z, t, context[:-1])
            _, u = features(unet, z, t, context[-1:].expand_as(context[:-1]))
            f = torch.cat([*v, u + 7.5 * (c - u)], 1)
            f = f @ state["visual_projection"]["weight"].to(dtype).T
            w = out.pooler_output[:-1] @ \
                state["text_projection"]["weight"].to(dtype).T
            cosine = torch.nn.functional.cosine_similarity(f, w, eps=0)
        return scale.to(dtype) * cosine

    truth, own = parity.both(run)
    ours = scores("-m", m.folder, "-s", size, "--scorer", f"lrm:{lrm}")
    parity.check("reward model as a scorer", m.name, ours["lrm"], truth, own)


def main():
    torch.manual_seed(1)
    pillow_12()
    files, prompts = pictures()
    for name, config in CLIPS.items():
        clip(name, config, files, prompts)
    for name, size in (("sd-four-levels", 64), ("sd-wide", 40)):
        reward(models.Model(name), files, prompts, size)


os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
parity.run(main)

#!/usr/bin/env python3
"""What transformers makes of pictures and prompts with small CLIPModels.

    make_scorers.py OUTDIR      (tests/golden/models)

Weights come from make_models.py's generator, so only pictures and results are
stored.  Per model one file, score_*.safetensors:

  metadata  config, preprocessor (their files' texts), keys ("KEY SHAPE..." a
            line), prompts (one a line, of the pictures in turn), versions
  picture.I the bytes of an image file
  crc32     [pictures] of the f32 pixel values [crop, crop, 3] of each
  NAME      computed in f64, stored as f32: image_embeds, text_embeds (before
            normalisation), cosine, logit [pictures], aesthetic [pictures]
  NAME.err  [1] largest error of the same in f32

The tokenizer is tests/golden/lrm/sd/tokenizer; the aesthetic head's keys are
generated like the others.

clip/ beside OUTDIR is a whole folder of this kind for tests/cli/scorers.t, with
head.safetensors, head.pth, pictures, prefs.csv and the scores as they should come out,
want.csv.
"""
import copy
import io
import json
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import (
    CLIPImageProcessorPil)

from make_images import picture, png
from make_models import fill, weight

VERSIONS = " ".join(f"{m.__name__} {m.__version__}" for m in
                    (torch, transformers, PIL))
TOKENIZER = Path(__file__).parent / "lrm/sd/tokenizer"
PROMPTS = ["a b", "", "d e a b c d", "cab c", "a b", "zz", "f", "a b", "d",
           "g h i", "cab c"]
TEXT = {"vocab_size": 54, "max_position_embeddings": 6, "bos_token_id": 52,
        "eos_token_id": 53, "pad_token_id": 53, "num_hidden_layers": 2}
# What old versions wrote for each tower, and it means nothing.
OLD = {"_name_or_path": "", "add_cross_attention": False,
       "architectures": None, "bad_words_ids": None, "do_sample": False,
       "id2label": {"0": "LABEL_0"}, "pruned_heads": {}, "top_k": 50}
# heads of 64 and of 80; whole patches and a rest; both generations of files:
# in the old one *_dict counts, also where it is silent (hidden_act)
MODELS = {
    "score_vit64": (
        {"projection_dim": 24, "text_config": OLD | {
            "hidden_act": "gelu", "hidden_size": 7},
         "text_config_dict": TEXT | {
            "hidden_size": 24, "intermediate_size": 48,
            "num_attention_heads": 3},
         "vision_config": OLD | {"hidden_act": "gelu", "image_size": 56},
         "vision_config_dict": {
            "hidden_size": 128, "intermediate_size": 192,
            "num_attention_heads": 2, "num_hidden_layers": 2,
            "image_size": 56, "patch_size": 14}},
        {"crop_size": 56, "do_center_crop": True, "do_normalize": True,
         "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor",
         "image_mean": [0.48145466, 0.4578275, 0.40821073],
         "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3,
         "size": 56}),
    "score_vit80": (
        {"projection_dim": 40, "text_config": TEXT | {
            "hidden_size": 32, "intermediate_size": 64,
            "num_attention_heads": 2, "hidden_act": "gelu"},
         "vision_config": {
            "hidden_size": 160, "intermediate_size": 200,
            "num_attention_heads": 2, "num_hidden_layers": 3,
            "image_size": 52, "patch_size": 10, "hidden_act": "gelu"}},
        {"crop_size": {"height": 52, "width": 52}, "do_center_crop": True,
         "do_convert_rgb": True, "do_normalize": True, "do_rescale": True,
         "do_resize": True, "image_mean": [0.5, 0.4, 0.3],
         "image_processor_type": "CLIPImageProcessor",
         "image_std": [0.5, 0.25, 0.125], "resample": 3,
         "rescale_factor": 0.00392156862745098,
         "size": {"shortest_edge": 60}}),
}


def pillow_12(resize):
    """Pillow 13 swaps the passes when the height shrinks more than the width;
    all before it never did."""
    def two(self, size, resample=None, box=None, reducing_gap=None):
        wide = resize(self, (size[0], self.height), resample)
        return resize(wide, size, resample)
    return two


Image.Image.resize = pillow_12(Image.Image.resize)


def saved(im, fmt, **kw):
    f = io.BytesIO()
    im.save(f, fmt, **kw)
    return f.getvalue()


def pictures():
    """Wide, tall, small, large, of every kind of pixel."""
    rgb = Image.fromarray(picture(97, 61))
    yield saved(rgb, "PNG")
    yield saved(Image.fromarray(picture(30, 83)), "PNG")
    yield saved(Image.fromarray(picture(64, 50, 4), "RGBA"), "PNG")
    yield saved(Image.fromarray(picture(81, 66)).convert("L"), "PNG")
    yield saved(Image.fromarray(picture(71, 75)).quantize(40), "PNG")
    yield png(60, 44, 16, 0)
    yield saved(Image.fromarray(picture(7, 190)), "PNG")
    yield saved(Image.fromarray(picture(201, 9)), "PNG")
    yield saved(Image.fromarray(picture(56, 56)), "PNG")
    yield saved(Image.fromarray(picture(160, 131)), "JPEG", quality=85)
    yield saved(Image.fromarray(picture(52, 88)), "WEBP", lossless=True)


def run(config, pixels, ids, dtype):
    model = fill(CLIPModel(CLIPConfig(**copy.deepcopy(config)))).to(dtype)
    out = model(input_ids=ids, pixel_values=pixels.to(dtype))
    image = model.visual_projection(model.vision_model(
        pixel_values=pixels.to(dtype)).pooler_output)
    text = model.text_projection(model.text_model(
        input_ids=ids).pooler_output)
    x = image / image.norm(dim=-1, keepdim=True)
    assert (x - out.image_embeds).abs().max() < 1e-5
    y, w = x, head(config["projection_dim"])
    for k in (0, 2, 4, 6, 7):
        y = torch.nn.functional.linear(y, w[f"layers.{k}.weight"].to(dtype),
                                       w[f"layers.{k}.bias"].to(dtype))
    return {"image_embeds": image, "text_embeds": text,
            "cosine": (out.image_embeds * out.text_embeds).sum(-1),
            "logit": out.logits_per_image.diagonal(), "aesthetic": y[:, 0]}


def head(projection):
    width = [projection, 32, 24, 16, 8, 1]
    return {f"layers.{k}.{n}": weight(f"layers.{k}.{n}", shape)
            for i, k in enumerate((0, 2, 4, 6, 7))
            for n, shape in (("weight", (width[i + 1], width[i])),
                             ("bias", (width[i + 1],)))}


def inputs(files, prompts, prep):
    processor = CLIPImageProcessorPil(**prep)
    pixels = torch.cat([torch.as_tensor(np.array(processor(
        Image.open(io.BytesIO(f)).convert("RGB"))["pixel_values"]))
        for f in files])
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    ids = torch.tensor(tokenizer(prompts, padding="max_length", max_length=6,
                                 truncation=True).input_ids)
    assert pixels.dtype == torch.float32 and len(files) == len(prompts)
    return pixels, ids


def make(path, config, prep):
    files = list(pictures())
    pixels, ids = inputs(files, PROMPTS, prep)
    with torch.no_grad():
        want = run(config, pixels, ids, torch.float64)
        f32 = run(config, pixels, ids, torch.float32)
    out = {f"picture.{i}": torch.frombuffer(bytearray(f), dtype=torch.uint8)
           for i, f in enumerate(files)}
    out["crc32"] = torch.tensor([zlib.crc32(p.permute(1, 2, 0).contiguous()
                                            .numpy().tobytes())
                                 for p in pixels])
    for k, v in want.items():
        out[k] = v.float().contiguous()
        out[k + ".err"] = (v - f32[k].double()).abs().max().float().reshape(1)
    model = CLIPModel(CLIPConfig(**copy.deepcopy(config)))
    keys = "\n".join(" ".join([k, *map(str, v.shape)])
                     for k, v in model.state_dict().items()
                     if not k.endswith("position_ids"))
    config = {"architectures": ["CLIPModel"], "model_type": "clip"} | config
    save_file(out, path, metadata={
        "config": json.dumps(config), "preprocessor": json.dumps(prep),
        "keys": keys, "prompts": "\n".join(PROMPTS), "versions": VERSIONS})
    print(path, path.stat().st_size, {k: float(out[k].abs().max())
                                      for k in want})


def folder(out):
    """What transformers itself writes, to be read by the programs."""
    config = {"projection_dim": 16, "logit_scale_init_value": 4.5,
              "text_config": TEXT | {
                  "hidden_size": 16, "intermediate_size": 32,
                  "num_attention_heads": 2},
              "vision_config": {
                  "hidden_size": 32, "intermediate_size": 48,
                  "num_attention_heads": 2, "num_hidden_layers": 1,
                  "image_size": 28, "patch_size": 7}}
    prep = {"crop_size": 28, "size": 28}
    (out / "img").mkdir(parents=True, exist_ok=True)
    fill(CLIPModel(CLIPConfig(**copy.deepcopy(config)))).save_pretrained(out)
    CLIPImageProcessorPil(**prep).save_pretrained(out)
    for f in TOKENIZER.iterdir():
        shutil.copy(f, out)
    save_file(head(16), out / "head.safetensors")
    torch.save(head(16), out / "head.pth")
    kinds = [("png", {}), ("jpg", {"quality": 90}), ("webp", {"quality": 70})]
    names, files, prompts, rows = [], [], [], []
    for i in range(12):
        ext, kw = kinds[i % 3]
        names.append(f"img/{i}.{ext}")
        files.append(saved(Image.fromarray(picture(20 + 7 * i, 50 - 3 * i)),
                           {"jpg": "JPEG"}.get(ext, ext.upper()), **kw))
        prompts.append(PROMPTS[i // 2])
        (out / names[i]).write_bytes(files[i])
    pixels, ids = inputs(files, prompts, prep)
    with torch.no_grad():
        got = run(config, pixels, ids, torch.float64)
    for i in range(6):
        rows.append([f"r{i}"] + [f"{float(got[k][2 * i + j]):.9g}"
                                 for k in ("aesthetic", "cosine", "logit")
                                 for j in (0, 1)])
    text = ["id,prompt,image_0,image_1,preferred"] + [
        f"r{i},{prompts[2 * i]},{names[2 * i]},{names[2 * i + 1]},{i % 2}"
        for i in range(6)]
    (out / "prefs.csv").write_text("\n".join(text) + "\n")
    (out / "want.csv").write_text("\n".join([
        "id,aesthetic_0,aesthetic_1,clipscore_0,clipscore_1,"
        "clipscore.logit_0,clipscore.logit_1"] +
        [",".join(r) for r in rows]) + "\n")
    print((out / "want.csv").read_text())


folder(Path(sys.argv[1]).parent / "clip")
for name, (c, p) in MODELS.items():
    make(Path(sys.argv[1]) / f"{name}.safetensors", c, p)

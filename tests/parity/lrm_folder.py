"""Reward models in the authors' layout, both ways, with diffusers and torch.

usage: lrm_folder.py MODEL [BIN]    MODEL: an SD1.5-like folder, small

1. lpo-lrm trains a step; diffusers, transformers and torch.load(weights_only)
   open the folder as the official code does, and its UNet has the base model's
   up blocks; its score in torch equals lpo-probe's.
2. A folder written by Python, in bf16, with state_dict.pt alone (logit_scale a
   float, then a tensor), is read by lpo-probe with the same score.
Prints one line each and exits 1 on a mismatch.  Not run by `make check`.
"""
import csv
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

MODEL = sys.argv[1]
BIN = sys.argv[2] if len(sys.argv) > 2 else "bin"
WORK = tempfile.mkdtemp()
GUIDANCE = 7.5
bad = 0


def check(name, good, text=""):
    global bad
    bad += not good
    print(f"{name:44s} {text}{'' if good else '  <-'}")


def run(*args):
    subprocess.run([os.path.join(BIN, args[0]), *args[1:]], check=True)


def at(name):
    return os.path.join(WORK, name)


def train():
    """A reward model of one step, from four random pictures."""
    rng = np.random.default_rng(1)
    with open(at("prefs.csv"), "w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["prompt", "image_0", "image_1", "preferred"])
        for i in range(2):
            for j in range(2):
                pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(at(f"{i}{j}.png"))
            rows.writerow(["a red fox", f"{i}0.png", f"{i}1.png", i])
    quiet = ["-m", MODEL, "--db", "none", "-q", "--precision", "f32"]
    run("lpo-encode", *quiet, "-o", at("enc.tar"), at("prefs.csv"))
    run("lpo-pairs", *quiet, "-o", at("pairs.tar"), at("enc.tar"))
    run("lpo-lrm", *quiet, "--batch", "2", "--dtype", "f32", "--lr", "1e-3",
        "-o", at("lrm"), at("pairs.tar"))


def score(unet, text, head, x, t, ids):
    """method.md 1: pooled down and mid features, guided mid, a cosine."""
    with torch.no_grad():
        out = text(ids)
        empty = text(ids[:1].clone().fill_(ids[0, -1]).index_fill_(
            1, torch.tensor([0]), int(ids[0, 0])))
        emb = unet.time_embedding(unet.time_proj(t).to(x.dtype))

        def pools(context):
            h, v = unet.conv_in(x), []
            for block in unet.down_blocks:
                if getattr(block, "has_cross_attention", False):
                    h, res = block(h, emb, encoder_hidden_states=context)
                else:
                    h, res = block(h, emb)
                v.append(res[len(block.resnets) - 1].mean((2, 3)))
            h = unet.mid_block(h, emb, encoder_hidden_states=context)
            return v, h.mean((2, 3))
        v, c = pools(out.last_hidden_state)
        _, u = pools(empty.last_hidden_state.expand_as(out.last_hidden_state))
        f = torch.cat([*v, u + GUIDANCE * (c - u)], 1)
        visual = torch.nn.functional.normalize(
            f @ head["visual_projection"]["weight"].T)
        words = torch.nn.functional.normalize(
            out.pooler_output @ head["text_projection"]["weight"].T)
        scale = torch.as_tensor(head["logit_scale"]).exp()
        return (scale * (visual * words).sum(1)).float()


def probe(folder, x, t, ids):
    save_file({"sample": x, "timestep": t, "input_ids": ids}, at("in"))
    run("lpo-probe", "-c", "lrm", "-r", folder, "-m", MODEL, "-i", at("in"),
        "-o", at("out"), "--guidance", str(GUIDANCE), "--precision", "f32",
        "--force", "-q")
    return load_file(at("out"))["score"]


def compare(name, folder, unet, text, head, inputs):
    want, have = score(unet, text, head, *inputs), probe(folder, *inputs)
    diff = (want - have).abs().max().item()
    check(name, diff <= 1e-4 * want.abs().max().item(), f"{diff:9.2e}")


def main():
    torch.manual_seed(3)
    train()
    lrm = at("lrm")
    unet, info = UNet2DConditionModel.from_pretrained(
        lrm, subfolder="unet", output_loading_info=True)
    check("diffusers reads unet/", not any(info.get(k) for k in (
        "missing_keys", "unexpected_keys", "mismatched_keys")))
    base = UNet2DConditionModel.from_pretrained(MODEL, subfolder="unet")
    was, now = base.state_dict(), unet.state_dict()
    upper = [k for k in was if k.startswith(("up_", "conv_norm_out",
                                             "conv_out"))]
    check("its up blocks are the base model's", len(upper) > 20 and all(
        torch.equal(was[k], now[k]) for k in upper), f"{len(upper)} tensors")
    check("its lower half has learnt", not torch.equal(
        was["conv_in.weight"], now["conv_in.weight"]))
    text, info = CLIPTextModel.from_pretrained(
        lrm, subfolder="text_encoder", output_loading_info=True)
    check("transformers reads text_encoder/", not info["missing_keys"])
    head = torch.load(os.path.join(lrm, "state_dict.pt"), weights_only=True)
    check("torch.load reads state_dict.pt", sorted(head) == [
        "logit_scale", "text_projection", "visual_projection"] and
        isinstance(head["logit_scale"], float))
    for k in ("visual_projection", "text_projection"):
        w = head[k]["weight"]
        torch.nn.Linear(w.shape[1], w.shape[0],
                        bias=False).load_state_dict(head[k])
    side, channels = unet.config.sample_size, unet.config.in_channels
    vocab, length = (text.config.vocab_size,
                     text.config.max_position_embeddings)
    ids = torch.full((3, length), vocab - 1)
    ids[:, 0] = vocab - 2
    for i in range(3):
        ids[i, 1:3 + i] = torch.randint(1, vocab - 2, (2 + i,))
    inputs = (torch.randn(3, channels, side, side),
              torch.tensor([1, 501, 951]), ids)
    compare("score of ours, in torch", lrm, unet, text, head, inputs)

    unet, text = unet.bfloat16(), text.bfloat16()
    for kind in ("float", "tensor"):
        folder = at("official-" + kind)
        unet.save_pretrained(os.path.join(folder, "unet"))
        text.save_pretrained(os.path.join(folder, "text_encoder"))
        theirs = {k: {"weight": head[k]["weight"].bfloat16()}
                  for k in ("visual_projection", "text_projection")}
        theirs["logit_scale"] = head["logit_scale"] if kind == "float" else \
            torch.tensor(head["logit_scale"])
        torch.save(theirs, os.path.join(folder, "state_dict.pt"))
        wide = {k: {"weight": v["weight"].float()} if isinstance(v, dict)
                else v for k, v in theirs.items()}
        compare(f"the authors' layout, logit_scale a {kind}", folder,
                unet.float(), text.float(), wide, inputs)
        unet, text = unet.bfloat16(), text.bfloat16()
    sys.exit(bad > 0)


main()

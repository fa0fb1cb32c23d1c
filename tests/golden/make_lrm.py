#!/usr/bin/env python3
"""Golden values of the reward model: lrm/sd, lrm/xl, lrm/expected.safetensors.

A torch implementation of spec method.md 1 and 2 on two tiny random models, one
with SD1.5's structure and one with SDXL's, evaluated in float64.  The networks
are diffusers' and transformers'; pooling, guidance, head and losses are
written out here.  Weights are stored as f16, which they fit exactly.

Of each gradient the file has its norm and its dot products with four fixed
vectors cos(0.7 (k+1) i + k), which is enough to see any error.

    python tests/golden/make_lrm.py        (in the root; versions are printed)
"""
import io
import json
import math
import os
import shutil
import tarfile

import diffusers
import numpy as np
import torch
import transformers
from diffusers import UNet2DConditionModel
from safetensors.numpy import save_file
from transformers import CLIPTextConfig, CLIPTextModel
from transformers import CLIPTextModelWithProjection

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "lrm")
LENGTH = 6
LETTERS = "abcdefghijklmnopqrstuvwxyz"
BOS, EOS = 52, 53
H, W = 6, 4
PAIRS = 4


def round16(model):
    """Double weights that are exact in f16."""
    gen = torch.Generator().manual_seed(len(list(model.parameters())))
    for p in model.parameters():
        q = p.data + 0.05 * torch.randn(p.shape, generator=gen)
        p.data = q.half().double()
    model.double().eval()
    return model


def vector(n, k):
    i = torch.arange(n, dtype=torch.float64)
    return torch.cos(0.7 * (k + 1) * i + k)


def digest(g):
    g = g.double().flatten()
    return np.array([g.norm().item()] +
                    [(g @ vector(g.numel(), k)).item() for k in range(4)],
                    dtype=np.float32)


class Lrm(torch.nn.Module):
    """method.md 1, for either structure."""

    def __init__(self, unet, texts, xl, projection, g, multi, multi_cfg):
        super().__init__()
        self.unet, self.texts, self.xl = unet, texts, xl
        self.g, self.multi, self.multi_cfg = g, multi, multi_cfg
        self.active = g > 1 if xl else g != 1
        channels = list(unet.config.block_out_channels)
        width = channels[-1] + (sum(channels) if multi else 0)
        gen = torch.Generator().manual_seed(3)
        self.visual = torch.nn.Linear(width, projection, bias=False)
        self.visual.weight.data = 0.3 * torch.randn(
            projection, width, generator=gen)
        self.text = None
        if not xl:
            hidden = texts[0].config.hidden_size
            self.text = torch.nn.Linear(hidden, projection, bias=False)
            self.text.weight.data = torch.randn(
                projection, hidden, generator=gen)
        self.scale = torch.nn.Parameter(torch.tensor(1.3))
        for p in (self.visual, self.text):
            if p is not None:
                p.weight.data = p.weight.data.float().double()
        self.scale.data = self.scale.data.float().double()

    def encode(self, ids):
        """context, pooled, feature of token ids [n, LENGTH]"""
        if not self.xl:
            o = self.texts[0](input_ids=ids)
            hidden = o.last_hidden_state
            at = ids.argmax(-1)
            pooled = hidden[torch.arange(len(ids)), at]
            return hidden, None, self.text(pooled)
        a = self.texts[0](input_ids=ids, output_hidden_states=True)
        b = self.texts[1](input_ids=ids, output_hidden_states=True)
        context = torch.cat([a.hidden_states[-2], b.hidden_states[-2]], -1)
        return context, b.text_embeds, b.text_embeds

    def pooled(self, x, t, context, embeds):
        """Pooled features of the down blocks and the mid block."""
        u = self.unet
        emb = u.time_embedding(u.time_proj(t).double())
        if self.xl:
            n = len(x)
            size = torch.tensor([8 * H, 8 * W, 0, 0, 8 * H, 8 * W])
            size = size.repeat(n, 1)
            ids = u.add_time_proj(size.flatten()).reshape(n, -1)
            emb = emb + u.add_embedding(
                torch.cat([embeds, ids.double()], -1))
        x = u.conv_in(x)
        out = []
        for block in u.down_blocks:
            cross = getattr(block, "has_cross_attention", False)
            for i, resnet in enumerate(block.resnets):
                x = resnet(x, emb)
                if cross:
                    x = block.attentions[i](
                        x, encoder_hidden_states=context, return_dict=False)[0]
            out.append(x.mean((2, 3)))
            for down in block.downsamplers or []:
                x = down(x)
        x = u.mid_block(x, emb, encoder_hidden_states=context)
        return out + [x.mean((2, 3))]

    def features(self, x0, x1, t0, t1, ids, empty):
        """V of image_0 and image_1, T"""
        context, embeds, feature = self.encode(ids)
        x, t = torch.cat([x0, x1]), torch.cat([t0, t1])
        n = len(ids)
        ctx = torch.cat([context, context])
        emb = None if embeds is None else torch.cat([embeds, embeds])
        if self.active:
            cu, eu, _ = self.encode(empty)
            cu = cu.expand(2 * n, -1, -1)
            ctx = torch.cat([ctx, cu])
            if emb is not None:
                emb = torch.cat([emb, eu.expand(2 * n, -1)])
            x, t = torch.cat([x, x]), torch.cat([t, t])
        vs = self.pooled(x, t, ctx, emb)
        parts = []
        for i, v in enumerate(vs):
            last = i == len(vs) - 1
            if not self.multi and not last:
                continue
            if self.active:
                c, un = v.chunk(2)
                guided = last or (self.multi_cfg and not (self.xl and i == 0))
                v = un + self.g * (c - un) if guided else c
            parts.append(v)
        v = self.visual(torch.cat(parts, -1))
        return v[:n], v[n:], feature


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def loss_of(model, v0, v1, feature, y, num, t0, t1, criterion, coeff, aux):
    """method.md 2.5"""
    v0, v1, t = unit(v0), unit(v1), unit(feature)
    s = model.scale.exp()
    n = len(t)
    tie = torch.where(y[:, 0] == y[:, 1], math.log(0.5), 0.0).double()
    both = torch.stack([s * (t * v0).sum(-1), s * (t * v1).sum(-1)], 1)
    pair = -(y * both.log_softmax(1)).sum(1) + tie
    rows = torch.arange(n)
    to_image = (s * t @ torch.cat([v0, v1]).T).log_softmax(1)
    i0, i1 = -to_image[rows, rows], -to_image[rows, rows + n]
    t0_ = -(s * v0 @ t.T).log_softmax(1)[rows, rows]
    t1_ = -(s * v1 @ t.T).log_softmax(1)[rows, rows]
    batch = (y[:, 0] * (i0 + t0_) + y[:, 1] * (i1 + t1_) + tie) / 2
    each = {"pair": pair, "batch": batch, "both": pair + coeff * batch}
    w = (1 / num) / (1 / num).sum()
    w = torch.where(t0 != t1, w * aux, w)
    return (w * each[criterion]).sum(), both


def text_key(k):
    return k if k.startswith(("text_model.", "text_projection")) \
        else "text_model." + k


def half_keys(unet):
    keep = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.",
            "mid_block.")
    return {k: v for k, v in unet.named_parameters() if k.startswith(keep)}


def grads(model, out, case, keys):
    """A row per parameter; their names go to the file's metadata."""
    rows = {f"unet.{k}": p for k, p in half_keys(model.unet).items()}
    for i, m in enumerate(model.texts):
        name = "text_encoder" if i == 0 else "text_encoder_2"
        for k, p in m.named_parameters():
            rows[f"{name}.{text_key(k)}"] = p
    rows["visual_projection.weight"] = model.visual.weight
    if model.text is not None:
        rows["text_projection.weight"] = model.text.weight
    rows["logit_scale"] = model.scale
    keys[case.split("/")[0]] = "\n".join(rows)
    out[f"{case}/grads"] = np.stack([
        digest(torch.zeros_like(p) if p.grad is None else p.grad)
        for p in rows.values()])


def data():
    gen = torch.Generator().manual_seed(11)
    x = torch.randn(2, PAIRS, 4, H, W, generator=gen).double()
    t0 = torch.tensor([1, 401, 951, 201])
    t1 = torch.tensor([1, 401, 951, 251])
    ids = torch.full((PAIRS, LENGTH), EOS)
    for i, word in enumerate(["ab", "q", "", "dog"]):
        row = [BOS] + [LETTERS.index(c) for c in word] + [EOS]
        ids[i, :len(row)] = torch.tensor(row)
    empty = torch.full((1, LENGTH), EOS)
    empty[0, 0] = BOS
    y = torch.tensor([[1, 0], [0, 1], [.5, .5], [1, 0]]).double()
    num = torch.tensor([3., 1., 2., 1.]).double()
    return x, t0, t1, ids, empty, y, num


def f32(x):
    return x.detach().float().contiguous().numpy()


def run(model, out, keys, case, criterion, coeff=1.0, aux=1.0):
    x, t0, t1, ids, empty, y, num = data()
    for part in [model] + model.texts:
        part.zero_grad(set_to_none=True)
    v0, v1, t = model.features(x[0], x[1], t0, t1, ids, empty)
    loss, score = loss_of(model, v0, v1, t, y, num, t0, t1, criterion, coeff,
                          aux)
    loss.backward()
    out[f"{case}/loss"] = np.array([loss.item()], dtype=np.float32)
    out[f"{case}/score"] = f32(score)
    out[f"{case}/v"] = f32(torch.stack([v0, v1], 1))
    out[f"{case}/t"] = f32(t)
    out[f"{case}/head/visual_projection.weight"] = f32(model.visual.weight)
    if model.text is not None:
        out[f"{case}/head/text_projection.weight"] = f32(model.text.weight)
    out[f"{case}/head/logit_scale"] = f32(model.scale.reshape(1))
    grads(model, out, case, keys)


def f16(tensors):
    return {k: v.detach().half().contiguous().numpy()
            for k, v in tensors.items()}


def write(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def save_tokenizer(path):
    os.makedirs(path)
    vocab = {c: i for i, c in enumerate(LETTERS)}
    vocab.update({c + "</w>": 26 + i for i, c in enumerate(LETTERS)})
    vocab.update({"<|startoftext|>": BOS, "<|endoftext|>": EOS})
    write(f"{path}/vocab.json", json.dumps(vocab))
    write(f"{path}/merges.txt", "#version: 0.2\n")
    write(f"{path}/tokenizer_config.json", json.dumps(
        {"model_max_length": LENGTH, "pad_token": "<|endoftext|>"}))
    write(f"{path}/special_tokens_map.json", json.dumps(
        {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
         "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}))


def save_unet(unet, path):
    os.makedirs(path)
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    config["_class_name"] = "UNet2DConditionModel"
    write(f"{path}/config.json", json.dumps(config, indent=1))
    save_file(f16(half_keys(unet)),
              f"{path}/diffusion_pytorch_model.safetensors")


def save_text(model, path):
    os.makedirs(path)
    c = model.config
    keys = ["vocab_size", "hidden_size", "intermediate_size",
            "projection_dim", "num_hidden_layers", "num_attention_heads",
            "max_position_embeddings", "hidden_act", "layer_norm_eps",
            "bos_token_id", "eos_token_id", "pad_token_id", "model_type"]
    config = {k: getattr(c, k) for k in keys}
    config["architectures"] = [type(model).__name__]
    write(f"{path}/config.json", json.dumps(config, indent=1))
    save_file(f16({text_key(k): p for k, p in model.named_parameters()}),
              f"{path}/model.safetensors")


def text_config(hidden, heads, projection, act):
    return CLIPTextConfig(
        vocab_size=54, hidden_size=hidden, intermediate_size=2 * hidden,
        projection_dim=projection, num_hidden_layers=2,
        num_attention_heads=heads, max_position_embeddings=LENGTH,
        hidden_act=act, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS)


def save_lrm(model, path, guidance):
    os.makedirs(path)
    save_unet(model.unet, f"{path}/unet")
    for i, m in enumerate(model.texts):
        tail = "" if i == 0 else "_2"
        save_text(m, f"{path}/text_encoder{tail}")
        save_tokenizer(f"{path}/tokenizer{tail}")
    head = {"visual_projection.weight": f32(model.visual.weight),
            "logit_scale": f32(model.scale.reshape(1))}
    if model.text is not None:
        head["text_projection.weight"] = f32(model.text.weight)
    save_file(head, f"{path}/state_dict.safetensors")
    write(f"{path}/lrm.json", json.dumps(
        {"format": 1, "guidance": guidance, "multi_scale": True,
         "multi_scale_cfg": False, "base_sha256": "",
         "run": "0123456789abcdef",
         "latent": {"channels": 4, "scaling_factor": 0.5, "vae_factor": 8,
                    "vae_sha256": ""}}))


def save_base(path):
    """What else a base model's folder has, for lpo-pairs."""
    os.makedirs(f"{path}/scheduler")
    os.makedirs(f"{path}/vae")
    write(f"{path}/scheduler/scheduler_config.json", json.dumps(
        {"_class_name": "DDIMScheduler", "beta_start": 0.00085,
         "beta_end": 0.012, "beta_schedule": "scaled_linear",
         "num_train_timesteps": 1000, "clip_sample": False,
         "set_alpha_to_one": False, "steps_offset": 1}))
    write(f"{path}/vae/config.json", json.dumps(
        {"_class_name": "AutoencoderKL", "scaling_factor": 0.5,
         "latent_channels": 4, "block_out_channels": [8, 8, 8, 8]}))


def save_moments(path, rows):
    """A foreign tar of encoded preferences: brighter wins."""
    gen = torch.Generator().manual_seed(17)

    def add(tar, name, data):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))

    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(rows):
            tie = i % 6 == 5
            for k in range(2):
                x = torch.randn(8, H, W, generator=gen)
                x[:4] += 0 if tie else (0.8 if k == i % 2 else -0.8)
                x[4:] = -4
                out = io.BytesIO()
                np.save(out, x.half().numpy())
                add(tar, f"{i:09d}.moments_{k}.npy", out.getvalue())
            first = 0.5 if tie else float(i % 2 == 0)
            add(tar, f"{i:09d}.json", json.dumps(
                {"row": i, "prompt": LETTERS[i % 5], "label_0": first,
                 "label_1": 1 - first,
                 "num_example_per_prompt": 1 + i % 3}).encode())


def main():
    torch.manual_seed(5)
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    common = dict(sample_size=6, block_out_channels=(8, 12),
                  norm_num_groups=4, attention_head_dim=2)
    sd = round16(UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2, cross_attention_dim=8, **common))
    sd_text = round16(CLIPTextModel(text_config(8, 2, 8, "quick_gelu")))
    xl = round16(UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1, cross_attention_dim=20,
        transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10, **common))
    xl_text = [round16(CLIPTextModel(text_config(8, 2, 8, "quick_gelu"))),
               round16(CLIPTextModelWithProjection(
                   text_config(12, 2, 10, "gelu")))]

    def make(kind, g, multi=True, multi_cfg=False):
        if kind == "sd":
            return Lrm(sd, [sd_text], False, 7, g, multi, multi_cfg)
        return Lrm(xl, xl_text, True, 10, g, multi, multi_cfg)

    out, keys = {}, {}
    x, t0, t1, ids, _, y, num = data()
    out["sample_0"], out["sample_1"] = f32(x[0]), f32(x[1])
    out["timestep"], out["timestep_1"] = t0.numpy(), t1.numpy()
    out["input_ids"] = ids.numpy()
    out["label"], out["num_example_per_prompt"] = f32(y), f32(num)
    base = make("sd", 7.5)
    save_lrm(base, f"{OUT}/sd", 7.5)
    save_base(f"{OUT}/sd")
    save_moments(f"{OUT}/moments.tar", 12)
    run(base, out, keys, "sd/pair", "pair")
    run(base, out, keys, "sd/batch", "batch")
    run(base, out, keys, "sd/both", "both", coeff=0.7, aux=0.25)
    run(make("sd", 0.5, multi_cfg=True), out, keys, "sd/guided", "pair")
    run(make("sd", 7.5, multi=False), out, keys, "sd/mid", "pair")
    run(make("sd", 1.0), out, keys, "sd/plain", "pair")
    base = make("xl", 7.5)
    save_lrm(base, f"{OUT}/xl", 7.5)
    run(base, out, keys, "xl/pair", "pair")
    run(make("xl", 7.5, multi_cfg=True), out, keys, "xl/guided", "both")
    run(make("xl", 1.0, multi=False), out, keys, "xl/plain", "batch")
    save_file(out, f"{OUT}/expected.safetensors", metadata={
        "torch": torch.__version__, "diffusers": diffusers.__version__,
        "transformers": transformers.__version__, **keys})
    for k in sorted(out):
        if k.endswith("/loss"):
            print(k, out[k][0])


main()

"""Reward models in the authors' layout, both ways.

What lpo-lrm wrote is opened by diffusers, transformers and torch.load as the
official code opens it, and scores in torch as it does here; what Python wrote,
with state_dict.pt alone, scores here as the folder it was made from, bit by
bit: in f32 and bf16, logit_scale a float and a tensor.
"""
import os

import models
import parity
import torch
from reward import reward_model

NAMES = ("sd-four-levels", "sd21-lists", "xl")
GUIDANCE = 7.5
UPPER = ("up_blocks.", "conv_norm_out.", "conv_out.")


def load(m, folder):
    """The UNet, the text encoders and the head, as the official code does."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection
    unet, seen = UNet2DConditionModel.from_pretrained(
        folder, subfolder="unet", output_loading_info=True)
    parity.equal("lrm/unet by diffusers", m.name, [
        list(seen.get(k) or []) for k in ("missing_keys", "unexpected_keys",
                                          "mismatched_keys")], [[], [], []])
    texts = []
    for i in range(len(m.texts)):
        cls = CLIPTextModelWithProjection if i else CLIPTextModel
        text, seen = cls.from_pretrained(
            folder, subfolder="text_encoder" + "_2" * i,
            output_loading_info=True)
        parity.equal("lrm/text_encoder by transformers", m.name,
                     list(seen["missing_keys"]), [])
        texts.append(text.eval())
    head = torch.load(os.path.join(folder, "state_dict.pt"),
                      weights_only=True)
    parity.equal("lrm/state_dict.pt by torch.load", m.name,
                 [sorted(head), type(head["logit_scale"])],
                 [["logit_scale"] + ["text_projection"] * (not m.xl) +
                  ["visual_projection"], float])
    for w in (v["weight"] for v in head.values() if isinstance(v, dict)):
        torch.nn.Linear(*reversed(w.shape), bias=False).load_state_dict(
            {"weight": w})
    return unet.eval(), texts, head


@torch.no_grad()
def score(unet, text, head, x, t, ids, dtype):
    """method.md 1: pooled down and mid features, guided mid, a cosine."""
    unet = models.exact_time(unet.to(dtype))
    text, x = text.to(dtype), x.to(dtype)
    out = text(ids)
    nothing = torch.full_like(ids, models.EOS)
    nothing[:, 0] = models.BOS
    emb = unet.time_embedding(unet.time_proj(t).to(dtype))

    def pools(context):
        h, v = unet.conv_in(x), []
        for block in unet.down_blocks:
            more = dict(encoder_hidden_states=context) if getattr(
                block, "has_cross_attention", False) else {}
            h, res = block(h, emb, **more)
            v.append(res[len(block.resnets) - 1].mean((2, 3)))
        h = unet.mid_block(h, emb, encoder_hidden_states=context)
        return v, h.mean((2, 3))
    v, c = pools(out.last_hidden_state)
    _, u = pools(text(nothing).last_hidden_state)
    f = torch.cat([*v, u + GUIDANCE * (c - u)], 1)
    unit = torch.nn.functional.normalize
    visual = unit(f @ head["visual_projection"]["weight"].to(dtype).T)
    words = unit(out.pooler_output @
                 head["text_projection"]["weight"].to(dtype).T)
    scale = torch.tensor(head["logit_scale"], dtype=dtype).exp()
    return scale * (visual * words).sum(1)


def theirs(unet, texts, head, where, dtype, number):
    """The same reward model as the official code writes it."""
    unet.to(dtype).save_pretrained(f"{where}/unet")
    for i, text in enumerate(texts):
        text.to(dtype).save_pretrained(f"{where}/text_encoder" + "_2" * i)
    torch.save({k: number(v) if k == "logit_scale" else
                {"weight": v["weight"]} for k, v in head.items()},
               f"{where}/state_dict.pt")


def one(m):
    from diffusers import UNet2DConditionModel
    gen = torch.Generator().manual_seed(40 + m.seed)
    inputs = dict(sample=torch.randn(3, 4, m.h, m.w, generator=gen),
                  timestep=torch.tensor([1, 501, 951]),
                  input_ids=m.ids(3, m.seed))
    if m.xl:
        inputs["input_ids_2"] = m.ids(3, m.seed, 1)

    def probe(folder):
        return parity.probe("lrm", inputs, "-r", folder, "--guidance",
                            str(GUIDANCE), model=m.folder)["score"]

    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        ours = reward_model(m, name)
        unet, texts, head = load(m, ours)
        base = UNet2DConditionModel.from_pretrained(m.folder, subfolder="unet")
        now = unet.state_dict()
        for k, v in base.state_dict().items():
            if k.startswith(UPPER):
                parity.equal("lrm/unet has the base's up blocks", m.name,
                             now[k], v.to(dtype).float(), k)
        mine = probe(ours)
        if name == "f32" and not m.xl:
            x, t, ids = (inputs[k] for k in ("sample", "timestep",
                                             "input_ids"))
            own = score(unet, texts[0], head, x, t, ids, torch.float32)
            truth = score(unet, texts[0], head, x, t, ids, torch.float64)
            parity.check("lrm's score in torch", m.name, mine, truth, own)
            unet, texts, head = load(m, ours)
        for number in (float, torch.tensor):
            where = parity.path(f"{m.name}-{name}-{number.__name__}")
            theirs(unet, texts, head, where, dtype, number)
            parity.equal("an official folder scores alike", m.name,
                         probe(where), mine, f"{name}, {number.__name__}")


def main():
    for name in NAMES:
        one(models.Model(name))


parity.run(main)

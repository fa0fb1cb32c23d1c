"""The latent reward model in torch, from the method's description.

The networks are diffusers' and transformers'; pooling, guidance, head, score
and losses are written out here.
"""
import json
import math
import os
import shutil

import torch
from safetensors.torch import save_file


def text_key(k):
    """A text encoder's key as lpo-probe gives it."""
    return k if k.startswith(("text_model.", "text_projection")) \
        else "text_model." + k


class Lrm(torch.nn.Module):
    """A reward model on the networks of a random model `m` (models.Model)."""

    def __init__(self, m, dtype, guidance=7.5, multi=True, multi_cfg=False,
                 freeze_text=False):
        super().__init__()
        self.m, self.xl, self.dtype = m, m.xl, dtype
        self.g, self.multi, self.multi_cfg = guidance, multi, multi_cfg
        # SD1.5's official code guides below 1 too, SDXL's does not
        self.active = guidance > 1 if m.xl else guidance != 1
        self.unet = m.unet(dtype)
        self.text_encoder = m.text(dtype)
        self.text_encoder_2 = m.text(dtype, 1) if m.xl else None
        channels = list(self.unet.config.block_out_channels)
        width = channels[-1] + (sum(channels) if multi else 0)
        hidden = m.texts[0]["hidden_size"]
        self.dim = m.pooled if m.xl else hidden
        gen = torch.Generator().manual_seed(3)
        self.visual_projection = torch.nn.Parameter(torch.randn(
            self.dim, width, generator=gen).mul(width ** -0.5).to(dtype))
        self.text_projection = None if m.xl else torch.nn.Parameter(
            torch.randn(self.dim, hidden, generator=gen)
            .mul(hidden ** -0.5).to(dtype))
        self.logit_scale = torch.nn.Parameter(torch.tensor(1.3, dtype=dtype))
        if freeze_text:
            for e in self.encoders():
                e.requires_grad_(False)

    def encoders(self):
        return [self.text_encoder] + [self.text_encoder_2] * self.xl

    def encode(self, ids):
        """context, pooled or None, T; ids: a tensor for each encoder"""
        if not self.xl:
            hidden = self.text_encoder(ids[0]).last_hidden_state
            pooled = hidden[torch.arange(len(ids[0])), ids[0].argmax(-1)]
            return hidden, None, pooled @ self.text_projection.T
        a, b = (e(i, output_hidden_states=True)
                for e, i in zip(self.encoders(), ids))
        return (torch.cat([a.hidden_states[-2], b.hidden_states[-2]], -1),
                b.text_embeds, b.text_embeds)

    def pooled(self, x, t, context, embeds):
        """Means over the image: down blocks before their samplers, mid."""
        u = self.unet
        emb = u.time_embedding(u.time_proj(t).to(self.dtype))
        if self.xl:
            side = [self.m.factor * s for s in x.shape[2:]]
            sizes = torch.tensor(side + [0, 0] + side, dtype=torch.float32)
            sizes = u.add_time_proj(sizes.repeat(len(x)))
            emb = emb + u.add_embedding(torch.cat(
                [embeds, sizes.reshape(len(x), -1).to(self.dtype)], -1))
        x, out = u.conv_in(x), []
        for block in u.down_blocks:
            for i, resnet in enumerate(block.resnets):
                x = resnet(x, emb)
                if getattr(block, "has_cross_attention", False):
                    x = block.attentions[i](x, encoder_hidden_states=context,
                                            return_dict=False)[0]
            out.append(x.mean((2, 3)))
            for down in block.downsamplers or []:
                x = down(x)
        x = u.mid_block(x, emb, encoder_hidden_states=context)
        return out + [x.mean((2, 3))]

    def visual(self, x, t, text):
        """V [n, dim]; text: encode()'s, a row for each latent"""
        x, (context, embeds, _) = x.to(self.dtype), text
        if self.active:
            cu, eu, _ = self.encode([self.m.empty(i)
                                     for i in range(len(self.m.texts))])
            context = torch.cat([context, cu.expand(len(x), -1, -1)])
            if self.xl:
                embeds = torch.cat([embeds, eu.expand(len(x), -1)])
            x, t = torch.cat([x, x]), torch.cat([t, t])
        pools, parts = self.pooled(x, t, context, embeds), []
        for i, v in enumerate(pools):
            last = i == len(pools) - 1
            if not (last or self.multi):
                continue
            if self.active:
                c, u = v.chunk(2)
                # SDXL's first block is never guided
                guided = last or (self.multi_cfg and not (self.xl and i == 0))
                v = u + self.g * (c - u) if guided else c
            parts.append(v)
        return torch.cat(parts, -1) @ self.visual_projection.T

    def score(self, x, t, ids):
        """scores, unit V, unit T"""
        text = self.encode(ids)
        v, f = unit(self.visual(x, t, text)), unit(text[2])
        return self.logit_scale.exp() * (v * f).sum(-1), v, f

    def loss(self, x, t, ids, y, num, criterion="pair", coeff=1.0, aux=1.0):
        """x, t, y: [2, n, ...], a row for each image of the pairs"""
        n = len(ids[0])
        text = self.encode(ids)
        two = [None if a is None else torch.cat([a, a]) for a in text]
        v = unit(self.visual(torch.cat(list(x)), torch.cat(list(t)), two))
        v, f, s = v.reshape(2, n, -1), unit(text[2]), self.logit_scale.exp()
        y, num = y.to(self.dtype), num.to(self.dtype)
        tie = (y[0] == y[1]).to(self.dtype) * math.log(0.5)
        mine = (s * (v * f).sum(-1)).log_softmax(0)
        pair = -(y * mine).sum(0) + tie
        rows = torch.arange(n)
        images = (s * f @ torch.cat([v[0], v[1]]).T).log_softmax(1)
        texts = [(s * k @ f.T).log_softmax(1)[rows, rows] for k in v]
        batch = -(y[0] * (images[rows, rows] + texts[0])
                  + y[1] * (images[rows, rows + n] + texts[1]) - tie) / 2
        each = dict(pair=pair, batch=batch, both=pair + coeff * batch)
        w = (1 / num) / (1 / num).sum()
        w = torch.where(t[0] != t[1], w * aux, w)
        return (w * each[criterion]).sum(), s * (v * f).sum(-1)

    def named(self):
        """What is trained, by lpo-probe's names."""
        keep = ("conv_in.", "time_embedding.", "add_embedding.",
                "down_blocks.", "mid_block.")
        out = {f"unet.{k}": p for k, p in self.unet.named_parameters()
               if k.startswith(keep)}
        for i, e in enumerate(self.encoders()):
            out |= {f"text_encoder{'_2' * i}.{text_key(k)}": p
                    for k, p in e.named_parameters() if p.requires_grad}
        out["visual_projection"] = self.visual_projection
        if not self.xl:
            out["text_projection"] = self.text_projection
        out["logit_scale"] = self.logit_scale
        return out

    def save(self, where, copy=shutil.copy2):
        """The folder as lpo-lrm writes it."""
        shutil.rmtree(where, ignore_errors=True)
        os.makedirs(where)
        for part in ["unet"] + [f"{p}{tail}" for p in
                                ("text_encoder", "tokenizer")
                                for tail in ("", "_2")[:len(self.m.texts)]]:
            shutil.copytree(f"{self.m.folder}/{part}", f"{where}/{part}",
                            copy_function=copy)
        head = {"visual_projection.weight": self.visual_projection,
                "logit_scale": self.logit_scale.reshape(1)}
        if not self.xl:
            head["text_projection.weight"] = self.text_projection
        save_file({k: v.detach().float().contiguous() for k, v in
                   head.items()}, f"{where}/state_dict.safetensors")
        with open(f"{where}/lrm.json", "w", encoding="utf8") as f:
            json.dump(dict(
                format=1, guidance=self.g, multi_scale=self.multi,
                multi_scale_cfg=self.multi_cfg, base_sha256="",
                run="0123456789abcdef", latent=dict(
                    channels=4, vae_factor=self.m.factor, vae_sha256="",
                    scaling_factor=self.m.vae_config["scaling_factor"])), f)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)

"""random:KIND as lpo-probe --save writes it, opened by diffusers.

usage: random_models.py [KIND ...]      tiny, tiny21, tinyxl; also sd15 ...

The folder must open as a pipeline without a word about keys, with the counts
of the published model, and each of its components must equal the same
component of -m random:KIND.
"""
import copy
import sys

import models                           # sets diffusers' verbosity
import parity
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

PUBLISHED = {           # parameters of UNet, VAE, text encoders
    "sd15": [859520964, 83653863, 123060480],
    "sd21": [865910724, 83653863, 340387840],
    "sdxl": [2567463684, 83653863, 123060480, 694659840],
}
PROMPTS = ["a red circle", "", "two Large  blue crosses! 日本 e\u0301\u0301",
           "x" * 200]


@torch.no_grad()
def in_both(net, run):
    """run(net, dtype) in float64 and in float32."""
    return parity.both(
        lambda dtype: run(copy.deepcopy(net).to(dtype), dtype))


def unet(kind, pipe, side):
    net = pipe.unet
    x, t = torch.randn(2, 4, *side), torch.tensor([1, 951])
    c = torch.randn(2, 77, net.config.cross_attention_dim)
    more = {}
    if net.config.addition_embed_type == "text_time":
        more["text_embeds"] = torch.randn(
            2, pipe.text_encoder_2.config.projection_dim)
        more["time_ids"] = torch.tensor([[128., 96, 0, 8, 128, 96]] * 2)

    def run(m, dtype):
        return models.exact_time(m)(
            x.to(dtype), t, c.to(dtype), added_cond_kwargs={
                k: v.to(dtype) for k, v in more.items()} or None).sample

    truth, own = in_both(net, run)
    got = parity.probe("unet", dict(sample=x, timestep=t,
                                    encoder_hidden_states=c, **more),
                       model=f"random:{kind}")["out"]
    parity.check("random model, UNet", f"{kind} {side}", got, truth, own)
    # neither nothing nor an explosion, in bf16 too
    half = parity.probe("unet", dict(sample=x, timestep=t,
                                     encoder_hidden_states=c, **more),
                        model=f"random:{kind}", precision="bf16")["out"]
    for y in (got, half):
        parity.equal("random model, UNet's output of width 1/3 to 3",
                     f"{kind} {side}", 1 / 3 < y.std().item() < 3, True)


def vae(kind, pipe):
    f = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    image = torch.rand(1, 3, 9 * f + 3, 7 * f + 5) * 2 - 1
    z = torch.randn(1, 4, 9, 7) / pipe.vae.config.scaling_factor
    truth, own = in_both(pipe.vae, lambda m, dtype: (
        m.encode(image.to(dtype)).latent_dist.parameters,
        m.decode(z.to(dtype)).sample))
    for i, (name, given, out) in enumerate((
            ("vae-encode", dict(image=image), "moments"),
            ("vae-decode", dict(latent=z), "image"))):
        got = parity.probe(name, given, model=f"random:{kind}")[out]
        parity.check(f"random model, {name}", kind, got, truth[i], own[i])


def text(kind, net, tokenizer, suffix):
    ids = tokenizer(PROMPTS, padding="max_length", max_length=77,
                    truncation=True, return_tensors="pt").input_ids
    mine = parity.tool("lpo-probe", "-c", "tokenizer" + suffix, "-m",
                       f"random:{kind}", input="\n".join(PROMPTS).encode())
    parity.equal("random model, token ids", kind + suffix,
                 [[int(i) for i in line.split()]
                  for line in mine.decode().splitlines()], ids.tolist())

    def run(m, dtype):
        o = m(ids, output_hidden_states=True)
        more = dict(projected=o.text_embeds) if suffix else {}
        return dict(last_hidden_state=o.last_hidden_state,
                    penultimate=o.hidden_states[-2]) | more

    truth, own = in_both(net, run)
    got = parity.probe("text" + suffix, dict(input_ids=ids),
                       model=f"random:{kind}")
    parity.check("random model, text encoder", kind + suffix, got, truth, own)


def main():
    torch.manual_seed(0)
    for kind in sys.argv[1:] or ["tiny", "tiny21", "tinyxl"]:
        folder, xl = parity.path(kind), kind.endswith("xl")
        parity.tool("lpo-probe", "--save", folder, "-m", f"random:{kind}")
        of = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
        pipe = of.from_pretrained(folder, local_files_only=True)
        encoders = [pipe.text_encoder]
        if xl:
            encoders.append(pipe.text_encoder_2)
        counts = [sum(p.numel() for p in m.parameters())
                  for m in [pipe.unet, pipe.vae] + encoders]
        parity.equal("random model, parameters", kind, counts,
                     PUBLISHED.get(kind, counts))
        tiny = kind.startswith("tiny")
        for side in ((16, 16), (5, 7)) if tiny else ((8, 8),):
            unet(kind, pipe, side)
        vae(kind, pipe)
        text(kind, pipe.text_encoder, pipe.tokenizer, "")
        if xl:
            text(kind, pipe.text_encoder_2, pipe.tokenizer_2, "_2")


parity.run(main)

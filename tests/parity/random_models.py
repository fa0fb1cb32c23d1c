"""Random models: what lpo-probe --save writes, opened by diffusers.

usage: random_models.py BIN [KIND ...]    KIND: tiny, tiny21, tinyxl (default)

For each kind: the folder opens as a pipeline, has the published parameter
counts where there is a published model, and every component of the folder, in
diffusers or transformers, equals the same component of `-m random:KIND`, at
latents of several shapes, odd and non-square ones too: values, and for the
UNet the gradients of the input and of all weights.  Exits 1 where an f32 error
against f64 is above 4 times torch's own plus 1e-5 of the largest value.
"""
import os
import subprocess
import sys
import tempfile

import torch
from diffusers.utils import logging
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

BIN = sys.argv[1]
KINDS = sys.argv[2:] or ["tiny", "tiny21", "tinyxl"]
SIDES = [(16, 16), (5, 7), (9, 8), (13, 16), (2, 1), (3, 18)]
PARAMETERS = {  # unet, vae, text encoders
    "sd15": (859520964, 83653863, 123060480),
    "sd21": (865910724, 83653863, 340387840),
    "sdxl": (2567463684, 83653863, 123060480, 694659840),
}
logging.disable_progress_bar()
WORK = tempfile.mkdtemp()
bad = 0


def probe(kind, component, tensors, *args):
    """Run a component of -m random:KIND on tensors; what it leaves."""
    there, back = os.path.join(WORK, "in"), os.path.join(WORK, "out")
    save_file({k: v.contiguous() for k, v in tensors.items()}, there)
    subprocess.run([f"{BIN}/lpo-probe", "-c", component, "-m",
                    f"random:{kind}", "-i", there, "-o", back,
                    "--precision", "f32", *args], check=True)
    return load_file(back)


def compare(name, ours, f32, f64):
    """One line: our error and torch's, against f64."""
    global bad
    ours, f32 = (ours.double() - f64).abs(), (f32.double() - f64).abs()
    limit = 4 * f32.max().item() + 1e-5 * f64.abs().max().item()
    wrong = not ours.max().item() <= limit
    bad += wrong
    print(f"{name:44s} {ours.max().item():9.2e} {f32.max().item():9.2e}"
          f"{'  <-' * wrong}")


def both(module, run):
    """run(module) in f32 and in f64."""
    single = run(module.float(), torch.float32)
    double = run(module.double(), torch.float64)
    module.float()
    return single, double


def unet(kind, pipe, side):
    net, n, cfg = pipe.unet, 2, pipe.unet.config
    x, d = torch.randn(n, 4, *side), torch.randn(n, 4, *side)
    t = torch.tensor([1, 951])
    c = torch.randn(n, 77, cfg.cross_attention_dim)
    given = dict(sample=x, timestep=t, encoder_hidden_states=c, d_out=d)
    if cfg.addition_embed_type == "text_time":
        given["text_embeds"] = torch.randn(
            n, pipe.text_encoder_2.config.projection_dim)
        given["time_ids"] = torch.tensor([[128., 128, 0, 0, 128, 128]] * n)

    def run(m, dtype):
        m.zero_grad()
        y = x.to(dtype).detach().clone().requires_grad_(True)
        more = {k: given[k].to(dtype) for k in ("text_embeds", "time_ids")
                if k in given}
        out = m(y, t, c.to(dtype), added_cond_kwargs=more or None).sample
        out.backward(d.to(dtype))
        return (out.detach(), y.grad,
                {k: p.grad.clone() for k, p in m.named_parameters()})

    a, b = both(net, run)
    got = probe(kind, "unet", given, "--grad", "--full")
    what = f"{kind} unet {side[0]}x{side[1]}"
    print(f"{what}: std of the output {b[0].std().item():.3f}")
    compare(what, got["out"], a[0], b[0])
    compare(f"{what} d_sample", got["d_sample"], a[1], b[1])
    missing = set(b[2]) ^ {k[5:] for k in got if k.startswith("grad.")}
    assert not missing, missing

    def worst(k):
        limit = (4 * (a[2][k] - b[2][k]).abs().max() +
                 1e-5 * b[2][k].abs().max() + 1e-30)
        return ((got["grad." + k].double() - b[2][k]).abs().max() /
                limit).item()

    k = max(b[2], key=worst)
    compare(f"{what} {k[-26:]}", got["grad." + k], a[2][k], b[2][k])


def vae(kind, pipe, side):
    net, f = pipe.vae, 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    # pixels that no latent covers whole: the encoder rounds down
    image = torch.rand(1, 3, side[0] * f + 3, side[1] * f + 5) * 2 - 1
    z = torch.randn(1, 4, *side) / net.config.scaling_factor
    with torch.no_grad():
        a, b = both(net, lambda m, t: (
            m.encode(image.to(t)).latent_dist.parameters,
            m.decode(z.to(t)).sample))
    what = f"{kind} vae {side[0]}x{side[1]}"
    compare(f"{what} encode", probe(kind, "vae-encode", dict(image=image))
            ["moments"], a[0], b[0])
    compare(f"{what} decode", probe(kind, "vae-decode", dict(latent=z))
            ["image"], a[1], b[1])
    print(f"{what}: std of means {b[0][:, :4].std().item():.3f}, of pixels "
          f"{b[1].std().item():.3f}")


def text(kind, encoder, tokenizer, suffix):
    global bad
    prompts = ["a red circle", "", "two Large  blue crosses! 日本 e\u0301"]
    ids = tokenizer(prompts, padding="max_length", max_length=77,
                    truncation=True, return_tensors="pt").input_ids
    mine = subprocess.run([f"{BIN}/lpo-probe", "-c", "tokenizer" + suffix,
                           "-m", f"random:{kind}"], input="\n".join(prompts),
                          capture_output=True, text=True, check=True).stdout
    mine = torch.tensor([[int(i) for i in line.split()]
                         for line in mine.splitlines()])
    bad += not torch.equal(mine, ids)
    print(f"{kind} tokenizer{suffix} {'equal' * torch.equal(mine, ids)}")

    def run(m, dtype):
        with torch.no_grad():
            o = m(ids, output_hidden_states=True)
        more = [o.text_embeds] if hasattr(o, "text_embeds") else []
        return [o.last_hidden_state, o.hidden_states[-2]] + more

    a, b = both(encoder, run)
    got = probe(kind, "text" + suffix, dict(input_ids=ids))
    for i, key in enumerate(["last_hidden_state", "penultimate",
                             "projected"][:len(a)]):
        compare(f"{kind} text{suffix} {key}", got[key], a[i], b[i])


def main():
    torch.manual_seed(0)
    for kind in KINDS:
        folder = os.path.join(WORK, kind)
        subprocess.run([f"{BIN}/lpo-probe", "--save", folder, "-m",
                        f"random:{kind}"], check=True)
        xl = kind.endswith("xl")
        pipe = (StableDiffusionXLPipeline if xl else StableDiffusionPipeline
                ).from_pretrained(folder, local_files_only=True)
        encoders = [pipe.text_encoder]
        if xl:
            encoders.append(pipe.text_encoder_2)
        counts = tuple(sum(p.numel() for p in m.parameters())
                       for m in [pipe.unet, pipe.vae] + encoders)
        print(f"{kind}: parameters of UNet, VAE, encoders {counts}")
        assert counts == PARAMETERS.get(kind, counts), PARAMETERS[kind]
        for side in SIDES if kind.startswith("tiny") else [(32, 32)]:
            unet(kind, pipe, side)
            vae(kind, pipe, side)
        text(kind, pipe.text_encoder, pipe.tokenizer, "")
        if xl:
            text(kind, pipe.text_encoder_2, pipe.tokenizer_2, "_2")
    sys.exit(bad > 0)


main()

"""lpo-probe and lpo-sample against diffusers and transformers, in f32.

usage: components.py MODEL [BIN]    MODEL: an SD1.5- or SD2.1-like folder

Prints the largest difference of each component, absolute and relative to the
largest value, and exits 1 where a relative one is above 1e-4.  Not run by
`make check`.  Made with torch 2, diffusers 0.31 and later, transformers 4.
"""
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizerFast

MODEL = sys.argv[1]
BIN = sys.argv[2] if len(sys.argv) > 2 else "bin"
WORK = tempfile.mkdtemp()
bad = 0


def probe(component, tensors, *args):
    """Run a component on tensors; what it leaves."""
    there, back = os.path.join(WORK, "in"), os.path.join(WORK, "out")
    save_file({k: v.contiguous() for k, v in tensors.items()}, there)
    subprocess.run([f"{BIN}/lpo-probe", "-c", component, "-m", MODEL,
                    "-i", there, "-o", back, "--precision", "f32", *args],
                   check=True)
    return load_file(back)


def compare(name, ours, theirs, limit=1e-4):
    """One line, and a mark where the limit is passed."""
    global bad
    diff = (ours.float() - theirs.float()).abs().max().item()
    rel = diff / max(theirs.float().abs().max().item(), 1e-30)
    bad += rel > limit
    print(f"{name:28s} {diff:9.2e} {rel:9.2e}{'  <-' * (rel > limit)}")


def unet_and_vae(unet, vae, length):
    """Values and every gradient."""
    s, width = unet.config.sample_size, unet.config.cross_attention_dim
    x = torch.randn(3, 4, s, s, requires_grad=True)
    t = torch.tensor([1, 501, 951])
    c, d = torch.randn(3, length, width), torch.randn(3, 4, s, s)
    out = unet(x, t, c).sample
    out.backward(d)
    got = probe("unet", dict(sample=x.detach(), timestep=t, d_out=d,
                             encoder_hidden_states=c), "--grad", "--full")
    compare("unet out", got["out"], out.detach())
    compare("unet d_sample", got["d_sample"], x.grad)
    worst = max(unet.named_parameters(), key=lambda p: (
        (got["grad." + p[0]] - p[1].grad).abs().max() /
        (p[1].grad.abs().max() + 1e-9)).item())
    compare("unet, worst weight gradient", got["grad." + worst[0]],
            worst[1].grad)
    f = 2 ** (len(vae.config.block_out_channels) - 1)
    image = torch.rand(2, 3, s * f, s * f) * 2 - 1
    with torch.no_grad():
        compare("vae-encode", probe("vae-encode", dict(image=image))
                ["moments"], vae.encode(image).latent_dist.parameters)
        z = torch.randn(2, 4, s, s)
        compare("vae-decode", probe("vae-decode", dict(latent=z))["image"],
                vae.decode(z).sample)


def text(encoder, tokenizer, length):
    """Ids and hidden states."""
    global bad
    prompts = ["a red circle", "", "two Large  blue crosses, weird!"]
    ids = tokenizer(prompts, padding="max_length", max_length=length,
                    truncation=True, return_tensors="pt").input_ids
    out = subprocess.run([f"{BIN}/lpo-probe", "-c", "tokenizer", "-m", MODEL],
                         input="\n".join(prompts) + "\n", text=True,
                         capture_output=True, check=True).stdout
    ours = [[int(i) for i in line.split()] for line in out.splitlines()]
    bad += ours != ids.tolist()
    print("tokenizer", "equal" if ours == ids.tolist() else "DIFFERS")
    with torch.no_grad():
        want = encoder(ids, output_hidden_states=True)
    got = probe("text", dict(input_ids=ids))
    compare("text last", got["last_hidden_state"], want.last_hidden_state)
    compare("text penultimate", got["penultimate"], want.hidden_states[-2])
    compare("text pooled", got["pooled"], want.pooler_output)


def ddim(s):
    """One step at three timesteps."""
    sched = DDIMScheduler.from_pretrained(MODEL + "/scheduler")
    sched.set_timesteps(20)
    x, e, z = (torch.randn(3, 4, s, s) for _ in range(3))
    t = torch.tensor([1, 501, 951])
    got = probe("ddim", dict(x_t=x, eps=e, timestep=t, noise=z),
                "--eta", "0.7")
    for i in range(3):
        want = sched.step(e[i:i + 1], int(t[i]), x[i:i + 1], eta=0.7,
                          variance_noise=z[i:i + 1])
        compare(f"ddim x_prev, t = {int(t[i])}", got["x_prev"][i:i + 1],
                want.prev_sample)
        compare(f"ddim x0, t = {int(t[i])}", got["x0"][i:i + 1],
                want.pred_original_sample)


def lpo_step(unet, length):
    """Loss and LoRA gradients of three pairs, by functional_call."""
    s, width = unet.config.sample_size, unet.config.cross_attention_dim
    params = dict(unet.named_parameters())
    names = [k[:-7] for k in params if k.endswith("attn1.to_q.weight") or
             k.endswith("attn2.to_v.weight")]
    lora = {}
    for k in names:
        o, i = params[k + ".weight"].shape
        lora[k] = (torch.randn(4, i).div(4).requires_grad_(),
                   torch.randn(o, 4).div(40).requires_grad_())

    def key(k, which):
        return f"unet.{k}.lora.{which}.weight"

    save_file({key(k, w): v.detach() for k, ab in lora.items()
               for w, v in zip(("down", "up"), ab)}, WORK + "/lora")
    x_t, win, lose = (torch.randn(3, 4, s, s) for _ in range(3))
    win, lose = x_t + 0.1 * win, x_t + 0.1 * lose
    t, g, beta, clip = torch.tensor([51, 501, 951]), 5, 500, 0.1
    c, u = torch.randn(3, length, width), torch.randn(1, length, width)

    def eps(weights):
        e = torch.func.functional_call(
            unet, weights, (torch.cat([x_t, x_t]), torch.cat([t, t]),
                            torch.cat([c, u.expand(3, -1, -1)]))).sample
        return e[3:] + g * (e[:3] - e[3:])

    with torch.no_grad():
        ref = eps(params)
    mine = eps({k: v + lora[k[:-7]][1] @ lora[k[:-7]][0]
                if k[:-7] in lora else v for k, v in params.items()})
    sched = DDIMScheduler.from_pretrained(MODEL + "/scheduler")
    a = sched.alphas_cumprod[t].view(3, 1, 1, 1).double()
    p = sched.alphas_cumprod[(t - 50).clamp(0)].view(3, 1, 1, 1).double()
    sigma = ((1 - p) / (1 - a) * (1 - a / p)).sqrt()

    def logp(x, e):
        e = e.double()
        mu = p.sqrt() * (x_t - (1 - a).sqrt() * e) / a.sqrt() + \
            (1 - p - sigma ** 2).sqrt() * e
        return (-(x - mu) ** 2 / (2 * sigma ** 2)).mean((1, 2, 3))

    def ratio(x):
        return (logp(x, mine) - logp(x, ref)).exp().clamp(1 - clip, 1 + clip)

    h = beta * (ratio(win).log() - ratio(lose).log())
    loss = torch.nn.functional.softplus(-h).mean()
    loss.backward()
    got = probe("lpo-step", dict(
        x_t=x_t, x_win=win, x_lose=lose, timestep=t,
        encoder_hidden_states=c, uncond_hidden_states=u), "--grad", "--lora",
        WORK + "/lora")
    compare("lpo-step eps", got["eps"], mine.detach())
    compare("lpo-step eps_ref", got["eps_ref"], ref)
    compare("lpo-step loss", got["loss"], loss.detach())
    for w, n in (("down", 0), ("up", 1)):
        compare(f"lpo-step gradient, {w}", torch.cat(
            [got["grad." + key(k, w)].flatten() for k in names]),
            torch.cat([lora[k][n].grad.flatten() for k in names]))


@torch.no_grad()
def pictures(unet, vae, encoder, tokenizer, length):
    """lpo-sample with torch's generator, pixel by pixel."""
    global bad
    prompts = ["a red circle", "two blue crosses", "a large green square"]
    with open(os.path.join(WORK, "p.txt"), "w", encoding="utf8") as f:
        f.write("\n".join(prompts) + "\n")
    subprocess.run([f"{BIN}/lpo-sample", "-q", "--db", "none", "--precision",
                    "f32", "--rng", "torch-cpu", "-m", MODEL, "-p",
                    f"{WORK}/p.txt", "-o", f"{WORK}/i.tar"], check=True)
    tar = tarfile.open(f"{WORK}/i.tar")
    s = unet.config.sample_size

    def encode(prompt):
        return encoder(tokenizer([prompt], padding="max_length",
                                 max_length=length, truncation=True,
                                 return_tensors="pt").input_ids
                       ).last_hidden_state

    for n, prompt in enumerate(prompts):
        png = tar.extractfile(f"{n:09d}-0.png").read()
        assert json.load(tar.extractfile(f"{n:09d}-0.json"))["prompt"] == \
            prompt
        ours = np.array(Image.open(io.BytesIO(png))).astype(int)
        c = torch.cat([encode(""), encode(prompt)])
        sched = DDIMScheduler.from_pretrained(MODEL + "/scheduler")
        sched.set_timesteps(20)
        x = torch.randn(1, 4, s, s,
                        generator=torch.Generator().manual_seed(42 + n))
        for t in sched.timesteps:
            e = unet(torch.cat([x, x]), t, c).sample
            x = sched.step(e[:1] + 5 * (e[1:] - e[:1]), t, x).prev_sample
        y = vae.decode(x / vae.config.scaling_factor).sample
        y = ((y / 2 + 0.5).clamp(0, 1) * 255).round()
        y = y[0].permute(1, 2, 0).numpy().astype(int)
        worst = int(np.abs(y - ours).max())
        bad += worst > 1
        print(f"picture {n}: {worst} of 255 at most")


def main():
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(MODEL + "/unet").float()
    vae = AutoencoderKL.from_pretrained(MODEL + "/vae").float()
    encoder = CLIPTextModel.from_pretrained(MODEL + "/text_encoder").float()
    tokenizer = CLIPTokenizerFast.from_pretrained(MODEL + "/tokenizer")
    length = encoder.config.max_position_embeddings
    for m in (unet, vae, encoder):
        m.eval()
    unet_and_vae(unet, vae, length)
    text(encoder, tokenizer, length)
    ddim(unet.config.sample_size)
    lpo_step(unet, length)
    pictures(unet, vae, encoder, tokenizer, length)
    sys.exit(bad > 0)


main()

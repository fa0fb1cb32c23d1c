"""The noise floor of f32 and bf16 in LPO: may a policy be trained with them?

usage: bf16_noise.py [bf16x3] [demo|random16|random32|DIR ...]
       DIR: an SD1.5- or SD2.1-like folder
       bf16x3: that, which needs AMX, in the place of bf16

With a LoRA too small to matter (scaled by 1e-3) policy and reference are all
but equal, and what is left of their difference is rounding.  Per timestep,
over pairs with candidates drawn from the reference's transition, lpo-probe's
f32 and bf16 (-c lpo-step) against torch in f64:

    ln r = log ratio policy / reference of a candidate (method.md 3.5)
    h    = beta (ln r_win - ln r_lose), what the loss takes

A precision may be what lpo-train takes by itself only where rms h <= 0.3 and
|bias of ln r| <= 0.01 at every timestep.  Prints a table of the timesteps;
rows of f32 are judged, those of bf16 are its column "torch's" there.
"""
import pathlib
import sys

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

import parity

ROOT, WORK = pathlib.Path(parity.ROOT), pathlib.Path(parity.WORK)
BETA, GUIDANCE, STEPS = 500.0, 5.0, 20
TIMES = list(range(1, 952, 50))
MAX_H, MAX_BIAS = 0.3, 0.01


def abar():
    b = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000) ** 2
    return (1 - b).cumprod(0).double()


def transition(t):
    """a, a of before, sigma, c_x and c_eps of one DDIM step, eta 1."""
    a, p = ABAR[t].item(), ABAR[max(t - 1000 // STEPS, 0)].item()
    s = ((1 - p) / (1 - a) * (1 - a / p)) ** 0.5
    cx = (p / a) ** 0.5
    return a, s, cx, (1 - p - s * s) ** 0.5 - cx * (1 - a) ** 0.5


ABAR = abar()


def random_model(side, channels):
    """A UNet of SD1.5's shape, thinner; its output has about unit size."""
    d = WORK / f"random{side}"
    unet = UNet2DConditionModel(
        sample_size=side, block_out_channels=channels, layers_per_block=2,
        cross_attention_dim=768, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3).eval()
    with torch.no_grad():
        for name, p in unet.named_parameters():
            if p.dim() > 1:     # signals neither fade nor grow
                p.normal_(0, p[0].numel() ** -0.5)
        x = torch.randn(2, 4, side, side)
        y = unet(x, 501, torch.randn(2, 77, 768)).sample
        unet.conv_out.weight.div_(y.std())
        unet.conv_out.bias.zero_()
    unet.save_pretrained(d / "unet")
    (d / "scheduler").mkdir()
    (d / "scheduler" / "scheduler_config.json").write_text(
        (ROOT / "demo/model/scheduler/scheduler_config.json").read_text())
    return d, unet, 77, 768


def small_lora(unet):
    """Rank 4 on the attention's projections, as lpo-train makes it."""
    out = {}
    for name, m in unet.named_modules():
        if ".attn" in name and isinstance(m, torch.nn.Linear) and \
                "to_" in name:
            key = f"unet.{name}.lora."
            out[key + "down.weight"] = torch.randn(4, m.in_features) / 4
            out[key + "up.weight"] = 1e-3 * 0.1 * torch.randn(
                m.out_features, 4)
    save_file(out, WORK / "lora.safetensors")
    return out


@torch.no_grad()
def inputs(unet, length, width, n, walk):
    """n rows of each timestep: latents, candidates, texts."""
    s = unet.config.sample_size
    cond, uncond = torch.randn(n, length, width), torch.randn(1, length, width)
    rows = {k: [] for k in ("x_t", "x_win", "x_lose", "timestep", "cond")}
    x = torch.randn(n, 4, s, s)
    for t in reversed(TIMES):
        a, sigma, cx, ce = transition(t)
        if not walk:    # a random network denoises nothing
            x = a ** 0.5 * torch.randn(n, 4, s, s) + \
                (1 - a) ** 0.5 * torch.randn(n, 4, s, s)
        e = unet(torch.cat([x, x]), t, torch.cat(
            [cond, uncond.expand(n, -1, -1)])).sample
        mu = cx * x + ce * (e[n:] + GUIDANCE * (e[:n] - e[n:]))
        two = [mu + sigma * torch.randn(n, 4, s, s) for _ in range(2)]
        for k, v in (("x_t", x), ("x_win", two[0]), ("x_lose", two[1]),
                     ("timestep", torch.full((n,), t)), ("cond", cond)):
            rows[k].append(v.clone())
        x = two[0]
    return {k: torch.cat(v) for k, v in rows.items()}, uncond


def chunks(rows):
    for at in range(0, len(rows["timestep"]), 20):
        yield {k: v[at:at + 20] for k, v in rows.items()}


def ours(model, precision):
    def run(part, uncond):
        got = parity.probe("lpo-step", dict(
            part, encoder_hidden_states=part["cond"],
            uncond_hidden_states=uncond), "--lora",
            str(WORK / "lora.safetensors"), "--steps", str(STEPS),
            model=model, precision=precision)
        return got["eps"], got["eps_ref"]
    return run


def exact(unet, lora):
    """torch, f64, the LoRA folded."""
    unet = unet.double()
    policy = {k: v.clone() for k, v in unet.named_parameters()}
    for k, up in lora.items():
        if k.endswith("up.weight"):
            name = k[5:-len(".lora.up.weight")] + ".weight"
            policy[name] += up.double() @ lora[k.replace(
                "up.weight", "down.weight")].double()

    @torch.no_grad()
    def run(part, uncond):
        x, t, c = (part[k].double() for k in ("x_t", "timestep", "cond"))
        n = len(t)
        both = (torch.cat([x, x]), torch.cat([t, t]), torch.cat(
            [c, uncond.double().expand(n, -1, -1)]))
        out = []
        for weights in policy, {}:
            e = torch.func.functional_call(unet, weights, both).sample
            out.append(e[n:] + GUIDANCE * (e[:n] - e[n:]))
        return out
    return run


def log_ratios(run, rows, uncond):
    """[timestep, pair, (win, lose, rms of eps - eps_ref)]."""
    out = []
    for part in chunks(rows):
        eps, ref = run(part, uncond)
        for i, t in enumerate(part["timestep"].tolist()):
            _, sigma, cx, ce = transition(t)
            e, r, x = (v[i].double() for v in (eps, ref, part["x_t"]))
            d, mu = ce * (e - r), cx * x + ce * r
            out.append([(d * (2 * (part[k][i].double() - mu) - d)).mean() /
                        (2 * sigma ** 2) for k in ("x_win", "x_lose")] +
                       [(e - r).std()])
    return np.array(out).reshape(len(TIMES), -1, 3)[::-1]


def table(name, n, truth, f32, other, bf16):
    print(f"\n{name}: {n} pairs a timestep, beta {BETA:g}, guidance "
          f"{GUIDANCE:g}\n    t |   f64: rms h |  f32: bias ln r    rms h | "
          f"{other}: rms ln r   bias ln r    rms h | eps - eps_ref",
          file=sys.stderr)
    for i, t in enumerate(TIMES):
        d = [v[i, :, :2] - truth[i, :, :2] for v in (f32, bf16)]
        h = [np.sqrt(np.mean((BETA * (v[:, 0] - v[:, 1])) ** 2))
             for v in (truth[i], *d)]
        bias = [v.mean() for v in d]
        print(f"{t:5d} | {h[0]:13.2e} | {bias[0]:+15.1e} {h[1]:8.1e} | "
              f"{np.sqrt(np.mean(d[1] ** 2)):14.2e} {bias[1]:+11.2e} "
              f"{h[2]:8.3f}{'x' * int(h[2] > MAX_H)} | "
              f"{bf16[i, :, 2].mean():.2e}", file=sys.stderr)
        # bf16 is beside them to be seen; what claims to serve is judged
        for k, what in enumerate(["f32"] + [other] * (other != "bf16")):
            parity.add(f"LPO in {what}: rms h <= 0.3 (torch's: {other})",
                       name, h[1 + k], h[2], MAX_H, f"t = {t}")
            parity.add(f"LPO in {what}: |bias ln r| <= 0.01 (torch's: "
                       f"{other})", name, abs(bias[k]), abs(bias[1]),
                       MAX_BIAS, f"t = {t}")


def setting(name):
    """The model's folder, its UNet, a LoRA, inputs, the text of none."""
    torch.manual_seed(0)
    if name.startswith("random"):
        side = int(name[6:])
        model, unet, length, width = random_model(side, (32, 64, 128, 128))
        n = 64 // side
    else:
        model = ROOT / "demo/model" if name == "demo" else pathlib.Path(name)
        unet = UNet2DConditionModel.from_pretrained(
            model / "unet").float().eval()
        length, width, n = 16, unet.config.cross_attention_dim, 16
    lora = small_lora(unet)
    rows, uncond = inputs(unet, length, width, n,
                          not name.startswith("random"))
    return model, unet, lora, rows, uncond


def measure(name, other):
    model, unet, lora, rows, uncond = setting(name)
    truth, f32, rest = (log_ratios(run, rows, uncond) for run in (
        exact(unet, lora), ours(model, "f32"), ours(model, other)))
    table(name, len(rows["timestep"]) // len(TIMES), truth, f32, other, rest)


def main():
    names = sys.argv[1:]
    other = names.pop(0) if names[:1] == ["bf16x3"] else "bf16"
    for name in names or ["demo", "random16", "random32"]:
        measure(name, other)


parity.run(main)

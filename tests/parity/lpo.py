"""LPO's loss, and whole steps of random models with all LoRA gradients."""
import copy
import math

import models
import parity
import torch
from safetensors.torch import save_file
from steps import Ddim, guided, layers, lora_file, lpo_loss, with_lora

STEPS, ETA, BETA, GUIDANCE = 20, 0.8, 500, 5
T = torch.tensor([951, 501, 51, 1])
N = len(T)


# The ratio of a step is a mean over the latent.  Beta magnifies its rounding
# error, which in a mean over 100 elements is ten times that of 16384: 50 here
# is what 500 is at full size.
SMALL_BETA = 50


def options(beta, clip):
    return ["--steps", str(STEPS), "--eta", str(ETA), "--beta", str(beta),
            "--clip", repr(clip)]


def clips(raw):
    """Limits that clamp no ratio, some, all: none near its limit."""
    off = sorted((r - 1).abs().item() for r in torch.cat(raw))
    half = len(off) // 2
    return (("not clamped", min(0.999, 2 * off[-1])),
            ("some clamped", math.sqrt(off[half - 1] * off[half])),
            ("all clamped", off[0] / 2))


def loss(m):
    gen = torch.Generator().manual_seed(m.seed)
    x_t, out, d = torch.randn(3, N, 4, m.h, m.w, generator=gen)
    ref = out + 0.02 * d
    z = torch.randn(2, N, 4, m.h, m.w, generator=gen)
    step = Ddim(m, torch.float64, T, STEPS, ETA)
    win, lose = (step.mean(x_t.double(), ref.double()) +
                 step.sigma * z.double()).float()
    raw = lpo_loss(step, out.double(), ref.double(), x_t.double(),
                   win.double(), lose.double(), BETA, 0.5)[1]
    for label, clip in clips(raw):
        def run(dtype):
            e = out.to(dtype).clone().requires_grad_()
            each, _, r = lpo_loss(
                Ddim(m, dtype, T, STEPS, ETA), e,
                *(a.to(dtype) for a in (ref, x_t, win, lose)), BETA, clip)
            each.mean().backward()
            return dict(loss=each.mean().detach(), ratio_win=r[0].detach(),
                        ratio_lose=r[1].detach(), d_eps=e.grad)

        got = parity.probe("lpo-loss", dict(
            eps=out, eps_ref=ref, x_t=x_t, x_win=win, x_lose=lose,
            timestep=T), "--grad", *options(BETA, clip), model=m.folder)
        truth, own = parity.both(run)
        parity.check(f"LPO loss, {label}", m.name, got, truth, own)


def step(m):
    """A loss is a few numbers, and all gradients of a row have one factor.
    Beta times the rounding errors of the two outputs is in them, of which one
    run of torch's is one draw, at times a lucky one: torch's error is the
    largest of three ways that are as good.  Without luck is what the outputs
    that came out make of the gradients."""
    gen = torch.Generator().manual_seed(50 + m.seed)
    net = m.unet(torch.float64), m.unet(torch.float32)
    params = dict(net[1].named_parameters())
    lora = {}
    for k in layers(net[1]):
        o, i = params[k + ".weight"].shape
        lora[k] = (torch.randn(4, i, generator=gen) / 4,
                   torch.randn(o, 4, generator=gen) / 100)
    save_file({k: v.contiguous() for k, v in lora_file(lora).items()},
              parity.path("lora"))
    x_t = torch.randn(N, 4, m.h, m.w, generator=gen)
    z = torch.randn(2, N, 4, m.h, m.w, generator=gen)
    context, more = m.conditioning(N, gen)
    uncond, none = m.conditioning(1, gen)
    if m.xl:                            # sizes belong to the picture
        none["time_ids"] = more["time_ids"]
    embeds = [(more.get("text_embeds"), more.get("time_ids")),
              (none.get("text_embeds"), none.get("time_ids"))]
    last = copy.deepcopy(net[1]).to(memory_format=torch.channels_last)

    def network(dtype, way):
        return last if way == "last" else net[dtype == torch.float32]

    def outputs(dtype, weights, way):
        unet = network(dtype, way)

        def some(rows):
            def to(x):
                return None if x is None else \
                    x.to(dtype)[rows if len(x) == N else slice(None)]

            cond, un = ((to(c), *map(to, e))
                        for c, e in zip((context, uncond), embeds))
            return guided(unet, to(x_t), T[rows], cond, un, GUIDANCE, weights)

        if way != "rows":
            return some(slice(None))
        return torch.cat([some(slice(i, i + 1)) for i in range(N)])

    def start(dtype, way=None):
        pairs = {k: tuple(x.to(dtype).clone().requires_grad_() for x in ab)
                 for k, ab in lora.items()}
        with torch.no_grad():
            ref = outputs(dtype, None, way)
        return pairs, ref, outputs(
            dtype, with_lora(network(dtype, way), pairs), way)

    dd = Ddim(m, torch.float64, T, STEPS, ETA)
    _, ref, out = start(torch.float64)
    win, lose = (dd.mean(x_t.double(), ref) + dd.sigma * z.double()).float()
    raw = lpo_loss(dd, out.detach(), ref, x_t.double(), win.double(),
                   lose.double(), SMALL_BETA, 0.5)[1]
    inputs = dict(x_t=x_t, x_win=win, x_lose=lose, timestep=T,
                  encoder_hidden_states=context, uncond_hidden_states=uncond)
    if m.xl:
        inputs |= more | dict(uncond_text_embeds=none["text_embeds"])
    for label, clip in clips(raw)[:2]:
        def mean_loss(dtype, out, ref):
            return lpo_loss(Ddim(m, dtype, T, STEPS, ETA), out, ref,
                            *(a.to(dtype) for a in (x_t, win, lose)),
                            SMALL_BETA, clip)[0].mean()

        got = parity.probe("lpo-step", inputs, "--grad", "--lora",
                           parity.path("lora"), "--guidance", str(GUIDANCE),
                           *options(SMALL_BETA, clip), model=m.folder)
        eps = got["eps"].double().requires_grad_()
        mean_loss(torch.float64, eps, got["eps_ref"].double()).backward()

        def run(dtype, way=None):
            pairs, ref, out = start(dtype, way)

            def grads(of, d=None):
                for p in (p for ab in pairs.values() for p in ab):
                    p.grad = None
                of.backward(d, retain_graph=True)
                return {f"grad.{k}": v.grad
                        for k, v in lora_file(pairs).items()}

            each = mean_loss(dtype, out, ref)
            return (dict(eps=out.detach(), eps_ref=ref),
                    dict(loss=each.detach()) | grads(each),
                    grads(out, eps.grad.to(dtype)))

        truth, own = parity.both(run)
        parity.check("LPO step, policy and reference", m.name, got, truth[0],
                     own[0])
        parity.check(f"LPO step, loss of its outputs, {label}", m.name,
                     dict(loss=got["loss"]), *(
                         dict(loss=mean_loss(d, got["eps"].to(d),
                                             got["eps_ref"].to(d)))
                         for d in (torch.float64, torch.float32)))
        parity.check(f"LPO step, LoRA gradients of its outputs, {label}",
                     m.name, got, truth[2], own[2])
        worst = parity.largest(truth[1], [own[1]] + [
            run(torch.float32, way)[1] for way in ("rows", "last")])
        for what, keys in (("loss", ["loss"]), ("LoRA gradients", truth[2])):
            parity.check(f"LPO step, {what}, {label}", m.name, got,
                         *({k: x[k] for k in keys} for x in (truth[1],
                                                             worst)))


def main():
    for m in models.all():
        loss(m)
        step(m)


parity.run(main)

#!/usr/bin/env python3
"""Golden values of the LPO loss and of DDIM steps, from torch in float64.

usage: make_lpo.py > tests/golden/lpo.txt
       make_lpo.py v > tests/golden/lpo_v.txt

With "v" the network predicts v = sqrt(abar) eps - sqrt(1 - abar) x0.

The loss is written out as the official code has it (method: log-probability
as a mean over elements, ratios clamped before the logarithm), differentiated
by autograd.  Inputs are small integers' sines, so that both sides make them.
DDIM steps are diffusers' own, from its DDIMScheduler.
Made with torch 2.x; the values do not depend on its version.
"""
import math
import sys

import torch

V = sys.argv[1:] == ["v"]

torch.set_default_dtype(torch.float64)
N = 48


def wave(k, scale):
    return torch.tensor([scale * math.sin(0.7 * (i + 1) * (k + 1) + k)
                         for i in range(N)]).float().double()


def abar():
    b = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000,
                       dtype=torch.float32) ** 2
    return torch.cumprod(1 - b, 0).double()


def case(t, prev, scale, gap, beta, clip):
    a, p = abar()[t], abar()[prev]
    sigma = torch.sqrt((1 - p) / (1 - a) * (1 - a / p))
    x_t, ref = wave(0, 1), wave(1, 1)
    eps = (ref + scale * wave(2, 1)).float().double().requires_grad_()

    def mean(e):
        if V:
            x0 = torch.sqrt(a) * x_t - torch.sqrt(1 - a) * e
            e = torch.sqrt(a) * e + torch.sqrt(1 - a) * x_t
        else:
            x0 = (x_t - torch.sqrt(1 - a) * e) / torch.sqrt(a)
        return torch.sqrt(p) * x0 + torch.sqrt(1 - p - sigma ** 2) * e

    def logp(x, e):
        return (-(x - mean(e)) ** 2 / (2 * sigma ** 2) - torch.log(sigma)
                - 0.5 * math.log(2 * math.pi)).mean()

    win = (mean(ref).detach() + gap * wave(3, 1)).float().double()
    lose = (mean(ref).detach() + gap * wave(4, 1)).float().double()
    r = [torch.clamp(torch.exp(logp(x, eps) - logp(x, ref)), 1 - clip,
                     1 + clip) for x in (win, lose)]
    loss = torch.nn.functional.softplus(
        -(beta * torch.log(r[0]) - beta * torch.log(r[1])))
    loss.backward()
    print("case", t, prev, scale, gap, beta, clip)
    print(f"{sigma.item():.17g} {loss.item():.17g} {r[0].item():.17g} "
          f"{r[1].item():.17g}")
    print(" ".join(f"{v:.17g}" for v in win))
    print(" ".join(f"{v:.17g}" for v in lose))
    print(" ".join(f"{v:.17g}" for v in eps.grad))


for args in ((951, 901, 0.01, 0.6, 500, 0.1), (501, 451, 0.002, 0.4, 500, 0.1),
             (1, 0, 0.0005, 0.02, 500, 0.1), (401, 351, 0.5, 0.8, 500, 0.1),
             (401, 351, 0.5, 0.8, 500, 0.02),
             (401, 351, 0.5, 0.8, 500, 0.01),
             (401, 351, 0.05, 0.5, 5, 0.3), (751, 701, 0.0, 0.5, 500, 0.1)):
    case(*args)


def ddim(t, eta):
    from diffusers import DDIMScheduler
    s = DDIMScheduler(beta_start=0.00085, beta_end=0.012,
                      beta_schedule="scaled_linear", steps_offset=1,
                      set_alpha_to_one=False, clip_sample=False,
                      prediction_type="v_prediction" if V else "epsilon")
    s.alphas_cumprod = s.alphas_cumprod.double()
    s.final_alpha_cumprod = s.alphas_cumprod[0]
    s.set_timesteps(20)
    out = s.step(wave(1, 1), t, wave(0, 1), eta=eta,
                 variance_noise=wave(2, 1) if eta > 0 else None)
    print("ddim", t, eta)
    print(" ".join(f"{v:.17g}" for v in out.prev_sample))


for args in ((951, 0), (951, 1), (501, 0.5), (51, 1), (1, 0), (1, 1)):
    ddim(*args)

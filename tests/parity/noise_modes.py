"""Which precision would serve LPO?  bf16_noise.py's figures, for ways of
rounding that no program here has, emulated in f64.

usage: noise_modes.py [demo|random16|random32|DIR ...]

Not one of the checks that tests/parity/run makes: it judges nothing.  By the
environment of tests/parity/run; PARITY_BIN and PARITY_ROWS as that sets them.

    all         what a layer, norm, activation or block makes is rounded, and
                what products take: as a network stored in that type
    products    only what products take is, and q, k, v: sums, norms and the
                residual stream are not

bf16 has 8 bits; f16 and TF32 have 11.  bf16x3 is what kernels/split.h has:
what linear and convolution layers take is hi + lo, each of 8 bits, and the
product of both lo is left out; attention's own products are exact here.  The
LoRA is never rounded.
"""
import copy
import sys

import numpy as np
import torch

import parity

parity.run = lambda main: None
import bf16_noise as noise  # noqa: E402

SPLIT = 2 * 8
MODES = (("bf16, all", 8, 8), ("bf16, products", 8, 0), ("f16, all", 11, 11),
         ("TF32, products", 11, 0), ("bf16x3, products", SPLIT, 0))
BLOCKS = ("ResnetBlock2D", "GEGLU", "Attention", "FeedForward",
          "BasicTransformerBlock", "Transformer2DModel", "GroupNorm",
          "LayerNorm", "SiLU")


def rounded(x, bits):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(mantissa * 2 ** bits) / 2 ** bits,
                       exponent)


def halves(x):
    hi = rounded(x, SPLIT // 2)
    return hi, rounded(x - hi, SPLIT // 2)


def taken(x, bits):
    return sum(halves(x)) if bits == SPLIT else rounded(x, bits)


class Emulation:
    """The UNet with rounding; lora_on: policy or reference."""

    def __init__(self, unet, lora, products, stored):
        self.unet, self.lora_on = copy.deepcopy(unet).double(), True
        for name, m in self.unet.named_modules():
            if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)):
                self.layer(name, m, lora, products, stored)
            elif stored and type(m).__name__ in BLOCKS:
                m.register_forward_hook(
                    lambda m, x, y: rounded(y, stored)
                    if torch.is_tensor(y) else y)

    def layer(self, name, m, lora, products, stored):
        low = halves(m.weight.data)[1] if products == SPLIT else None
        m.weight.data = taken(m.weight.data, products)
        key = f"unet.{name}.lora."
        up, down = (lora[key + k].double() if key + k in lora else None
                    for k in ("up.weight", "down.weight"))
        bits = stored or products * (low is None and name.endswith(
            ("to_q", "to_k", "to_v")))

        def after(m, x, y):
            if low is not None:
                y = y - self.product(m, halves(x[0])[1], low)
            if up is not None and self.lora_on:
                y = y + x[0] @ down.T @ up.T
            return rounded(y, bits) if bits else y

        m.register_forward_pre_hook(
            lambda m, x: (taken(x[0], products), *x[1:]))
        m.register_forward_hook(after)

    @staticmethod
    def product(m, x, weight):
        if isinstance(m, torch.nn.Linear):
            return torch.nn.functional.linear(x, weight)
        return torch.nn.functional.conv2d(x, weight, None, m.stride,
                                          m.padding)

    @torch.no_grad()
    def __call__(self, part, uncond):
        x, t, c = (part[k].double() for k in ("x_t", "timestep", "cond"))
        n, out = len(t), []
        for self.lora_on in True, False:
            e = self.unet(torch.cat([x, x]), torch.cat([t, t]), torch.cat(
                [c, uncond.double().expand(n, -1, -1)])).sample
            out.append(e[n:] + noise.GUIDANCE * (e[:n] - e[n:]))
        return out


def measure(name):
    unet, lora, rows, uncond = noise.setting(name)[1:]
    truth = noise.log_ratios(noise.exact(unet, lora), rows, uncond)
    for mode, products, stored in MODES:
        d = noise.log_ratios(Emulation(unet, lora, products, stored), rows,
                             uncond)[..., :2] - truth[..., :2]
        h = noise.BETA * (d[..., 0] - d[..., 1])
        h = np.sqrt(np.mean(h ** 2, axis=1))
        over = [t for t, v in zip(noise.TIMES, h) if v > noise.MAX_H]
        print(f"{name:10} {mode:16} rms h: median {np.median(h):.3f}, most "
              f"{h.max():.3f}; |bias of ln r| {abs(d.mean((1, 2))).max():.1e}"
              f"; above {noise.MAX_H} at {len(over)} of {len(h)} timesteps"
              f"{': ' if 0 < len(over) < 6 else ''}"
              f"{', '.join(map(str, over)) if len(over) < 6 else ''}")


for model in sys.argv[1:] or ["demo", "random16", "random32"]:
    measure(model)

"""Noise schedule, DDIM and thresholds against diffusers and closed forms.

usage: ddim.py [all]    all: timesteps of every count, not of some

Tables; timesteps of step counts in 1 .. 1000 and every spacing; DDIM steps
over every timestep of each case against DDIMScheduler in f64; thresholds
against method.md 3.4.

The table has the bits of torch's linspace as it was with vectors of eight
(models.md 6.1).  Newer torch counts each element by itself and differs in the
last bits, so here 16 ulp are allowed; steps and thresholds start from our
table.
"""
import json
import pathlib
import sys

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler

import parity

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
          num_train_timesteps=1000, clip_sample=False, steps_offset=1,
          set_alpha_to_one=False, prediction_type="epsilon",
          timestep_spacing="leading")


def judge(what, case, cases, wrong, worst):
    print(f"{what + ', ' + case:58s} {cases:6d} {int(wrong):6d} {worst:9.2e}",
          file=sys.stderr)
    parity.add(what, case, int(wrong), 0, 0, f"largest {worst:.2e}")


def probe(config, steps, tensors, *args):
    d = pathlib.Path(parity.path("model")) / "scheduler"
    d.mkdir(parents=True, exist_ok=True)
    (d / "scheduler_config.json").write_text(json.dumps(
        config | {"_class_name": "DDIMScheduler"}))
    return parity.probe("ddim", tensors, "--steps", str(steps), "-j", "1",
                        *args, model=d.parent)


def one(t=0):
    x = torch.zeros(1, 1, 1, 1)
    return dict(x_t=x, eps=x.clone(), timestep=torch.tensor([t]))


def tables():
    """alphas_cumprod."""
    for schedule in "scaled_linear", "linear":
        for n in 1000, 500, 50, 999, 1001, 8, 7, 4000:
            wrong, n_cases, worst = 0, 0, 0.0
            for lo, hi in ((0.00085, 0.012), (0.0001, 0.02), (0.0015, 0.0195)):
                c = SD | dict(beta_schedule=schedule, num_train_timesteps=n,
                              beta_start=lo, beta_end=hi)
                want = DDIMScheduler(**c).alphas_cumprod
                got = probe(c, min(n, 20) // 2, one())["alphas_cumprod"]
                ulp = (got.view(torch.int32) - want.view(torch.int32)).abs()
                wrong += (ulp > 16).sum().item()
                worst = max(worst, ulp.max().item())
                n_cases += n
            judge("alphas_cumprod within 16 ulp", f"{schedule}, {n}", n_cases,
                  wrong, worst)


def timesteps():
    for spacing, offset in (("leading", 1), ("leading", 0), ("trailing", 1),
                            ("linspace", 1)):
        c = SD | dict(timestep_spacing=spacing, steps_offset=offset)
        sched, wrong, cases = DDIMScheduler(**c), 0, 0
        some = range(1, 1001)
        if sys.argv[1:] != ["all"]:
            some = [*range(1, 41), *range(41, 1000, 47), 48, 61, 64, 96, 112, 333,
                    334, 499, 500, 501, 999, 1000]
        for n in some:
            sched.set_timesteps(n)
            want = sched.timesteps
            if int(want.max()) > 999:   # beyond the table: has to be refused
                try:
                    probe(c, n, one())
                    wrong += 1
                except RuntimeError:
                    pass
                cases += 1
                continue
            got = probe(c, n, one())["timesteps"].long()
            # trailing: arange may give diffusers one more, timestep -1
            wrong += not torch.equal(got, want[:n])
            cases += 1
        judge("timesteps", f"{spacing} + {offset}", cases, wrong, 0)


def steps():
    """x0 and x_prev at every timestep of a case."""
    g = torch.Generator().manual_seed(1)
    for kind in "epsilon", "v_prediction":
        for one_at_end in False, True:
            c = SD | dict(prediction_type=kind, set_alpha_to_one=one_at_end)
            for n in 1, 2, 7, 20, 30, 50, 333, 1000:
                for eta in 0.0, 0.5, 1.0:
                    step_case(c, n, eta, g)


def step_case(c, n, eta, g):
    sched = DDIMScheduler(**c)
    sched.set_timesteps(n)
    a = probe(SD, 1, one())["alphas_cumprod"].double()
    sched.alphas_cumprod = a
    sched.final_alpha_cumprod = a.new_tensor(1) if \
        c["set_alpha_to_one"] else a[0]
    ts = [t for t in sched.timesteps if t < 1000]
    x, e, z = (torch.randn(len(ts), 2, 3, 4, generator=g) for _ in range(3))
    got = probe(c, n, dict(x_t=x, eps=e, noise=z,
                           timestep=torch.stack(ts)), "--eta", str(eta)) \
        if len(ts) == n else None
    if got is None:     # 1000 steps with offset 1: refused, see above
        return
    wrong, worst = 0, 0.0
    for i, t in enumerate(ts):
        want = sched.step(e[i:i + 1].double(), int(t), x[i:i + 1].double(),
                          eta=eta, variance_noise=z[i:i + 1].double())
        for k, v in (("x_prev", want.prev_sample),
                     ("x0", want.pred_original_sample)):
            d = ((got[k][i:i + 1] - v).abs().max() /
                 v.abs().max()).item()
            worst = max(worst, d)
            wrong += not d <= 1e-6      # one rounding to f32, not more
    judge("DDIM step", f"{c['prediction_type']}, end {c['set_alpha_to_one']:d}, "
          f"n {n}, eta {eta}", 2 * len(ts), wrong, worst)


def thresholds():
    """method.md 3.4, in f64 from torch's own table."""
    a = probe(SD, 1, one())["alphas_cumprod"].double().numpy()
    official = [0.0206, 0.0406, 0.1673, 0.2144, 0.2509, 0.2836, 0.3144,
                0.3442, 0.3732, 0.4016, 0.4293, 0.4565, 0.4829, 0.5087,
                0.5336, 0.5576, 0.5807, 0.6029, 0.6241, 0.6444]
    for n in 20, 10, 50, 1, 333:
        t = (np.arange(n) * (1000 // n) + 1)[::-1]
        p = np.maximum(t - 1000 // n, 0)
        sigma = np.sqrt((1 - a[p]) / (1 - a[t]) * (1 - a[t] / a[p]))
        if n == 20:
            wrong = (np.round(sigma, 4) != official[::-1]).sum()
            judge("thresholds", "the official sigmas", 20, wrong, 0)
        for kind, along in (("sigma", sigma), ("variance", sigma ** 2),
                            ("linear", t.astype(float))):
            for lo, hi in ((0.35, 0.5), (0.45, 0.6), (0.0, 0.99)):
                v = along - along.min()
                v = v / v.max() if n > 1 else v * 0
                want = lo + (hi - lo) * v
                got = probe(SD, n, one(), "--threshold",
                            f"{kind}:{lo}:{hi}")["threshold"].numpy()
                d = np.abs(got - want)
                judge("thresholds", f"{kind}:{lo}:{hi}, n {n}", n,
                      (d > 1e-6).sum(), d.max())
        got = probe(SD, n, one(), "--threshold", "static:0.3")["threshold"]
        judge("thresholds", f"static, n {n}", n,
              (got != np.float32(0.3)).sum().item(), 0)


def main():
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}",
          file=sys.stderr)
    for part in tables, thresholds, steps, timesteps:
        part()


parity.run(main)

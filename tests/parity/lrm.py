"""The reward model of random models: score, loss, gradients, all options."""
import copy

import models
import parity
import torch
from lrm_torch import Lrm

N = 4


def data(m, seed=0):
    """Pairs with a tie, unequal weights and, in one, two timesteps."""
    gen = torch.Generator().manual_seed(seed + m.seed)
    x = torch.randn(2, N, 4, m.h, m.w, generator=gen)
    t = torch.tensor([[1, 401, 951, 201], [1, 401, 951, 251]])
    y = torch.tensor([[1, 0, .5, 1], [0, 1, .5, 0]])
    num = torch.tensor([3., 1., 2., 1.])
    return x, t, [m.ids(N, 7 * seed + i, i) for i in range(len(m.texts))], \
        y, num


def inputs(ids):
    return {f"input_ids{'_2' * i}": v for i, v in enumerate(ids)}


@torch.no_grad()
def score(m, **how):
    x, t, ids, _, _ = data(m)
    where = parity.path("lrm")
    Lrm(m, torch.float32, **how).save(where)
    truth, own = parity.both(lambda d: dict(zip(
        ("score", "visual", "text"), Lrm(m, d, **how).score(x[0], t[0], ids))))
    got = parity.probe("lrm", dict(sample=x[0], timestep=t[0], **inputs(ids)),
                       "-r", where, model=m.folder)
    for k in truth:
        parity.check(f"LRM {k}", m.name, got[k], truth[k], own[k])


def loss(m, label, criterion="pair", coeff=1.0, aux=1.0, ties=False, **how):
    x, t, ids, y, num = data(m, 1)
    if ties:
        y = torch.full_like(y, 0.5)
    where = parity.path("lrm")
    Lrm(m, torch.float32, **how).save(where)

    def run(dtype, way=None):
        lrm, given = Lrm(m, dtype, **how), (x, t, ids, y, num)
        if way == "last":
            lrm.unet = copy.deepcopy(lrm.unet).to(
                memory_format=torch.channels_last)
        if way == "backwards":          # the pairs from the last to the first
            given = (x.flip(1), t.flip(1), [i.flip(0) for i in ids],
                     y.flip(1), num.flip(0))
        value, _ = lrm.loss(*given, criterion, coeff, aux)
        value.backward()
        return ({"loss": value.detach()},
                {f"grad.{k}": torch.zeros_like(p) if p.grad is None else p.grad
                 for k, p in lrm.named().items()})

    truth, own = parity.both(run)
    others = [run(torch.float32, way) for way in ("last", "backwards")]
    for i, key in enumerate(("loss", "grad.logit_scale")):
        own[i].update(parity.largest(
            {key: truth[i][key]}, [own[i]] + [o[i] for o in others]))
    more = ["--freeze-text"] if how.get("freeze_text") else []
    got = parity.probe("lrm-loss", dict(
        sample_0=x[0], sample_1=x[1], timestep=t[0], timestep_1=t[1],
        label_0=y[0], label_1=y[1], num_example_per_prompt=num,
        **inputs(ids)), "-r", where, "--grad", "--criterion", criterion,
        "--batch-coeff", str(coeff), "--aux-coeff", str(aux), *more,
        model=m.folder)
    for k in ("loss", "grad.logit_scale"):
        got[k] = got[k].reshape(())
    extra = sorted(k for k in got if k.startswith("grad.text_encoder")
                   and k not in truth[1])
    parity.equal(f"LRM gradients asked for, {label}", m.name, extra, [])
    parity.check(f"LRM loss, {label}", m.name, got, truth[0], own[0])
    parity.check(f"LRM gradients, {label}", m.name, got, truth[1], own[1])


def main():
    for m in models.all():
        score(m)
        loss(m, "pair, guidance 7.5")
    for name in ("sd-one-level", "xl-two-levels"):
        m = models.Model(name)
        for how in (dict(multi=False), dict(multi_cfg=True),
                    dict(guidance=1), dict(guidance=0.5)):
            score(m, **how)
        loss(m, "multi-scale off", multi=False)
        loss(m, "multi-scale guided", multi_cfg=True)
        loss(m, "guidance 1", guidance=1)
        loss(m, "guidance 0.5", guidance=0.5)
        loss(m, "guidance 0.5, guided", guidance=0.5, multi_cfg=True)
        loss(m, "batch", criterion="batch")
        loss(m, "both, coefficients", criterion="both", coeff=0.7, aux=0.3)
        loss(m, "only ties", ties=True)
        loss(m, "frozen text", freeze_text=True)
        loss(m, "batch, frozen text", criterion="batch", freeze_text=True)


parity.run(main)

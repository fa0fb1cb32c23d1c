"""Ten training steps of the reward model and of LPO, end to end.

A torch script repeats them: it makes the same draws (Philox), the same pairs,
rollouts, candidates, scores, choices and batches, and steps torch's AdamW.
Compared are the loss of every step and what the weights have become, as a part
of what training changed.
"""
import copy
import io
import json
import math
import os
import sqlite3
import tarfile

import models
import numpy as np
import parity
import philox
import torch
from philox import Draw
from lrm_torch import Lrm, text_key
from safetensors.torch import load_file, save_file
from steps import (Ddim, alphas, guided, layers, lora_file, lpo_loss,
                   with_lora)

SEED, STEPS = 42, 10
WORDS = ["a red circle", "two blue crosses", "a large green square", "",
         "one small yellow ring"]


def metric(name):
    """A run's figures by step, from its database; each is used once."""
    db = sqlite3.connect(parity.path("db"))
    rows = db.execute("select value from metric where name = ? order by "
                      "run_id, step", (name,)).fetchall()
    return [r[0] for r in rows]


def fresh_db():
    if os.path.exists(parity.path("db")):
        os.remove(parity.path("db"))
    return ["--db", parity.path("db"), "-q", "-j", "1"]


def tokens(m, prompts, which=0):
    out = parity.tool("lpo-probe", "-c", "tokenizer" + "_2" * which, "-m",
                      m.folder, input="\n".join(prompts) + "\n", text=True)
    return torch.tensor([[int(i) for i in line.split()]
                         for line in out.splitlines()])


def compare_updates(what, model, start, ours, truth, own):
    """RMS of what was trained: errors as a part of the change.

    Without the biases of CLIP's keys: a softmax does not see them, so that
    their gradient is nothing but rounding, which Adam takes for a direction.
    """
    truth = {k: v for k, v in truth.items() if not k.endswith("k_proj.bias")}
    def norm(d):
        return math.sqrt(sum(x.double().square().sum().item()
                             for x in d.values()))

    change = norm({k: truth[k] - start[k] for k in truth})
    error = norm({k: ours[k].double() - truth[k] for k in truth}) / change
    mine = norm({k: own[k].double() - truth[k] for k in truth}) / change
    parity.add(what, model, error, mine, 4 * mine + 1e-5,
               f"of a change of {change:.3g}")


def compare_losses(what, model, ours, truth, own):
    parity.check(what, model, *(torch.tensor(x, dtype=torch.float64)
                                for x in (ours, truth, own)))


# ------------------------------------------------------------ reward model

ROWS = 18


def moments(m, gen):
    """A foreign tar of encoded preferences, and what is in it."""
    rows = []
    with tarfile.open(parity.path("moments.tar"), "w",
                      format=tarfile.USTAR_FORMAT) as tar:
        def member(name, data):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for i in range(ROWS):
            x = torch.randn(2, 8, m.h, m.w, generator=gen)
            x[:, 4:] -= 3
            first = [1, 0, .5][i % 3]
            row = dict(row=i, prompt=WORDS[i % len(WORDS)], label_0=first,
                       label_1=1 - first, num_example_per_prompt=1 + i % 4)
            for k in range(2):
                out = io.BytesIO()
                np.save(out, x[k].numpy())
                member(f"{i:09d}.moments_{k}.npy", out.getvalue())
            member(f"{i:09d}.json", json.dumps(row).encode())
            rows.append((row, x))
    return rows


def drawn_pairs(m, rows, count):
    """The pairs lpo-pairs makes of them, by method and draws."""
    times, table = range(1, 952, 50), alphas(m, torch.float32)
    for at in range(count):
        epoch = at // ROWS
        i = Draw(SEED, philox.SHUFFLE, 0, epoch).permute(at % ROWS, ROWS)
        row, x = rows[i]
        t = times[Draw(SEED, philox.TIMESTEP, i, epoch).below(len(times))]
        noisy = []
        for k in range(2):
            mean, logvar = x[k].chunk(2)
            e, z = (torch.from_numpy(Draw(
                SEED, p, i, epoch, 0, k).normal(*mean.shape))
                for p in (philox.POSTERIOR, philox.NOISE))
            x0 = (mean + (logvar.clamp(-30, 20) / 2).exp() * e) * \
                m.vae_config["scaling_factor"]
            noisy.append(table[t].sqrt() * x0 + (1 - table[t]).sqrt() * z)
        yield row | dict(t=t, x=torch.stack(noisy))


def read_pairs():
    """The stream as it is."""
    with tarfile.open(parity.path("pairs.tar")) as tar:
        x = []
        for member in tar:
            data = tar.extractfile(member).read()
            if member.name.endswith(".npy"):
                x.append(torch.from_numpy(np.load(io.BytesIO(data))))
            elif not member.name.startswith("__"):
                row = json.loads(data)
                yield row | dict(t=row["timestep_0"], x=torch.stack(x))
                x = []


def rate(schedule, n, peak, warmup, steps):
    """method.md 2.7 and the usual three; n from 1"""
    if schedule == "official":
        j = n - 2
        if n == 1:
            return peak
        return peak * math.log(j + 1) / math.log(warmup) if j < warmup else \
            peak * max(0, (steps - j) / (steps - warmup))
    if n <= warmup:
        return peak * n / warmup
    at = (n - 1 - warmup) / (steps - warmup)
    return peak * dict(constant=1, linear=1 - at, cosine=0.5 * (
        1 + math.cos(math.pi * at)))[schedule]


def new_lrm(m, dtype, projection, **how):
    """As lpo-lrm begins: W_v drawn, W_t from a file, s = 2.6592"""
    lrm = copy.deepcopy(Lrm(m, dtype, **how))
    item = crc32c(b"visual_projection.weight")
    lrm.visual_projection.data = torch.from_numpy(
        Draw(SEED, philox.INIT, item).normal(*lrm.visual_projection.shape)
        * np.float32(0.02)).to(dtype)
    if not m.xl:
        lrm.text_projection.data = projection.to(dtype)
    lrm.logit_scale.data = torch.tensor(2.6592, dtype=torch.float32).to(dtype)
    return lrm


def crc32c(data):
    crc = 0xffffffff
    for b in data:
        crc ^= b
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def train_lrm(m, label, schedule, criterion="pair", batch=4, clip=1.0,
              warmup=3, **how):
    gen = torch.Generator().manual_seed(m.seed)
    rows = moments(m, gen)
    count = STEPS * batch
    parity.tool("lpo-pairs", "-m", m.folder, "--dtype", "f4", "--epochs",
                str(-(-count // ROWS)), "-o", parity.path("pairs.tar"),
                "--force", *fresh_db(), parity.path("moments.tar"))
    pairs = list(read_pairs())[:count]
    drawn = list(drawn_pairs(m, rows, count))
    parity.equal("pairs drawn: order, prompts, labels, timesteps", label, [
        [p[k] for k in ("row", "prompt", "label_0", "t")] for p in pairs],
        [[p[k] for k in ("row", "prompt", "label_0", "t")] for p in drawn])
    exact = torch.stack([p["x"] for p in drawn])
    error = (torch.stack([p["x"] for p in pairs]) - exact).abs().max().item()
    parity.add("pairs drawn: noisy latents", label, error, 0,
               2e-6 * exact.abs().max().item())

    hidden = m.texts[0]["hidden_size"]
    projection = torch.randn(hidden, hidden, generator=gen) * hidden ** -0.5
    save_file({"text_projection.weight": projection}, parity.path("tp"))
    lr, decay = 1e-3, 0.3
    more = ["--freeze-text"] if how.get("freeze_text") else []
    parity.tool(
        "lpo-lrm", "-m", m.folder, "-o", parity.path("trained"), "--force",
        "--steps", STEPS, "--batch", batch, "--lr", lr, "--warmup", warmup,
        "--schedule", schedule, "--weight-decay", decay, "--criterion",
        criterion, "--max-grad-norm", clip, "--precision", "f32", "--dtype",
        "f32", *fresh_db(), *more, *([] if m.xl else
                                     ["--text-projection",
                                      parity.path("tp")]),
        parity.path("pairs.tar"))
    ids = [tokens(m, [p["prompt"] for p in pairs], i)
           for i in range(len(m.texts))]

    def run(dtype):
        lrm = new_lrm(m, dtype, projection, **how)
        named = lrm.named()
        start = {k: p.detach().clone() for k, p in named.items()}
        opt = torch.optim.AdamW(named.values(), lr, weight_decay=decay)
        losses = []
        for n in range(STEPS):
            at = range(n * batch, (n + 1) * batch)
            x = torch.stack([pairs[i]["x"] for i in at], 1)
            t = torch.tensor([[pairs[i]["t"] for i in at]] * 2)
            y = torch.tensor([[pairs[i][f"label_{k}"] for i in at]
                              for k in (0, 1)])
            num = torch.tensor([float(pairs[i]["num_example_per_prompt"])
                                for i in at])
            loss, _ = lrm.loss(x, t, [i[at.start:at.stop] for i in ids], y,
                               num, criterion)
            opt.zero_grad()
            loss.backward()
            # what no score depends on (SDXL's last layer of the first
            # encoder) decays too, as in the official run: method.md 2.7
            for p in named.values():
                if p.grad is None and p.requires_grad:
                    p.grad = torch.zeros_like(p)
            if clip:
                torch.nn.utils.clip_grad_norm_(named.values(), clip)
            for group in opt.param_groups:
                group["lr"] = rate(schedule, n + 1, lr, warmup, STEPS)
            opt.step()
            losses.append(loss.item())
        return losses, start, {k: p.detach() for k, p in named.items()}

    truth, own = parity.both(run)
    compare_losses("LRM, ten steps: loss of each", label, metric("loss"),
                   truth[0], own[0])
    parity.check("LRM, ten steps: learning rates", label, *[
        torch.tensor([f(n + 1) for n in range(STEPS)]) for f in (
            lambda n: metric("lr")[n - 1],
            lambda n: rate(schedule, n, lr, warmup, STEPS),
            lambda n: rate(schedule, n, lr, warmup, STEPS))])
    folder = parity.path("trained")
    ours = {}
    for part, name in (("unet", "diffusion_pytorch_model"),
                       ("text_encoder", "model"), ("text_encoder_2", "model")):
        if any(k.startswith(part + ".") for k in truth[2]):
            ours |= {f"{part}.{text_key(k) if 'text' in part else k}": v
                     for k, v in load_file(
                         f"{folder}/{part}/{name}.safetensors").items()}
    head = torch.load(f"{folder}/state_dict.pt", weights_only=True)
    ours |= {k: v["weight"] for k, v in head.items() if k != "logit_scale"}
    ours["logit_scale"] = torch.as_tensor(head["logit_scale"])
    for part in ("unet.", "text_encoder.", "text_encoder_2.",
                 "visual_projection", "text_projection", "logit_scale"):
        keys = [k for k in truth[2] if k.startswith(part)]
        if keys:
            compare_updates(f"LRM, ten steps: {part.rstrip('.')}", label,
                            *({k: x[k] for k in keys} for x in
                              (truth[1], ours, truth[2], own[2])))


# --------------------------------------------------------------------- LPO

def train_lpo(m, label, prompts, steps, candidates, per_iteration, batch,
              iterations, threshold, lr=1e-3, rank=3, decay=1e-2, clip=0.1,
              beta=50, eta=1.0, g=5):     # beta: see lpo.py
    texts = WORDS[:prompts]
    with open(parity.path("p.txt"), "w", encoding="utf8") as f:
        f.write("\n".join(texts) + "\n")
    where = parity.path("lrm")
    Lrm(m, torch.float32).save(where)
    side = m.h * m.factor
    params = dict(m.unet(torch.float32).named_parameters())
    first = {}                      # A drawn, B = 0, as a LoRA begins
    for i, k in enumerate(layers(m.unet(torch.float32))):
        o, n = params[k + ".weight"].shape
        a = Draw(SEED, philox.INIT, i).normal(rank, n) / np.float32(rank)
        first[k] = torch.from_numpy(a), torch.zeros(o, rank)
    save_file(lora_file(first), parity.path("first.safetensors"))
    parity.tool(
        "lpo-train", "-m", m.folder, "-r", where, "-p", parity.path("p.txt"),
        "-o", parity.path("a.safetensors"), "--force", "--lora-f32",
        "--lora-format", "diffusers", "--precision", "f32", "--steps", steps,
        "--candidates", candidates, "--prompts-per-iteration", per_iteration,
        "--batch", batch, "--iterations", iterations, "--threshold",
        ":".join(map(str, threshold)), "--lr", lr, "--init-lora",
        parity.path("first.safetensors"), "--weight-decay", decay, "--clip",
        clip, "--beta", beta, "--eta", eta, "--guidance", g, "-s", side,
        *fresh_db())
    ids = [tokens(m, texts + [""], i) for i in range(len(m.texts))]
    shape = (4, m.h, m.h)
    times = torch.tensor([1000 // steps * (steps - 1 - i) + 1
                          for i in range(steps)])

    def run(dtype):
        unet = m.unet(dtype).requires_grad_(False)
        reward = Lrm(m, dtype).requires_grad_(False)
        dd = [Ddim(m, dtype, t[None], steps, eta) for t in times]
        lora = {k: tuple(p.to(dtype).clone().requires_grad_() for p in ab)
                for k, ab in first.items()}
        start = {k: p.detach().clone() for k, p in lora_file(lora).items()}
        opt = torch.optim.AdamW([p for ab in lora.values() for p in ab], lr,
                                weight_decay=decay)
        with torch.no_grad():
            rows = condition(m, dtype, ids, side)
            lrm_text = reward.encode([i[:prompts] for i in ids])
        log = []
        for it in range(iterations):
            log.append(iteration(
                it, dtype, unet, reward, dd, lora, opt, rows, lrm_text))
        return log, start, {k: p.detach() for k, p in
                            lora_file(lora).items()}

    def iteration(it, dtype, unet, reward, dd, lora, opt, rows, lrm_text):
        def text(who):
            return tuple(None if r is None else r[who] for r in rows)

        uncond = tuple(None if r is None else r[-1:] for r in rows)
        found, scores, margins = [], [], []
        order, epoch = [], []
        for p in range(per_iteration):
            at = it * per_iteration + p
            epoch.append(at // prompts)
            order.append(Draw(SEED, philox.SHUFFLE, 0, epoch[-1]).permute(
                at % prompts, prompts))

        def draw(purpose, p, s=0, k=0):
            return Draw(SEED, purpose, order[p], epoch[p], s, k)

        def normal(*what):
            return torch.from_numpy(draw(*what).normal(
                m.h, m.h, 4)).permute(2, 0, 1).to(dtype)

        with torch.no_grad():
            weights = with_lora(unet, lora)
            x = torch.stack([normal(philox.LATENT, p)
                             for p in range(per_iteration)])
            for s in range(steps):
                t = times[s].expand(per_iteration)
                out = guided(unet, x, t, text(order), uncond, g, weights)
                mu = dd[s].mean(x, out)
                z = torch.stack([torch.stack([
                    normal(philox.CANDIDATE, p, s, k)
                    for k in range(candidates)])
                    for p in range(per_iteration)])
                cand = mu[:, None] + dd[s].sigma[:, None] * z
                who = [o for o in order for _ in range(candidates)]
                score = score_of(reward, lrm_text, cand.flatten(0, 1),
                                 times[s], who).reshape(-1, candidates)
                for p in range(per_iteration):
                    w, l = score[p].argmax().item(), \
                        score[p].argmin().item()
                    margin = torch.tanh((score[p, w] - score[p, l]) / 2)
                    scores.append(score[p].mean().item())
                    margins.append(margin.item())
                    if margin > limit(s):
                        found.append((s, order[p], x[p], cand[p, w],
                                      cand[p, l]))
                x = torch.stack([cand[p, draw(philox.PICK, p, s).below(
                    candidates)] for p in range(per_iteration)])
        shuffle = Draw(SEED, philox.SHUFFLE, it, 0, 1)
        found = [found[shuffle.permute(i, len(found))]
                 for i in range(len(found))]
        total, right = 0.0, 0
        for at in range(0, len(found), batch):
            some = found[at:at + batch]
            s, who, xt, win, lose = zip(*some)
            xt, win, lose = map(torch.stack, (xt, win, lose))
            t = times[list(s)]
            cond = text(list(who))
            with torch.no_grad():
                ref = guided(unet, xt, t, cond, uncond, g)
            out = guided(unet, xt, t, cond, uncond, g, with_lora(unet, lora))
            each, _, r = lpo_loss(Ddim(m, dtype, t, steps, eta), out, ref,
                                  xt, win, lose, beta, clip)
            opt.zero_grad()
            each.mean().backward()
            opt.step()
            total += each.sum().item()
            right += (r[0] > r[1]).sum().item()
        return dict(valid=len(found), loss=total / len(found),
                    score_mean=sum(scores) / len(scores),
                    margin_mean=sum(margins) / len(margins))

    exact = [Ddim(m, torch.float64, t[None], steps, eta).sigma.item()
             for t in times]

    def limit(s):
        if threshold[0] == "static":
            return threshold[1]
        shape = dict(sigma=exact, variance=[x * x for x in exact],
                     linear=times.tolist())[threshold[0]]
        return threshold[1] + (threshold[2] - threshold[1]) * \
            (shape[s] - min(shape)) / (max(shape) - min(shape))

    truth, own = parity.both(run)
    parity.equal("LPO, ten steps: valid pairs of each", label,
                 [int(v) for v in metric("valid")],
                 [x["valid"] for x in truth[0]])
    for k in ("score_mean", "margin_mean", "loss"):
        compare_losses(f"LPO, ten steps: {k} of each", label, metric(k),
                       [x[k] for x in truth[0]], [x[k] for x in own[0]])
    compare_updates("LPO, ten steps: LoRA", label, truth[1],
                    load_file(parity.path("a.safetensors")), truth[2],
                    own[2])


def condition(m, dtype, ids, side):
    """context, pooled, time ids of each prompt and, last, unconditional"""
    if not m.xl:
        return m.text(dtype)(ids[0]).last_hidden_state, None, None
    a, b = (m.text(dtype, i)(ids[i], output_hidden_states=True)
            for i in (0, 1))
    context = torch.cat([a.hidden_states[-2], b.hidden_states[-2]], -1)
    pooled = b.text_embeds
    context[-1], pooled[-1] = 0, 0          # zeros, not the encoded ""
    sizes = torch.tensor([side, side, 0, 0, side, side], dtype=dtype)
    return context, pooled, sizes.repeat(len(context), 1)


def score_of(reward, text, x, t, who):
    rows = tuple(None if r is None else r[who] for r in text)
    v = reward.visual(x, t.expand(len(x)), rows)
    f = rows[2]
    cos = (v * f).sum(-1) / v.norm(dim=-1) / f.norm(dim=-1)
    return reward.logit_scale.exp() * cos


def main():
    sd, xl = models.Model("sd-one-level"), models.Model("xl-two-levels")
    train_lrm(sd, "sd, official, pair", "official")
    train_lrm(xl, "xl, cosine, pair", "cosine", clip=0)
    train_lrm(sd, "sd, linear, both", "linear", criterion="both")
    train_lrm(models.Model("sd-embedding"), "sd, constant, frozen text",
              "constant", batch=3, freeze_text=True)
    for name, steps in (("sd-wide", 4), ("xl-two-levels", 4)):
        train_lpo(models.Model(name), name, 3, steps, 4, 2, 16, 10,
                  ("static", 0.0))
    train_lpo(models.Model("sd-deep"), "sd-deep, thresholds, batches", 3, 5,
              3, 2, 3, 4, ("sigma", 0.02, 0.1))


parity.run(main)

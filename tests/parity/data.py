"""lpo-encode and lpo-pairs against diffusers, Pillow, NumPy and statistics.

usage: data.py [SEED]       MODEL=demo/model

Moments of pictures of many kinds, of several sizes; noised latents with the
draws of design.md 5 made again in NumPy; how timesteps, noise and order are
distributed; MPCF and SQL filters over random tables.
"""
import csv
import io
import itertools
import json
import math
import os
import pathlib
import random
import sqlite3
import sys
import tarfile

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image, ImageOps

import parity
from draws import (NOISE, OFFSET, PARTNER, POSTERIOR, TIMESTEP, normals,
                   words)

MODEL = pathlib.Path(os.environ.get("MODEL", parity.ROOT + "/demo/model"))
WORK = pathlib.Path(parity.WORK)
SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 1


def judge(what, case, value, limit):
    """value <= limit, or a mark."""
    print(f"{what + ', ' + case:66s} {value:9.3g} of {limit:9.3g}",
          file=sys.stderr)
    parity.add(what, case, float(value), 0, float(limit))


def run(tool, *args, stdin=None):
    return parity.tool(tool, "-q", "--db", "none", "-j", "1", *args,
                       input=stdin)


def samples(data):
    """{key: {name: array or object}} of a stream."""
    out = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for m in tar:
            key, name = m.name.split(".", 1)
            if key.startswith("__"):
                continue
            b = tar.extractfile(m).read()
            out.setdefault(key, {})[name] = json.loads(b) if \
                name == "json" else np.load(io.BytesIO(b))
    return out


# ------------------------------------------------------------------- encode

def pictures(rng):
    for i in range(24):
        w, h = rng.randrange(20, 90), rng.randrange(20, 90)
        mode = rng.choice(["RGB", "L", "RGBA", "P", "CMYK", "1"])
        im = Image.fromarray(np.random.default_rng(i).integers(
            0, 256, (h // 8 + 1, w // 8 + 1, 3), np.uint8)).resize((w, h))
        im = im.convert(mode)
        kind = "JPEG" if mode == "CMYK" else rng.choice(
            ["PNG", "WEBP"] if mode == "RGBA" else
            ["PNG"] if mode in ("P", "1") else ["PNG", "JPEG", "WEBP"])
        exif = Image.Exif()
        exif[0x112] = rng.randrange(1, 9)
        name = f"{i}.{kind.lower()}"
        im.save(WORK / name, kind, exif=exif)
        yield name


def table(rng, names, rows):
    with open(WORK / "prefs.csv", "w", newline="", encoding="utf8") as f:
        w = csv.writer(f)
        w.writerow(["prompt", "image_0", "image_1", "preferred"])
        for i in range(rows):
            a, b = rng.sample(names, 2)
            w.writerow([f"picture {i % 17}", a, b,
                        rng.choice(["0", "1", "tie"])])
            yield a, b


@torch.no_grad()
def encode():
    """Moments [8, h, w] against AutoencoderKL.encode, 4 x torch's f32 error."""
    rng = random.Random(SEED)
    names = list(pictures(rng))
    pairs = list(table(rng, names, 40))
    vae = AutoencoderKL.from_pretrained(MODEL / "vae").float().eval()
    exact = AutoencoderKL.from_pretrained(MODEL / "vae").double().eval()
    for size, turn in ((32, False), (48, False), (40, True)):
        want = {}
        for n in names:
            im = Image.open(WORK / n)
            im = (ImageOps.exif_transpose(im) if turn else im).convert("RGB")
            im = im.resize((size, im.height), Image.BILINEAR)
            x = np.asarray(im.resize((size, size), Image.BILINEAR))
            x = torch.tensor(x).permute(2, 0, 1)[None] / 255. * 2 - 1
            want[n] = [v.encode(x.to(v.dtype)).latent_dist.parameters[0]
                       for v in (vae, exact)]
        got = samples(run("lpo-encode", "-m", MODEL, "-s", size, "--dtype",
                          "f4", "--precision", "f32", WORK / "prefs.csv",
                          *["--exif"] * turn))
        assert len(got) == len(pairs)
        err = [(np.abs(got[f"{i:09d}"][f"moments_{k}.npy"] -
                       want[n][1].numpy()).max())
               for i, p in enumerate(pairs) for k, n in enumerate(p)]
        theirs = max((a - b).abs().max().item() for a, b in want.values())
        top = max(b.abs().max().item() for _, b in want.values())
        judge("moments of pictures", f"{size} px{', --exif' * turn}",
              max(err), 4 * theirs + 1e-5 * top)


# -------------------------------------------------------------------- pairs

def below(n, element, *draw):
    return int(words(element + 1, *draw)[element] * np.uint64(n) >>
               np.uint64(32))


def noised(moments, t, seed, row, epoch, candidate, scale, abar, offset):
    """x_t of one image, in f64 (method.md 2.4)."""
    mean, logvar = np.split(moments.astype(float), 2)
    shape, n = mean.shape, mean.size
    draw = (row, epoch, 0, candidate)
    z = mean + np.exp(np.clip(logvar, -30, 20) / 2) * normals(
        n, seed, POSTERIOR, *draw).reshape(shape)
    noise = normals(n, seed, NOISE, *draw).reshape(shape)
    if offset:
        noise = noise + offset * normals(shape[0], seed, OFFSET,
                                         *draw)[:, None, None]
    return math.sqrt(abar[t]) * scale * z + math.sqrt(1 - abar[t]) * noise


def draw_t(times, gap, seed, row, epoch, cross):
    n = len(times)
    j = below(n, int(cross), seed, TIMESTEP, row, epoch)
    if not cross:
        return [times[j]] * 2
    up = j < gap or j < n - gap and below(2, 0, seed, PARTNER, row, epoch)
    return [times[j], times[j + gap if up else j - gap]]


def pairs():
    """Every latent of several runs."""
    enc = run("lpo-encode", "-m", MODEL, "--dtype", "f4", WORK / "prefs.csv")
    moments = samples(enc)
    scale = AutoencoderKL.load_config(MODEL / "vae")["scaling_factor"]
    abar = DDIMScheduler.from_pretrained(
        MODEL / "scheduler").alphas_cumprod.double().numpy()
    standard = list(range(1, 952, 50))
    for dtype, seed, epochs, offset, gap, times in (
            ("f4", 42, 1, 0, 0, standard), ("f2", 7, 1, 0, 0, standard),
            ("f4", 2 ** 63 + 12345, 2, 0.05, 0, standard),
            ("f4", 3, 2, 0, 3, standard), ("f4", 4, 1, 0.3, 1, [0, 500, 999]),
            ("f4", 5, 3, 0, 0, [1, 401, 751]), ("f4", 6, 1, 0, 10, standard)):
        args = ["--dtype", dtype, "--seed", seed, "--epochs", epochs,
                "--noise-offset", offset, "--timesteps",
                ",".join(map(str, times))]
        if gap:
            args += ["--compare-timesteps", gap]
        got = samples(run("lpo-pairs", *args, stdin=enc))
        worst, wrong, wins = 0.0, 0, 0
        for m in moments.values():
            wins += m["json"]["label_0"] != m["json"]["label_1"]
        wrong += len(got) != epochs * (len(moments) + (wins if gap else 0))
        for key, s in got.items():
            row, epoch = (int(v) for v in key.split("-t")[0].split("-e"))
            cross = key.endswith("-t")
            src, j = moments[f"{row:09d}"], s["json"]
            t = draw_t(times, gap, seed, row, epoch, cross)
            wrong += [j["timestep_0"], j["timestep_1"]] != t
            first = src["json"]["label_0"]
            wrong += j["label_0"] != (t[0] < t[1] if cross else first)
            wrong += j["label_0"] + j["label_1"] != 1 or j["epoch"] != epoch
            for i in 0, 1:
                image = int(first < 0.5) if cross else i
                want = noised(src[f"moments_{image}.npy"], t[i], seed, row,
                              epoch, 2 + i if cross else i, scale, abar,
                              offset)
                if dtype == "f2":
                    want = want.astype(np.float16).astype(float)
                worst = max(worst, np.abs(s[f"latent_{i}.npy"] - want).max())
        name = f"{dtype}, seed {seed}, {epochs} epochs, offset {offset:g}, " \
            f"gap {gap}"
        judge("pairs: keys, timesteps, labels", name, wrong, 0)
        judge("pairs: noised latents", name, worst,
              # f2: next to a rounding border one step of a value below 8
              2e-6 if dtype == "f4" else 2 ** -8)


# ------------------------------------------------------- foreign moment tars

def member(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def npy(a):
    f = io.BytesIO()
    np.save(f, a)
    return f.getvalue()


def foreign(path, records, shape=(8, 1, 1)):
    """Moments of mean 0 and no variance, as others might write them."""
    m = np.zeros(shape, np.float32)
    m[4:] = -30
    m = npy(m)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, r in enumerate(records):
            for k in 0, 1:
                member(tar, f"{i:09d}.moments_{k}.npy", m)
            member(tar, f"{i:09d}.json", json.dumps(
                dict(key=f"{i:09d}", row=i, num_example_per_prompt=1,
                     prompt=f"p {i}") | r).encode())


def chi_square(counts):
    """In standard deviations above what is expected."""
    counts = np.asarray(counts, float)
    e = counts.sum() / counts.size
    x = ((counts - e) ** 2 / e).sum()
    return (x - (counts.size - 1)) / math.sqrt(2 * (counts.size - 1))


def distributions():
    n = 20000
    foreign(WORK / "many.tar", [dict(label_0=i % 2, label_1=1 - i % 2)
                                for i in range(n)])
    got = samples(run("lpo-pairs", "-m", MODEL, "--dtype", "f4", "--seed",
                      SEED, WORK / "many.tar"))
    keys = list(got)
    t = np.array([got[k]["json"]["timestep_0"] for k in keys])
    label = np.array([got[k]["json"]["label_0"] for k in keys])
    times = list(range(1, 952, 50))
    judge("draws", "timesteps: chi-square, sd", chi_square(
        [(t == v).sum() for v in times]), 4)
    judge("draws", "timesteps by label: chi-square, sd", chi_square(
        [((t == v) & (label == k)).sum() for v in times for k in (0, 1)]), 4)
    row = np.array([int(k[:9]) for k in keys])
    judge("draws", "order: |correlation with the input's| sqrt(n)",
          abs(np.corrcoef(row, np.arange(n))[0, 1]) * math.sqrt(n), 4)
    judge("draws", "order: neighbours that stay neighbours",
          (np.abs(np.diff(row)) == 1).sum(), 2 + 4 * math.sqrt(2) + 2)
    abar = DDIMScheduler.from_pretrained(
        MODEL / "scheduler").alphas_cumprod.double().numpy()
    z = [np.stack([got[k][f"latent_{i}.npy"].reshape(-1) for k in keys]) /
         np.sqrt(1 - abar[t])[:, None] for i in (0, 1)]
    for i in 0, 1:
        v = np.sort(z[i].reshape(-1))
        cdf = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in v])
        ks = np.abs(cdf - (np.arange(v.size) + 0.5) / v.size).max()
        judge("draws", f"noise {i}: Kolmogorov-Smirnov sqrt(n) D",
              ks * math.sqrt(v.size), 1.95)     # 1 in 1000
    both = np.concatenate(z, 1)
    c = np.corrcoef(both, rowvar=False) - np.eye(8)
    judge("draws", "noise: largest |correlation| sqrt(n)",
          np.abs(c).max() * math.sqrt(n), 4.5)


def keep(r, aes, use):
    """method.md 2.2."""
    tie = r["label_0"] == 0.5
    limits = dict(aesthetic=(aes, 0.2), clipscore=(0, 0.03),
                  vqascore=(0, 0.07))
    for name in use:
        x = r["extra"].get(name + "_gap")
        if x is None:
            a, b = (r["extra"][f"{name}_{k}"] for k in (0, 1))
            x = a - b if r["label_0"] > r["label_1"] else b - a
        if tie and not abs(x) < limits[name][1]:
            return False
        if not tie and not x > limits[name][0]:
            return False
    return True


def filters():
    rng = random.Random(SEED)
    edges = [0, -0.5, -1, 0.2, -0.2, 0.03, -0.03, 0.07, 1e-300, -0.0]
    names = ["aesthetic", "clipscore", "vqascore"]
    for gaps in True, False:
        records = []
        for _ in range(1500):
            tie = rng.random() < 0.3
            first = 0.5 if tie else rng.randrange(2)
            extra = {}
            for name in names:
                size = {"aesthetic": 1, "clipscore": .05, "vqascore": .1}[name]
                for k in ["gap"] if gaps else [0, 1]:
                    extra[f"{name}_{k}"] = rng.choice(edges) if \
                        rng.random() < 0.2 else rng.gauss(0.3 * size, size)
            records.append(dict(label_0=first, label_1=1 - first,
                                extra=extra))
        foreign(WORK / "mpcf.tar", records)
        for m, aes in ((1, 0), (2, -0.5), (3, -1)):
            for use in itertools.chain.from_iterable(
                    itertools.combinations(names, k) for k in (1, 2, 3)):
                got = samples(run("lpo-pairs", "-m", MODEL, "--filter",
                                  f"mpcf{m}", "--mpcf-use", ",".join(use),
                                  WORK / "mpcf.tar"))
                want = {i for i, r in enumerate(records)
                        if keep(r, aes, use)}
                diff = want ^ {int(k[:9]) for k in got}
                judge("MPCF: pairs wrongly kept or dropped",
                      f"mpcf{m} {'+'.join(use)}, "
                      f"{'gaps' if gaps else 'scores'}, {len(want)} kept",
                      len(diff), 0)
    where(records)


def where(records):
    """The same expressions in SQLite."""
    db = sqlite3.connect(":memory:")
    cols = list(records[0]["extra"])
    db.execute(f"create table p(i, label_0, {', '.join(cols)})")
    db.executemany(f"insert into p values (?, ?{', ?' * len(cols)})",
                   [(i, r["label_0"], *r["extra"].values())
                    for i, r in enumerate(records)])
    for e in ("aesthetic_0 > 0.3 and clipscore_1 <= 0.03",
              "label_0 = 0.5 or abs(vqascore_0 - vqascore_1) < 0.07",
              "aesthetic_0 between -0.5 and 0.2",
              "not (clipscore_0 in (0, 0.03, 0.07))"):
        got = samples(run("lpo-pairs", "-m", MODEL, "--where", e,
                          WORK / "mpcf.tar"))
        want = {i for i, in db.execute(f"select i from p where {e}")}
        judge("--where: pairs wrongly kept or dropped",
              f"{e[:30]}, {len(want)} kept",
              len(want ^ {int(k[:9]) for k in got}), 0)


def main():
    for part in encode, pairs, distributions, filters:
        part()


parity.run(main)

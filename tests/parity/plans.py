"""What --dry-run says of full-size runs, against what the runs then take.

usage: plans.py [KIND ...]              sd15, sd21, sdxl; also tiny ...

Not one of the checks that tests/parity/run makes unasked: it takes long, and
wants a machine that does nothing else; `tests/parity/run plans:sd15`.  It is
the README's way from pictures to a comparison, on a few of them, with random
weights.  Before each command runs its plan is printed; the peak of memory is
to be within 5 % of that, the seconds within 30 %.  A plan cannot know how many
transitions will be valid pairs and takes half of them, which a quantile as
threshold makes true.

FULLSIZE_TMP    a folder for 20 GB of files; else the system's for such
FULLSIZE_SIDE   another side of the latents than the model's own
PLANS_WORKS     only these: encode, lrm, train, sample, by commas
PLANS_TYPES     bf16,f32
PLANS_MEMORY    of lpo-lrm and lpo-train: --memory, such as 5G (what there is)
"""
import json
import os
import random
import sys
import tempfile

import parity

THREADS = str(len(os.sched_getaffinity(0)))
TYPES = os.environ.get("PLANS_TYPES", "bf16,f32").split(",")
MEMORY = os.environ.get("PLANS_MEMORY")
PICTURES = 8                            # half as many pairs
PROMPTS = ["a photo of an astronaut riding a horse on the moon",
           "a red bicycle"]


def pictures(folder, px):
    """Pictures of noise, and the preferences between them."""
    from PIL import Image
    os.mkdir(folder)
    draw = random.Random(7)
    with open(f"{folder}/prefs.csv", "w", encoding="utf8") as f:
        f.write("prompt,image_0,image_1,preferred\n")
        for i in range(0, PICTURES, 2):
            for k in (i, i + 1):
                Image.frombytes("RGB", (px, px), draw.randbytes(
                    3 * px * px)).save(f"{folder}/{k}.png")
            f.write(f"{PROMPTS[i // 2 % 2]},{i}.png,{i + 1}.png,{i // 2 % 2}\n")


def seconds_of(plan):
    """"12.5 s", or "203 s (3 min 23 s)"."""
    return float(plan["time in all"].split()[0])


def bytes_of(plan):
    return float(plan["memory, at most"].split()[0]) * 2 ** 20


def work(what, kind, precision, name, *args):
    line = [name, "-q", "--db", "none", "-j", THREADS, "--precision",
            precision, "--force", "--fresh", *args]
    wanted = os.environ.get("PLANS_WORKS")
    if wanted and name.removeprefix("lpo-") not in wanted.split(","):
        return
    plan = {x["name"]: x["value"] for x in map(json.loads, parity.tool(
        *line, "--dry-run", "--json", text=True).splitlines())}
    planned = seconds_of(plan), bytes_of(plan)
    seen = parity.timed(*line)
    print(f"    {precision}: {name}: planned {planned[0]:.0f} s, "
          f"{planned[1] / 1e6:.0f} MB; took {seen[0]:.1f} s, "
          f"{seen[1] / 1e6:.0f} MB", file=sys.stderr, flush=True)
    for i, (of, limit) in enumerate((("seconds", 0.30), ("memory", 0.05))):
        off = abs(planned[i] / seen[i] - 1)
        parity.add(f"{precision}: {what}, {of}", kind, off, 0, limit,
                   f"planned {planned[i]:.6g}, took {seen[i]:.6g}")
    parity.planned(f"{precision}: {what}", kind, seen, planned)


def way(kind, scratch):
    model, side = f"{scratch}/{kind}", os.environ.get("FULLSIZE_SIDE")
    parity.tool("lpo-probe", "--save", model, "-m", f"random:{kind}")
    with open(f"{model}/unet/config.json", encoding="utf8") as f:
        px = 8 * int(side or json.load(f)["sample_size"])
    pictures(f"{scratch}/in", px)
    prompts = f"{scratch}/prompts.txt"
    with open(prompts, "w", encoding="utf8") as f:
        f.write("\n".join(PROMPTS) + "\n")
    at = ["-m", model, "-s", str(px)]
    within = ["--memory", MEMORY] if MEMORY else []
    for precision in TYPES:
        enc, pairs, lrm = (f"{scratch}/{f}" for f in (
            "enc.tar", "pairs.tar", "lrm"))
        print(f"  {kind}, {precision}", file=sys.stderr, flush=True)
        work(f"lpo-encode, {PICTURES} of {px} px", kind, precision,
             "lpo-encode", *at, "-o", enc, f"{scratch}/in/prefs.csv")
        if not os.path.exists(pairs):
            if not os.path.exists(enc):
                parity.tool("lpo-encode", *at, "-o", enc,
                            f"{scratch}/in/prefs.csv")
            parity.tool("lpo-pairs", "--epochs", "2", "-o", pairs, enc)
        work("lpo-lrm, 2 steps of 4 pairs", kind, precision, "lpo-lrm", "-m",
             model, "--batch", "4", "-o", lrm, *within, pairs)
        work("lpo-train, 1 iteration, 2 prompts, 4 steps", kind, precision,
             "lpo-train", *at, "-r",
             lrm if os.path.exists(lrm) else f"random:{kind}", "-p", prompts,
             "-o", f"{scratch}/out.safetensors", "--iterations", "1",
             "--prompts-per-iteration", "2", "--steps", "4", "--threshold",
             "quantile:0.5", "--check-every", "0", *within)
        work("lpo-sample, 2 prompts, 10 steps", kind, precision, "lpo-sample",
             *at, "-p", prompts, "--steps", "10", "-o", f"{scratch}/out.tar")


def main():
    for kind in sys.argv[1:] or ("sd15",):
        with tempfile.TemporaryDirectory(
                dir=os.environ.get("FULLSIZE_TMP")) as scratch:
            way(kind, scratch)


parity.run(main)

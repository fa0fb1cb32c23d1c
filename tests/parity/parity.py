"""What the checks of this folder share: running programs, and one rule.

A check is a script here that ends with `parity.run(main)`.  Its main() calls

    check(what, model, ours, truth, own)   numbers, by the rule below
    equal(what, model, ours, theirs)       things that must be the same
    timing(what, model, ours, theirs)      seconds and memory, no limit
    planned(what, model, seen, plan)       the same, of one program
    skip(what, why)                        what this machine cannot show

as often as it likes; rows of one `what` become one line of the table, which
names the worst of them.  Alone, a script prints its own table; the program
tests/parity/run collects the rows of all.

The rule, for each tensor: the largest absolute error against float64 is at
most 4 times the largest error of torch's own float32 (or bfloat16, where that
is compared) plus 1e-5 times the largest value.  Tensors that are zero in exact
arithmetic have rounding errors only; torch's are taken over all of these.

usage: parity.py ROWS      print the table of a file of rows, and of what
"""
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
# small models: threads would wait for each other more than they work
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "torch" in sys.modules:              # which has read it already
    sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
BIN = os.environ.get("PARITY_BIN", os.path.join(ROOT, "bin"))
_scratch = tempfile.TemporaryDirectory(prefix="lpo-parity-")
WORK = _scratch.name
rows = []


def path(name):
    """A path in this check's scratch folder, which goes away with it."""
    return os.path.join(WORK, name)


def tool(*args, small=False, **kw):
    """Run a program, e.g. tool("lpo-lrm", "-m", m); its standard output.

    small: by a small process, for a program that tells its peak memory: it
    begins with the peak of the process that starts it.
    """
    line = [os.path.join(BIN, args[0]), *map(str, args[1:])]
    if small:
        line = ["sh", "-c", '"$@"; exit $?', "sh"] + line
    done = subprocess.run(line, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, **kw)
    if done.returncode != 0:
        err = done.stderr
        raise RuntimeError(f"{args[0]} left with {done.returncode}: "
                           f"{err if isinstance(err, str) else err.decode()}")
    return done.stdout


def timed(name, *args):
    """Seconds of a program, and the peak of its resident memory in bytes.

    Spawned from here: a peak below this process's own cannot be seen.
    """
    line = [os.path.join(BIN, name), *map(str, args)]
    start = time.monotonic()
    pid = os.posix_spawn(line[0], line, os.environ)
    status, usage = os.wait4(pid, 0)[1:]
    if status:
        raise RuntimeError(
            f"{name} left with {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - start, 1024 * usage.ru_maxrss


def probe(component, tensors=None, *args, model=None, precision="f32"):
    """lpo-probe: a dictionary of tensors in, one out."""
    from safetensors.torch import load_file, save_file
    line = ["lpo-probe", "-c", component, "-o", path("out"), "--precision",
            precision, "-j", "1", *args]
    if model is not None:
        line += ["-m", model]
    if tensors is not None:
        # clones: safetensors refuses tensors that share memory
        save_file({k: v.detach().contiguous().clone()
                   for k, v in tensors.items()}, path("in"))
        line += ["-i", path("in")]
    tool(*line)
    return load_file(path("out"))


def add(what, model, error, own, limit, note=""):
    """A row of figures; NaN is outside every limit."""
    ok = bool(error <= limit)
    ratio = error / limit if limit > 0 else (0.0 if error == 0 else 1e9)
    rows.append(dict(what=what, model=model, error=error, own=own,
                     limit=limit, ratio=ratio, ok=ok, note=note))
    if not ok:
        print(f"  {what}, {model}: {note}: {error:.3g} > {limit:.3g}",
              file=sys.stderr, flush=True)
    return ok


def check(what, model, ours, truth, own):
    """Tensors or dictionaries of them: ours, torch's f64, torch's f32."""
    import torch
    if not isinstance(truth, dict):
        ours, truth, own = {"": ours}, {"": truth}, {"": own}
    ok = True
    top = max(t.abs().max().item() for t in truth.values())
    noise = 0.0     # where the truth is nothing: a key's bias has no gradient
    for key, t in truth.items():
        if t.abs().max().item() <= 1e-10 * top and key in own:
            noise = max(noise, (own[key].double() - t).abs().max().item())
    for key, t in truth.items():
        if key not in ours or ours[key].shape != t.shape:
            seen = ours[key].shape if key in ours else "absent"
            ok = add(what, model, float("nan"), 0, 0,
                     f"{key}: {seen} for {tuple(t.shape)}")
            continue
        t = t.detach().double()
        error = (ours[key].detach().double() - t).abs().max().item()
        mine = (own[key].detach().double() - t).abs().max().item()
        if t.abs().max().item() <= 1e-10 * top:
            mine = max(mine, noise)
        if not torch.isfinite(t).all():
            error = float("nan")
        ok &= add(what, model, error, mine,
                  4 * mine + 1e-5 * t.abs().max().item(), key)
    return ok


def equal(what, model, ours, theirs, note=""):
    """Things that must be the same: ids, bytes, lists, tensors."""
    import torch
    if isinstance(theirs, torch.Tensor):
        same = ours.shape == theirs.shape and bool((ours == theirs).all())
    else:
        same = ours == theirs
    return add(what, model, 0.0 if same else 1.0, 0.0, 0.0, note)


def timing(what, model, ours, theirs):
    """Least seconds and peak bytes of both, and how busy the machine was."""
    rows.append(dict(timing=what, model=model, ours=ours, theirs=theirs,
                     load=os.getloadavg()[0]))


def planned(what, model, seen, plan):
    """Seconds and peak bytes of a run, and what was planned."""
    rows.append(dict(planned=what, model=model, ours=seen, theirs=plan,
                     load=os.getloadavg()[0]))


def skip(what, why):
    """What cannot be shown here."""
    rows.append(dict(what=what, skip=why))


def both(function):
    """function(dtype) in float64 and in float32: (truth, own)."""
    import torch
    return function(torch.float64), function(torch.float32)


def columns(lines, left):
    """Print lines of cells, those of `left` to the left."""
    width = [max(map(len, cells)) for cells in zip(*lines)]
    for x in lines:
        print("  ".join(c.ljust(w) if i in left else c.rjust(w)
                        for i, (c, w) in enumerate(zip(x, width))).rstrip())


def largest(truth, runs):
    """Of each tensor the run of torch's that is furthest from the truth.

    For values that are a few numbers: in one run of torch's they may be right
    by luck, so that it takes several ways that are as good.
    """
    return {k: max((r[k] for r in runs),
                   key=lambda x, t=t: (x.double() - t).abs().max().item())
            for k, t in truth.items()}


def table(some):
    """Print rows, one line a `what`; how many of them failed."""
    lines, failed = [], 0
    for what in dict.fromkeys(r["what"] for r in some if "what" in r):
        mine = [r for r in some if r.get("what") == what]
        if "skip" in mine[0]:
            lines.append((what, "", "", "", "", "", "",
                          "skipped: " + mine[0]["skip"]))
            continue
        worst = max(mine, key=lambda r: (not r["ok"], r["ratio"]))
        bad = sum(not r["ok"] for r in mine)
        failed += bad
        verdict = "ok" if bad == 0 else f"FAIL ({bad})"
        if bad:
            verdict += f" {worst['model']} {worst['note']}"
        lines.append((what, str(len({r["model"] for r in mine})),
                      str(len(mine)), f"{worst['error']:.2e}",
                      f"{worst['own']:.2e}", f"{worst['limit']:.2e}",
                      f"{worst['ratio']:.3f}", verdict))
    columns([("what", "models", "values", "|error|", "torch's", "limit",
              "ratio", "verdict")] + lines, (0, 7))
    for kind, other in ("timing", "torch's"), ("planned", "planned"):
        timings([r for r in some if kind in r], kind, other)
    return failed


def timings(some, kind, other):
    """Print what was measured: each ratio is the other's by ours."""
    lines = [("work", "model", "seconds", other, "ratio", "peak MB",
              other, "ratio", "load")]
    for r in some:
        (s, m), (ts, tm) = r["ours"], r["theirs"]
        lines.append((r[kind], r["model"], f"{s:.3f}", f"{ts:.3f}",
                      f"{ts / s:.2f}", f"{m / 1e6:.0f}", f"{tm / 1e6:.0f}",
                      f"{tm / m:.2f}", f"{r['load']:.1f}"))
    if some:
        print()
        columns(lines, (0, 1))


def about(some):
    """Commit, day, machine and versions, which a kept table needs."""
    def output(*line):
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.DEVNULL, cwd=ROOT)
        return done.stdout.strip()

    cpu = output(os.path.join(BIN, "lpo-probe"), "--devices").splitlines()
    cpu = dict(zip(*(line.split("\t") for line in cpu[:2])))
    print(f"commit {output('git', 'describe', '--always', '--dirty')},",
          datetime.date.today().isoformat())
    print(f"{cpu['name']}, {cpu['level']}, {cpu['units']} threads,",
          f"{int(cpu['memory_bytes']) / 2**30:.0f} GiB,",
          f"{cpu['library']}, Python {platform.python_version()}")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in (
        "torch", "diffusers", "transformers", "peft", "numpy", "safetensors",
        "Pillow")))
    print("seconds:", ", ".join(f"{r['check']} {r['seconds']:.0f}"
                                for r in some if "check" in r), end="\n\n")


def run(main):
    """A check's last line: main(), the table, the exit status."""
    name, start = os.path.basename(sys.argv[0]), time.monotonic()
    try:
        main()
    except Exception as e:                  # a row, so that it is seen
        traceback.print_exc()
        add(name, "", float("nan"), 0, 0, f"{type(e).__name__}: {e}")
    to = os.environ.get("PARITY_ROWS")
    if to:
        rows.append(dict(check=name.removesuffix(".py"),
                         seconds=time.monotonic() - start))
        with open(to, "a", encoding="utf8") as f:
            f.writelines(json.dumps(r) + "\n" for r in rows)
        sys.exit(any(not r.get("ok", True) for r in rows))
    sys.exit(table(rows) > 0)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf8") as file:
        of_all = [json.loads(line) for line in file]
    about(of_all)
    sys.exit(table(of_all) > 0)

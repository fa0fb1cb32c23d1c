"""One LPO iteration of models of the published sizes: seconds and memory.

usage: iteration.py [KIND ...]          sd15, sd21; also tiny ...

Not one of the checks that tests/parity/run makes unasked: it takes long;
`tests/parity/run iteration:sd15`.  Against lpo-train stands the official
algorithm as it is written, in PyTorch (iteration_torch.py): candidates are
scored within the sampling loop, their texts encoded anew, and a pair takes two
policy and two reference passes.  Both do the same steps for the same prompts,
every transition is a pair, in the same precision.  Seconds are of an iteration
that is not the first: of lpo-train a run of three less one of one, halved; of
torch the least of FULLSIZE_REPEAT (2) behind one that is not counted.

FULLSIZE_TMP        a folder for 8 GB of files; else the system's for such
FULLSIZE_SIDE       another side of the latents than the model's own
ITERATION_PROMPTS   how many (1), ITERATION_STEPS: of sampling (4)
ITERATION_TYPES     bf16,f32
"""
import os
import subprocess
import sys
import tempfile

import parity

THREADS = str(len(os.sched_getaffinity(0)))
REPEAT = os.environ.get("FULLSIZE_REPEAT", "2")
COUNT = os.environ.get("ITERATION_PROMPTS", "1")
STEPS = os.environ.get("ITERATION_STEPS", "4")
PROMPTS = ["a photo of an astronaut riding a horse on the moon",
           "a red bicycle", "a lake in the mountains", "two cats on a sofa"]


def torch_side(*args):
    done = subprocess.run(
        [sys.executable, os.path.join(parity.HERE, "iteration_torch.py"),
         *args], check=True, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": THREADS})
    return [float(x) for x in done.stdout.split()]


def lpo_train(folder, side, precision, iterations):
    at = os.path.dirname(folder)
    return parity.timed(
        "lpo-train", "-q", "-m", folder, "-r", f"{at}/lrm", "-p",
        f"{at}/prompts.txt", "-o", f"{at}/out.safetensors", "--force",
        "--fresh", "--db", "none", "-j", THREADS, "--precision", precision,
        "-s", str(8 * side), "--iterations", str(iterations),
        "--prompts-per-iteration", COUNT, "--steps", STEPS, "--threshold",
        "static:0", "--check-every", "0")


def measure(kind, scratch):
    folder = f"{scratch}/{kind}"
    parity.tool("lpo-probe", "--save", folder, "-m", f"random:{kind}")
    torch_side(folder, "lrm", f"{scratch}/lrm")
    prompts = f"{scratch}/prompts.txt"
    with open(prompts, "w", encoding="utf8") as f:
        f.write("\n".join(PROMPTS[:int(COUNT)]) + "\n")
    side = int(os.environ.get("FULLSIZE_SIDE", "64"))
    for precision in os.environ.get("ITERATION_TYPES", "bf16,f32").split(","):
        one, _ = lpo_train(folder, side, precision, 1)
        three, peak = lpo_train(folder, side, precision, 3)
        theirs = torch_side(folder, precision, str(side), prompts, STEPS, REPEAT)
        parity.timing(f"{precision}: LPO iteration at {side}x{side}, prompts "
                      f"{COUNT}, steps {STEPS}", kind,
                      ((three - one) / 2, peak), theirs)
        print(f"  {precision}: {(three - one) / 2:.2f} s, torch's "
              f"{theirs[0]:.2f} s", file=sys.stderr, flush=True)


def main():
    for kind in sys.argv[1:] or ("sd15",):
        with tempfile.TemporaryDirectory(
                dir=os.environ.get("FULLSIZE_TMP")) as scratch:
            measure(kind, scratch)


parity.run(main)

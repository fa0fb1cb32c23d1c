#!/usr/bin/env python3
"""What our parsers accept, against safetensors, numpy and json.

Inputs: the fuzz corpora, whatever libFuzzer has found (build/fuzz/corpus), and
damaged copies of both.  Each goes through the fuzz target's driver, which says
what our parser said of it.
"""
import glob
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile

import numpy as np
import safetensors

import parity

DAMAGED = 3000
random.seed(4)


def damaged(data):
    b = bytearray(data)
    for _ in range(random.randint(1, 3)):
        if not b:
            break
        at = random.randrange(len(b))
        kind = random.randrange(4)
        if kind == 0:
            b[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            b[at] = random.choice(b'0123456789[]{}",:-.eE \\\0\xff')
        elif kind == 2:
            del b[at:at + random.randint(1, 9)]
        else:
            b[at:at] = b[at:at + random.randint(1, 9)]
    return bytes(b)


def header_damaged(target, b):
    """Damage inside of the header, its length put right again."""
    if target == "safetensors" and len(b) > 8:
        n = int.from_bytes(b[:8], "little")
        h = damaged(b[8:8 + n])
        return len(h).to_bytes(8, "little") + h + b[8 + n:]
    if target == "npy" and len(b) > 10:
        n = int.from_bytes(b[8:10], "little")
        h = damaged(b[10:10 + n].rstrip())
        return b[:8] + len(h).to_bytes(2, "little") + h + b[10 + n:]
    return damaged(b)


def inputs(target):
    files = sorted(glob.glob(f"tests/fuzz/corpus/{target}/*") +
                   glob.glob(f"build/fuzz/corpus/{target}/*"))
    seeds = [open(f, "rb").read() for f in files]
    return (seeds +
            [damaged(random.choice(seeds)) for _ in range(DAMAGED // 3)] +
            [header_damaged(target, random.choice(seeds))
             for _ in range(DAMAGED - DAMAGED // 3)])


def ours(target, data):
    """[(status, text)] of our parser."""
    said = []
    with tempfile.TemporaryDirectory() as d:
        for first in range(0, len(data), 500):
            names = []
            for i, b in enumerate(data[first:first + 500]):
                names.append(f"{d}/{i}")
                with open(names[-1], "wb") as f:
                    f.write(b)
            out = subprocess.run([f"build/tests/fuzz/{target}.t"] + names,
                                 check=True, capture_output=True)
            for line in out.stdout.decode("utf-8", "replace").split("\n"):
                part = line.split("\t", 1)
                if len(part) == 2 and part[0].startswith(d):
                    rc, text = part[1].split(" ", 1)
                    said.append((int(rc), text))
    assert len(said) == len(data)
    return said


def peer_safetensors(b):
    """Equal but for keys that occur twice and members besides dtype, shape and
    data_offsets, which the format's text refuses, and more than 8
    dimensions."""
    try:
        t = safetensors.deserialize(b)
    except Exception as e:
        return False, str(e)
    n = int.from_bytes(b[:8], "little")
    unique = []
    json.loads(b[8:8 + n], object_pairs_hook=lambda p: unique.append(
        len({k for k, _ in p}) == len(p)))
    head = json.loads(b[8:8 + n])
    head.pop("__metadata__", None)
    if (not all(unique) or any(len(v) != 3 for v in head.values()) or
            any(len(v["shape"]) > 8 for _, v in t)):
        return True, "beyond what we take"
    return True, ""


def peer_npy(b):
    """We take version 1, C order, six types, 8 dimensions: no more."""
    try:
        f = io.BytesIO(b)
        a = np.load(f, allow_pickle=False)
        if not isinstance(a, np.ndarray):
            return False, "not one array"
        rest = f.read()
    except Exception as e:
        return False, str(e)
    if (b[6] != 1 or b"rue" in b[:128] or a.ndim > 8 or rest or
            a.dtype.names or
            not re.search(rb"""['"]<(f2|f4|f8|i8|i4|u4)['"]""", b[:128])):
        return True, "beyond what we take"
    return True, ""


class Beyond(Exception):
    pass


def peer_json(b):
    """Python takes more: NaN, integers and reals beyond 64 bits, NUL and
    lone surrogates in strings, any depth."""
    def integer(s):
        if not -2 ** 63 <= int(s) < 2 ** 63:
            raise Beyond()
        return int(s)

    def real(s):
        x = float(s)
        if x in (float("inf"), float("-inf")):
            raise Beyond()
        return x

    def constant(s):
        raise Beyond()

    def strings(v, depth=0):
        if depth >= 64 and isinstance(v, (list, dict)):
            raise Beyond()
        if isinstance(v, str):
            v.encode("utf-8")
            if "\0" in v:
                raise Beyond()
        elif isinstance(v, list):
            for x in v:
                strings(x, depth + 1)
        elif isinstance(v, dict):
            for k, x in v.items():
                strings(k, depth + 1)
                strings(x, depth + 1)

    try:
        v = json.loads(b.decode("utf-8"), parse_int=integer,
                       parse_float=real, parse_constant=constant)
        strings(v)
    except (Beyond, UnicodeEncodeError):
        return True, "beyond what we take"
    except RecursionError:
        return True, "beyond what we take"
    except ValueError as e:
        return False, str(e)
    return True, ""


def main():
    os.chdir(parity.ROOT)
    for target, peer in (("safetensors", peer_safetensors),
                         ("npy", peer_npy), ("json", peer_json)):
        subprocess.run(["make", "-s", f"build/tests/fuzz/{target}.t"],
                       check=True)
        data = inputs(target)
        both = beyond = 0
        for b, (rc, text) in zip(data, ours(target, data)):
            accepts, why = peer(b)
            if rc < 0 and accepts and why:
                beyond += 1
                continue
            both += rc >= 0 and accepts
            parity.equal(f"{target}: what is accepted", target, rc >= 0,
                         accepts, f"{text or why} {b[:100]!r}")
        print(f"{target}: {len(data)} inputs, {both} accepted by both, "
              f"{beyond} by the other alone, as documented here",
              file=sys.stderr)


parity.run(main)

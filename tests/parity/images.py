"""Decoding and resizing against Pillow, byte for byte.

usage: images.py [N] [SEED]     N files of each kind, 4

Random pictures of every PNG colour type, depth and interlacing, JPEG of every
coding and sampling (coefficients drawn and coded here, since no library
writes 4:1:1 or 3 x 2), WebP, EXIF; each as lpo-probe resizes it to a random
square.  Then files cut anywhere and with bits flipped: what Pillow refuses
has to be refused, what both read has to be equal.
"""
import io
import itertools
import pathlib
import random
import struct
import subprocess
import sys
import warnings

import numpy as np
import PIL
from PIL import Image, ImageOps, features
from safetensors.numpy import load_file

import parity
from parity import BIN, WORK

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "golden"))
from make_images import (chunk, exif, lcg, picture, plte, png,  # noqa: E402
                         saved)

warnings.simplefilter("ignore")

# Huffman codes of each length 1 .. 16, then their symbols: DC as annex K has
# it, AC with every symbol (run << 4 | size) in 8 bits.
DC = (bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]),
      bytes(range(12)))
AC = (bytes([0] * 7 + [162] + [0] * 8),
      bytes([0x00, 0xf0] + [r << 4 | s for s in range(1, 11)
                            for r in range(16)]))


def codes(table):
    out, code, at = {}, 0, 0
    for length, n in enumerate(table[0], 1):
        for _ in range(n):
            out[table[1][at]] = (code, length)
            code, at = code + 1, at + 1
        code <<= 1
    return out


def segment(mark, data):
    return bytes([0xff, mark]) + struct.pack(">H", len(data) + 2) + data


def bits_of(block, last, dc, ac, put):
    """One block of 64 zigzag coefficients."""
    def value(v):
        n = int(abs(v)).bit_length()
        return n, (v if v > 0 else v + (1 << n) - 1)

    n, bits = value(block[0] - last)
    put(*dc[n])
    put(bits, n)
    run = 0
    for v in block[1:]:
        if v == 0:
            run += 1
            continue
        while run > 15:
            put(*ac[0xf0])
            run -= 16
        n, bits = value(v)
        put(*ac[run << 4 | n])
        put(bits, n)
        run = 0
    if run:
        put(*ac[0])


def drawn_jpeg(rng, w, h, sampling, marker=b""):
    """A baseline JPEG of drawn coefficients; sampling: (h, v) each."""
    hm, vm = (max(s[i] for s in sampling) for i in (0, 1))
    quant = bytes(1 + i // 3 for i in range(64))
    out = [b"\xff\xd8", marker, segment(0xdb, b"\0" + quant),
           segment(0xc0, struct.pack(">BHHB", 8, h, w, len(sampling)) +
                   b"".join(bytes([i + 1, a << 4 | b, 0])
                            for i, (a, b) in enumerate(sampling))),
           segment(0xc4, b"\0" + DC[0] + DC[1]),
           segment(0xc4, b"\x10" + AC[0] + AC[1]),
           segment(0xda, bytes([len(sampling)]) + b"".join(
               bytes([i + 1, 0]) for i in range(len(sampling))) + b"\0\x3f\0")]
    dc, ac = codes(DC), codes(AC)
    stream = []

    def put(v, n):
        if n:
            stream.append(format(v, f"0{n}b"))

    last = [0] * len(sampling)
    single = len(sampling) == 1     # one component is never interleaved
    hm, vm = (1, 1) if single else (hm, vm)
    for _ in range(-(-w // (8 * hm)) * -(-h // (8 * vm))):
        for i, (a, b) in enumerate(sampling):
            for _ in range(1 if single else a * b):
                block = [rng.randrange(-300, 300)] + [0] * 63
                for _ in range(rng.randrange(6)):
                    k = 1 + int(62 * rng.random() ** 3)
                    block[k] = rng.randrange(-120, 120) // k
                bits_of(block, last[i], dc, ac, put)
                last[i] = block[0]
    bits = "".join(stream)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return b"".join(out) + data.replace(b"\xff", b"\xff\0") + b"\xff\xd9"


def adobe(transform):
    return segment(0xee, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def sides(rng):
    long = rng.choice([5, 40, 200, 700])
    return rng.choice([(1 + rng.randrange(long), 1 + rng.randrange(long)),
                       (1 + rng.randrange(3 * long), 1 + rng.randrange(4)),
                       (1 + rng.randrange(4), 1 + rng.randrange(3 * long))])


def pngs(rng, w, h):
    for kind, depth in ((0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8),
                        (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8),
                        (4, 16), (6, 8), (6, 16)):
        for lace in 0, 1:
            extra = plte(2 ** depth) if kind == 3 else b""
            name = f"png {kind} {depth}{' adam7' if lace else ''}"
            yield name, png(w, h, depth, kind, lace, extra)
            n = {0: 2, 2: 6, 3: 2 ** depth}.get(kind)
            if n:
                yield name + " tRNS", png(w, h, depth, kind, lace, extra +
                                          chunk(b"tRNS", lcg(n, w)))
    yield "png short palette", png(w, h, 8, 3, 0, plte(1 + w % 200))
    yield "png eXIf", png(w, h, 8, 2, 0, chunk(
        b"eXIf", exif(rng.randrange(1, 9), True)[6:]))


def jpegs(rng, w, h):
    rgb = Image.fromarray(picture(w, h))
    cmyk = Image.fromarray(picture(w, h, 4), "CMYK")
    for sub, progressive in itertools.product((0, 1, 2), (False, True)):
        kw = dict(quality=rng.randrange(1, 101), subsampling=sub,
                  progressive=progressive, optimize=rng.random() < 0.5,
                  restart_marker_blocks=rng.randrange(4))
        name = f"jpeg {sub}{' progressive' if progressive else ''}"
        yield name, saved(rgb, "JPEG", **kw)
        yield name + " CMYK", saved(cmyk, "JPEG", **kw)
        data = saved(cmyk, "JPEG", **kw)
        at = data.index(b"Adobe") + 11
        yield name + " YCCK", data[:at] + b"\2" + data[at + 1:]
        yield name + " grey", saved(rgb.convert("L"), "JPEG", **kw)
    yield "jpeg RGB", saved(rgb, "JPEG", keep_rgb=True)
    yield "jpeg EXIF", saved(rgb, "JPEG", exif=exif(rng.randrange(1, 9),
                                                    rng.random() < 0.5))
    w, h = min(w, 70), min(h, 70)
    for s in ((4, 1), (1, 4), (2, 2), (1, 2), (2, 1), (4, 2), (2, 4), (3, 1),
              (1, 3), (3, 2), (2, 3), (3, 3)):
        yield f"jpeg drawn {s}", drawn_jpeg(rng, w, h, [s, (1, 1), (1, 1)])
        yield f"jpeg drawn grey {s}", drawn_jpeg(rng, w, h, [s])
    for s in ([(2, 2), (2, 1), (1, 2)], [(1, 1), (2, 2), (2, 2)],
              [(2, 1), (1, 1), (2, 1)], [(1, 2), (1, 1), (1, 2)],
              [(2, 2), (1, 2), (1, 2)], [(2, 2), (2, 2), (2, 2)],
              [(4, 1), (2, 1), (1, 1)], [(1, 1), (1, 1), (1, 1)]):
        yield f"jpeg drawn {s}", drawn_jpeg(rng, w, h, s)
    yield "jpeg drawn CMYK", drawn_jpeg(rng, w, h, [(2, 2), (1, 1), (1, 1),
                                                    (2, 2)], adobe(0))
    yield "jpeg drawn YCCK", drawn_jpeg(rng, w, h, [(2, 1), (1, 1), (1, 1),
                                                    (2, 1)], adobe(2))
    yield "jpeg drawn RGB", drawn_jpeg(rng, w, h, [(1, 1)] * 3, adobe(0))


def webps(rng, w, h):
    rgb = Image.fromarray(picture(w, h))
    rgba = Image.fromarray(picture(w, h, 4), "RGBA")
    for kw in (dict(quality=rng.randrange(101), method=rng.randrange(7)),
               dict(lossless=True, quality=rng.randrange(101)),
               dict(lossless=True, exact=True, method=0)):
        name = "webp lossless" if "lossless" in kw else "webp lossy"
        yield name, saved(rgb, "WEBP", **kw)
        yield name + " alpha", saved(rgba, "WEBP", **kw)
    yield "webp few colours", saved(rgb.quantize(5).convert("RGB"), "WEBP",
                                    lossless=True)
    yield "webp EXIF", saved(rgb, "WEBP", exif=exif(rng.randrange(1, 9)))
    yield "webp animated", saved(rgba, "WEBP", save_all=True,
                                 append_images=[rgba.rotate(180)])


def theirs(data, side, turn):
    """Pillow's picture, or None where it refuses."""
    try:
        im = Image.open(io.BytesIO(data))
        im = (ImageOps.exif_transpose(im) if turn else im).convert("RGB")
    except (OSError, SyntaxError, ValueError, struct.error, EOFError,
            Image.DecompressionBombError):
        return None
    # Two calls: Pillow 13 alone swaps the passes where the height shrinks
    # more than the width.
    im = im.resize((side, im.height), Image.BILINEAR)
    return np.asarray(im.resize((side, side), Image.BILINEAR))


def ours(data, side, turn):
    """lpo-probe's, or its message."""
    there, back = WORK + "/image", WORK + "/tensor"
    pathlib.Path(there).write_bytes(data)
    r = subprocess.run([f"{BIN}/lpo-probe", "-c", "image", "--file", there,
                        "-s", str(side), "-o", back, "--threads", "1"] +
                       ["--exif"] * turn, capture_output=True, check=False)
    if r.returncode == 1 and WORK.encode() in r.stderr:
        return r.stderr.decode()
    assert r.returncode == 0, (r.returncode, r.stderr)
    return load_file(back)["image"]


def to_float(rgb):
    one, two = np.float32(1), np.float32(2)
    return (rgb.transpose(2, 0, 1)[None].astype(np.float32) /
            np.float32(255) * two - one)


class Tally:
    """Rows of the table: files, unequal, refused by us alone, by Pillow."""
    def __init__(self):
        self.rows = {}

    def add(self, name, data, side, turn, damaged=False):
        row = self.rows.setdefault(name, [0, 0, 0, 0])
        a, b = ours(data, side, turn), theirs(data, side, turn)
        row[0] += 1
        wrong = False
        if b is None:
            row[3] += 1
            wrong = not isinstance(a, str)
        elif isinstance(a, str):
            row[2] += 1
            wrong = not damaged
        elif not np.array_equal(a, to_float(b)):
            row[1] += 1
            wrong = True
        what = "pictures, " + name.split(" ")[0]
        if damaged:
            what = "pictures, damaged: refused, or read alike"
        parity.add(what, name, float(wrong), 0, 0, f"side {side}" + (
            ": " + a.strip() if isinstance(a, str) else ""))

    def show(self):
        print(f"{'kind':34s} files unequal only-we-refuse Pillow-refuses",
              file=sys.stderr)
        for name, row in sorted(self.rows.items()):
            print(f"{name:34s} {row[0]:5d} {row[1]:7d} {row[2]:14d} "
                  f"{row[3]:14d}", file=sys.stderr)


def damaged(rng, tally, n):
    """Cut anywhere; a byte changed."""
    for make in pngs, jpegs, webps:
        for name, data in make(rng, 33, 21):
            kind = "damaged " + name.split()[0]
            for _ in range(n // 4):
                tally.add(kind + ", cut", data[:rng.randrange(len(data))], 16,
                          False, True)
            if kind == "damaged jpeg":  # libjpeg's guesses differ by version
                continue
            for _ in range(n // 4):
                at = rng.randrange(len(data))
                flip = bytes([data[at] ^ 1 << rng.randrange(8)])
                tally.add(kind + ", flipped",
                          data[:at] + flip + data[at + 1:], 16, False, True)


def main():
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    tally = Tally()
    print(f"Pillow {PIL.__version__}, libjpeg-turbo "
          f"{features.version('libjpeg_turbo')}, webp "
          f"{features.version('webp')}", file=sys.stderr)
    for _ in range(n):
        w, h = sides(rng)
        for make in pngs, jpegs, webps:
            for name, data in make(rng, w, h):
                kind = name.split(" (")[0].split(" [")[0]
                side = rng.choice([1, 2, 7, 64, 100, 257, w])
                tally.add(kind, data, side, rng.random() < 0.3)
    damaged(rng, tally, n)
    tally.show()


parity.run(main)

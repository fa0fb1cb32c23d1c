#!/usr/bin/env python3
"""Golden files of images and resizing: images.bin, resize.bin.

What Pillow makes of small images of every kind, to be met byte for byte by
lib/io/image.h and lib/io/resize.h.  Needs Pillow and NumPy; made with Pillow
13.0 (libjpeg-turbo 3.2, libwebp 1.6).

images.bin   per image a line "NAME EXIF BYTES W H", the BYTES bytes of the
             file, then W * H * 3 bytes of RGB; W = H = 0 where decoding must
             fail.  EXIF is 1 where orientation is applied.
resize.bin   per case a line "FILTER CHANNELS SRC_W SRC_H DST_W DST_H CRC32
             BYTES", then BYTES bytes of pixels (0 for large ones).  The source
             is the generator lcg() below, seeded with SRC_W * 65536 + SRC_H.
"""
import io
import pathlib
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps

warnings.simplefilter("ignore")
HERE = pathlib.Path(__file__).parent


def lcg(n, seed):
    """n bytes: the high bytes of x = x * 1664525 + 1013904223 mod 2^32."""
    out = bytearray(n)
    x = seed & 0xffffffff
    for i in range(n):
        x = (x * 1664525 + 1013904223) & 0xffffffff
        out[i] = x >> 24
    return bytes(out)


def picture(w, h, c=3):
    """Gradients, a disc and noise: something every coder has to work at."""
    y, x = np.mgrid[0:h, 0:w]
    noise = np.frombuffer(lcg(w * h * c, w * h), np.uint8).reshape(h, w, c)
    base = np.stack([x * 255 // w, y * 255 // h, (x + y) * 9 % 256,
                     255 - x * 200 // w][:c], -1)
    disc = ((x - w / 2) ** 2 + (y - h / 2) ** 2 < (h / 3) ** 2)[..., None]
    return np.clip(np.where(disc, 255 - base, base) + noise // 8,
                   0, 255).astype(np.uint8)


def chunk(name, data):
    return (struct.pack(">I", len(data)) + name + data +
            struct.pack(">I", zlib.crc32(name + data)))


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4),
         (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def filtered(rows, bpp):
    """PNG's five filters in turn."""
    out, above = b"", None
    for i, row in enumerate(rows):
        r = np.frombuffer(row, np.uint8).astype(int)
        a = np.concatenate([np.zeros(bpp, int), r[:-bpp]])[:len(r)]
        b = np.zeros_like(r) if above is None else above
        c = np.concatenate([np.zeros(bpp, int), b[:-bpp]])[:len(r)]
        p = a + b - c
        pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
        paeth = np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))
        f = i % 5
        r2 = r - [0 * r, a, b, (a + b) // 2, paeth][f]
        out += bytes([f]) + (r2 % 256).astype(np.uint8).tobytes()
        above = r
    return out


def pack(samples, depth):
    """Rows of samples [h, w * channels] to bytes."""
    if depth == 16:
        return [r.astype(">u2").tobytes() for r in samples]
    if depth == 8:
        return [r.astype(np.uint8).tobytes() for r in samples]
    rows = []
    for r in samples:
        bits = ((r[:, None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(-1)
        rows.append(np.packbits(bits.astype(np.uint8)).tobytes())
    return rows


def png(w, h, depth, kind, interlace=0, extra=b"", after=b"", colours=None):
    """A PNG of random samples; Pillow cannot write most of these kinds."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    n = w * h * channels
    v = np.frombuffer(lcg(2 * n, n), "<u2").astype(int)
    v = v % colours if colours else v >> (16 - depth)
    if depth == 16:         # some below 256: grey 16 is clipped, not scaled
        v = np.where(np.arange(n) % 3 == 0, v >> 8, v)
    v = v.reshape(h, w, channels)
    bpp = max(1, channels * depth // 8)
    passes = ADAM7 if interlace else [(0, 0, 1, 1)]
    raw = b""
    for x0, y0, dx, dy in passes:
        part = v[y0::dy, x0::dx]
        if part.size:
            part = part.reshape(part.shape[0], -1)
            raw += filtered(pack(part, depth), bpp)
    z = zlib.compress(raw)
    half = len(z) // 2      # two IDATs: the border is nothing special
    return (b"\x89PNG\r\n\x1a\n" +
            chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0,
                                       interlace)) + extra +
            chunk(b"IDAT", z[:half]) + chunk(b"IDAT", z[half:]) + after +
            chunk(b"IEND", b""))


def plte(n):
    return chunk(b"PLTE", lcg(3 * n, n))


def saved(im, fmt, **kw):
    f = io.BytesIO()
    im.save(f, fmt, **kw)
    return f.getvalue()


def exif(tag, big=False):
    e = ">" if big else "<"
    t = (b"MM\0*" if big else b"II*\0") + struct.pack(e + "I", 8)
    t += struct.pack(e + "HHHIHHI", 1, 0x112, 3, 1, tag, 0, 0)
    return b"Exif\0\0" + t


def jpegs():
    rgb = Image.fromarray(picture(37, 29))
    for s, name in (0, "444"), (1, "422"), (2, "420"):
        yield f"jpeg-{name}", saved(rgb, "JPEG", quality=85, subsampling=s)
    yield "jpeg-q20", saved(rgb, "JPEG", quality=20)
    yield "jpeg-progressive", saved(rgb, "JPEG", progressive=True)
    yield "jpeg-progressive-444", saved(rgb, "JPEG", progressive=True,
                                        subsampling=0, optimize=True)
    yield "jpeg-restart", saved(rgb, "JPEG", restart_marker_blocks=2)
    yield "jpeg-rgb", saved(rgb, "JPEG", keep_rgb=True)
    yield "jpeg-grey", saved(rgb.convert("L"), "JPEG")
    yield "jpeg-grey-progressive", saved(rgb.convert("L"), "JPEG",
                                         progressive=True)
    cmyk = saved(Image.fromarray(picture(37, 29, 4), "CMYK"), "JPEG",
                 quality=90)
    yield "jpeg-cmyk", cmyk
    # Adobe's transform flag 2: the same bytes now mean YCCK.
    at = cmyk.index(b"Adobe") + 11
    assert cmyk[at] == 0
    yield "jpeg-ycck", cmyk[:at] + b"\2" + cmyk[at + 1:]
    # ... and without the Adobe segment: still read as inverted
    yield "jpeg-cmyk-no-adobe", cmyk[:at - 15] + cmyk[at + 1:]
    yield "jpeg-1x1", saved(rgb.crop((0, 0, 1, 1)), "JPEG")
    yield "jpeg-trailing", saved(rgb, "JPEG") + b"more"
    yield "jpeg-padded-markers", saved(rgb, "JPEG").replace(
        b"\xff\xdb", b"\xff\xff\xff\xdb", 1)


def pngs():
    w, h = 19, 13
    for i in 0, 1:
        s = "-adam7" if i else ""
        for d in 1, 2, 4, 8, 16:
            yield f"png-grey{d}{s}", png(w, h, d, 0, i)
        for d in 1, 2, 4, 8:
            yield f"png-palette{d}{s}", png(w, h, d, 3, i, plte(2 ** d))
        for d in 8, 16:
            yield f"png-rgb{d}{s}", png(w, h, d, 2, i)
            yield f"png-grey-alpha{d}{s}", png(w, h, d, 4, i)
            yield f"png-rgba{d}{s}", png(w, h, d, 6, i)
    yield "png-short-palette", png(w, h, 8, 3, 0, plte(100))
    yield "png-palette-trns", png(w, h, 8, 3, 0, plte(16) +
                                  chunk(b"tRNS", lcg(16, 3)), colours=16)
    yield "png-grey-trns", png(w, h, 8, 0, 0, chunk(b"tRNS", b"\0\7"))
    yield "png-grey16-trns", png(w, h, 16, 0, 0, chunk(b"tRNS", b"\7\7"))
    yield "png-rgb-trns", png(w, h, 8, 2, 0, chunk(b"tRNS", b"\0\1" * 3))
    yield "png-rgb-suggested-palette", png(w, h, 8, 2, 0, plte(5))
    yield "png-gamma", png(w, h, 8, 2, 0, chunk(b"gAMA", b"\0\1\x86\xa0") +
                           chunk(b"sBIT", b"\4\4\4"))
    yield "png-text", png(w, h, 8, 2, 0, chunk(b"tEXt", b"a\0b") +
                          chunk(b"iCCP", b"a\0\0" + zlib.compress(b"b" * 200)))
    yield "png-1x1-adam7", png(1, 1, 8, 2, 1)
    yield "png-wide", png(1000, 1, 1, 0, 0)
    yield "png-no-iend", png(w, h, 8, 2)[:-12]


def webps():
    rgb = Image.fromarray(picture(37, 29))
    rgba = Image.fromarray(picture(37, 29, 4), "RGBA")
    yield "webp-lossy", saved(rgb, "WEBP", quality=80)
    yield "webp-lossy-q5", saved(rgb, "WEBP", quality=5, method=0)
    yield "webp-lossless", saved(rgb, "WEBP", lossless=True)
    yield "webp-lossy-alpha", saved(rgba, "WEBP", quality=70)
    yield "webp-lossless-alpha", saved(rgba, "WEBP", lossless=True,
                                       exact=True)
    yield "webp-palette", saved(rgb.quantize(7).convert("RGB"), "WEBP",
                                lossless=True)
    two = [rgba, rgba.rotate(180)]
    yield "webp-animated", saved(two[0], "WEBP", save_all=True,
                                 append_images=two[1:], quality=60)
    yield "webp-animated-lossless", saved(two[0], "WEBP", save_all=True,
                                          append_images=two[1:],
                                          lossless=True, exact=True)
    yield "webp-animated-opaque", saved(rgb, "WEBP", save_all=True,
                                        append_images=[rgb.rotate(180)])
    # A first frame smaller than the canvas: widen the canvas in the header.
    b = bytearray(saved(rgb, "WEBP", save_all=True, lossless=True,
                        append_images=[rgb.rotate(180)]))
    at = b.index(b"VP8X") + 8
    b[at + 4:at + 10] = struct.pack("<I", 49)[:3] + struct.pack("<I", 39)[:3]
    at = b.index(b"ANMF") + 8
    b[at:at + 6] = struct.pack("<I", 4)[:3] + struct.pack("<I", 3)[:3]
    yield "webp-animated-offset", bytes(b)


def turned():
    rgb = Image.fromarray(picture(15, 11))
    for tag in range(1, 9):
        yield f"exif-jpeg-{tag}", saved(rgb, "JPEG", exif=exif(tag, tag % 2))
    yield "exif-jpeg-9", saved(rgb, "JPEG", exif=exif(9))
    yield "exif-png-6", saved(rgb, "PNG", exif=exif(6, True))
    yield "exif-webp-8", saved(rgb, "WEBP", lossless=True, exif=exif(8))
    yield "exif-none", saved(rgb, "JPEG")


def bad():
    rgb = Image.fromarray(picture(37, 29))
    j, p = saved(rgb, "JPEG"), png(19, 13, 8, 2)
    w = saved(rgb, "WEBP")
    yield "bad-empty", b""
    yield "bad-text", b"this is no picture\n"
    yield "bad-gif", saved(rgb.quantize(4), "GIF")
    yield "bad-jpeg-tables", j[:len(j) // 2]
    yield "bad-jpeg-scan", j[:-100]
    yield "bad-jpeg-progressive", saved(rgb, "JPEG",
                                             progressive=True)[:-200]
    yield "bad-jpeg-no-eoi", j[:-2]
    yield "bad-jpeg-header", j[:20]
    yield "bad-jpeg-soi", j[:3]
    yield "bad-png-half", p[:len(p) // 2]
    yield "bad-png-header", p[:20]
    yield "bad-png-crc", p[:20] + b"\1" + p[21:]
    yield "bad-png-depth", png(19, 13, 8, 2).replace(
        chunk(b"IHDR", struct.pack(">IIBBBBB", 19, 13, 8, 2, 0, 0, 0)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", 19, 13, 4, 2, 0, 0, 0)))
    yield "bad-png-zero", png(19, 13, 8, 2).replace(
        chunk(b"IHDR", struct.pack(">IIBBBBB", 19, 13, 8, 2, 0, 0, 0)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 13, 8, 2, 0, 0, 0)))
    # 100000 x 100000: must be refused before memory is asked for
    yield "bad-png-huge", png(19, 13, 8, 2).replace(
        chunk(b"IHDR", struct.pack(">IIBBBBB", 19, 13, 8, 2, 0, 0, 0)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", 100000, 100000, 8, 2, 0, 0, 0)))
    at = j.index(b"\xff\xc0") + 5
    yield "bad-jpeg-huge", j[:at] + b"\xff\xff\xff\xff" + j[at + 4:]
    yield "bad-webp-half", w[:len(w) // 2]
    yield "bad-webp-header", w[:16]
    yield "bad-webp-vp8", w[:20] + bytes(10) + w[30:]
    yield "bad-webp-exif", saved(rgb, "WEBP", exif=exif(6))[:-4]


def images():
    out = b""
    for group, turn in (jpegs, 0), (pngs, 0), (webps, 0), (turned, 1):
        for name, data in group():
            im = Image.open(io.BytesIO(data))
            im = (ImageOps.exif_transpose(im) if turn else im).convert("RGB")
            rgb = im.tobytes()
            out += f"{name} {turn} {len(data)} {im.width} {im.height}\n".encode()
            out += data + rgb
    for name, data in bad():
        try:
            Image.open(io.BytesIO(data)).convert("RGB")
            assert name == "bad-gif", f"Pillow reads {name}"
        except (OSError, SyntaxError, Image.DecompressionBombError):
            pass
        out += f"{name} 0 {len(data)} 0 0\n".encode() + data
    (HERE / "images.bin").write_bytes(out)
    return len(out)


CASES = [(37, 23, 64, 64), (37, 23, 16, 9), (64, 64, 32, 32), (64, 64, 64, 17),
         (64, 64, 17, 64), (20, 30, 20, 30), (1, 1, 5, 7), (5, 7, 1, 1),
         (200, 3, 7, 40), (3, 200, 40, 7), (31, 31, 30, 30), (30, 30, 31, 31),
         (97, 61, 48, 48), (300, 300, 512, 512), (1023, 767, 512, 512),
         (640, 427, 224, 336), (512, 512, 511, 513)]


def resizes():
    out = b""
    modes = {1: "L", 3: "RGB", 4: "CMYK"}   # CMYK: four plain channels
    filters = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
    for sw, sh, dw, dh in CASES:
        for name, f in filters.items():
            for c in (1, 3, 4) if sw * sh <= 37 * 23 else (3,):
                src = lcg(sw * sh * c, sw * 65536 + sh)
                im = Image.frombytes(modes[c], (sw, sh), src)
                # Two calls, as Pillow 13 swaps the passes when the height
                # shrinks more than the width; all before it never did.
                dst = im.resize((dw, sh), f).resize((dw, dh), f).tobytes()
                crc = zlib.crc32(dst)
                keep = dst if len(dst) <= 4000 else b""
                out += (f"{name} {c} {sw} {sh} {dw} {dh} {crc:08x} "
                        f"{len(keep)}\n").encode() + keep
    (HERE / "resize.bin").write_bytes(out)
    return len(out)


if __name__ == "__main__":
    print("images.bin", images(), "resize.bin", resizes())

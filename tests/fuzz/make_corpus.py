#!/usr/bin/env python3
"""Seeds of the fuzz targets, by numpy, safetensors, torch, Pillow, sqlite3.

Run from the top of the tree; writes tests/fuzz/corpus/.  Found inputs, named
found-*, are kept.
"""
import glob
import io
import json
import os
import pickle
import sqlite3
import struct
import subprocess
import tarfile
import tempfile
import zipfile

import numpy as np
import safetensors.numpy
import torch
from PIL import Image

TOP = "tests/fuzz/corpus"
rng = np.random.default_rng(4)


def put(target, name, data):
    os.makedirs(f"{TOP}/{target}", exist_ok=True)
    if isinstance(data, str):
        data = data.encode()
    with open(f"{TOP}/{target}/{name}", "wb") as f:
        f.write(data)


def npy(a):
    b = io.BytesIO()
    np.save(b, a)
    return b.getvalue()


def tar(members, form=tarfile.USTAR_FORMAT):
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode="w", format=form) as t:
        for name, data in members:
            i = tarfile.TarInfo(name)
            i.size = len(data)
            t.addfile(i, io.BytesIO(data))
    # tarfile pads to 10 kB; two blocks of zeros end a tar as well
    return b.getvalue().rstrip(b"\0").ljust(0) + b"\0" * 1024


def pad(t):
    n = len(t) % 512
    return t if n == 0 else t + b"\0" * (512 - n)


def ours(path):
    with open(path, "rb") as f:
        return f.read()


def st(header, data=b""):
    h = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(h)) + h + data


def safetensors_seeds():
    t = {"a.weight": np.ones((2, 3), np.float32),
         "b": np.ones((4,), np.float16), "c": np.array([3], np.int64),
         "d": np.zeros((0, 2), np.uint8)}
    put("safetensors", "four", safetensors.numpy.save(
        t, {"format": "pt", "x": "y"}))
    put("safetensors", "scalar", safetensors.numpy.save(
        {"s": np.array(2.0)}))
    put("safetensors", "empty", st({}))
    put("safetensors", "spaces", st(b"{}      "))
    put("safetensors", "bf16", st({"x": {"dtype": "BF16", "shape": [2],
                                        "data_offsets": [0, 4]}}, b"abcd"))
    put("safetensors", "f4", st({"x": {"dtype": "F4", "shape": [2],
                                      "data_offsets": [0, 1]}}, b"a"))
    put("safetensors", "hole", st({"x": {"dtype": "U8", "shape": [1],
                                        "data_offsets": [1, 2]}}, b"ab"))
    put("safetensors", "overlap", st(
        {"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
         "y": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, b"abc"))
    put("safetensors", "twice", st(
        b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"a"))
    put("safetensors", "huge", st({"x": {
        "dtype": "F32", "shape": [4294967296, 4294967296],
        "data_offsets": [0, 0]}}))
    put("safetensors", "header-too-long", struct.pack("<Q", 1 << 40) + b"{}")


def npy_seeds():
    for d in "<f2 <f4 <f8 <i8 <i4 <u4".split():
        put("npy", d[1:], npy(np.arange(6).reshape(2, 3).astype(d)))
    put("npy", "scalar", npy(np.float32(1)))
    put("npy", "empty", npy(np.zeros((0, 4), np.float32)))
    put("npy", "eight", npy(np.zeros((1,) * 8, np.float16)))
    put("npy", "big-endian", npy(np.zeros(2, ">f4")))
    put("npy", "fortran", npy(np.asfortranarray(np.zeros((2, 2)))))
    put("npy", "object", npy(np.array([None, 1], object)))
    put("npy", "record", npy(np.zeros(1, [("a", "<f4")])))
    put("npy", "version-2", b"\x93NUMPY\x02\0" + struct.pack("<I", 60)
        + npy(np.zeros(2))[10:])


def json_seeds():
    put("json", "all", '{"a":[1,-2,1e5,0.1,true,false,null],"b":{"c":"d\\u00e9'
        '\\ud83d\\ude00"},"":{},"e":[]}')
    put("json", "deep", "[" * 64 + "]" * 64)
    put("json", "deeper", "[" * 65 + "]" * 65)
    put("json", "twice", '{"a":1,"a":2}')
    put("json", "number", "-0.000001e-300")
    put("json", "big", "[9223372036854775807,9223372036854775808,1e309]")
    put("json", "utf8", "\"caf\u00e9 \u732b \U0001f431 \u07ff\uffff\"")
    put("json", "overlong", b'"\xc0\x80 \xed\xa0\x80 \xf4\x90\x80\x80"')
    put("json", "nul", b'"a\0b"')


CSV = ('prompt,image_0,image_1,preferred,aesthetic_gap,id\r\n'
       '"a ""red"" fox, sitting",a.png,b.png,0,0.8,7\r\n'
       'caf\u00e9,a.png,b.png,tie,,x\r\n'
       '"two\nlines",c.png,d.png,1,-1e3,\r\n')
ROWS = [{"prompt": "a cat", "image_0": "a.png", "image_1": "b.png",
         "label_0": 1, "label_1": 0, "x": None, "n": [1, {"a": 2}]},
        {"prompt": "a dog", "image_0": "a.png", "image_1": "b.png",
         "label_0": 0.5, "label_1": 0.5, "num_example_per_prompt": 2}]


def tables():
    tsv = CSV.replace(",", "\t").replace('"a ""red""', 'a \\t\\\\')
    tsv = tsv.replace('"two\nlines"', "two\\nlines").replace('\t sitting"', "")
    jsonl = "\n".join(json.dumps(r) for r in ROWS) + "\n"
    columns = json.dumps({k: [r.get(k) for r in ROWS] for k in ROWS[0]})
    listed = {0: CSV, 1: tsv, 2: jsonl, 3: json.dumps(ROWS)}
    for k, text in listed.items():
        put("table", f"format-{k}", bytes([k]) + text.encode())
        put("prefs", f"format-{k}", bytes([k]) + text.encode())
        put("prefs", f"images-{k}", bytes([k | 4]) + text.replace(
            "image_0", "image").encode())
        put("prompts", f"format-{k}", bytes([k]) + text.encode())
    put("table", "columns", b"\3" + columns.encode())
    put("prefs", "columns", b"\3" + columns.encode())
    put("prompts", "strings", b'\3["a cat","a dog"]')
    put("prompts", "objects", b'\3{"x":{"caption":"a"},"y":{"caption":"b"}}')
    for target in ("table", "prompts"):
        put(target, "lines", b"\4a cat\n\n a dog \r\nlast")
    put("table", "bom", b"\0\xef\xbb\xbfa,b\n1,2\n")
    put("table", "quote-open", b'\0a,b\n"1,2\n')
    put("table", "ragged", b"\0a,b\n1\n1,2,3\n1,2\n")
    put("table", "cr", b"\0a,b\r1,2\r3,4\r")
    put("table", "same-names", b"\0a,a\n1,2\n")


def image(mode="RGB", size=(9, 7)):
    a = rng.integers(0, 255, (size[1], size[0], len(mode)), np.uint8)
    return Image.fromarray(a if len(mode) > 1 else a[..., 0], mode)


def coded(im, kind, **kw):
    b = io.BytesIO()
    im.save(b, kind, **kw)
    return b.getvalue()


def exif(orientation):
    e = Image.Exif()
    e[0x112] = orientation
    return e


def images():
    for mode in ("RGB", "RGBA", "L", "LA"):
        put("png", mode.lower(), coded(image(mode), "PNG"))
    put("png", "palette", coded(image().quantize(5), "PNG"))
    put("png", "bits", coded(image("L").convert("1"), "PNG"))
    put("png", "sixteen", coded(Image.fromarray(
        rng.integers(0, 65535, (5, 6), np.uint16)), "PNG"))
    put("png", "transparent", coded(image("L"), "PNG", transparency=3))
    put("png", "exif", coded(image(), "PNG", exif=exif(6)))
    for q in (20, 95):
        put("jpeg", f"quality-{q}", coded(image(size=(17, 19)), "JPEG",
                                          quality=q))
    put("jpeg", "grey", coded(image("L"), "JPEG"))
    put("jpeg", "cmyk", coded(image("CMYK"), "JPEG"))
    put("jpeg", "progressive", coded(image(size=(20, 20)), "JPEG",
                                     progressive=True))
    put("jpeg", "subsampled", coded(image(size=(33, 5)), "JPEG",
                                    subsampling=2))
    for k in (3, 6, 8):
        put("jpeg", f"exif-{k}", coded(image(), "JPEG", exif=exif(k)))
    put("webp", "lossy", coded(image(), "WEBP", quality=50))
    put("webp", "lossless", coded(image(), "WEBP", lossless=True))
    put("webp", "alpha", coded(image("RGBA"), "WEBP", quality=60))
    put("webp", "exif", coded(image(), "WEBP", exif=exif(5)))
    put("webp", "animation", coded(image(), "WEBP", save_all=True,
                                   append_images=[image()], duration=10))
    put("pngwrite", "two", b"\7\5\2a cat\0caf\xc3\xa9 \xe7\x8c\xab\0" + bytes(
        range(200)))
    put("pngwrite", "none", b"\0\0\0")
    put("pngwrite", "invalid", b"\3\3\1\xff\xfe\0")


def shards():
    sample = [("x/a.0.jpg", b"\xff\xd8\xff"), ("x/a.1.jpg", b"\xff\xd8\xff"),
              ("x/a.json", json.dumps({"prompt": "a", "label_0": 1,
                                       "label_1": 0}).encode()),
              ("x/b.jpg_0", b"1"), ("x/b.jpg_1", b"22"),
              ("x/b.txt", b"a caption\n"),
              ("x/b.json", b'{"preferred":"tie"}'), ("README", b"no dot"),
              ("__meta__/a.json", b"{}")]
    put("webdataset", "ustar", b"\0" + pad(tar(sample)))
    long = [("y/" + "n" * 150 + ".jpg", b"x"), ("z.json", b"{}")]
    for form, k in ((tarfile.PAX_FORMAT, "pax"), (tarfile.GNU_FORMAT, "gnu")):
        put("shard", k, pad(tar(long, form)))
    put("webdataset", "images", b"\1" + pad(tar([("a.jpg", b"x"),
                                                 ("b.png", b"y")])))
    put("webdataset", "members-apart", b"\0" + pad(tar(
        [("a.0.jpg", b"x"), ("b.0.jpg", b"x"), ("a.1.jpg", b"x")])))
    with tempfile.TemporaryDirectory() as d:
        csv = f"{d}/p.csv"
        image().save(f"{d}/a.png")
        image().save(f"{d}/b.png")
        with open(csv, "w") as f:
            f.write("prompt,image_0,image_1,preferred\na cat,a.png,b.png,0\n"
                    "a dog,b.png,a.png,tie\n")
        subprocess.run(["bin/lpo-encode", "-m", "demo/model", "-q", "--size",
                        "32", "--db", "none", "-o", f"{d}/e32.tar", csv],
                       check=True)
        put("shard", "encoded", ours(f"{d}/e32.tar"))
        subprocess.run(["bin/lpo-pairs", "-q", "--db", "none", "-o",
                        f"{d}/p.tar", f"{d}/e32.tar"], check=True)
        put("shard", "pairs", ours(f"{d}/p.tar"))
        with tarfile.open(f"{d}/e32.tar") as t:
            end = t.extractfile("__end__/end.json").read()
            put("endrecord", "end", end)
            m = [i for i in t.getnames() if i.endswith("moments_0.npy")][0]
            moments = t.extractfile(m).read()
            rec = t.extractfile(m.split(".")[0] + ".json").read()
            put("moments", "encoded", rec + b"\n----\n" + moments)
    r = {"key": "000000001", "row": 1, "prompt": "a", "label_0": 0.5,
         "label_1": 0.5, "num_example_per_prompt": 1, "id": "x", "z": [1]}
    for k, a in (("ones", np.ones((8, 2, 2), np.float16)),
                 ("large", np.full((8, 1, 1), 6e4, np.float16)),
                 ("nan", np.full((8, 1, 1), np.nan, np.float32))):
        put("moments", k, json.dumps(r).encode() + b"\n----\n" + npy(a))
    put("damage", "none", b"")
    for k in range(6):
        put("damage", f"kind-{k}", bytes([k, 4, 200, 9, 3]))
    put("damage", "several", bytes(range(60)))
    # the members of a sample change places, which is no damage
    put("damage", "members", bytes([5, 4, 200, 5, 4, 5, 4, 200, 9, 3]))


def configs():
    sd = {"unet": 0, "text_encoder": 1, "vae": 2}
    for part, k in sd.items():
        with open(f"demo/model/{part}/config.json", "rb") as f:
            put("config", f"demo-{part}", bytes([k]) + f.read())
    xl = {"_class_name": "UNet2DConditionModel", "sample_size": 128,
          "in_channels": 4, "block_out_channels": [320, 640, 1280],
          "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D",
                               "CrossAttnDownBlock2D"],
          "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
                             "UpBlock2D"],
          "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
          "transformer_layers_per_block": [1, 2, 10],
          "use_linear_projection": True, "addition_embed_type": "text_time",
          "addition_time_embed_dim": 256, "norm_num_groups": 32,
          "projection_class_embeddings_input_dim": 2816, "class_embed_type":
          None, "_use_default_values": ["dropout"], "dropout": 0.1}
    put("config", "xl", b"\0" + json.dumps(xl).encode())
    put("config", "other-class", b'\0{"_class_name":"FluxTransformer"}')
    with open("demo/model/scheduler/scheduler_config.json", "rb") as f:
        put("scheduler", "demo", f.read())
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        for space in ("leading", "trailing", "linspace"):
            put("scheduler", f"{name}-{space}", json.dumps(
                {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule":
                 name, "num_train_timesteps": 1000, "steps_offset": 1,
                 "timestep_spacing": space, "set_alpha_to_one": False,
                 "prediction_type": "v_prediction", "clip_sample": False}))


def reward_models():
    sha = "0123456789abcdef" * 4
    full = {"base_sha256": sha, "format": 1, "guidance": 7.5,
            "latent": {"channels": 4, "scaling_factor": 0.18215,
                       "vae_factor": 8, "vae_sha256": sha},
            "multi_scale": True, "multi_scale_cfg": False, "run": sha[:16]}
    put("lrm", "ours", json.dumps(full, indent=2))
    put("lrm", "nulls", json.dumps({k: None for k in full}))
    put("lrm", "long", json.dumps({"run": sha}))
    for name, text in [
            ("empty", "{}"), ("array", "[]"), ("latent", '{"latent": []}'),
            ("one-scale", '{"multi_scale": false, "multi_scale_cfg": true, '
             '"guidance": 1}'), ("later", '{"format": 2}'),
            ("factor", '{"latent": {"vae_factor": 129}}'),
            ("negative", '{"guidance": -1, '
             '"latent": {"scaling_factor": -1e308}}')]:
        put("lrm", name, text)


def tokenizers():
    for k, s in enumerate(("a photo of a cat", "caf\u00e9 \u732b \U0001f431",
                           "<|startoftext|>x<|endoftext|> it's 3'll",
                           "A\n'll 11p223RF\u2606ho!!to?", "e\u0301\u0327 \u202e"
                           "abc &amp;", "\u0130\u1e9e\u03a3 \u00df")):
        put("tokenize", f"text-{k}", bytes([k % 2]) + s.encode())
    put("tokenize", "invalid", b"\0abc\xff\xfe\xed\xa0\x80")
    put("tokenize", "nul", b"\0a\0b")
    few = [open(f"tests/golden/tokenizer/few/{f}", "rb").read() for f in
           ("vocab.json", "merges.txt")]
    cfg = open("tests/golden/tokenizer/few/tokenizer_config.json",
               "rb").read()
    special = b'{"pad_token":"!","unk_token":{"content":"<u>"}}'
    cut = b"\n----\n"
    put("vocab", "few", cut.join(few + [b"", cfg]))
    put("vocab", "special", cut.join(few + [special, cfg,
                                           b'{"<new>":50,"x y":51}']))
    put("vocab", "decoder", cut.join(few + [b"", json.dumps(
        {"model_max_length": 77, "added_tokens_decoder": {"3": {
            "content": "<|endoftext|>", "lstrip": True, "rstrip": False,
            "normalized": False, "single_word": True, "special": True}}})
        .encode()]))
    v = json.loads(few[0])
    one = {"model": {"type": "BPE", "vocab": v, "merges": [["a", "b"], "c d"]},
           "added_tokens": [{"id": 2, "content": "<x>", "special": True,
                             "normalized": False, "lstrip": False,
                             "rstrip": False, "single_word": False}]}
    put("vocab", "single", b"!" + json.dumps(one).encode() + cut + cfg)


def crc32c(data):
    c = 0xffffffff
    for b in data:
        c ^= b
        for _ in range(8):
            c = c >> 1 ^ (0x82f63b78 if c & 1 else 0)
    return f"{c ^ 0xffffffff:08x}"


def states():
    m = {"format": 1, "run": "0123456789abcdef", "counters": {"step": 3},
         "blobs": {"a": {"bytes": 7, "crc32c": crc32c(b"weights")}},
         "crc32c": "00000000"}
    put("state", "manifest", b"\0" + json.dumps(m).encode())
    m["blobs"] = {}
    put("state", "no-blobs", b"\0" + json.dumps(m).encode())
    m["run"] = "f" * 16
    put("state", "other-run", b"\0" + json.dumps(m).encode())
    put("state", "run", b"\1" + json.dumps(
        {"run": "0123456789abcdef", "options": {"lr": 1e-4}}).encode())
    put("state", "run-differs", b"\1" + json.dumps(
        {"run": "f" * 16, "options": {"lr": 2e-4, "batch": 40}}).encode())


def databases():
    sql = open("schemas/lpo.sql").read()
    with tempfile.TemporaryDirectory() as d:
        for k, (app, version, text, page) in enumerate((
                (0x6c706f31, 1, sql, 512), (0x6c706f31, 2, sql, 512),
                (0, 0, "CREATE TABLE t(a)", 512), (0x6c706f31, 1,
                "CREATE TABLE run(id INTEGER PRIMARY KEY)", 512))):
            if k == 1:
                continue
            c = sqlite3.connect(f"{d}/{k}.db")
            c.execute(f"PRAGMA page_size={page}")
            c.executescript(f"{text};PRAGMA application_id={app};"
                            f"PRAGMA user_version={version};")
            c.close()
            data = ours(f"{d}/{k}.db")
            if len(data) < 40000:
                put("db", f"base-{k}", data)
    put("db", "empty", b"")
    put("db", "text", b"SQLite format 3\0 but no more")


def small():
    put("scores", "good", "key\talignment\tx\n000000000-0\t1\t2\nb\t0x1p3\t-1e"
        "-3\na\t0\t0\n000000001-0\t.5\t1\n")
    put("scores", "missing", "key\ts\na\t1\n")
    put("scores", "nan", "key\ts\na\tnan\nb\t1\n")
    put("scores", "twice", "key\ts\ts\n")
    put("scores", "crlf", "key\ts\r\na\t1\r\n")
    put("filter", "where", b"\0aesthetic_gap > 0 AND prompt LIKE '%cat%'")
    put("filter", "quoted", b"\0\"source\" IN ('x', 'y') -- comment")
    put("filter", "two", b"\0" b"1); SELECT (2")
    put("filter", "id", b"\0x > 1\n----\nid,x,aesthetic_gap\n0,1,2\n1,2,3\n"
        b"2,3,4\n")
    put("filter", "row", b"\4y\n----\ny\n1\n0\n1\n")
    put("filter", "mpcf1", b"\x08")
    put("filter", "mpcf2", b"\x30")
    put("filter", "mpcf3-jsonl", b"\x3a\n----\n" + b"".join(
        json.dumps({"id": str(k), "vqascore_gap": k}).encode() + b"\n"
        for k in range(3)))
    for k, s in enumerate(("static:0.3", "sigma:0.35:0.5", "variance:.1:.2",
                           "linear:0:1", "quantile:0.6")):
        put("specs", f"threshold-{k}", b"\0" + s.encode())
    for k, s in enumerate(("1:951:50", "1,401,751", "0", "999999")):
        put("specs", f"timesteps-{k}", b"\1" + s.encode())
    put("specs", "name", b"\2mpcf2")
    put("specs", "use", b"\3aesthetic,clipscore")
    put("specs", "number", b"\4-1.5e-3")
    put("cli", "all", "-s\nx\n--list\na\n-lb\n-i-5\n--range=7\n-u0x10\n-f\n1e"
        "-3\n--half\n.5\n-b4Gi\n-c\ntwo\n-gq\nfile\n--\n-x")
    put("cli", "bad", "--rang\n101")
    put("cli", "unknown", "-gZ\n--what")
    put("cli", "help", "-h")
    put("cli", "pattern", "-o\nenc-%06d.tar")
    put("cli", "memory", "--memory=1e30G")


def loras():
    base = safetensors_keys("tests/golden/models/unet15.safetensors")
    w = {k: s for k, s in base if k.endswith(("to_q.weight", "to_k.weight"))
         and len(s) == 2}
    forms = {
        "kohya": lambda k: ("lora_unet_" + k.replace(".", "_"), ".lora_down."
                            "weight", ".lora_up.weight"),
        "peft": lambda k: ("unet." + k, ".lora_A.weight", ".lora_B.weight"),
        "diffusers": lambda k: ("unet." + k, ".lora.down.weight",
                                ".lora.up.weight")}
    for name, f in forms.items():
        t = {}
        for k, s in list(w.items())[:2]:
            key, a, b = f(k[:-len(".weight")])
            t[key + a] = rng.random((2, s[1]), np.float32)
            t[key + b] = rng.random((s[0], 2), np.float32)
            if name == "kohya":
                t[key + ".alpha"] = np.array(2, np.float32)
        put("lora", name, safetensors.numpy.save(t, {"format": "pt"}))
    for k, s in enumerate((
            "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
            "unet.a.attn1.processor.to_q_lora.down.weight", "x.dora_scale",
            "base_model.model.mid_block.resnets.0.conv1.lora_A.weight",
            "lora_te_text_model.alpha", "unet.x.lora_A.default.weight")):
        put("lora", f"key-{k}", b"k" + s.encode())


def torches():
    """Zips as torch wrote them, and their pickles alone."""
    for path in sorted(glob.glob("tests/golden/torch/*.*t")):
        name = os.path.basename(path).split(".")[0]
        data = ours(path)
        if name in ("protocol4", "refused-deflated"):
            put("torch", name, data)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as z:
                k = [n for n in z.namelist() if n.endswith("/data.pkl")]
                put("pickle", name, z.read(k[0]))
    # storages of 96 bytes, as the target has them
    a, h = torch.arange(24.0), torch.zeros(48, dtype=torch.float16)
    for name, v in (
            ("plain", {"x": a.view(2, 12), "h": h, "n": 3, "f": 0.5}),
            ("views", {"t": a.view(4, 6).t(), "cut": a[3:9], "w": h.view(
                1, 2, 4, 6).to(memory_format=torch.channels_last)}),
            ("nested", {"state_dict": {"a": {"b": a}, "c": [h, True]}}),
            ("parameter", {"p": torch.nn.Parameter(a), "e": a[:0]})):
        b = io.BytesIO()
        torch.save(v, b)
        with zipfile.ZipFile(b) as z:
            put("torch", name, z.read("archive/data.pkl"))
    put("pickle", "all", pickle.dumps(
        [None, True, -1, 2 ** 40, 2 ** 80, 1.5, "caf\u00e9", b"x", (1,),
         (1, 2), (1, 2, 3), (), {"a": [1]}, set(), frozenset({1})], 4))
    put("pickle", "call", pickle.dumps(print, 2)[:-1] + b"(tR.")


def safetensors_keys(path):
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        meta = json.loads(f.read(n))["__metadata__"]
    for line in meta["keys"].split("\n"):
        key, *shape = line.split()
        yield key, [int(x) for x in shape]


for f in (safetensors_seeds, npy_seeds, json_seeds, tables, images, shards,
          configs, reward_models, tokenizers, states, databases, small,
          loras, torches):
    f()

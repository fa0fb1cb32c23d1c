"""lpo-probe's tokenizers against transformers' fast CLIP tokenizer.

usage: tokenizer.py [SEED]

OpenAI's own vocabulary (from the open_clip_torch package) in the files of
SD1.5, SD2.1 and both of SDXL, and the small vocabularies of tests/golden,
over some 6000 strings that are meant to hurt, then over every code point.
Ids are padded and cut: all of max_length is compared.  Letters that Unicode
got after version 14 (Python's here) are shown, not judged: each library knows
those of its own year.
"""
import gzip
import json
import pathlib
import random
import subprocess
import sys
import unicodedata

import open_clip
import tokenizers
import transformers
from transformers import CLIPTokenizerFast

import parity
from parity import BIN

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "tokenizer"
START, END = "<|startoftext|>", "<|endoftext|>"

WORDS = """a photo of the cat dog girl castle masterpiece highly detailed 8k
trending on artstation don't they'll we've I'M YOU'RE it's o'clock 'tis 's 't
rock'n'roll 3.14 2024 100% #1 a_b c-d e/f (best:1.2) [x|y] {z} <lora:x:0.8>
--ar 16:9 http://a.b/c?d=e&f=g &amp; &lt; &#39; &#x27; &nbsp; &eacute; &AMP
r\u00e9sum\u00e9 na\u00efve \u00dcn\u00efc\u00f6d\u00e9 stra\u00dfe
\u0130stanbul \u0131\u015f\u0131k I\u0307 \u03a3\u03af\u03c3\u03c5\u03c6\u03bf
\u03c2 \u039f\u0394\u039f\u03a3 \u1fb3 \u01c5 \u1e9e \ufb01sh \ufb03
\u5317\u4eac \u732b \u65e5\u672c\u8a9e \u304c \u30ab\u3099 \ud55c\uad6d
\u1112\u1161\u11ab \u043a\u043e\u0442 \u0439 \u0438\u0306
\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938
\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f
\U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea 1\ufe0f\u20e3 \u00bd \u2163 \u0663
\u216b \u24b6 \U0001d400 \U0001d7d8 \uff21\uff11 \U00010400""".split()
GLUE = [" ", " ", " ", " ", "", ", ", "  ", "\t", "\n", "\r\n", "\u00a0",
        "\u3000", "\u2028", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u202e",
        "\u2066", "\u0301", "\u0323", "\u20dd", "\x1c", "\x85", "\x00",
        "\x7f", "\x1b[31m", "!", "!!", "!!!", "'", "''", "...", "\ufffd"]
SPECIAL = [START, END, START.upper(), END.upper(), "<|EndOfText|>",
           "<|endoftext|", "<|endoftext|>>", "|endoftext|", "<|startoftext",
           "endoftext", END + END, "<|end\u00adoftext|>", "<|endoftext |>"]
RANGES = [(0x20, 0x7f), (0xa0, 0x250), (0x300, 0x370), (0x370, 0x530),
          (0x590, 0x700), (0x900, 0xe00), (0x1100, 0x1200),
          (0x1e00, 0x2070), (0x2070, 0x2c00), (0x3040, 0x3100),
          (0x4e00, 0x9fff), (0xac00, 0xd7a4), (0xf900, 0x10000),
          (0x1d400, 0x1d800), (0x1f300, 0x1fa00), (0xe0000, 0xe0080)]


def char(rng):
    c = rng.randrange(*rng.choice(RANGES))
    return chr(c) if not 0xd800 <= c < 0xe000 else "x"


def strings(rng):
    """Words and separators mixed; marks, specials, noise, long ones."""
    yield from ["", " ", "\n", "\x00", "!", "!!!", "cat!", "'", "a" * 10000,
                "! " * 5000, END * 200, "\u0301" * 3000, "e" + "\u0301" * 300,
                "'" * 99, "''s", "'\u017f", "'\u212a", "it'S", "\ufb05",
                " ".join(WORDS), "ab " * 30000, "\U0001f468\u200d" * 500]
    yield from WORDS + GLUE + SPECIAL
    for _ in range(2500):
        yield "".join(rng.choice(WORDS) + rng.choice(GLUE)
                      for _ in range(rng.randrange(1, 30)))
    for _ in range(900):
        yield "".join(rng.choice([rng.choice(WORDS), rng.choice(SPECIAL),
                                  rng.choice(GLUE), " ", "!"])
                      for _ in range(rng.randrange(1, 12)))
    for _ in range(1800):
        yield "".join(char(rng) for _ in range(rng.randrange(1, 40)))
    for _ in range(600):
        yield "".join(rng.choice("abcAEIOUz09") + rng.choice(
            ["", "", chr(rng.randrange(0x300, 0x370))] * 2) for _ in range(
                rng.randrange(1, 30)))
    for _ in range(400):    # upper and lower, Greek and Turkish
        yield "".join(chr(rng.choice([rng.randrange(0x391, 0x3d0), 0x130,
                                      0x131, 0x49, 0x3a3, 0x20, 0x307]))
                      for _ in range(rng.randrange(1, 25)))


def token(text, **kw):
    return dict(content=text, lstrip=False, normalized=True, rstrip=False,
                single_word=False, **kw)


def variants(top):
    """OpenAI's vocabulary as the three models' folders have it."""
    same = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    letters = [chr(c) for c in same] + [chr(256 + i) for i in range(68)]
    name = pathlib.Path(open_clip.__file__).parent
    with gzip.open(name / "bpe_simple_vocab_16e6.txt.gz", "rt",
                   encoding="utf8") as f:
        lines = f.read().split("\n")[1:48895]
    merges = [line.split() for line in lines]
    vocab = letters + [c + "</w>" for c in letters] + \
        ["".join(m) for m in merges] + [START, END]
    assert len(vocab) == len(set(vocab)) == 49408
    base = dict(tokenizer_class="CLIPTokenizer", model_max_length=77,
                bos_token=token(START), eos_token=token(END),
                unk_token=token(END), pad_token=END)
    named = {k: base[k] for k in ("bos_token", "eos_token", "unk_token",
                                  "pad_token")}
    decoder = {str(i): token(s, special=True) for i, s in
               ((0, "!"), (49406, START), (49407, END))}
    for name, config, special in (
            ("sd15", base, named),
            ("sd21", base, named | {"pad_token": "!"}),
            ("sdxl_2", base | dict(pad_token="!", bos_token=START,
                                   eos_token=END, unk_token=END,
                                   added_tokens_decoder=decoder),
             named | {"pad_token": "!"})):
        d = top / name / "tokenizer"
        d.mkdir(parents=True)
        (d / "vocab.json").write_text(json.dumps(
            {t: i for i, t in enumerate(vocab)}), encoding="utf8")
        (d / "merges.txt").write_text("\n".join(
            ["#version: 0.2"] + lines) + "\n", encoding="utf8")
        (d / "tokenizer_config.json").write_text(json.dumps(config))
        (d / "special_tokens_map.json").write_text(json.dumps(special))
        yield d.parent
    for d in sorted(GOLDEN.iterdir()):
        if d.is_dir():
            (top / f"small, {d.name}").mkdir()
            (top / f"small, {d.name}" / "tokenizer").symlink_to(d.resolve())
            yield top / f"small, {d.name}"


def ours(model, texts, as_json):
    lines = [json.dumps(t) if as_json else t for t in texts]
    out = subprocess.run(
        [f"{BIN}/lpo-probe", "-c", "tokenizer", "-m", str(model)] +
        ["--json"] * as_json, input="".join(x + "\n" for x in lines).encode(),
        capture_output=True, check=True).stdout
    return [[int(i) for i in line.split()] for line in out.splitlines()]


def theirs(tok, texts):
    return [tok(t, padding="max_length", truncation=True).input_ids
            for t in texts]


def compare(name, model, texts, as_json, tok):
    a, b = ours(model, texts, as_json), theirs(tok, texts)
    assert len(a) == len(b) == len(texts)
    bad = [i for i in range(len(b)) if a[i] != b[i]]
    for i in bad[:3]:
        print("   ", ascii(texts[i])[:300], a[i][:12], b[i][:12],
              file=sys.stderr)
    return name, len(b), len(bad)


def judge(what, result):
    """No string may differ."""
    name, n, bad = result
    print(f"{name}: {n} strings, {bad} differ", file=sys.stderr)
    parity.add(what, name, bad, 0, 0, f"of {n}")


def invalid(model):
    """Bytes that are no UTF-8 are an error that names the line."""
    bad = 0
    for raw in (b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\xaf",
                b"\xf4\x90\x80\x80", b"ok \x80"):
        r = subprocess.run([f"{BIN}/lpo-probe", "-c", "tokenizer", "-m",
                            str(model)], input=b"fine\n" + raw + b"\n",
                           capture_output=True, check=False)
        bad += r.returncode != 1 or b"line 2" not in r.stderr
    r = subprocess.run([f"{BIN}/lpo-probe", "-c", "tokenizer", "-m",
                        str(model), "--json"], input=b'"\\ud800"\n',
                       capture_output=True, check=False)
    bad += r.returncode != 1 or b"line 1" not in r.stderr
    parity.add("text that is not UTF-8 is refused", model.name, bad, 0, 0)


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    print(f"transformers {transformers.__version__}, tokenizers "
          f"{tokenizers.__version__}", file=sys.stderr)
    for model in variants(pathlib.Path(parity.path("models"))):
        tok = CLIPTokenizerFast.from_pretrained(model / "tokenizer")
        texts = list(strings(random.Random(seed)))
        judge("token ids, JSON strings",
              compare(model.name, model, texts, True, tok))
        plain = [t for t in texts if "\n" not in t and "\x00" not in t]
        judge("token ids, lines",
              compare(model.name, model, plain, False, tok))
        if model.name == "sdxl_2":
            invalid(model)
            code_points(model, tok)


def code_points(model, tok):
    known, new = [], []
    for c in range(1, 0x110000):
        if not 0xd800 <= c < 0xe000 and c != 10:
            there = unicodedata.category(chr(c)) != "Cn"
            (known if there else new).append(f"a{chr(c)}B{chr(c)}")
    judge("token ids, every code point",
          compare(model.name, model, known, False, tok))
    print("not yet in Unicode", unicodedata.unidata_version,
          compare(model.name, model, new, False, tok), file=sys.stderr)


parity.run(main)

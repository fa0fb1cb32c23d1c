#!/usr/bin/env python3
"""Golden files of the CLIP tokenizer: tokenizer/*/ and tokenizer.txt.

Small vocabularies in CLIP's form, trained here, and the ids transformers'
fast CLIPTokenizer gives for strings that are meant to hurt.  Needs
transformers and tokenizers; made with transformers 5.23, tokenizers 0.23.3.

tokenizer.txt  per folder a line "= NAME MAX_LENGTH BOS EOS PAD VOCAB_SIZE",
               then per string a line "TEXT<tab>IDS": TEXT's bytes outside
               0x21..0x7e, and backslash, as \\xHH; IDS without bos, eos,
               padding and truncation (what those do is checked here).
"""
import json
import pathlib
import random
import shutil
import sys
import unicodedata

from tokenizers import (Regex, Tokenizer, models, normalizers,
                        pre_tokenizers, trainers)
from transformers import CLIPTokenizer

HERE = pathlib.Path(__file__).parent
PATTERN = (r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
START, END = "<|startoftext|>", "<|endoftext|>"

CORPUS = """a photo of a cat sitting on the mat, highly detailed, 8k
an oil painting of the old man and his dog in the rain by rembrandt
three small red circles above a large blue square on a green background
portrait of a woman with flowers in her hair, soft light, bokeh, film grain
the quick brown fox jumps over the lazy dog and doesn't look back
you should've done this, they'd said it's what we'll do, i'm sure you're right
don't stop!!! isn't it great??? a knight's castle; dragons' lair...
cyberpunk city at night, neon lights, rain, reflections, cinematic lighting
\u00fcber caf\u00e9 na\u00efve r\u00e9sum\u00e9 fa\u00e7ade jalape\u00f1o
\u5317\u4eac \u732b \u72ac \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4
\u043a\u043e\u0442 \u0438 \u0441\u043e\u0431\u0430\u043a\u0430 \u03b3\u03ac\u03c4\u03b1
\U0001f600 \U0001f600 \u2764\ufe0f ((masterpiece)), [best quality:1.2]
""".lower()


def alphabet():
    """The 256 letters of GPT-2 in CLIP's order."""
    same = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    return [chr(c) for c in same] + [chr(256 + i) for i in range(68)]


def train(n):
    """n merges of the corpus, made by the tokenizers library."""
    tok = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.train_from_iterator(
        CORPUS.splitlines() * 3,
        trainers.BpeTrainer(vocab_size=5000, min_frequency=2,
                            end_of_word_suffix="</w>", show_progress=False,
                            initial_alphabet=alphabet()))
    merges = json.loads(tok.to_str())["model"]["merges"]
    return [tuple(m.split() if isinstance(m, str) else m) for m in merges][:n]


def shuffled(n, seed):
    """Merges in an order no training gives, several ways to one token."""
    rng, pool, merges = random.Random(seed), list("abc!'"), []
    ends = [c + "</w>" for c in pool]
    while len(merges) < n:
        a, b = rng.choice(pool), rng.choice(pool + ends)
        if (a, b) not in merges and len(a + b) < 12:
            merges.append((a, b))
            (ends if b.endswith("</w>") else pool).append(a + b)
    rng.shuffle(merges)
    return merges


def write(name, merges, config, special=None, added=None, vocab=None):
    d = HERE / "tokenizer" / name
    d.mkdir(parents=True)
    letters = alphabet()
    if vocab is None:
        words = letters + [c + "</w>" for c in letters]
        words += ["".join(m) for m in merges if "".join(m) not in words]
        vocab = dict.fromkeys(words + [START, END])
    vocab = {w: i for i, w in enumerate(vocab)}

    def dump(file, data):
        (d / file).write_text(json.dumps(data, ensure_ascii=False) + "\n")
    dump("vocab.json", vocab)
    (d / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    dump("tokenizer_config.json", config)
    if special:
        dump("special_tokens_map.json", special)
    if added:
        dump("added_tokens.json", added)


def token(content, **kw):
    return {"content": content, "lstrip": False, "normalized": True,
            "rstrip": False, "single_word": False, **kw}


def typed(content):
    return {"__type": "AddedToken", **token(content)}


SD15 = {"add_prefix_space": False, "bos_token": typed(START),
        "eos_token": typed(END), "unk_token": typed(END), "pad_token": END,
        "do_lower_case": True, "errors": "replace", "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer"}
SD15_MAP = {"bos_token": token(START), "eos_token": token(END),
            "unk_token": token(END), "pad_token": END}


NAMES = ["sd15", "sd21", "sdxl2", "strings", "decoder", "added", "shuffled",
         "few", "json"]


def folders():
    """One per way in which the files of the world name their tokens."""
    shutil.rmtree(HERE / "tokenizer", ignore_errors=True)
    some = train(60)
    write("sd15", train(700), SD15, SD15_MAP)
    write("sd21", some, SD15, {**SD15_MAP, "pad_token": "!"})
    write("sdxl2", some, {**SD15, "pad_token": "!"},
          {**SD15_MAP, "pad_token": "!"})
    write("strings", some, {"bos_token": START, "eos_token": END,
                            "model_max_length": 20})
    n = 512 + len(some)
    write("decoder", some, {**SD15, "added_tokens_decoder": {
        str(n): token(START, special=True),
        str(n + 1): token(END, special=True, normalized=False),
        str(n + 2): token("<cat-toy>", lstrip=True, rstrip=True),
        str(n + 3): token("Dog", single_word=True),
        str(n + 4): token(" two  Words ", normalized=True),
        str(n + 5): token("<Raw>", normalized=False),
        str(n + 6): token("<Raw>x", normalized=False, special=True),
        str(n + 7): token("cat")}},
        {"pad_token": "!"})     # ignored: the decoder is there
    write("added", some, SD15, {**SD15_MAP,
                                "additional_special_tokens": ["<S>"]},
          {"<sks>": n + 3, "Foo Bar": n + 2, "\u00c9t\u00e9": n + 4})
    write("shuffled", shuffled(80, 7), {**SD15, "model_max_length": 9})
    few = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "!</w>", "ab", "ab</w>",
           "<unk>", "<bos>", "<eos>"]
    write("few", [("a", "b"), ("a", "b</w>")],
          {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
           "pad_token": "<pad>", "model_max_length": 12}, vocab=few)
    # As transformers 5 saves it: one tokenizer.json, nothing else.
    CLIPTokenizer.from_pretrained(HERE / "tokenizer" / "decoder"
                                  ).save_pretrained(
        HERE / "tokenizer" / "json")
    return NAMES


SPACES = ("\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u180e" +
          "".join(map(chr, range(0x2000, 0x200e))) +
          "\u2028\u2029\u202f\u205f\u2060\u3000\ufeff")

PLAIN = [
    "", " ", "  \t\n ", "a photo of a cat", "A Photo Of A CAT",
    "hello world", "don't stop, it's 2024!!!", "You should've done this",
    "r\u00e9sum\u00e9", "caf\u00e9 na\u00efve \u00dcn\u00efc\u00f6d\u00e9",
    "cafe\u0301 nai\u0308ve", "\u5317\u4eac cat \u732b", "\U0001f600 emoji",
    "rock'n'roll 100% a_b-c", "supercalifragilisticexpialidocious",
    "A\\n'll 11p223RF\u2606ho!!to? of a cat", "''s 'S 'T ''ll I'LL 'Ve'D'M",
    "it\u2019s \u02bcs '\u017f 's's's", "' s 'sx x's 're'", "'", "''", "'''s",
    "1234567890 3.14159 1e-5 \u0663\u0664 \u2167 \u00bd\u00b2\u00b3 \u3007",
    "&amp; &lt;b&gt; &#39;s &eacute; &nbsp;", "<b>bold</b> <!-- x -->",
    "((masterpiece)), [best quality:1.2], {a|b}", "a\x00b", "\x00",
    "\x01\x02\x7f\x80\x9f", "tab\there\nnew\r\nline", "a\u00adb soft\u00ad",
    "__init__ snake_case CamelCase kebab-case", "a--b...c!?;:,.", "$%^&*()_+",
    "\u0130stanbul \u0130\u0130 I\u0307 \u0131 \u0049\u0307",
    "\u03a3\u0391\u03a3 \u039f\u0394\u039f\u03a3 \u03c3\u03c2",
    "STRASSE stra\u00dfe \u1e9e", "\u01c4 \u01c5 \u01c6 \u01f1 \ufb01 \ufb05",
    "\u212b \u212a \u2126 \u00c5 A\u030a", "\u1e9b\u0323 s\u0323\u0307",
    "q\u0307\u0323 q\u0323\u0307 \u1e0b\u0323 \u0344", "\u0958 \u0929 \u0dda",
    "\uac00\u1100\u1161\u11a8 \u1112\u1161\u11ab", "\u0041\u0300\u0301\u0302",
    "Z\u0351\u036b\u0343\u036a\u0302\u0352\u0341\u033a\u035a" * 3,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 \U0001f44b\U0001f3fd",
    "\u2764\ufe0f\u200d\U0001f525 1\ufe0f\u20e3", "\u05e9\u05dc\u05d5\u05dd",
    "\u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u0644\u064a\u0643\u064f\u0645",
    "\u202eright to left\u202c \u2067x\u2069 \u200fa\u200e", "\u0e41\u0e21\u0e27",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0ba8\u0bbf \u0c95\u0ccd\u0cb7",
    "\u65e5\u672c\u8a9e\u30c6\u30ad\u30b9\u30c8\u3001\u304b\u3099",
    "\uff26\uff55\uff4c\uff4c\uff57\uff49\uff44\uff54\uff48 \uff01\uff21",
    "\u300c\u732b\u300d\u3000\u3000\u72ac", "\U00020000\U0002f800\uf900",
    "\U0001d400\U0001d7ce \U00010400\U00010428 \U0001e900", "\u2160\u2170",
    "\u1c90 \u10d0 \u13a0 \uab70 \u2c00", "\ufffd \ufffe \U0010ffff \ue000",
    "x\u0301", "\u0301", "\u0301\u0301", " \u0301a", "1\u0301", "!\u0301!",
    "\u200b\u200c\u200d\ufeff", "a\u200bb a\u200db", "\u00aa\u00ba\u02b0",
    "\u037e \u0387 \u1fef \u2000 \u2001", "\u2329 \u232a", "\u0340\u0341",
    "word " * 100, "a" * 300, "!" * 200, "\u732b" * 60, "ab" * 400,
    "x" + "\u0323\u0307\u0300" * 40, "nearly 77 " + "cat " * 73,
    "exactly " + "cat " * 74, "1" * 76, "the " * 75, "the " * 76,
]

SPECIAL = [
    START, END, f"cat{END}the", f"cat {END} the", f"{END}{END}", "a<|b|>c",
    "CAT<|ENDOFTEXT|>the", "a<|STARTOFTEXT|>b<|StartOfText|>c",
    "<|endoftext|", "|endoftext|>", "<|endoftext|><|startoftext|>x",
    f"x!{START}!", "!<|endoftext|>!", "<|endoftext|>'s", "'s<|endoftext|>",
    f"e\u0301{END}\u0301", "cat!", "!!!", "! !", "!cat", "a!b", "a ! b",
    "\u01c3!", "x <sks> y", "x<SKS>y", "foo  bar y Foo\tBar fOO bAR",
    "\u00c9T\u00c9 \u00e9t\u00e9 E\u0301t\u00e9 ete", "<S> <s>",
    "a <cat-toy> b", "a<CAT-TOY>b", "a  <cat-toy>  <cat-toy>  b",
    "\u3000<cat-toy>\u00a0x", "dog dogs Dog. a_dog \u00e9dog dog\u0301 dog's",
    "\u24b6dog dog\u24e9 \U0001f170dog \u2460dog", "hot dog", "(DOG)",
    "dog-dog", "x two words y", "x two   words  y",
    "two words ", "TWO WORDS two words", "x <Raw> <raw> <Raw>x <Raw>y",
    "category concat cat", "<pad> <eos> <bos> <unk>", "a<pad>b",
    "abc d e f ab!", "xyz \u00e9 !", "abcab cab", "bbbb", "a,b",
]

SHUFFLED = ["".join(random.Random(i).choice("abc") for _ in range(1 + i % 23))
            for i in range(60)] + ["!!!'a'!!", "abcabcabcabc!'!'", "aaaaaaaaa"]


def settled(mark):
    """The reference's NFC is of about Unicode 9 and leaves newer marks where
    they are; only those it sorts are asked about."""
    low = "\u0334" if unicodedata.combining(mark) > 1 else ""
    return unicodedata.combining(mark) and all(
        normalizers.NFC().normalize_str(s) == unicodedata.normalize("NFC", s)
        for s in ("x" + mark + low, "x\u0345" + mark))


def strings(name):
    if name == "sd15":
        yield from PLAIN
        for c in SPACES:
            yield f"a{c}b{c}{c}c{c}"
        # A walk through Unicode, up to version 14: what everybody knows.
        rng = random.Random(1)
        known = [c for c in map(chr, range(0x110000))
                 if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
        for _ in range(60):
            yield "".join(rng.choices(known, k=8))
        marks = [c for c in known if settled(c)]
        for _ in range(20):
            yield "".join(rng.choices(marks + list("aeo "), k=12))
        letters = [c for c in known if c.lower() != c]
        for _ in range(40):
            yield "".join(rng.choices(letters, k=8))
    if name == "shuffled":
        yield from SHUFFLED
    else:
        yield from SPECIAL


def escape(text):
    return "".join(chr(b) if 0x21 <= b <= 0x7e and b != 0x5c else f"\\x{b:02x}"
                   for b in text.encode())


def main():
    # Training breaks ties anew in each run: "keep" leaves the folders as
    # they are.
    keep = sys.argv[1:] == ["keep"]
    out = []
    for name in NAMES if keep else folders():
        tok = CLIPTokenizer.from_pretrained(HERE / "tokenizer" / name)
        n = tok.model_max_length
        out.append(f"= {name} {n} {tok.bos_token_id} {tok.eos_token_id} "
                   f"{tok.pad_token_id} {max(tok.get_vocab().values()) + 1}")
        for text in strings(name):
            ids = tok(text, add_special_tokens=False).input_ids
            full = tok(text, padding="max_length", truncation=True,
                       max_length=n).input_ids
            want = [tok.bos_token_id, *ids[:n - 2], tok.eos_token_id]
            assert full == want + [tok.pad_token_id] * (n - len(want)), text
            out.append(escape(text) + "\t" + " ".join(map(str, ids)))
    (HERE / "tokenizer.txt").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()

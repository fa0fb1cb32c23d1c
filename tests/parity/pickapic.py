"""README's script for Pick-a-Pic's parquet files, as it stands there: what
lpo-encode makes of its tars equals what it makes of the same pictures as files.
"""
import io
import json
import os
import re
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import parity

ROWS = 1203			# more than one tar holds
MODEL = os.path.join(parity.ROOT, "demo", "model")


def picture(rng):
    """A JPEG of random size."""
    pixels = rng.integers(0, 256, (rng.integers(20, 60), rng.integers(20, 60),
                                   3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()


def encode(*args):
    """The records and moments of lpo-encode's stream."""
    stream = parity.tool("lpo-encode", "-q", "--db", "none", "-m", MODEL,
                         "--precision", "f32", *args)
    with tarfile.open(fileobj=io.BytesIO(stream)) as t:
        return {m.name: t.extractfile(m).read() for m in t
                if not m.name.startswith("__")}


def main():
    """A small table with the published columns, through both ways."""
    rng = np.random.default_rng(0)
    few = [picture(rng) for _ in range(40)]
    label = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    rows = [dict(caption=f"prompt {i % 400}, \"quoted\"", jpg_0=few[i % 40],
                 jpg_1=few[(i * 7 + 1) % 40], label_0=label[i % 3][0],
                 label_1=label[i % 3][1], num_example_per_prompt=i % 5 + 1,
                 ranking_id=100000 + i, model_0="a", model_1="b",
                 has_label=True, user_id=i % 9) for i in range(ROWS)]
    for k, part in enumerate((rows[:700], rows[700:])):
        pq.write_table(pa.Table.from_pylist(part),
                       parity.path(f"train-{k}.parquet"))
    with open(os.path.join(parity.ROOT, "README.md")) as f:
        script = re.search(r"```python\n(.*?)```", f.read(), re.S).group(1)
    with open(parity.path("pickapic.py"), "w") as f:
        f.write(script)
    subprocess.run([sys.executable, "pickapic.py", "pap-%06d.tar",
                    "train-0.parquet", "train-1.parquet"],
                   cwd=parity.WORK, check=True)
    ours = encode(parity.path("pap-000000.tar"), parity.path("pap-000001.tar"))

    with open(parity.path("prefs.jsonl"), "w") as f:
        for i, r in enumerate(rows):
            for k in (0, 1):
                with open(parity.path(f"{i}-{k}.jpg"), "wb") as image:
                    image.write(r[f"jpg_{k}"])
            f.write(json.dumps(dict(
                prompt=r["caption"], image_0=f"{i}-0.jpg",
                image_1=f"{i}-1.jpg", label_0=r["label_0"],
                label_1=r["label_1"], id=r["ranking_id"], model_0="a",
                num_example_per_prompt=r["num_example_per_prompt"],
                model_1="b")) + "\n")
    theirs = encode(parity.path("prefs.jsonl"))
    parity.equal("Pick-a-Pic by README's script", "demo",
                 [sorted(ours), len(ours)], [sorted(theirs), 3 * ROWS])
    parity.equal("Pick-a-Pic by README's script", "demo",
                 [ours[k] for k in sorted(ours)],
                 [theirs[k] for k in sorted(theirs)])


parity.run(main)

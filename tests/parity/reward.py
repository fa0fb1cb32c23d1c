"""A reward model for other checks."""
import csv

import numpy as np
import parity
from PIL import Image


def reward_model(m, dtype="f32"):
    """A folder by lpo-encode, lpo-pairs and lpo-lrm: one step, two pairs."""
    where = parity.path(f"{m.name}-lrm-{dtype}")
    rng = np.random.default_rng(1)
    with open(parity.path("prefs.csv"), "w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["prompt", "image_0", "image_1", "preferred"])
        for i in range(2):
            for j in range(2):
                pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(parity.path(f"{i}{j}.png"))
            rows.writerow(["a red circle", f"{i}0.png", f"{i}1.png", i])
    for line in (("lpo-encode", "-o", parity.path("enc.tar"),
                  parity.path("prefs.csv")),
                 ("lpo-pairs", "-o", parity.path("pairs.tar"),
                  parity.path("enc.tar")),
                 ("lpo-lrm", "--batch", 2, "--dtype", dtype, "--lr", "1e-3",
                  "-o", where, parity.path("pairs.tar"))):
        parity.tool(*line, "-m", m.folder, "--db", "none", "-q", "--force",
                    "--precision", "f32")
    return where

#!/usr/bin/env python3
"""Small files by torch.save, and what torch.load makes of them.

    make_torch.py OUTDIR      (tests/golden/torch)

expected.safetensors: FILE|KEY for each tensor of each file, dicts flattened
with ".", numbers as tensors without dimensions.  refused-*: files that are
not to be read.  Made with torch 2.15.
"""
import collections
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(sys.argv[1])
torch.manual_seed(7)


def flatten(d, prefix=""):
    for k, v in d.items():
        if not isinstance(k, str):
            continue
        if isinstance(v, dict):
            yield from flatten(v, prefix + k + ".")
        elif isinstance(v, torch.Tensor):
            yield prefix + k, v.detach().contiguous().clone()
        elif isinstance(v, bool):
            yield prefix + k, torch.tensor(v)
        elif isinstance(v, int) and abs(v) < 1 << 63:
            yield prefix + k, torch.tensor(v, dtype=torch.int64)
        elif isinstance(v, float):
            yield prefix + k, torch.tensor(v, dtype=torch.float64)


expected = {}


def keep(name, obj, root=None, **args):
    torch.save(obj, OUT / name, **args)
    for k, v in flatten(obj if root is None else root):
        expected[f"{name}|{k}"] = v


x = torch.randn(6, 5)
keep("types.pt", {
    "f32": x, "f16": x.half(), "bf16": x.bfloat16(), "f64": x.double(),
    "i64": torch.tensor([[-3, 1 << 40]]), "i32": torch.tensor([-7], dtype=torch.int32),
    "u8": torch.tensor([0, 255], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "i16": torch.tensor([-300], dtype=torch.int16),
    "i8": torch.tensor([-3], dtype=torch.int8),
    "u16": torch.tensor([65535], dtype=torch.uint16),
    "scalar": torch.tensor(0.1), "empty": torch.zeros(0, 3)})
y = torch.randn(4, 3, 2)
keep("views.pt", {
    "whole": y, "transposed": y.transpose(0, 2), "row": y[2],
    "column": y[:, 1], "steps": y[::2, :, 1:], "tied": y,
    "last": y.flatten()[-1], "one": y[1:2].transpose(0, 1),
    "channels_last": torch.randn(2, 3, 4, 5).to(
        memory_format=torch.channels_last)})
net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
adam = torch.optim.AdamW(net.parameters(), lr=0.1)
net(torch.randn(4, 3)).sum().backward()
adam.step()
state = {k: v for k, v in net.state_dict().items()}
keep("trainer.ckpt", {"state_dict": net.state_dict(), "epoch": 3,
                      "optimizer": adam.state_dict(), "x": x}, root=state)
keep("parameters.bin", {"w": net[0].weight, "nested": {"b": net[0].bias,
     "odd": None, "list": [x, x], 5: x, "ok": True, "n": -70000, "lr": 1e-5,
     "size": x.shape, "big": 1 << 100, "dtype": torch.float16,
     "device": torch.device("cpu"), "od": collections.OrderedDict(z=x)}})
keep("protocol4.pt", {"a": x, "b": {"c": 2.5, "s": {1, 2}, "by": b"zz"}},
     pickle_protocol=4)
keep("lrm_float.pt", {
    "visual_projection": collections.OrderedDict(weight=torch.randn(4, 10)),
    "text_projection": collections.OrderedDict(weight=torch.randn(4, 3)),
    "logit_scale": 2.6592})
keep("lrm_tensor.pt", {
    "visual_projection": collections.OrderedDict(weight=torch.randn(4, 10)),
    "logit_scale": torch.tensor(2.6592)})
keep("мир.pth", {"a": x})


class Tagged(torch.Tensor):
    pass


tagged = x.clone().as_subclass(Tagged)
tagged.note = "a subclass with an attribute"
torch.save({"a": tagged, "b": torch.nn.Parameter(tagged.clone())},
           OUT / "subclass.pt")
for k in "ab":
    expected["subclass.pt|" + k] = x.clone()

torch.save({"a": x}, OUT / "refused-legacy.pt",
           _use_new_zipfile_serialization=False)
torch.save(x, OUT / "refused-tensor.pt")
torch.save(collections.Counter("ab"), OUT / "refused-object.pt")
torch.save([x], OUT / "refused-list.pt")
torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)),
               OUT / "refused-script.pt")
source = zipfile.ZipFile(OUT / "lrm_tensor.pt")
for kind in ("deflated", "big-endian"):
    with zipfile.ZipFile(OUT / f"refused-{kind}.pt", "w", zipfile.ZIP_DEFLATED
                         if kind == "deflated" else zipfile.ZIP_STORED) as z:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("byteorder") and kind == "big-endian":
                data = b"big"
            z.writestr(name, data)
save_file(expected, OUT / "expected.safetensors")

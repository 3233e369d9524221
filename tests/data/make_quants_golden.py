"""Makes tests/data/quants.json: random blocks of every weight type and what the gguf package dequantizes them to.

    make_quants_golden.py > quants.json        (pip install gguf numpy)

Blocks are random bytes with sane fp16 scales; values are given as the bits of f32 in hexadecimal."""
import json
import sys

import gguf
import numpy as np

SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2],
          "Q5_K": [0, 2], "Q6_K": [208]}
rng = np.random.default_rng(20260917)
out = {}
for name in ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4"]:
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    n = 64 if block == 1 else 3
    data = rng.integers(0, 256, (n, size), dtype=np.uint8)
    if block == 1:
        values = (rng.standard_normal(n) * 10.0 ** rng.integers(-6, 4, n)).astype(np.float32)
        data = (values.astype(np.float16).view(np.uint8) if name == "F16"
                else (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)).reshape(n, 2)
    for at in SCALES.get(name, []):
        scale = (rng.standard_normal(n) * 10.0 ** rng.integers(-5, 1, n)).astype(np.float16)
        data[:, at:at + 2] = scale.view(np.uint8).reshape(n, 2)
    if name == "MXFP4":  # the exponent may be any byte: both subnormal powers and the largest one whose numbers are finite
        data = np.concatenate([data, data, data])
        data[:6, 0] = [0, 1, 2, 252, 127, 120]
    values = gguf.dequantize(data.reshape(1, -1), kind).astype(np.float32).reshape(-1)
    out[name] = {"blocks": data.tobytes().hex(), "values": "".join(f"{v:08x}" for v in values.view(np.uint32))}
json.dump(out, sys.stdout, indent=0)
print()

"""Writes golden.txt: random blocks of every GGUF type and what `gguf` decodes them to, and random floats and what it encodes them to.

    python make_golden.py > golden.txt          # pip install gguf numpy
"""
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

rng = np.random.default_rng(7)
for kind in (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.IQ4_NL, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K):
    length, size = GGML_QUANT_SIZES[kind]
    blocks = 0
    while blocks < 512 // length:
        data = rng.integers(0, 256, size, dtype=np.uint8)
        with np.errstate(all="ignore"):
            values = dequantize(data, kind).reshape(-1)
        # Any bytes are a block, but a scale that is not finite is no test.
        if np.isfinite(values).all():
            print("decode", kind.name, data.tobytes().hex(), values.astype("<f4").tobytes().hex())
            blocks += 1

for kind in (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0):
    values = rng.standard_normal(128).astype("<f4")
    print("encode", kind.name, quantize(values.reshape(1, -1), kind).tobytes().hex(), values.tobytes().hex())

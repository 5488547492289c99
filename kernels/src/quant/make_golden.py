"""Writes golden.txt: what `gguf`, ggml and bitsandbytes make of random blocks and floats.

    pip install gguf numpy torch bitsandbytes
    # The reference encoders, without fused multiply-adds, so that their arithmetic is that of the source:
    echo 'void ggml_abort(void) {} void ggml_row_size(void) {} void ggml_type_name(void) {} void ggml_type_size(void) {}' > rest.c
    cc -O2 -std=gnu11 -D_GNU_SOURCE -ffp-contract=off -shared -fPIC -I llama.cpp/ggml/src -I llama.cpp/ggml/include \
        llama.cpp/ggml/src/ggml-quants.c rest.c -lm -o libquants.so
    python make_golden.py ./libquants.so > golden.txt

Lines, numbers in hexadecimal, little-endian:

    decode FORMAT BLOCK VALUES       what a block is
    encode FORMAT BLOCKS VALUES      what floats become
    drawn FORMAT SEED BLOCKS         the same for floats that `drawn` and the test draw alike
    map VALUES                       levels of bitsandbytes' 8-bit codes
    double SEED OFFSET CODES ABSMAX VALUES   scales of NF4 blocks, as drawn, in 8 bits and back
"""
import ctypes
import sys

import bitsandbytes.functional as bnb
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

SEEDS = range(1, 7)


def noise(length, seed):
    """Values in [-1, 1) from a counter, as in `tests.rs`."""
    x = np.arange(length, dtype=np.uint32) ^ np.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)
    x = x * np.uint32(0x85EBCA6B)
    x = (x ^ x >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return (x ^ x >> np.uint32(16)).astype(np.float32) / np.float32(1 << 31) - np.float32(1)


def drawn(seed):
    """Two blocks of 256: even, long-tailed and small, off zero, with ties and zeros, of one sign, with one group of zeros."""
    x = noise(512, seed)
    match seed:
        case 2:
            return x * x * x * x * x * np.float32(0.02)
        case 3:
            return x + np.float32(0.75)
        case 4:
            return np.round(x * np.float32(8)) / np.float32(8)
        case 5:
            return -np.abs(x)
        case 6:
            return np.where(np.arange(512) // 32 % 3 == 0, np.float32(0), x)
    return x


def text(values):
    return values.tobytes().hex()


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
            print("decode", kind.name, text(data), text(values.astype("<f4")))
            blocks += 1

for kind in (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0):
    values = rng.standard_normal(128).astype("<f4")
    print("encode", kind.name, text(quantize(values.reshape(1, -1), kind)), text(values))

library = ctypes.CDLL(sys.argv[1])
for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"):
    encode = getattr(library, f"quantize_row_{name.lower() if name == 'IQ4_NL' else name.replace('Q', 'q')}_ref")
    length, size = GGML_QUANT_SIZES[T[name]]
    for seed in SEEDS:
        if name == "IQ4_NL" and seed == 6:
            continue  # The source leaves the codes of a block of zeros uninitialised.
        values = np.ascontiguousarray(drawn(seed))
        out = np.zeros(values.size // length * size, dtype=np.uint8)
        pointer = ctypes.POINTER(ctypes.c_float)
        encode(values.ctypes.data_as(pointer), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(values.size))
        print("drawn", name, seed, text(out))

for seed in SEEDS:
    codes, state = bnb.quantize_4bit(torch.from_numpy(drawn(seed)), blocksize=64, quant_type="nf4")
    # Each scale beside its nibbles.
    blocks = np.hstack([state.absmax.numpy().view(np.uint8).reshape(-1, 4), codes.numpy().reshape(-1, 32)])
    print("drawn", "NF4", seed, text(blocks))
    values = bnb.dequantize_4bit(codes, state).numpy().reshape(-1, 64)
    for block, values in zip(blocks, values):
        if seed < 3:
            print("decode", "NF4", text(block), text(values))

print("map", text(bnb.create_dynamic_map().numpy()))
for seed in SEEDS:
    absmax = torch.from_numpy(np.abs(noise(700, seed)) * np.float32(0.3))
    offset = absmax.mean()
    codes, state = bnb.quantize_blockwise(absmax - offset, blocksize=256)
    values = bnb.dequantize_blockwise(codes, state) + offset
    print("double", seed, text(offset.numpy()), text(codes.numpy()), text(state.absmax.numpy()), text(values.numpy()))

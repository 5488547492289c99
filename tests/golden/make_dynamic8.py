#!/usr/bin/env python3
"""Golden values of optimizer moments in 8 bits, from bitsandbytes (0.50.2) and torch on the CPU.

    python3 make_dynamic8.py > dynamic8.txt

One array a line: a name, then the elements' bits in hexadecimal. Rounding is bitsandbytes' `quantize_blockwise` as its default backend
computes it in torch: the nearest entry of the map, as on CUDA. Its native library for CPUs looks quotients up by 16 bits instead and
never gives the smallest entries, not even zero; it is not what this project follows.
"""

import sys

import numpy as np
import torch
from bitsandbytes import functional
from bitsandbytes.backends.cpu import ops as cpu
from bitsandbytes.backends.default import ops as default  # noqa: F401  (registers the torch implementations)

BLOCK = 256
torch.manual_seed(7)


def quantize(x, code):
    """The default backend's rounding: scale by the reciprocal, clamp, nearest entry, the first of equals."""
    codes, absmax = [], []
    for block in x.reshape(-1).split(BLOCK):
        top = block.abs().max()
        scaled = torch.clamp(block * (1 / top.clamp(min=1e-38)), -1, 1)
        codes.append((scaled.unsqueeze(-1) - code).abs().argmin(-1).to(torch.uint8))
        absmax.append(top)
    return torch.cat(codes), torch.stack(absmax)


def put(name, x):
    x = x.detach().numpy()
    words = x.view(np.uint32) if x.dtype == np.float32 else x
    print(name, *(f"{w:x}" for w in words))


maps = {signed: functional.create_dynamic_map(signed=signed) for signed in (True, False)}
put("signed", maps[True])
put("unsigned", maps[False])

n = 2 * BLOCK + 88
x = torch.randn(n) * torch.pow(10.0, -6 * torch.rand(n))
for signed, name in ((True, "signed"), (False, "unsigned")):
    values = x if signed else x.abs()
    codes, absmax = quantize(values, maps[signed])
    put(f"{name}.x", values)
    put(f"{name}.codes", codes)
    put(f"{name}.absmax", absmax)


def rounded(a, code, absmax, out, blocksize):
    """Stands in for the native library's rounding inside the optimizer."""
    codes, top = quantize(a, code)
    out.copy_(codes)
    absmax.copy_(top)


# Three steps of AdamW on whole blocks and a ragged one; the dequantization is the native library's.
cpu._quant_blockwise_fp32_direct = rounded
p = torch.randn(n)
states = [torch.zeros(n, dtype=torch.uint8) for _ in range(2)]
scales = [torch.zeros((n + BLOCK - 1) // BLOCK) for _ in range(2)]
put("w.0", p)
for step in (1, 2, 3):
    g = torch.randn(n) * 0.01
    put(f"g.{step}", g)
    cpu._optimizer_update_8bit_blockwise_cpu(
        "adam", g, p, states[0], states[1], 0.9, 0.95, 0.0, 0.0, 1e-8, step, 1e-2, maps[True], maps[False],
        scales[0], scales[1], 0.1, 1.0,
    )
    put(f"w.{step}", p)
    for name, codes, absmax in (("m", states[0], scales[0]), ("v", states[1], scales[1])):
        put(f"{name}.codes.{step}", codes)
        put(f"{name}.absmax.{step}", absmax)
sys.stdout.flush()

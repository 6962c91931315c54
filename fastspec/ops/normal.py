"""Standard normal numbers from random words, the same bits on every backend: `csrc/include/fastspec/normal.h`.

The magnitude of word w is the quantile of p = (w mod 2^31 + 1/2) / 2^32, its sign bit 31. With t = sqrt(-ln p) the
quantile is a quotient of polynomials in t (a minimax fit; |error| < 2e-6 against the exact quantile). Every operation
is rounded to float32 on its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastspec.ops.philox import Purpose, words

# Highest power first: ln(f + 1.5) for f in [-1/2, 1/2), and the quotient.
_LOG = (
    -0.006299947693247789,
    0.010243887617179563,
    -0.01426410561588118,
    0.025967303772055254,
    -0.04942121735948568,
    0.09879175484327986,
    -0.22222078830720673,
    0.6666661659591437,
    0.40546509926276864,
)
_TOP = (1.98412721, 11.64350476, 6.71291842, -10.95922261, -3.20143585)
_BOTTOM = (1.402143, 8.2768664, 7.63313869, 1.0)
_LN2 = 0.6931471805599453


def _polynomial(coefficients: tuple[float, ...], at: Tensor) -> Tensor:
    value = torch.full_like(at, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * at + coefficient
    return value


def standard_normals(word: Tensor) -> Tensor:
    """int64 words in [0, 2^32) -> float32 of the same shape."""
    tail = (word & 0x7FFFFFFF).to(torch.float32) + 0.5  # 2^32 p
    bits = tail.view(torch.int32)
    exponent = ((bits >> 23) - 159).to(torch.float32)
    fraction = ((bits & 0x007FFFFF) | 0x3F800000).view(torch.float32) - 1.5
    ln = exponent * _LN2 + _polynomial(_LOG, fraction)
    t = torch.sqrt(-ln.double()).float()  # torch's own float32 root is not always the nearest number
    z = _polynomial(_TOP, t) / _polynomial(_BOTTOM, t)
    return torch.where(word >> 31 == 1, -z, z)


def fresh_inputs(seeds: Tensor, steps: Tensor, batch_size: int, inputs: int, std: float, dtype: torch.dtype) -> Tensor:
    """The inputs of every batch: N(0, std^2), [S, T, batch_size, inputs], for int64 seeds [S] and steps [T].

    Input k of sample i is word i * inputs + k of Philox stream (seed, FRESH, step).
    """
    drawn = standard_normals(words(seeds, Purpose.FRESH, steps, batch_size * inputs)).to(dtype) * std
    return drawn.unflatten(-1, (batch_size, inputs))

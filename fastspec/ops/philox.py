"""Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

One stream per (seed, purpose, step). Word `i` of a stream is word `i % 4` of the block with

    key     = (seed low, seed high)                       the 64 bits of the seed, two's complement
    counter = (i // 4, purpose, step low, step high)      32 bits each

so any word of any stream is computed on its own, and no stream depends on what was drawn before.
`csrc/include/fastspec/philox.h` is the same generator for C++ and CUDA, bit for bit.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

MAX_SAMPLES = 2**31  # so that 32-bit word x samples fits a signed 64-bit integer
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


class Purpose(IntEnum):
    """What a stream is for; the second counter word."""

    BATCH = 0
    FRESH = 1


def _low(value: Tensor) -> Tensor:
    return value & _MASK


def _high(value: Tensor) -> Tensor:
    return (value >> 32) & _MASK  # the shift copies the sign of a wrapped product, the mask takes it away


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32.

    counter: four, key: two int64 tensors that broadcast, each holding unsigned 32-bit values.
    Returns four int64 tensors of unsigned 32-bit values.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # wrap modulo 2^64, which keeps all 64 bits
        c0, c1, c2, c3 = _high(p1) ^ c1 ^ k0, _low(p1), _high(p0) ^ c3 ^ k1, _low(p0)
        k0, k1 = _low(k0 + _KEY_STEPS[0]), _low(k1 + _KEY_STEPS[1])
    return c0, c1, c2, c3


def words(seeds: Tensor, purpose: int, steps: Tensor, count: int) -> Tensor:
    """The first `count` words of every stream: seeds int64 [S], steps int64 [T] -> int64 [S, T, count] in [0, 2^32)."""
    seed, step = seeds[:, None, None], steps[:, None]
    block = torch.arange(-(-count // 4), device=seeds.device)
    counter = (block, torch.full_like(block, purpose), _low(step), _high(step))
    blocks = philox4x32(counter, (_low(seed), _high(seed)))
    return torch.stack(blocks, dim=-1).flatten(-2)[..., :count]


def batch_indices(seeds: Tensor, steps: Tensor, batch_size: int, samples: int) -> Tensor:
    """Sample indices of every batch, drawn with replacement: int64 [S, T, batch_size] in [0, samples).

    An index is `word * samples >> 32`. Every sample then owns floor(2^32 / samples) or one more of the 2^32 words:
    its probability is within a fraction samples / 2^32 of 1 / samples (2.4e-6 at 10,000 samples).
    """
    return (words(seeds, Purpose.BATCH, steps, batch_size) * samples) >> 32

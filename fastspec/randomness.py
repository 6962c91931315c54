"""Seeded generators for weights and data; the global generator of torch is never used."""

from __future__ import annotations

import zlib

import torch

from fastspec.ops.checks import check_integer

SEEDS = 2**32


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for `seed` and `purpose`.

    Different purposes draw different numbers: a student and a data set of one seed share none. For one purpose,
    different seeds give different streams. Raises ValueError for a seed outside [0, 2^32).
    """
    check_integer("seed", seed, 0, SEEDS - 1)
    return torch.Generator().manual_seed((zlib.crc32(purpose.encode()) + seed) % SEEDS)

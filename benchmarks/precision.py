"""The same precision for everyone: torch's products at the op's, and what a result may then be wrong by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.gate import CONTRACT, PLAIN, Bounds
from benchmarks.peers import LayerPair

ROUNDOFF = {"tf32": 2.0**-11, "bf16": 2.0**-8}  # of an operand, rounded to nearest
EXACT = Bounds(rho=1e-10, scatter=1e-10, mean=1e-10, flipped=1e-10)
DTYPES = {"fp64": torch.float64, "bf16": torch.bfloat16}  # in which torch multiplies; float32 for the others
PRODUCTS = {"tf32x3": 3}  # that one product of a precision is made of


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether torch's products of float32 on CUDA devices may be tf32, until the end of the block."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def at(precision: str, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A torch peer at a precision: bf16 peers cast what they get; torch has no tf32x3, its peer is true fp32."""
    return partial(_at, precision, call)


def _at(precision: str, call: Callable[[Any], Any], pair: LayerPair) -> Any:
    with tf32(precision == "tf32"):
        return call(pair.to(torch.bfloat16) if precision == "bf16" else pair)


def bounds(precision: str, ours: bool) -> Bounds:
    """What the gate allows: the contract or plain float32 sums; at low precision four roundings of operands."""
    if precision == "fp64":
        return EXACT
    if precision not in ROUNDOFF:
        return CONTRACT if ours else PLAIN
    unit = ROUNDOFF[precision]
    return replace(CONTRACT, rho=4 * unit, scatter=8 * unit, mean=4 * unit, flipped=unit)


def dtype_of(precision: str) -> torch.dtype:
    """Of inputs and weights; bf16 peers cast them."""
    return torch.float64 if precision == "fp64" else torch.float32

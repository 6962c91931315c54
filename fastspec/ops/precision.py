"""The precision of matrix products: what their operands are rounded to."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspec.ops.checks import refuse

PRECISIONS = ("fp64", "fp32", "tf32x3", "tf32", "bf16")
_TF32_DROPPED = 13  # of the 23 mantissa bits of float32


def check_precision(precision: str | None, dtype: torch.dtype) -> str:
    """The precision of products of tensors of `dtype`: "fp64" for float64 and no other; of the rest None is "fp32".

    Operands are rounded to it, and products summed in float32, or float64 for "fp64". "tf32x3" is three products of
    tf32, nearly those of "fp32". A CPU has units for fp32 and fp64 alone: its kernels compute all but fp64 in fp32.
    """
    takes = PRECISIONS[:1] if dtype is torch.float64 else PRECISIONS[1:]
    if precision is None:
        return takes[0]
    if precision not in takes:
        refuse("precision", repr(precision), f"{' or '.join(map(repr, takes))} with {dtype} tensors")
    return precision


def rounded(tensor: Tensor, precision: str) -> Tensor:
    """The tensor as an operand of a product at `precision`, in its own dtype; ties go to even."""
    if precision == "bf16":
        return tensor.to(torch.bfloat16).to(tensor.dtype)
    if precision != "tf32":
        return tensor
    single = tensor.float()
    bits = single.view(torch.int32)
    half = (1 << _TF32_DROPPED - 1) - 1 + (bits >> _TF32_DROPPED & 1)
    near = (bits + half & -1 << _TF32_DROPPED).view(torch.float32)
    return torch.where(single.isnan(), single, near).to(tensor.dtype)

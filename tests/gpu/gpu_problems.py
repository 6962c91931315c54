"""Problems on the GPU, what torch makes of them at a precision, and errors against float64.

FASTSPEC_GPU_TESTS_ON=cpu rehearses these tests on the CPU's kernels, where what is the GPU's own is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
import torch
from moments_oracle import FIELDS
from torch import Tensor

from benchmarks.precision import ROUNDOFF, dtype_of, tf32
from fastspec.ops.layer_moments import plans
from fastspec.ops.precision import PRECISIONS, rounded

DEVICE = os.environ.get("FASTSPEC_GPU_TESTS_ON", "cuda")
EVERY_PLAN, PLANS = plans.NAMES, plans.NAMES[:2]  # blocks are of populations, and else a stream
LOW = PRECISIONS[1:]
on_hardware = pytest.mark.skipif(DEVICE != "cuda", reason="of the GPU itself")

Layers = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float64 if dtype == torch.float64 else None).to(dtype)


def integers(*shape: int, dtype: torch.dtype = torch.float32, low: int = -3, high: int = 4) -> Tensor:
    return torch.randint(low, high, shape, device=DEVICE).to(dtype)


def layers(
    n: int, d: int, m: int, k: int, *population: int, dtype: torch.dtype = torch.float32, own: bool = False,
    bias: bool = True, integer: bool = False,
) -> Layers:  # fmt: skip
    """The six tensors of a call of `layer_moments`; students with wider inputs of their own when `own`."""
    draw = integers if integer else normal
    x, width = draw(n, d, dtype=dtype), d + 3 if own else d
    x_student = draw(*population, n, width, dtype=dtype) if own else x
    scale = 1 if integer else max(d, 1) ** 0.5
    weights = draw(m, d, dtype=dtype) / scale, draw(*population, k, width, dtype=dtype) / scale
    biases = (draw(m, dtype=dtype), draw(*population, k, dtype=dtype)) if bias else (None, None)
    return x, weights[0], biases[0], x_student, weights[1], biases[1]


def on(device: str, args: Sequence[Tensor | None], dtype: torch.dtype | None = None) -> list[Tensor | None]:
    return [None if a is None else a.to(device, dtype) for a in args]


def torch_activations(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str, slope: float = 0.0) -> Tensor:
    """By torch's product at a precision; bf16 operands, products summed in float32."""
    z = product(x, weight.mT, precision)
    z = z if bias is None else z + bias.unsqueeze(-2)
    return torch.nn.functional.leaky_relu(z, slope)


def torch_moments(t: Tensor, s: Tensor, precision: str) -> tuple[Tensor, ...]:
    """Means and scatters of activations by torch; only the cross product is at the precision."""
    t_mean, s_mean = t.double().mean(0), s.double().mean(-2)
    a, b = t.double() - t_mean, s.double() - s_mean.unsqueeze(-2)
    cross = product(a.to(t.dtype).mT, b.to(t.dtype), precision).double()
    return t_mean, s_mean, a.square().sum(0), b.square().sum(-2), cross


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """Of rounded operands, summed in float32: cuBLAS does not take the units of tf32 for every shape."""
    with tf32(False):
        return rounded(a, precision) @ rounded(b, precision)


def errors(got: Sequence[Tensor], want: Sequence[Tensor]) -> dict[str, float]:
    """Largest errors of means and scatters, in units of their natural size."""
    t, s = want[2].max() ** 0.5, want[3].max() ** 0.5
    sizes = (want[0].abs().max() + t, want[1].abs().max() + s, t * t, s * s, t * s)
    return {
        name: float((a.double() - w).abs().max() / size)
        for name, a, w, size in zip(FIELDS[:5], got, want, sizes, strict=False)
    }


def floor(precision: str, terms: int) -> float:
    """The rounding floor of the bound, that of sums of so many terms; the truth of fp64 is rounded itself."""
    return torch.finfo(dtype_of(precision)).eps * (terms if precision == "fp64" else terms**0.5)


def roundoff(precision: str) -> float:
    """A loose bound of the relative error of one operand."""
    return ROUNDOFF.get(precision, 1e-12 if precision == "fp64" else 1e-5)


def free_gib(needed: float) -> None:
    """Skip where the device has not so much free memory."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < needed:
        pytest.skip(f"needs {needed:.0f} GiB, {free:.0f} are free")


def strided(tensor: Tensor | None, kind: str) -> Tensor | None:
    """The same values, laid out otherwise among NaN."""
    if tensor is None:
        return None
    if kind == "transposed":
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor
    if kind == "slice":
        wide = tensor.new_full([2 * size + 1 for size in tensor.shape], float("nan"))
        return wide[tuple(slice(1, None, 2) for _ in tensor.shape)].copy_(tensor)
    assert kind == "misaligned"
    return torch.cat([tensor.new_full((1,), float("nan")), tensor.flatten()])[1:].view(tensor.shape)

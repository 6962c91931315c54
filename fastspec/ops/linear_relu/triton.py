"""`linear_relu` on a GPU, and the activations that the plans of `layer_moments` stream."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from fastspec.ops.gpu.layout import grain, index_type, on_device_of, reach, strides
from fastspec.ops.gpu.linear import linear_relu_kernel, sum_blocks_kernel
from fastspec.ops.linear_relu import reference

# nodes, rows, inputs of a tile; warps; stages
TILES = {
    "fp64": (64, 32, 16, 4, 2),
    "fp32": (64, 64, 16, 4, 2),
    "tf32x3": (64, 64, 32, 4, 2),
    "tf32": (128, 128, 32, 8, 3),
    "bf16": (128, 128, 32, 8, 3),
}
WITH_GATES = TILES | {"tf32": (64, 128, 32, 8, 3), "bf16": (64, 128, 64, 8, 3)}


def linear_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float, precision: str
) -> tuple[Tensor, ...]:
    """Signature and results of the op; any strides."""
    *population, n, _ = weight.shape
    samples, students = x.shape[-2], math.prod(population)
    if not samples * n * students:
        return reference.linear_relu(x, weight, bias, negative_slope, precision)
    activation = x.new_empty(*population, samples, n)
    gates = x.new_empty(*population, samples, triton.cdiv(n, 8), dtype=torch.uint8)
    blocks = triton.cdiv(samples, WITH_GATES[precision][1])
    sums = x.new_empty(blocks, students * n, dtype=torch.float64 if precision == "fp64" else torch.float32)
    counts = x.new_empty(blocks, students * n, dtype=torch.int32)
    launch(activation, x, weight, bias, negative_slope, precision, (gates, sums, counts))
    node_sum = x.new_empty(*population, n, dtype=torch.float64)
    active = x.new_empty(*population, n, dtype=torch.int64)
    columns = students * n
    with on_device_of(x):
        grid = (triton.cdiv(columns, 128),)
        sum_blocks_kernel[grid](sums, counts, node_sum, active, blocks, columns, COLUMNS=128, num_warps=4)
    return activation, gates, node_sum, active


def launch(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    negative_slope: float,
    precision: str,
    extras: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Write activations to `out` [*P, N, n], contiguous, of any dtype; extras: gates, sums and counts of row blocks."""
    nodes, rows, inputs, warps, stages = (TILES if extras is None else WITH_GATES)[precision]
    population, own = weight.dim() == 3, x.dim() == 3
    samples, (n, d) = x.shape[-2], weight.shape[-2:]
    x_student, x_row, x_column = strides(x, own, 2)
    w_student, w_node, w_input = strides(weight, population, 2)
    b_student, b_node = strides(bias, population, 1)
    unit = grain((x_column, w_input), (x_row, w_node, d))
    one_x, one_weight = x[0] if own else x, weight[0] if population else weight
    with on_device_of(x):
        linear_relu_kernel[(triton.cdiv(n, nodes) * triton.cdiv(samples, rows), weight.shape[0] if population else 1)](
            x,
            weight,
            bias,
            out,
            *(extras or (None, None, None)),
            samples,
            n,
            d // unit,
            weight.shape[0] if population else 1,
            x_student,
            x_row // unit,
            x_column,
            w_student,
            w_node // unit,
            w_input,
            b_student,
            b_node,
            negative_slope,
            PRECISION=precision,
            ROWS=rows,
            NODES=nodes,
            INPUTS=inputs,
            INDEX=index_type(reach(one_x, 0, rows), reach(one_weight)),
            GRAIN=unit,
            num_warps=warps,
            num_stages=stages,
            enable_fp_fusion=True,
        )


def vendor(precision: str) -> bool:
    """Whether torch's products have this precision, as they are set now: fp64 always, fp32 unless tf32 is allowed."""
    if precision != "fp32":
        return precision == "fp64"
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # torch 2.9 and later
    if setting is None:
        return not torch.backends.cuda.matmul.allow_tf32
    return (getattr(torch.backends, "fp32_precision", None) if setting == "none" else setting) != "tf32"


def write_activations(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float, precision: str
) -> None:
    """Write the activations of one network to `out` [N, n] in its own dtype, by the faster of torch and the kernel."""
    if not vendor(precision):
        launch(out, x, weight, bias, negative_slope, precision)
        return
    write_pre_activations(out, x, weight, bias)
    torch.nn.functional.leaky_relu_(out, negative_slope)


def write_pre_activations(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Write `x @ weight.T + bias` of one network to `out` [N, n] in its own dtype, by torch."""
    x, weight = x.to(out.dtype), weight.to(out.dtype)
    if bias is None:
        torch.mm(x, weight.mT, out=out)
    else:
        torch.addmm(bias.to(out.dtype), x, weight.mT, out=out)

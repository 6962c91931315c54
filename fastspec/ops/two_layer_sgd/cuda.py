"""Driver of the CUDA kernel of `two_layer_sgd`: students of one width are one launch (README.md of this op)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastspec.ops.two_layer_sgd.schedule import arrange
from fastspec.ops.two_layer_sgd.simulation import Device, Group

STREAMS = 32  # launches beside each other


class Runner(NamedTuple):
    """What makes the launches: a GPU, or threads of the CPU that stand for one."""

    run: Callable[[dict[str, Any], int], None]  # launch, stream
    device: Device


@lru_cache
def _gpu(index: int) -> Runner:
    kernels = import_module("fastspec._cuda")
    multiprocessors, shared_bytes, block_shared_bytes, major = kernels.device_facts(index)
    device = Device(multiprocessors, shared_bytes, block_shared_bytes, 8 if major >= 9 else 1)
    return Runner(kernels.two_layer_train, device)


def two_layer_sgd(x: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The op on CUDA tensors; arguments in the order of its schema."""
    with torch.cuda.device(x.device):
        return train(_gpu(torch.cuda.current_device()), x, y, *rest)


def train(
    runner: Runner,
    x: Tensor,
    y: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    offsets: Tensor,
    lr: Tensor,
    seeds: Tensor,
    diverged_step: Tensor,
    w1_buffer: Tensor | None,
    b1_buffer: Tensor | None,
    w2_buffer: Tensor | None,
    b2_buffer: Tensor | None,
    indices: Tensor | None,
    multipliers: Tensor | None,
    teacher_w1: Tensor | None,
    teacher_b1: Tensor | None,
    teacher_w2: Tensor | None,
    teacher_b2: Tensor | None,
    fresh_std: float,
    batch_size: int,
    first_step: int,
    steps: int,
    momentum: float,
    weight_decay: float,
    negative_slope: float,
    loss_limit: float,
    bias: bool,
    normalize: bool,
    fixed_first: bool,
    fixed_top: bool,
) -> tuple[Tensor, ...]:
    """Weights, momentum buffers (empty without momentum) and diverged steps after `steps` steps."""

    def copies(*tensors: Tensor) -> list[Tensor]:
        return [t.clone(memory_format=torch.contiguous_format) for t in tensors]

    weights, (diverged,) = copies(w1, b1, w2, b2), copies(diverged_step)
    given = [t for t in (w1_buffer, b1_buffer, w2_buffer, b2_buffer) if t is not None]
    buffers = copies(*given) if momentum else [t.new_empty(0) for t in weights]
    if steps == 0 or len(b2) == 0:
        return *weights, *buffers, diverged
    teacher = [t.contiguous() for t in (teacher_w1, teacher_b1, teacher_w2, teacher_b2) if t is not None]
    x, y = (t if t.shape[1] <= 1 or t.stride(1) == 1 else t.contiguous() for t in (x, y))
    tables = [offsets.contiguous(), lr.contiguous(), seeds.contiguous()]
    indices, multipliers = (None if t is None else t.contiguous() for t in (indices, multipliers))
    batch = indices.shape[-1] if indices is not None else batch_size or len(x)
    fields: dict[str, Any] = {
        "inputs": w1.shape[1],
        "outputs": w2.shape[1],
        "batch": batch,
        "teacher_nodes": len(teacher[0]) if fresh_std else 0,
        "value_bytes": x.element_size(),
        "momentum": momentum != 0,
        "shared_limit": runner.device.block_shared_bytes,
        "ranks_limit": runner.device.cluster_blocks,
        "samples": len(x),
        "steps": steps,
        "x": x.data_ptr(),
        "x_stride": x.stride(0),
        "y": y.data_ptr(),
        "y_stride": y.stride(0),
        "weights": _addresses(weights),
        "buffers": _addresses(buffers if momentum else []),
        "teacher": _addresses(teacher if fresh_std else []),
        "offsets": tables[0].data_ptr(),
        "lr": tables[1].data_ptr(),
        "seeds": tables[2].data_ptr(),
        "multipliers": 0 if multipliers is None else multipliers.data_ptr(),
        "diverged_step": diverged.data_ptr(),
        "indices": 0 if indices is None else indices.data_ptr(),
        "student_stride": 0 if indices is None or indices.dim() == 2 else steps * batch,
        "step_stride": batch,
        "batch_size": 0 if indices is None and batch_size == 0 else batch,
        "first_step": first_step,
        "fresh_std": fresh_std,
        "momentum_factor": momentum,
        "weight_decay": weight_decay,
        "negative_slope": negative_slope,
        "loss_limit": loss_limit,
        "bias": bias,
        "normalize": normalize,
        "fixed_first": fixed_first,
        "fixed_top": fixed_top,
    }
    shape = {name: fields[name] for name in ("inputs", "outputs", "batch", "teacher_nodes", "value_bytes", "momentum")}
    groups = arrange(tuple(torch.diff(offsets).tolist()), tuple(shape.items()), runner.device)
    _launch_all(runner, groups, fields, x.device)
    return *weights, *buffers, diverged


def _addresses(tensors: list[Tensor]) -> tuple[int, ...]:
    return tuple(t.data_ptr() for t in tensors) or (0, 0, 0, 0)


def _launch_all(runner: Runner, groups: tuple[Group, ...], fields: dict[str, Any], device: torch.device) -> None:
    """Launch every group beside the others, longest blocks first; whatever is queued after waits for all of them.

    Blocks that are no more than the multiprocessors ask for so much memory that each gets one for itself.
    """
    alone = sum(len(g.students) * g.plan["ranks"] for g in groups) <= runner.device.multiprocessors
    kept = []  # memory of the launches, until they are queued
    on_gpu = device.type == "cuda"
    streams = _streams(device)[: len(groups)] if on_gpu else []
    try:
        for i, group in enumerate(groups):
            students = torch.tensor(group.students, device=device)
            blocks = len(group.students) * group.plan["ranks"]
            memory = torch.empty(blocks * group.plan["global_bytes"], dtype=torch.uint8, device=device)
            kept += [students, memory]
            launch = fields | {
                "nodes": group.nodes,
                "ranks": group.plan["ranks"],
                "students": students.data_ptr(),
                "count": len(group.students),
                "memory": memory.data_ptr(),
                "shared_bytes": runner.device.block_shared_bytes if alone else 0,
            }
            if on_gpu:
                streams[i % STREAMS].wait_stream(torch.cuda.current_stream(device))
            runner.run(launch, streams[i % STREAMS].cuda_stream if on_gpu else 0)
    finally:  # also where a launch fails: memory is not given back while another one works in it
        for stream in streams:
            torch.cuda.current_stream(device).wait_stream(stream)


@lru_cache
def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(STREAMS)]

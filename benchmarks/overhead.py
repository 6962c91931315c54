"""The host's cost of a call: tiny tensors, so that what remains is checks, dispatch and allocation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers import LayerPair
from fastspec.ops.cross_moments import cross_moments
from fastspec.ops.layer_moments import layer_moments


def small_calls(device: str = "cpu") -> dict[str, Callable[[], object]]:
    """Calls on 4 samples, 3 inputs, 2 teacher and 2 student nodes, and torch's own cost of comparable calls."""
    pair = LayerPair.random(4, 3, 2, 2, device=device)
    (w_t, b_t), (w_s, b_s), x = pair.teacher, pair.student, pair.x
    t, s = x @ w_t.T, x @ w_s.T
    layer_op, cross_op = torch.ops.fastspec.layer_moments.default, torch.ops.fastspec.cross_moments.default

    def ten_tensors() -> list[Tensor]:
        return [x.new_empty(2) for _ in range(10)]

    return {
        "layer_moments": lambda: layer_moments(x, w_t, b_t, x, w_s, b_s),
        "layer_moments, unchecked op": lambda: layer_op(x, w_t, b_t, x, w_s, b_s, 0.0, "fp32", False, False),
        "cross_moments": lambda: cross_moments(t, s),
        "cross_moments, unchecked op": lambda: cross_op(t, s, "fp32", False),
        "torch.addmm": lambda: torch.addmm(b_t, x, w_t.T),
        "torch.var_mean": lambda: torch.var_mean(x, 0),
        "ten times new_empty": ten_tensors,
    }


def microseconds(call: Callable[[], object], *, calls: int = 500, repeats: int = 15) -> float:
    """Median over repeats of the mean time of back-to-back calls."""
    for _ in range(calls):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) / calls * 1e6

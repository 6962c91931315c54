"""Streams, devices, dispatch and compilation."""

from __future__ import annotations

import pytest
import torch
from gpu_problems import DEVICE, PLANS, layers, normal, on, on_hardware
from moments_oracle import assert_bitwise

import fastspec as fs
from fastspec.ops import library
from fastspec.ops.cross_moments import cross_moments
from fastspec.ops.layer_moments import layer_moments, plans
from fastspec.ops.linear_relu import linear_relu

pytestmark = pytest.mark.gpu


def everything(x, w_t, b_t, x_s, w_s, b_s):
    """All outputs of the three ops."""
    moments, kept = layer_moments(x, w_t, b_t, x_s, w_s, b_s, 0.0, True, True)
    return [*moments, *kept, *cross_moments(*kept, True), *linear_relu(x, w_t, b_t)]


@on_hardware
@pytest.mark.parametrize("plan", PLANS)
def test_two_streams_at_once(plan):
    problems = [layers(50_000, 30, 60, 300), layers(40_000, 50, 20, 700)]
    streams = [torch.cuda.Stream() for _ in problems]
    with plans.force(plan):
        want = [everything(*args) for args in problems]
        torch.cuda.synchronize()
        for _ in range(5):
            got = []
            for stream, args in zip(streams, problems, strict=True):
                with torch.cuda.stream(stream):
                    got.append(everything(*args))
            torch.cuda.synchronize()
            for found, one in zip(got, want, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(found, one, strict=True))


@on_hardware
@pytest.mark.parametrize("plan", PLANS)
def test_the_current_stream_is_used(plan):
    """Inputs are written late on a side stream: a launch on any other stream would read NaN."""
    args = layers(5000, 12, 24, 60)
    late = [torch.full_like(a, float("nan")) for a in args]
    with plans.force(plan):
        want = everything(*args)
        everything(*args)  # compiled before the stream is kept waiting
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            for target, a in zip(late, args, strict=True):
                target.copy_(a)
            late[3] = late[0]
            got = everything(*late)
        stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@on_hardware
def test_the_device_of_the_tensors_is_used():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    args = layers(5000, 12, 24, 60)
    want = everything(*args)
    with torch.cuda.device(0):
        got = everything(*on("cuda:1", args))
    assert all(a.device.index == 1 and torch.equal(a.to(b.device), b) for a, b in zip(got, want, strict=True))


@on_hardware
def test_devices_are_not_mixed():
    x, w_t, b_t, _, w_s, b_s = layers(50, 3, 4, 5)
    with pytest.raises(ValueError, match="student_weight: got device cpu"):
        layer_moments(x, w_t, b_t, x, w_s.cpu(), b_s)


@on_hardware
def test_backends():
    t, s = normal(3000, 20).relu(), normal(3000, 30).relu()
    assert fs.default_device() == "cuda"
    default = cross_moments(t, s, True, "tf32")
    with fs.backend("triton"):
        assert_bitwise(cross_moments(t, s, True, "tf32"), default)
    with fs.backend("reference"):
        assert not torch.equal(cross_moments(t, s, True, "tf32").cross_scatter, default.cross_scatter)
    if library.native_error() is None:
        with fs.backend("cpu"), pytest.raises(ValueError, match="device cuda"):
            cross_moments(t, s)


@on_hardware
@pytest.mark.parametrize("allowed", [False, True])
def test_torchs_own_setting_of_tf32_changes_nothing(allowed):
    args = layers(20_000, 64, 64, 256)
    with plans.force("stream"):
        want, _ = layer_moments(*args)
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = allowed
        try:
            got, _ = layer_moments(*args)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    exact = layer_moments(*on(DEVICE, args, torch.float64))[0].cross_scatter
    size = want.cross_scatter.abs().max()
    assert (got.cross_scatter - exact).abs().max() <= 1e-6 * size


@pytest.mark.parametrize("plan", PLANS)
def test_compiles_without_a_graph_break(plan):
    args = layers(500, 12, 24, 36, 2)

    def program(x, w_t, b_t, _, w_s, b_s):
        moments, kept = layer_moments(x, w_t, b_t, x, w_s, b_s, 0.1, True, True)
        layer = linear_relu(x, w_t, b_t)
        again = cross_moments(layer.activation, kept[1], True)
        return [*moments, *again, layer.node_sum * 2]

    with plans.force(plan):
        compiled = torch.compile(program, fullgraph=True, backend="inductor" if DEVICE == "cuda" else "aot_eager")
        for a, b in zip(compiled(*args), program(*args), strict=True):
            assert torch.equal(a, b)


@on_hardware
def test_a_cuda_graph_replays_a_call():
    args = layers(5000, 12, 24, 60)
    with plans.force("recompute"):
        want, _ = layer_moments(*args)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got, _ = layer_moments(*args)
    for value in got:
        value.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert_bitwise(got, want)

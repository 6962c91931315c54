"""The CUDA kernel of `two_layer_sgd`, its body run by emulated blocks: what the CPU kernel must do, it must do too."""

from __future__ import annotations

import warnings

import pytest
import torch
from test_two_layer_sgd import assert_same_student, problem, student, tables
from test_two_layer_sgd_kernel import (  # noqa: F401  the tests of the CPU kernel, run on this one
    test_a_loss_at_the_limit_is_within_it,
    test_an_infinite_loss_is_beyond_every_limit,
    test_every_width,
    test_float32_is_as_exact_as_plain_torch,
    test_float64_after_200_steps,
    test_float64_on_given_batches,
    test_fresh_inputs,
    test_fresh_inputs_are_the_same_bits,
    test_integers_are_exact,
    test_students_diverge_at_the_same_step,
    test_weights_that_overflow_late_are_noticed_at_their_step,
)

from fastspec.ops.two_layer_sgd import Trained, cuda, schedule, two_layer_sgd
from fastspec.ops.two_layer_sgd.schedule import plan
from fastspec.ops.two_layer_sgd.simulation import H200, Cost, Device

host = pytest.importorskip("fastspec._host", reason="no native code")

SMALL = Device(100, 10**7, 40000, 2)  # wide students need clusters, or have their weights in global memory
TINY = Device(100, 10**7, 2000, 8)  # all but the narrowest have everything there
SHAPE = {"inputs": 9, "outputs": 5, "batch": 16, "teacher_nodes": 0, "value_bytes": 4, "momentum": False}


def emulated(device: Device = H200, threads: int = 1, seen: list | None = None) -> torch.library.Library:
    """While it lives, the op's tensors of the CPU go to the CUDA kernel's driver, and from there to emulated blocks.

    seen: gets every launch.
    """

    def run(launch: dict, stream: int) -> None:
        host.two_layer_emulate(launch, threads)
        if seen is not None:
            seen.append(launch)

    runner = cuda.Runner(run, device)
    library = torch.library.Library("fastspec", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # of an override, which is meant
        library.impl("two_layer_sgd", lambda *arguments: cuda.train(runner, *arguments), "CPU", allow_override=True)
    return library


@pytest.fixture(autouse=True, params=[H200, SMALL, TINY], ids=["H200", "small", "tiny"])
def device(request):
    library = emulated(request.param)
    yield request.param
    library._destroy()


def train(device: Device, threads: int, *given, **settings) -> Trained:
    library = emulated(device, threads)
    out = two_layer_sgd(*given, **settings)
    library._destroy()
    return out


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "normalize": True}, {"batch_size": 0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_and_ranks_change_nothing(dtype, options, monkeypatch):
    """To the last bit, as long as the parts of a batch are the same."""
    nodes = lambda _, plan: Cost(plan["most_nodes"], plan["most_nodes"])  # noqa: E731
    monkeypatch.setattr(schedule, "cost", nodes)  # so that a student gets all the blocks it may have
    schedule.arrange.cache_clear()
    widths = [3, 100, 260]
    given = problem(widths, n=30, d=9, c=5, dtype=dtype)
    settings = {"steps": 9, "batch_size": 16, **tables(3, 0.01), **options}
    first = train(H200._replace(cluster_blocks=1), 1, *given, **settings)
    for ranks, threads in ((1, 5), (2, 3), (4, 2)):
        groups = schedule.arrange(tuple(widths), tuple(SHAPE.items()), H200._replace(cluster_blocks=ranks))
        assert {g.nodes: g.plan["ranks"] for g in groups}[260] == ranks
        other = train(H200._replace(cluster_blocks=ranks), threads, *given, **settings)
        for got, expected in zip(other.weights, first.weights, strict=True):
            assert torch.equal(got, expected), (ranks, threads)
    schedule.arrange.cache_clear()


def test_students_and_calls_are_independent(device):
    widths = [1, 2, 31, 64, 65, 200, 31]
    x, y, weights, offsets = problem(widths, n=50, d=11, c=6, dtype=torch.float32)
    settings, options = tables(len(widths), 0.02), {"batch_size": 5, "momentum": 0.5}
    many = two_layer_sgd(x, y, weights, offsets, steps=8, **settings, **options)
    for k, nodes in enumerate(widths):
        w1, b1, w2, b2 = student(weights, offsets, k)
        mine, edges = type(weights)(w1, b1, w2, b2[None]), torch.tensor([0, nodes])
        rest = {name: table[k : k + 1] for name, table in settings.items()} | options
        half = two_layer_sgd(x, y, mine, edges, steps=3, **rest)
        one = two_layer_sgd(x, y, half.weights, edges, steps=5, first_step=3, buffers=half.buffers, **rest)
        assert_same_student(one, many, offsets, k, nodes)


def test_a_diverged_student_is_left_alone(device):
    given = problem([4, 4], dtype=torch.float32)
    stopped = torch.tensor([-1, 7])
    out = two_layer_sgd(*given, steps=3, batch_size=4, diverged_step=stopped, **tables(2))
    assert out.diverged_step.tolist() == [-1, 7]
    assert torch.equal(out.weights.w1[4:], given[2].w1[4:]) and not torch.equal(out.weights.w1[:4], given[2].w1[:4])


def test_a_node_of_norm_zero_stays(device):
    x, y, weights, offsets = problem([4], dtype=torch.float32)
    weights.w1[2], weights.b1[2] = 0, 0
    out = two_layer_sgd(x, y, weights, offsets, steps=3, batch_size=4, normalize=True, **tables(1))
    assert not out.weights.w1[2].any() and out.weights.w1.isfinite().all()
    torch.testing.assert_close(out.weights.w1[[0, 1, 3]].norm(dim=1), torch.ones(3))


def test_no_steps_and_no_students(device):
    x, y, weights, offsets = problem([4], dtype=torch.float32)
    out = two_layer_sgd(x, y, weights, offsets, steps=0, batch_size=4, **tables(1))
    assert all(torch.equal(a, b) for a, b in zip(out.weights, weights, strict=True))
    none = type(weights)(*(t[:0] for t in weights))
    out = two_layer_sgd(x, y, none, torch.zeros(1, dtype=torch.int64), steps=3, batch_size=4, **tables(0))
    assert out.weights.w1.shape == (0, 7) and out.diverged_step.shape == (0,)


def test_what_the_tests_above_ran_on():
    def placements(device: Device) -> set[str]:
        shapes = (SHAPE, SHAPE | {"inputs": 100, "outputs": 50, "batch": 8})
        return {plan(nodes, shape, device)["placement"] for nodes in (1, 40, 200, 2048) for shape in shapes}

    assert placements(H200) == {"shared"}
    assert placements(SMALL) == {"shared", "activations shared", "global"}
    assert placements(TINY) == {"global"}


@pytest.mark.parametrize("students", [100, 101])
def test_students_that_are_no_more_than_multiprocessors_get_one_each(students):
    launches: list[dict] = []
    library = emulated(SMALL, 1, launches)
    widths = [1 + k % 2 for k in range(students)]
    two_layer_sgd(*problem(widths, n=5, d=2, c=2), steps=1, batch_size=2, **tables(students, 0.01))
    library._destroy()
    asked = [launch["shared_bytes"] for launch in launches]
    assert asked == [SMALL.block_shared_bytes if students <= SMALL.multiprocessors else 0] * 2

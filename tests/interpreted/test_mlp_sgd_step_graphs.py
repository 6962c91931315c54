"""Rooms and graphs of mlp_sgd_step, with graphs that remember launches in the place of CUDA's."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fastspec.ops.mlp_sgd_step import parameter_count, room, students
from fastspec.ops.mlp_sgd_step import triton as kernels

WIDTHS, BIAS = [5, 9, 3], [True, True]


class Graph:
    """Makes on replay what was launched while it was captured."""

    made = 0

    def replay(self):
        Graph.made += 1
        self.launch()


@pytest.fixture
def captured(monkeypatch):
    """One room for all calls, as on a GPU; returns the steps of every launch."""
    launched, launch, kept = [], room.Room.launch, {}
    monkeypatch.setattr(students, "STEPS", 4)

    def launches(self, steps):
        launched.append(steps)
        launch(self, steps)

    @contextmanager
    def capture(graph, *, stream, capture_error_mode):
        with monkeypatch.context() as m:
            m.setattr(room.Room, "launch", lambda self, steps: setattr(graph, "launch", partial(launch, self, steps)))
            yield

    def steps(problem):
        if problem not in kept:
            kept[problem] = kernels.Steps(problem)
            kept[problem].captures = True
        return kept[problem]

    Graph.made = 0
    monkeypatch.setattr(room.Room, "launch", launches)
    for name, fake in (("CUDAGraph", Graph), ("graph", capture), ("Stream", lambda device: None)):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(kernels, "_steps", steps)
    return launched


def call(steps, seed=0, *, students=2, momentum=0.5, factor=1.0):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(20, 5, generator=g), torch.randn(20, 3, generator=g)
    flat = 0.3 * torch.randn(students, parameter_count(WIDTHS, BIAS), generator=g)
    flat[0] *= factor
    rows, rates = torch.randint(20, (steps, 4), generator=g), torch.full((steps,), 0.01, dtype=torch.float64)
    rule = (0, momentum, 0.0, 0.0, 1e6, False, True, "fp32")
    return kernels.mlp_sgd_step(x, y, flat, None, rows, rates, torch.full((students,), -1), WIDTHS, BIAS, *rule)


def same(one, two):
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(one, two, strict=True))


def test_graphs_make_the_same_steps(captured, monkeypatch):
    """The first group of a size is launched, the second one captured, and a call finds nothing of the call before."""
    calls = [(7, 0), (7, 1, 1e4), (3, 2), (7, 0)]
    found = [call(n, seed, factor=rest[0] if rest else 1.0) for n, seed, *rest in calls]
    assert captured == [4, 2, 1] and Graph.made == 3 + 2 + 3
    monkeypatch.undo()
    for out, (n, seed, *rest) in zip(found, calls, strict=True):
        assert same(out, call(n, seed, factor=rest[0] if rest else 1.0))
    assert found[1][4].tolist() == [0, -1] and found[2][4].tolist() == [-1, -1]


@pytest.mark.parametrize(
    "steps, longest, groups", [(1, 16, [1]), (16, 16, [16]), (39, 16, [16, 16, 4, 2, 1]), (3, 1, [1] * 3)], ids=str
)
def test_groups_of_steps(steps, longest, groups):
    found = list(kernels._groups(steps, longest))
    assert [end - start for start, end in found] == groups
    assert [start for start, _ in found] == [sum(groups[:i]) for i in range(len(groups))]


def test_rooms_are_kept_by_problem_and_stream(monkeypatch):
    made, stream = [], SimpleNamespace(cuda_stream=1)

    def steps(problem):
        made.append(problem)
        return SimpleNamespace(room=SimpleNamespace(bytes=problem.size))

    monkeypatch.setattr(kernels, "Steps", steps)
    monkeypatch.setattr(kernels, "_kept", type(kernels._kept)())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())

    class Problem(SimpleNamespace):
        device, size = torch.device("cuda"), 10
        __hash__ = object.__hash__

    problems = [Problem(name=i) for i in range(5)]
    first = kernels._steps(problems[0])
    assert kernels._steps(problems[0]) is first
    stream.cuda_stream = 2
    assert kernels._steps(problems[0]) is not first
    stream.cuda_stream = 1
    for problem in problems[1:3]:
        kernels._steps(problem)
    assert kernels._steps(problems[0]) is first and len(kernels._kept) == kernels.ROOMS
    for problem in problems[3:]:
        kernels._steps(problem)
    assert len(kernels._kept) == kernels.ROOMS and kernels._steps(problems[0]) is first
    large = Problem(name="large")
    large.size = kernels.KEPT + 1
    assert kernels._steps(large) is not kernels._steps(large) and len(kernels._kept) == kernels.ROOMS
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert kernels._steps(problems[0]) is not first
    assert len(made) == 9


def test_a_room_too_large_to_be_kept_is_not_captured(monkeypatch):
    for size, captures in ((kernels.KEPT, True), (kernels.KEPT + 1, False)):
        monkeypatch.setattr(kernels, "Room", lambda problem, size=size: SimpleNamespace(bytes=size))
        problem = SimpleNamespace(tiles=None, device=torch.device("cuda"))
        assert kernels.Steps(problem).captures == captures
    assert not kernels.Steps(SimpleNamespace(tiles=None, device=torch.device("cpu"))).captures


def test_a_room_holds_as_many_steps_as_there_is_memory_for(monkeypatch):
    layout = kernels.Layout(tuple(WIDTHS), tuple(BIAS), 4, False)
    rule = (0.0, 0.0, 0.0, math.inf, False, False, "fp32", None)
    found = []
    for limit in (10**6, 4 * 4 * (8 + 4) * 7, 10):
        monkeypatch.setattr(students, "GATHERED", limit)
        found.append(room.Room(students.Problem(layout, 1, False, False, *rule, torch.device("cpu"))).steps)
    assert found == [16, 4, 1]

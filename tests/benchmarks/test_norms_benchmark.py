"""The benchmark of `norm_report`: its peers agree, and wrong ones have no speed."""

from __future__ import annotations

import pytest
import torch

from benchmarks import initialization, table
from benchmarks.gate import WrongResultError
from benchmarks.harness import Options, select
from benchmarks.initialization import PEERS, Problem, gate, speed
from benchmarks.ops import load


@pytest.fixture(scope="module")
def problem():
    return Problem.random((40, 9, 12, 3), 15, torch.float64)


def test_peers_agree(problem):
    assert max(gate(problem).values()) < 1e-12
    for name, call in PEERS.items():
        assert call(problem, 15).shape == (2, 3), name


@pytest.mark.parametrize("name", PEERS)
def test_a_wrong_peer_is_refused(problem, name, monkeypatch):
    right = PEERS[name]
    monkeypatch.setitem(PEERS, name, lambda given, samples: right(given, samples) + 1e-6)
    with pytest.raises(WrongResultError, match=f"{name}: got an error of 1e-06"):
        gate(problem)


def test_loops_are_scaled_to_all_samples(monkeypatch):
    monkeypatch.setattr(initialization, "QUICK_SHAPE", (60, 9, 12, 3))
    monkeypatch.setattr(initialization, "QUICK_SHARE", 15)
    found = speed(Options(quick=True, rounds=2))
    loop, ours = (found["cases"][1]["peers"][name] for name in ("published loop", "fastspec"))
    assert loop["settings"] == {"samples timed": 15} and ours["settings"] == {"samples timed": 60}
    ratios = [theirs / own for theirs, own in zip(loop["rounds_ms"], ours["rounds_ms"], strict=True)]
    assert loop["times_slower"] == pytest.approx(sum(ratios) / 2)
    assert loop["median_ms"] == pytest.approx(sum(loop["rounds_ms"]) / 2)
    assert found["targets"] == [] and "published loop" in table._speeds(found)


def test_it_is_registered():
    load()
    assert [benchmark.name for benchmark in select("norm_report")] == ["norm_report"]

"""The harness itself: wrong results have no speed, ratios are of neighbours in time, result files can be read back."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import compare, environment, gate, harness, memory, peers, rates
from benchmarks.compare import Case, Peer
from benchmarks.harness import Options, Timing
from benchmarks.ops import cross_moments, layer_moments
from benchmarks.peers import LayerPair
from fastspec.ops import library

SHAPE = (700, 6, 5, 9)
PEERS = {
    "fastspec": peers.fastspec,
    "materialised": peers.materialised,
    "chunked": lambda pair: peers.chunked(pair, 256),
    "chunked, float32 sums": lambda pair: peers.chunked(pair, 256, accumulate=torch.float32),
    "chunked plain": lambda pair: peers.chunked_plain(pair, 256),
    "chunked lean": lambda pair: peers.chunked_lean(pair, 256),
    "corrcoef": peers.corrcoef,
}


class FixedRates(rates.RateCalls):
    """Rates that cost nothing to measure."""

    def __init__(self):
        self.size, self.elements = 100, 1000
        self.calls = {"matrix": lambda: None, "copy": lambda: None}


@pytest.fixture(scope="module")
def case() -> Case:
    return layer_moments.case(SHAPE, Options())


def broken(field: str, change):
    """The op with one output changed."""

    def call(pair: LayerPair):
        moments = peers.fastspec(pair)
        return moments._replace(**{field: change(getattr(moments, field))})

    return call


WRONG = {
    "cross": broken("cross_scatter", lambda x: x * (1 + 1e-3)),
    "own scatter": broken("student_scatter", lambda x: x + 1e-3 * x.mean()),
    "mean": broken("teacher_mean", lambda x: x + 1e-3),
    "counts": broken("student_active", lambda x: x + 10),
    "not finite": broken("cross_scatter", lambda x: x * math.nan),
    "correlation": lambda pair: peers.corrcoef(pair) + 1e-4,
}


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_passes_the_gate(case, name):
    found = gate.check(name, PEERS[name](case.copies[0]), case.truth, case.samples)
    assert 0 < found["rho"] < 1e-5
    assert ("flipped" in found) == (name not in ("chunked lean", "corrcoef"))


@pytest.mark.parametrize("shape", [(600, 5, 9, ()), (30, 5, 9, (4, 3))])
@pytest.mark.parametrize("call", ["fastspec", "materialised", "corrcoef", "chunked"])
def test_peers_of_cross_moments_pass_the_gate(shape, call):
    case = cross_moments.case(shape, Options())
    function = getattr(cross_moments, call)
    result = function(case.copies[0], 256) if call == "chunked" else function(case.copies[0])
    rho = gate.check(call, result, case.truth, case.samples)["rho"]
    exact = call == "fastspec" and library.native_error() is not None  # then the op is the specification itself
    assert (rho == 0) == exact


def test_ours_is_held_to_the_contract_and_peers_to_plain_float32(case):
    rough = broken("teacher_mean", lambda x: x + 1e-4)
    entry = compare.compare(case, rough, {"rough": [Peer("rough", rough)]}, FixedRates(), Options(rounds=1))
    assert "wrong" in entry["peers"]["fastspec"] and "median_ms" in entry["peers"]["rough"]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_result_is_refused(case, name):
    with pytest.raises(gate.WrongResultError, match=f"{name}: got errors against float64"):
        gate.check(name, WRONG[name](case.copies[0]), case.truth, case.samples)


def test_dead_nodes_are_no_error(case):
    (w, b), pair = case.copies[0].student, case.copies[0]
    dead = LayerPair(pair.x, pair.teacher, (w, b.clone().index_fill(0, torch.tensor([2]), -1e3)))
    exact = gate.errors(peers.fastspec(dead), peers.fastspec(dead.double()), case.samples)
    assert max(exact.values()) < 1e-5


def test_no_speed_without_the_gate(case):
    families = {
        "right": [Peer("materialised", peers.materialised)],
        "wrong": [Peer("broken", broken("teacher_mean", lambda x: x + 0.1))],
    }
    entry = compare.compare(case, peers.fastspec, families, FixedRates(), Options(rounds=2))
    assert entry["peers"]["materialised"]["median_ms"] > 0
    assert entry["peers"]["broken"].keys() == {"settings", "wrong"}
    assert entry["best"] == {"right": "materialised", "wrong": None}
    assert math.isnan(compare.ratio(entry, "wrong"))


def test_ours_wrong_means_no_ratios(case):
    families = {"right": [Peer("materialised", peers.materialised)]}
    entry = compare.compare(case, WRONG["cross"], families, FixedRates(), Options(rounds=2))
    assert "median_ms" not in entry["peers"]["fastspec"]
    assert math.isnan(compare.ratio(entry, "right"))
    assert math.isnan(compare.summary([entry])["geometric_means"]["right"])
    assert not any(t["pass"] for t in layer_moments._targets([_renamed(entry)]))


def _renamed(entry):
    return {**entry, "best": {"chunked": None, "materialised": "materialised"}}


def test_a_skipped_peer_says_why(case):
    families = {"large": [Peer("large", pytest.fail, skip="needs 900 GiB")]}
    entry = compare.compare(case, peers.fastspec, families, FixedRates(), Options(rounds=1))
    assert entry["peers"]["large"] == {"settings": {}, "skipped": "needs 900 GiB"}
    assert compare.lack_of_memory(2.0**60, "cpu").startswith("needs 1073741824 GiB")
    assert compare.lack_of_memory(1.0, "cpu") is None


def test_rounds_alternate_and_heavy_peers_sit_out():
    order = []

    def timer(call, device):
        call()
        return 1.0

    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    timings = harness.interleave(calls, 3, fewer={"b": 1}, timer=timer)
    assert "".join(order) == "abc" + "ca" + "ac"
    assert [len(t.rounds) for t in timings.values()] == [3, 1, 3]


def test_ratios_are_of_neighbours():
    ours, theirs = Timing({0: 1.0, 1: 10.0, 2: 1.0}), Timing({0: 2.0, 1: 20.0})  # a busy round slows both
    assert theirs.times_slower_than(ours) == 2.0
    assert (ours.median, ours.spread) == (1.0, 9.0)
    assert harness.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_floor_is_the_slower_of_products_and_copies():
    measured = FixedRates().rates(matrix_seconds=1e-3, copy_seconds=1e-6)
    assert (measured.matrix, measured.copy) == (2e9, 8e9)
    assert measured.floor(operations=2e9, moved=4e9) == 1.0
    assert measured.floor(operations=2e9, moved=16e9) == 2.0


def test_targets():
    assert harness.target("a", 1.3, at_least=1.3, unit="x") == {
        "name": "a", "want": ">= 1.3x", "got": 1.3, "unit": "x", "pass": True,
    }  # fmt: skip
    assert not harness.target("a", 1.29, at_least=1.3)["pass"]
    assert not harness.target("a", 64.1, at_most=64)["pass"]
    assert not harness.target("a", math.nan, at_most=64)["pass"]
    assert math.isnan(harness.smallest([2.0, math.nan])) and math.isnan(harness.smallest([]))


def test_json_has_no_nan():
    assert harness.finite({"a": [math.nan, -math.inf, 1.5], "b": "nan"}) == {"a": [None, None, 1.5], "b": "nan"}


def test_copies_rotate():
    seen = []
    call = harness.rotate("xyz", seen.append)
    for _ in range(4):
        call()
    assert len(set(seen[:3])) == 3 and seen[3] == seen[0]


def test_registry_names_are_unique():
    with pytest.raises(ValueError, match="layer_moments"):
        harness.register("layer_moments", "")(layer_moments.speed)
    assert [b.name for b in harness.select("layer_*y")] == ["layer_moments_memory"]
    assert [b.name for b in harness.select("head")] == ["layer_moments_overhead"]


def test_the_result_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(layer_moments, "QUICK_SHAPES", (SHAPE,))
    monkeypatch.setattr(memory, "extra_memory", lambda *args, **kwargs: {"extra": 65e6, "result": 8})
    monkeypatch.setattr(layer_moments, "RateCalls", lambda *args, **kwargs: FixedRates())
    assert command_line.main(["--quick", "--only", "layer_moments", "--rounds", "2", "--out", str(tmp_path)]) == 0
    names = {"layer_moments", "layer_moments_memory", "layer_moments_overhead"}
    assert {path.stem for path in tmp_path.iterdir()} == names
    for path in tmp_path.iterdir():
        result = json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
        assert result["schema"] == harness.SCHEMA
        assert result.keys() >= {
            "benchmark", "command", "quick", "rounds", "device", "threads", "versions", "native", "commit",
            "uncommitted_changes", "date", "neighbours_cores", "targets",
        }  # fmt: skip
    (small,) = json.loads((tmp_path / "layer_moments_memory.json").read_text())["targets"]
    assert (small["got"], small["pass"]) == (65.0, False)
    (entry,) = json.loads((tmp_path / "layer_moments.json").read_text())["cases"]
    assert entry["shape"] == {"samples": 700, "inputs": 6, "teacher": 5, "student": 9}
    assert entry["operations"] == 2 * 700 * (6 * (5 + 9) + 5 * 9)
    ours = entry["peers"]["fastspec"]
    assert len(ours["rounds_ms"]) == 2 and ours["times_slower"] == 1.0
    assert ours["gflops"] == pytest.approx(entry["operations"] / ours["median_ms"] / 1e6)
    printed = capsys.readouterr().out
    assert "| 700 x 6, 5 x 9 " in printed and "Not a measurement to quote: small shapes" in printed


def test_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["--only", "nothing"])
    assert "--only: got 'nothing'; takes part of one of" in capsys.readouterr().err


@pytest.mark.parametrize("megabytes", [300, 0])
def test_peak_memory_is_seen_after_it_is_freed(megabytes):
    def call():
        torch.ones(megabytes * 250_000)
        return torch.ones(25_000_000)  # the result, 100 MB

    found = memory.measure(call)
    assert found["result"] == 100_000_000
    assert abs(found["extra"] - max(megabytes - 100, 0) * 1e6) < 10e6


def test_memory_is_measured_in_another_process():
    found = memory.extra_memory("materialised", (200_000, 2, 2, 30))  # the activations alone are 24 MB
    assert found["extra"] > 24e6
    assert found["result"] == 8 * (3 * (2 + 30) + 2 * 30)


def test_folder_names():
    assert environment.slug("AMD EPYC 7B13 64-Core, 2 cores") == "amd-epyc-7b13-64-core-2-cores"

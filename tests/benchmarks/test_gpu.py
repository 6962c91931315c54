"""`make gpu` rehearsed on the CPU: every measurement's code in small, budgets, broken processes, exit statuses."""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise

import pytest
import torch

from benchmarks import precision as precisions
from benchmarks.compare import OURS
from benchmarks.gate import WrongResultError
from benchmarks.gpu import __main__ as command_line
from benchmarks.gpu import deep, parts, processes, worker
from benchmarks.gpu.deep import DEEP, DeepProblem
from benchmarks.gpu.populations import POPULATIONS, PopulationProblem
from benchmarks.gpu.problems import PROBLEMS
from benchmarks.gpu.result import Result, best_peer, targets
from benchmarks.gpu.snapshots import SNAPSHOTS, SnapshotProblem
from benchmarks.harness import Options
from benchmarks.rates import RateCalls, Rates
from fastspec.ops.layer_moments import plans
from fastspec.ops.precision import PRECISIONS

NO_RATES = Rates(1e12, 1e12)


class FixedRates(RateCalls):
    """Rates that cost nothing to measure."""

    def __init__(self, *_):
        self.calls = {"matrix": lambda: None, "copy": lambda: None}

    def rates(self, *_):
        return NO_RATES


LAYERS = [p for p in PROBLEMS if not isinstance(p, (PopulationProblem, SnapshotProblem, DeepProblem))]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("problem", LAYERS, ids=lambda problem: problem.name)
def test_every_problem_in_small(monkeypatch, problem, precision):
    monkeypatch.setattr(worker, "PrecisionRates", FixedRates)
    worker.rates_at.cache_clear()
    entry = worker.measure(problem.small(), precision, "", Options(rounds=1, quick=True))
    worker.rates_at.cache_clear()
    for name, peer in entry["peers"].items():
        assert peer.get("median_ms", 0) > 0, (name, peer)
    assert {"eager", "chunked"} <= set(entry["best"])
    assert entry["extra_bytes"] < 100e6
    if problem.name != "network":
        flipped = entry["flipped_gates"]
        assert flipped["torch"] < 8 * precisions.ROUNDOFF.get(precision, 1e-6)
        assert entry["plan"]["name"] in plans.NAMES


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("problem", POPULATIONS, ids=lambda problem: problem.name)
def test_every_population_in_small(problem, precision):
    entry = worker.measure(problem.small(), precision, "", Options(rounds=1, quick=True))
    timed = {name for name, peer in entry["peers"].items() if peer.get("median_ms", 0) > 0}
    assert {name for name, peer in entry["peers"].items() if "skipped" not in peer} == timed
    assert {"bmm", "bmm plain"} <= {name for name, peer in entry["best"].items() if peer in timed}
    assert entry["peers"][OURS]["error"]["weights"] < (1e-5 if precision == "fp32" else 1e-13)
    assert problem.predicted(precision) > problem.operations / 100e12


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("problem", SNAPSHOTS, ids=lambda problem: problem.name)
def test_every_snapshot_in_small(problem, precision):
    entry = worker.measure(problem.small(), precision, "", Options(rounds=1, quick=True))
    assert {"fastspec", "eager", "packed"} == {n for n, peer in entry["peers"].items() if peer.get("median_ms", 0) > 0}
    assert entry["peers"][OURS]["error"]["loss"] <= (1e-5 if precision == "fp32" else 1e-12)
    assert entry["plan"] == {"name": "blocks", "predicted_ms": entry["plan"]["predicted_ms"]}


def test_a_snapshot_of_the_study():
    """128 students of 4 widths, 20,000 samples."""
    assert SNAPSHOTS[2].operations == 4 * 10_000 * (32 * 18 * 20 * 170 + 20 * 150)


@pytest.mark.parametrize(
    "problem, precision",
    [(p, at) for p in DEEP for at in p.precisions],
    ids=lambda given: getattr(given, "name", given),
)
def test_every_deep_problem_in_small(problem, precision, monkeypatch):
    monkeypatch.setattr(worker, "PrecisionRates", FixedRates)
    worker.rates_at.cache_clear()
    entry = worker.measure(problem.small(), precision, "", Options(rounds=1, quick=True))
    worker.rates_at.cache_clear()
    timed = {name for name, peer in entry["peers"].items() if peer.get("median_ms", 0) > 0}
    assert {name for name, peer in entry["peers"].items() if "skipped" not in peer} == timed
    by_hand = set() if precision == "bf16" else {"torch graph"}
    assert {"eager"} | by_hand <= {name for name, peer in entry["best"].items() if peer in timed}
    assert entry["peers"][OURS]["error"]["weights"] < 1e-5 and entry["extra_bytes"] < 100e6
    if precision == "bf16":  # autocast rounds on a CPU too
        assert 1e-4 < entry["peers"]["eager, fused"]["error"]["weights"] < deep.OF_WAY["bf16"]


def test_the_deep_problems_are_full_size():
    assert DEEP[0].operations == 96 * 2 * 64 * (3 * 2_510_000 - 20 * 500)
    assert DEEP[3].operations == 8 * 2 * 8192 * 11 * 4096**2


def test_compiled_peers_are_items_of_their_own(monkeypatch):
    """Each is compiled alone, and one that cannot be compiled is skipped with its reason."""
    asked = []

    class Compiled:
        def __init__(self, t, mode):
            asked.append((t.precision, mode))

        def __call__(self, t):
            assert torch.backends.cuda.matmul.allow_tf32
            return deep.eager(t)

    def broken(t, mode):
        return lambda t: 1 / 0

    monkeypatch.setattr(worker, "PrecisionRates", FixedRates)
    monkeypatch.setattr(deep, "COMPILED", {"compiled": Compiled, "compiled-step": broken})
    worker.rates_at.cache_clear()
    found = [
        worker.measure(DEEP[3].small(), "tf32", way, Options(rounds=1, quick=True))
        for way in ("compiled", "compiled-step")
    ]
    worker.rates_at.cache_clear()
    assert asked == [("tf32", "reduce-overhead")]
    assert found[0]["best"] == {"compiled": "compiled"} and found[0]["peers"]["compiled"]["median_ms"] > 0
    assert found[1]["peers"]["compiled with the step"]["skipped"].startswith("ZeroDivisionError")
    names = [item for item in worker.items() if item.startswith("deep-4096x4/")]
    ways = ("", "/compiled", "/compiled-step")
    assert sorted(names) == sorted(f"deep-4096x4/{at}{way}" for at in ("bf16", "tf32") for way in ways)
    assert worker.items().index(names[2]) > worker.items().index("d20/fp32/compiled")


def test_the_gate_of_large_layers():
    start, truth = torch.zeros(4), torch.tensor([1.0, 0.0, 0.0, 0.0]).double()
    assert deep.check_way(start, 0.03, "ours", torch.tensor([1.02, 0.0, 0.0, 0.0]), truth)["weights"] < 0.03
    for wrong in (torch.tensor([1.04, 0.0, 0.0, 0.0]), start, torch.full((4,), torch.nan)):
        with pytest.raises(WrongResultError, match="of the way"):
            deep.check_way(start, 0.03, "ours", wrong, truth)


def test_the_shapes_are_full_size():
    sizes = {p.name: (p.samples, p.operations) for p in LAYERS}
    assert sizes["d4096"] == (2**17, 2 * 2**17 * (4096 * (4096 + 32_768) + 4096 * 32_768))
    assert sizes["population"] == (2**17, 2 * 2**17 * (100 * (20 + 256 * 200) + 20 * 256 * 200))
    pairs = [(50, 500), (75, 750), (100, 1000), (125, 1250)]
    widths = [20, *(m for m, _ in pairs), 100], [20, *(n for _, n in pairs), 100]
    forward = sum(a * b for w in widths for a, b in pairwise(w))
    assert sizes["network"] == (2**20, 2 * 2**20 * (forward + sum(m * n for m, n in pairs)))


def test_every_item_is_a_problem_at_a_precision():
    items = worker.items()
    assert len(items) == len(set(items))
    names = {p.name for p in PROBLEMS}
    assert all(item.split("/")[0] in names and item.split("/")[1] in PRECISIONS for item in items)
    assert {item.split("/")[1] for item in items} == set(PRECISIONS)


def test_tf32_is_allowed_inside_and_restored():
    seen = []
    precisions.at("tf32", lambda _: seen.append(torch.backends.cuda.matmul.allow_tf32))(None)
    precisions.at("tf32x3", lambda _: seen.append(torch.backends.cuda.matmul.allow_tf32))(None)
    assert seen == [True, False] and not torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(KeyError):
        precisions.at("tf32", lambda _: {}["x"])(None)
    assert not torch.backends.cuda.matmul.allow_tf32


def test_rates_of_tf32x3_are_a_third():
    rates = worker.PrecisionRates.__new__(worker.PrecisionRates)
    rates.products, rates.size, rates.elements = 3, 100, 1000
    assert rates.rates(1.0, 1.0).matrix == pytest.approx(2e6 / 3)


def case(item, *, narrow=True, ours=1.0, floor=0.7, extra=1e6, **peers):
    problem, precision, *_ = item.split("/")
    found = {name: {"median_ms": ms, "times_slower": ms / ours} for name, ms in peers.items()}
    found[OURS] = {"median_ms": ours, "of_floor": floor}
    return {
        "item": item, "problem": problem, "precision": precision, "narrow": narrow, "extra_bytes": extra,
        "best": {name: name for name in peers}, "peers": found,
    }  # fmt: skip


def verdicts(cases):
    return {row["what"]: (row["got"], row["pass"]) for row in targets(cases)}


def test_targets_of_narrow_and_of_wide_shapes():
    measured = [case("a/fp32", eager=6.0, chunked=3.0), case("a/fp32/compiled", **{"compiled chunked": 2.0})]
    assert best_peer(measured) == ("compiled chunked", 2.0)
    assert verdicts(measured) == {
        "eager": (6.0, True), "best peer": (2.0, False), "floor": (0.7, True), "memory": (1.0, True),
    }  # fmt: skip
    wide = [case("b/fp32", narrow=False, eager=1.1, chunked=1.3, extra=300e6, **{"other plan": 0.5})]
    assert verdicts(wide) == {"best peer": (1.1, False), "floor": (0.7, False), "memory": (300.0, False)}


def test_targets_of_populations():
    small = {**case("r/fp32", eager=4.0, **{"torch graph": 2.5}), "over_peers": 2.0, "over_eager": 5.0}
    assert verdicts([{**small, "shape": {"students": 1}}]) == {"best peer": (2.5, True), "eager": (4.0, False)}
    large = {**case("u/bf16", eager=1.1, floor=0.7), "over_peers": 1.15, "floor": 0.75, "shape": {"students": 1}}
    whole = {**case("u/bf16/compiled", **{"compiled": 1.2}), "over_peers": 1.15, "floor": 0.75}
    assert verdicts([large, whole]) == {"best peer": (1.1, False), "floor": (0.7, False)}
    few = {**case("s/fp32", bmm=11.0, jax=9.0), "over_peers": 10.0, "shape": {"students": 132}}
    assert verdicts([few]) == {"best peer": (9.0, False)}
    many = {**case("t/fp32", bmm=3.0), "over_peers": 2.0, "shape": {"students": 2304}}
    many["peers"][OURS]["of_matrix_rate"] = 0.3
    assert verdicts([many]) == {"best peer": (3.0, True), "rate": (0.3, False)}


def test_populations_have_a_table_of_their_own(tmp_path, capsys):
    status, result = rehearse(tmp_path, "--part", "bench", "--only", "students132-n5/fp32")
    assert status == 0 and [found["over_peers"] for found in result["cases"]] == [10.0]
    assert "| 3 students of 5 nodes, 8 steps |      fp32 |" in capsys.readouterr().out


def rehearse(tmp_path, *arguments):
    path = tmp_path / "gpu.json"
    status = command_line.main(["--device", "cpu", "--quick", "--rounds", "1", "--out", str(path), *arguments])
    return status, json.loads(path.read_text(), parse_constant=pytest.fail)


def test_a_run_ends_with_a_file_and_a_table(tmp_path, capsys):
    status, result = rehearse(tmp_path, "--part", "bench", "--only", "d20/fp32")
    assert status == 0 and result["parts"]["bench"]["state"] == "passed"
    assert [case["item"] for case in result["cases"]] == result["planned"] == ["d20/fp32", "d20/fp32/compiled"]
    assert result.keys() >= {"schema", "device", "versions", "commit", "date", "command", "neighbours_cores"}
    printed = capsys.readouterr().out
    assert "| bench | passed |" in printed and "| 3,000 x 20, 24 x 72" in printed


def test_tests_run_and_are_left_out_when_time_is_over(tmp_path):
    tests = parts.test(time.time() + 60, tmp_path / "tests", "test_empty_problems", "cpu")
    assert tests["state"] == "passed" and tests["why"].startswith("5 passed, 0 failed")
    late = parts.test(time.time() + 60, tmp_path / "tests", "no_test_of_this_name", "cpu")
    assert late["state"] == "not there" and not (tmp_path / "tests").exists()


PLUGIN_TESTS = """
import time
def test_first(): time.sleep(1.0)
def test_late(): assert False
"""


def test_the_plugin_leaves_out_what_comes_too_late(tmp_path):
    (tmp_path / "test_it.py").write_text(PLUGIN_TESTS)
    outcomes = tmp_path / "outcomes"
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "benchmarks.gpu.plugin"]
    command += ["--outcomes", str(outcomes), str(tmp_path / "test_it.py")]
    assert processes.run([*command, "--until", "1"], time.time() + 60).status == 0
    assert [json.loads(line)["outcome"] for line in outcomes.read_text().splitlines()] == ["skipped", "skipped"]
    assert processes.run(command, time.time() + 60).status == 1
    assert [json.loads(line)["outcome"] for line in outcomes.read_text().splitlines()] == ["passed", "failed"]


def test_a_process_is_ended_in_time():
    start = time.time()
    sleeper = "import subprocess, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    done = processes.run([sys.executable, "-c", sleeper], start + 1.5)
    assert done.status is None and "up" in done.output and time.time() - start < 30


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from benchmarks.gpu.result import Result, about
result = Result.load(Path({path!r}))
for item in sys.argv[2:]:
    if item.startswith("--"): break
    result.start(item)
    if item.startswith("bad"): sys.exit("an illegal memory access")
    result.add_case({{**about(item), "peers": {{"fastspec": {{"wrong": "far off"}} if "wrong" in item else {{}}}}}})
"""


@pytest.mark.parametrize("items, state, measured", [
    (["a/fp32", "bad/fp32", "c/fp32"], "failed", "2 measured, 1 failed"),
    (["a/fp32", "wrong/fp32"], "failed", "1 measured, 1 failed"),
    (["a/fp32"], "passed", "1 measured, 0 failed"),
])  # fmt: skip
def test_a_broken_process_costs_one_measurement(monkeypatch, tmp_path, items, state, measured):
    path = tmp_path / "gpu.json"
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(path=str(path)))
    real = processes.run
    monkeypatch.setattr(parts, "run", lambda command, until: real([sys.executable, str(script), *command[3:]], until))
    result = Result(path, {"parts": {}, "cases": [], "targets": [], "running": None, "quick": True})
    found = parts.bench(time.time() + 60, result, items, [])
    assert (found["state"], found["why"]) == (state, measured)
    assert [case["item"] for case in Result.load(path).body["cases"]] == items
    assert len(result.failures()) == int(state == "failed")


def test_without_time_everything_is_left_out_and_named(tmp_path):
    status, result = rehearse(tmp_path, "--part", "test", "--part", "bench", "--minutes", "0.1")
    assert status == 0 and {part["state"] for part in result["parts"].values()} == {"left out"}


def test_without_a_gpu_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command_line.main([]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("make gpu needs an NVIDIA GPU: torch ") and "\n" not in said


def test_the_sanitizers_verdict(monkeypatch):
    monkeypatch.setattr(parts, "find_sanitizer", lambda: None)
    assert parts.sanitizer(time.time() + 9)["state"] == "not there"
    monkeypatch.setattr(parts, "find_sanitizer", lambda: "compute-sanitizer")
    for status, said, state in (
        (0, "========= ERROR SUMMARY: 0 errors", "passed"),
        (99, "========= Invalid __global__ read\n========= ERROR SUMMARY: 1 error", "failed"),
        (1, "========= Error: Device not supported", "not there"),
        (None, "", "left out"),
    ):
        monkeypatch.setattr(parts, "run", lambda *_, end=(status, said): processes.Done(*end))
        assert parts.sanitizer(time.time() + 9)["state"] == state

"""Benchmarks of training: every peer trains the same students, a wrong result has no speed, targets are as stated."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from benchmarks import __main__ as command_line
from benchmarks import compare, jax_peer, study, table, training_peers
from benchmarks.compare import Peer
from benchmarks.gate import WrongResultError
from benchmarks.harness import Options
from benchmarks.ops import two_layer_sgd
from benchmarks.training import LR, Training, Weights, check, fastspec, judge, student_errors
from benchmarks.training_peers import WINDOW

STUDENTS, STEPS = 5, WINDOW + 3  # a last window that is not full
DTYPES = [torch.float32, torch.float64]
PEERS = {
    "fastspec": fastspec,
    "serial": training_peers.serial,
    "serial lean": training_peers.serial_lean,
    "bmm plain": training_peers.bmm_plain,
    "vmap": training_peers.vmapped,
    **{
        f"bmm {unit} {transposed}": lambda t, u=unit, v=transposed: training_peers.bmm(t, unit=u, transposed=v)
        for unit, transposed in product((1, 8, 16), (False, True))
    },
}


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def problem(request) -> tuple[Training, Weights]:
    """Students far enough from their tiny start for every gradient to count, and their training in float64."""
    start = Training.of_study(5, 2, STEPS, STUDENTS, request.param)
    training = Training(**{**vars(start), "weights": Weights(*(30 * w + 0.01 for w in start.weights))})
    return training, training_peers.serial_lean(training.to(torch.float64))


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_passes_the_gate(problem, name):
    training, truth = problem
    before = [w.clone() for w in training.weights]
    result = PEERS[name](training)
    found = check(name, result, truth)
    assert found["worst"] < (2e-6 if training.x.dtype == torch.float32 else 1e-14)
    assert all(w.dtype == training.x.dtype for w in result)
    assert all(torch.equal(a, b) for a, b in zip(before, training.weights, strict=True))


def test_the_truth_is_sgd_by_autograd(problem):
    training, truth = problem
    exact, k = training.to(torch.float64), 3
    weights = [w[k].clone().requires_grad_() for w in exact.weights]
    optimizer = torch.optim.SGD(weights, lr=LR)
    for rows in exact.indices[k]:
        w1, b1, w2, b2 = weights
        outputs = F.relu(F.linear(exact.x[rows], w1, b1)) @ w2 + b2
        optimizer.zero_grad()
        F.mse_loss(outputs, exact.y[rows], reduction="sum").div(2 * len(rows)).backward()
        optimizer.step()
    for ours, theirs in zip(truth, weights, strict=True):
        assert torch.allclose(ours[k], theirs, rtol=0, atol=1e-14)


def test_every_student_has_batches_of_its_own(problem):
    training, truth = problem
    shared = training.indices[:1].expand(STUDENTS, -1, -1)
    with pytest.raises(WrongResultError):
        check("shared", training_peers.bmm(Training(**{**vars(training), "indices": shared})), truth)
    assert training.indices.shape == (STUDENTS, STEPS, 16)
    assert training.head(2).indices.shape == (STUDENTS, 2, 16)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_peer_passes_the_gate(monkeypatch):
    monkeypatch.setattr(training_peers, "WINDOW", 2)
    training = Training.of_study(5, 1, 4, STUDENTS, torch.float32)
    truth = training_peers.serial_lean(training.to(torch.float64))
    assert check("compiled", training_peers.compiled_vmap()(training), truth)["worst"] < 2e-6


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_the_jax_peer_passes_the_gate(problem):
    training, truth = problem
    result = jax_peer.trained(training)
    assert result[0].dtype == training.x.dtype
    assert check("jax", result, truth)["worst"] < (2e-6 if training.x.dtype == torch.float32 else 1e-14)
    assert "NPROC" not in os.environ


def test_threads_are_given_back():
    before = torch.get_num_threads()
    seen = []

    def call(training):
        seen.append(torch.get_num_threads())
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        training_peers.on_threads(call, before + 1)(None)
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def changed(field: str, change):
    def wrong(weights: Weights) -> Weights:
        return weights._replace(**{field: change(getattr(weights, field))})

    return wrong


def one_student(error: float):
    def change(w):
        w = w.clone()
        w[2] += error * w[2].abs().max()
        return w

    return change


WRONG = {
    "not finite": changed("b2", lambda w: w * math.nan),
    "one value is infinite": changed("w1", lambda w: w.index_fill(2, torch.tensor([7]), math.inf)),
    "no bias": changed("b1", torch.zeros_like),
    "rotated students": lambda weights: Weights(*(w.roll(1, 0) for w in weights)),
    "a little everywhere": changed("w2", lambda w: w * (1 + 1e-4)),
    "one student": changed("w1", one_student(0.5)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_result_is_refused(problem, name):
    training, truth = problem
    right = fastspec(training)
    check(name, right, truth)
    with pytest.raises(WrongResultError, match=f"{name}: got errors against float64"):
        check(name, WRONG[name](right), truth)


def test_a_step_too_few_is_refused(problem):
    training, truth = problem
    with pytest.raises(WrongResultError):
        check("short", fastspec(training.head(STEPS - 1)), truth)


def test_float32_may_lose_a_quarter_of_the_students_to_flipped_gates_float64_none():
    errors = torch.full((32,), 1e-16)
    errors[:8] = 1e-2
    assert judge("single", errors, torch.float32) == {"weights": float(errors[-1]), "worst": pytest.approx(1e-2)}
    with pytest.raises(WrongResultError):
        judge("double", errors, torch.float64)
    errors[8] = 1e-2
    with pytest.raises(WrongResultError):
        judge("single", errors, torch.float32)
    tight = torch.full((32,), 2e-12, dtype=torch.float64)
    with pytest.raises(WrongResultError):
        judge("double", tight, torch.float64)
    judge("single", tight, torch.float32)


def test_an_error_is_relative_to_the_largest_weight_of_its_tensor():
    truth = Weights(*(torch.ones(2, 3, dtype=torch.float64) for _ in range(4)))
    result = truth._replace(b1=torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.5, 1.0]]))
    assert student_errors(result, truth).tolist() == [0.0, 0.5]
    doubled = truth._replace(b1=2 * truth.b1)
    assert student_errors(result, doubled).tolist() == [0.5, 0.5]


def test_a_call_that_fails_here_says_why():
    def call(inputs):
        raise OSError("no compiler\nlong story")

    assert compare.failure(call, None) == "OSError: no compiler"
    assert compare.failure(abs, -1) is None


def entry(nodes: int, over_bmm: float, over_serial: float = 30.0, share: float = 0.7):
    peers = {
        "fastspec": {"of_matrix_rate": share},
        "bmm, threads 2": {"times_slower": over_bmm, "median_ms": 9.0},
        "serial, threads 1": {"times_slower": over_serial, "median_ms": 99.0},
    }
    best = {"bmm": "bmm, threads 2", "serial": "serial, threads 1"}
    return {"shape": {"nodes": nodes}, "best": best, "peers": peers, "rates": {"floor_ms": 4.5}}


def verdicts(targets) -> dict[str, tuple]:
    return {t["name"]: (t["want"], t["got"], t.get("at_floor"), t["pass"]) for t in targets}


def test_targets_in_float32():
    ratios = {5: 6.0, 20: 3.9, 50: 2.5, 100: 1.8, 200: 1.7}
    entries = [entry(n, r, share={100: 0.61, 200: 0.59}.get(n, 0.1)) for n, r in ratios.items()]
    assert verdicts(two_layer_sgd._targets(entries, torch.float32)) == {
        "over bmm, 5 nodes": (">= 6x", 6.0, 2.0, True),
        "over bmm, 20 nodes": (">= 4x", 3.9, 2.0, False),
        "over bmm, 50 nodes": (">= 2.5x", 2.5, 2.0, True),
        "over bmm, 100 nodes": (">= 1.8x", 1.8, 2.0, True),
        "over bmm, 200 nodes": (">= 1.6x", 1.7, 2.0, True),
        "over the serial loop, 100 nodes": (">= 25x", 30.0, 22.0, True),
        "share of the gemm rate, 100 nodes or more, smallest": (">= 0.6", 0.59, None, False),
    }


def test_targets_in_float64():
    entries = [entry(n, r, over_serial=n / 5) for n, r in {5: 2.0, 20: 1.59, 50: 1.6, 100: 1.7, 200: 2.0}.items()]
    assert verdicts(two_layer_sgd._targets(entries, torch.float64)) == {
        "over bmm, 5 nodes": (">= 1.6x", 2.0, 2.0, True),
        "over bmm, 20 nodes": (">= 1.6x", 1.59, 2.0, False),
        "over bmm, 50 nodes": (">= 1.6x", 1.6, 2.0, True),
        "over bmm, 100 nodes": (">= 1.6x", 1.7, 2.0, True),
        "over bmm, 200 nodes": (">= 1.6x", 2.0, 2.0, True),
        "over the serial loop, 100 nodes": (">= 25x", 20.0, 22.0, False),
        "share of the gemm rate, 100 nodes or more, smallest": (">= 0.6", 0.7, None, True),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_wrong_op_misses_every_target(dtype):
    entries = [entry(n, math.nan, math.nan) for n in (5, 20, 50, 100, 200)]
    for found in entries:
        found["peers"]["fastspec"] = {"wrong": "errors"}
    assert not any(t["pass"] for t in two_layer_sgd._targets(entries, dtype))


def test_the_study_is_six_decays_of_a_hundred_epochs():
    rows = [{"training_s": t, "measuring_s": 0.5, "gradient_s": 2.0} for t in (0.5, 1.0, 1.5)]
    whole, share = study._targets(rows, "float32", 50.0)
    training, measuring = 100 * 3.0, 106 * 1.5 + 5 * 6.0
    assert (whole["want"], whole["pass"]) == ("<= 50 min", True)
    assert whole["got"] == pytest.approx(6 * (training + measuring) / 60)
    assert (share["got"], share["pass"]) == (pytest.approx(measuring / training), True)
    assert not study._targets(rows, "float32", 48.8)[0]["pass"]
    assert not any(t["pass"] for t in study._targets([*rows, {"wrong": "errors"}], "float32", 45.0))


@pytest.mark.parametrize("what", ["training", "loss", "correlation"])
def test_a_wrong_epoch_has_no_seconds(monkeypatch, what):
    job = study.Job(5, 2, torch.float32)
    monkeypatch.setattr(study, "CHECKED", 4)
    students = job.train(4)
    measured = job.snapshot(students)
    assert study.check(job, students, measured)["rho"] < 1e-5
    if what == "training":
        monkeypatch.setattr(study.Job, "train", lambda self, steps: self.students)
    else:
        attribute = {"loss": "loss", "correlation": "best_correlation"}[what]
        wrong = measured | {attribute: measured[attribute] + 1e-3}
        monkeypatch.setattr(study.Job, "snapshot", lambda self, students: wrong)
    row = study._epoch(job, 4, Options(rounds=1))
    assert "wrong" in row and "training_s" not in row
    assert "wrong |" in table.render({**PLACE, "study": [row]})


PLACE = {
    "command": "", "quick": False, "device": "", "threads": 1, "versions": {"torch": ""}, "commit": None,
    "uncommitted_changes": False, "date": "", "neighbours_cores": 0.0,
}  # fmt: skip


def test_the_result_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(two_layer_sgd, "QUICK_SHAPES", ((5, 1, 4),))
    monkeypatch.setattr(two_layer_sgd, "STUDENTS", 3)
    monkeypatch.setattr(two_layer_sgd, "PILOT", 2)
    monkeypatch.setattr(study, "TEACHERS", (5,))
    monkeypatch.setattr(study, "CHECKED", 4)
    monkeypatch.setattr(two_layer_sgd.jax_peer, "missing", lambda: "JAX is not installed")
    assert command_line.main(["--quick", "--only", "two_layer", "--rounds", "1", "--out", str(tmp_path)]) == 0
    results = {path.stem: json.loads(path.read_text(), parse_constant=pytest.fail) for path in tmp_path.iterdir()}
    assert results.keys() == {"two_layer_sgd", "two_layer_sgd_fp64", "two_layer_study"}
    for name, gemm in (("two_layer_sgd", "sgemm"), ("two_layer_sgd_fp64", "dgemm")):
        (found,) = results[name]["cases"]
        assert found["operations"] == 2 * 4 * 3 * 16 * 5 * (2 * 100 + 3 * 50)
        assert found["peers"]["jax"] == {"settings": {"version": None}, "skipped": "JAX is not installed"}
        assert "skipped" in found["peers"]["compiled vmap"]
        timed = {n for n, peer in found["peers"].items() if "median_ms" in peer}
        assert {n.partition(",")[0] for n in timed} == {"fastspec", "bmm", "bmm plain", "vmap", "serial", "serial lean"}
        assert sum(n.startswith("bmm, ") for n in timed) == 2
        assert results[name]["gemm"] == gemm
        per_step = found["peers"]["fastspec"]["median_ms"] * 1e3 / 4
        printed = table.render(results[name])
        assert f"| {per_step:.1f} |" in " ".join(printed.split()) and f"of {gemm}" in printed
    assert [row["dtype"] for row in results["two_layer_study"]["study"]] == ["float32", "float64"]
    assert "| float64, 5 " in capsys.readouterr().out


def test_variants_are_tried_on_a_part(monkeypatch):
    seen = []

    def best(variants, inputs, *, keep, **rest):
        seen.append((len(variants), inputs.indices.shape[1], keep))
        return variants[:keep]

    monkeypatch.setattr(two_layer_sgd, "best", best)
    monkeypatch.setattr(two_layer_sgd, "PILOT", 2)
    item = two_layer_sgd.case((5, 1, 4), torch.float32, Options())
    families = two_layer_sgd.contenders(item, Options(quick=True))
    threads = len({1, torch.get_num_threads()})
    assert seen == [(6 * threads, 2, 2), (threads, 2, 1), (threads, 2, 1), (threads, 2, 1), (threads, 2, 1)]
    assert all(isinstance(peer, Peer) for family in families.values() for peer in family)

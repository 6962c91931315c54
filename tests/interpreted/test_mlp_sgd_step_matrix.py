"""The Triton kernels of mlp_sgd_step on matrix units, whose operands are rounded where they are written."""

from __future__ import annotations

import math

import pytest
import stepped
import torch
from placed import KINDS, placed
from stepped import EVERYTHING, RULE, same

from fastspec.ops.mlp_sgd_step import (
    Stepped,
    layers_of,
    matrix_room,
    matrix_shapes,
    mlp_sgd_step,
    parameter_count,
    reference,
    students,
)
from fastspec.ops.mlp_sgd_step import triton as kernels
from fastspec.ops.mlp_sgd_step.matrix_shapes import MatrixTiles
from fastspec.ops.mlp_sgd_step.shapes import Tiles

DEEP = [7, 12, 33, 10, 3]
SMALL = MatrixTiles(Tiles(16, 16, 16, 4, 1), Tiles(16, 16, 16, 4, 1))
CASES = {
    "plain": {},
    "leaky": {"negative_slope": 0.2},
    "decay": {"weight_decay": 0.03},
    "momentum": {"momentum": 0.9},
    "normalize": {"normalize": True},
    "norms": {"gradient_norms": True},
    "all": EVERYTHING,
}
every_precision = pytest.mark.parametrize("precision", matrix_shapes.PRECISIONS)


@pytest.fixture(autouse=True)
def smaller(monkeypatch):
    """Tiles so small that batches of 19 and these widths have several, epilogues slices; rooms of two steps."""
    monkeypatch.setattr(matrix_shapes, "matrix_tiles", lambda *_: SMALL)
    for module, name, size in (
        (matrix_room, "BLOCK", 16), (matrix_room, "GROUP", 2), (matrix_room, "LABELS", 64), (matrix_room, "LOSSES", 2),
        (matrix_shapes, "SLICE", 8), (students, "STEPS", 2), (students, "SQUARES", 2),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, size)


def problem(widths=DEEP, population=(), *, steps=3, batch=19, own=False, labels=False, bias=None, scale=0.4):
    """The tensors of a call: x, y, parameters, None, indices, rates, diverged_step; and widths and bias."""
    bias = [True] * (len(widths) - 1) if bias is None else bias
    x, y = torch.randn(30, widths[0]), torch.randn(30, widths[-1])
    flat = scale * torch.randn(*population, parameter_count(widths, bias))
    rows = torch.randint(30, (*(population if own else ()), steps, batch))
    rates = torch.linspace(0.02, 0.01, steps, dtype=torch.float64)
    return x, y.argmax(1) if labels else y, flat, None, rows, rates, torch.full(population, -1), widths, bias


def run(way, given, precision="bf16", **rule) -> Stepped:
    rule = {**RULE, "normalize": False, "gradient_norms": False, **rule, "precision": precision}
    return Stepped(*way.mlp_sgd_step(*given, *rule.values()))


def assert_close(got, want, bound=3e-5):
    """Sums differ in their order; where that rounds an operand the other way, by a little more."""
    stepped.assert_close(got, want, bound)


@pytest.mark.parametrize(
    "case, labels, precision",
    [
        *((case, False, precision) for case in CASES for precision in ("tf32", "bf16")),
        *(("all", True, precision) for precision in matrix_shapes.PRECISIONS),
    ],
)
def test_as_specified(case, labels, precision):
    given = problem(labels=labels, steps=1 + (case == "all"))
    got, want = (run(way, given, precision, **CASES[case]) for way in (kernels, reference))
    assert_close(got, want)
    plain = run(reference, given, "fp32", **CASES[case])
    if precision == "bf16":  # of another precision it would not be right
        assert (plain.parameters - want.parameters).abs().max() > 10 * (got.parameters - want.parameters).abs().max()


@pytest.mark.parametrize(
    "own, labels, precision", [(False, True, "tf32"), (True, False, "bf16"), (True, True, "tf32x3")]
)
def test_a_population(own, labels, precision):
    given = problem([7, 12, 18, 10, 3], (2,), steps=2, own=own, labels=labels, bias=[True, False, True, False])
    got = run(kernels, given, precision, **EVERYTHING)
    assert_close(got, run(reference, given, precision, **EVERYTHING))
    x, y, flat, _, rows, rates, diverged, *shape = given
    alone = x, y, flat[1], None, rows[1] if own else rows, rates, diverged[1], *shape
    assert same(run(kernels, alone, precision, **EVERYTHING), [t[1] for t in got])


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("widths", [[5, 3], [1, 1, 1], [17, 33, 1, 18, 4], [8, 16, 16, 17]], ids=str)
@pytest.mark.parametrize("batch", [1, 17])
def test_shapes(widths, batch, precision):
    given = problem(widths, batch=batch, steps=1, bias=[False] + [True] * (len(widths) - 2))
    got, want = (run(way, given, precision, **EVERYTHING) for way in (kernels, reference))
    for a, w in zip(got[:4], want[:4], strict=True):
        assert a.shape == w.shape and (a - w).norm() <= 1e-3 * w.norm()  # an operand may round the other way
    assert torch.equal(got.diverged_step, want.diverged_step)


@every_precision
def test_integers_are_exact(precision):
    """Small ones need no rounding; at a rate that is a power of two every sum is exact."""
    x, y, flat, _, rows, rates, *rest = problem([3, 5, 2], (2,), batch=8, steps=1)
    x, y, flat = (torch.randint(-1, 2, t.shape).float() for t in (x, y, flat))
    given = x, y, flat, None, rows, torch.full_like(rates, 2.0**-4), *rest
    got, want = run(kernels, given, precision, negative_slope=0.25), run(reference, given, "fp32", negative_slope=0.25)
    assert torch.equal(got.parameters, want.parameters) and torch.equal(got.loss, want.loss)
    assert not torch.equal(got.parameters, flat)


@pytest.mark.parametrize("kind", KINDS)
def test_any_strides(kind):
    x, y, flat, _, rows, *rest = problem([7, 12, 3], (2,), steps=1)
    place = [placed(t, kind) for t in (x, y, flat, torch.randn_like(flat))]
    plain = [t.contiguous() for t in place]
    turned = torch.stack([rows, rows], -1)[..., 0]
    got = run(kernels, (*place, turned, *rest), momentum=0.5)
    assert same(got, run(kernels, (*plain, rows, *rest), momentum=0.5))
    assert_close(got, run(reference, (*plain, rows, *rest), momentum=0.5))


def test_calls_change_no_bit():
    x, y, flat, _, rows, rates, diverged, *shape = problem([7, 12, 3], (2,), steps=4, batch=4)
    whole = run(kernels, (x, y, flat, None, rows, rates, diverged, *shape), **EVERYTHING)
    part = Stepped(flat, None, whole.loss, None, diverged)
    for start, end in ((0, 1), (1, 3), (3, 3), (3, 4)):
        given = x, y, part.parameters, part.buffers, rows[start:end], rates[start:end], part.diverged_step, *shape
        part = run(kernels, given, **{**EVERYTHING, "first_step": start})
    assert torch.equal(part.parameters, whole.parameters) and torch.equal(part.buffers, whole.buffers)
    assert torch.equal(part.loss, whole.loss[:, 3:])


def test_a_loss_above_the_limit_stops_before_the_step():
    given = problem([7, 12, 3], (2,), steps=2, batch=4)
    given[2][1] *= 10
    limit = 1.5 * float(run(reference, given).loss[0].max())
    got = run(kernels, given, loss_limit=limit, momentum=0.5)
    assert got.diverged_step.tolist() == [-1, 0] and torch.equal(got.parameters[1], given[2][1])
    assert got.loss.isnan().tolist() == [[False, False], [False, True]] and not got.buffers[1].any()


def test_a_diverging_student_stops_and_harms_no_other():
    given = problem([7, 12, 9, 3], (3,), steps=7, batch=4)
    given[2][1] *= 60
    given[2][2] = 0.1
    given[6][2] = 2  # stopped before
    rule = {"momentum": 0.9, "first_step": 5, "gradient_norms": True}
    got, want = run(kernels, given, "tf32", **rule), run(reference, given, "tf32", **rule)
    assert want.diverged_step[1] > 5 and want.diverged_step[[0, 2]].tolist() == [-1, 2]
    assert torch.equal(got.diverged_step, want.diverged_step)
    for k in (0, 2):
        torch.testing.assert_close(got.parameters[k], want.parameters[k], rtol=0, atol=3e-5)
    assert torch.equal(got.parameters[2], given[2][2])
    assert torch.equal(got.loss.isnan(), want.loss.isnan())
    assert torch.equal(got.gradient_norm.isnan(), want.gradient_norm.isnan())
    assert (got.buffers[[1, 2]] == 0).all() and (got.buffers[0] != 0).any()


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_gates_are_of_activations_before_they_are_rounded(precision):
    """An activation too small for the precision is 0 as an operand, but its gate is open."""
    small = {"bf16": 2.0**-138, "tf32": 2.0**-142}[precision]
    assert float(reference.rounded(torch.tensor(small), precision)) == 0
    x, y = torch.zeros(4, 1), torch.ones(4, 1)
    flat = torch.tensor([0.0, small, 1.0, 0.0])  # w1 b1 w2 b2
    given = x, y, flat, None, torch.arange(4)[None], torch.ones(1).double(), torch.tensor(-1), [1, 1, 1], [True, True]
    assert run(kernels, given, precision).parameters.tolist() == [0.0, 1.0, 1.0, 1.0]
    given[2][1] = 0  # and off at 0
    assert run(kernels, given, precision).parameters.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_a_node_of_norm_zero_stays():
    x, y, flat, *rest = problem([4, 5, 5, 2], steps=2)
    (weight, bias), (above, _), _ = layers_of(flat, *rest[-2:])
    weight[0], bias[0], above[:, 0] = 0, 0, 0
    got = run(kernels, (x, y, flat, *rest), normalize=True)
    assert_close(got, run(reference, (x, y, flat, *rest), normalize=True))
    assert (layers_of(got.parameters, *rest[-2:])[0][0][0] == 0).all()


@every_precision
def test_what_overflows_does_not_come_back_through_the_padding(precision):
    """An infinite activation times the zeros beyond the true widths is NaN."""
    _, y, flat, _, rows, *rest = problem([1, 1, 1], steps=1)
    given = torch.full((30, 1), 3e38), y, torch.full_like(flat, 2.0), None, rows, *rest
    got = run(kernels, given, precision)
    assert got.loss.isposinf().all() and got.diverged_step == 0 and torch.equal(got.parameters, given[2])


def test_gradients_that_overflow_do_not_come_back_through_the_padding():
    """Where the loss is finite those of the lower layers are infinite, and no NaN; so is the loss after the step."""
    x, y, flat = torch.ones(4, 1), torch.full((4, 1), 2e15), torch.tensor([1.0, 1.0, 1e-10, 1e25])
    rows, rates = torch.arange(4).expand(2, 4), torch.ones(2).double()
    given = x, y, flat, None, rows, rates, torch.tensor(-1), [1] * 5, [False] * 4
    got, want = (run(way, given, gradient_norms=True) for way in (kernels, reference))
    assert want.gradient_norm[0, :3].isposinf().all() and want.loss[0].isfinite() and want.loss[1].isposinf()
    torch.testing.assert_close(got.gradient_norm, want.gradient_norm, rtol=1e-2, atol=0, equal_nan=True)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-2, atol=0)
    assert got.diverged_step == want.diverged_step == 1


def test_a_student_whose_loss_is_nan_stops():
    """Infinity minus infinity."""
    _, y, flat, _, rows, *rest = problem([1, 2, 1], steps=1)
    flat = torch.tensor([2.0, 2.0, 0.0, 0.0, 1.0, -1.0, 0.0])
    got = run(kernels, (torch.full((30, 1), 3e38), y, flat, None, rows, *rest), "tf32")
    assert got.loss.isnan().all() and got.diverged_step == 0 and torch.equal(got.parameters, flat)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("case", ["plain", "all"])
def test_tiles_of_their_true_size(precision, case, monkeypatch):
    """Those of the largest layers, whose epilogues have most slices."""
    monkeypatch.undo()
    from as_compiled import correct

    correct(monkeypatch)
    tiles = matrix_shapes.matrix_tiles((4096, 4096), 8192, precision, True)
    assert tiles.layer[:2] == (128, 256) and tiles.update.inner == 256
    monkeypatch.setattr(matrix_shapes, "matrix_tiles", lambda *_: tiles)
    x, y, flat, _, _, *rest = problem([20, 300, 10], steps=1, scale=0.1)
    given = x, y, flat, None, torch.randint(30, (1, 150)), *rest
    assert_close(run(kernels, given, precision, **CASES[case]), run(reference, given, precision, **CASES[case]))


def test_no_steps_and_no_students():
    for given in (problem(population=(2,), steps=0), problem(population=(0,))):
        assert same(run(kernels, given, momentum=0.5), run(reference, given, momentum=0.5))


def test_the_op_reaches_the_kernels(monkeypatch):
    import fastspec as fs

    x, y, flat, _, rows, rates, *_ = problem(steps=2)
    made = []
    launch = matrix_room.MatrixRoom.launch
    monkeypatch.setattr(matrix_room.MatrixRoom, "launch", lambda self, steps: made.append(steps) or launch(self, steps))
    with fs.backend("triton"):
        got = mlp_sgd_step(x, y, flat, DEEP, indices=rows, lr=rates, precision="bf16")
        mlp_sgd_step(x, y, flat, DEEP, indices=rows, lr=rates)
    assert sum(made) == 2
    want = run(reference, (x, y, flat, None, rows, rates, torch.tensor(-1), DEEP, [True] * 4), "bf16")
    torch.testing.assert_close(got.parameters, want.parameters, rtol=1e-5, atol=1e-5)


def test_every_byte_of_a_room_is_counted():
    given = problem()
    layout = kernels.Layout(tuple(DEEP), (True,) * 4, 19, False, SMALL.width)
    rule = (0.0, 0.0, 0.0, math.inf, False, False, "bf16", SMALL, given[0].device)
    made = matrix_room.MatrixRoom(students.Problem(layout, 1, False, False, *rule), SMALL)
    weights, rows = 16 * 16 + 48 * 16 + 16 * 48 + 16 * 16, 32
    sums = 2 * (16 + 48 + 16 + 16) * 4 + 2 * 8
    gates = rows * (16 + 48 + 16) // 8
    small = made.rates.nbytes + made.numbers.nbytes + made.losses.nbytes + made.count.nbytes + made.diverged.nbytes
    tables = made.tables.starts.nbytes + made.tables.hidden.nbytes
    operands = 2 * rows * 16 + 2 * weights + 2 * rows * (16 + 48 + 16) + 2 * 2 * rows * 48
    per_step = rows * 16 * 4 + 2 * rows * 16
    assert made.bytes == (
        made.parameters.nbytes + operands - 2 * rows * 16 + made.steps * per_step + gates + sums + small + tables
    )

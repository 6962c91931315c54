"""Op backward_gram: Grams of backward maps, gated and not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastspec.ops.backward_gram import BackwardGram, backward_gram, reference

pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NAN = float("nan")


def problem(samples, rows, m, n, *population, dtype=torch.float32, integer=False):
    """Arguments of a call: teacher factor and gate, student factor and gate."""

    def draw(*shape):
        return torch.randint(-3, 4, shape).to(dtype) if integer else torch.randn(shape, dtype=torch.float64).to(dtype)

    def gate(*shape):
        return torch.where(torch.rand(shape) < 0.5, 1.0, 0.25).to(dtype)

    teacher = draw(samples, rows, m), gate(samples, m)
    return *teacher, draw(*population, samples, rows, n), gate(*population, samples, n)


def by_hand(t, t_gate, s, s_gate):
    """All six matrices in float64 numpy, sample by sample and row by row at once."""
    t, t_gate, s, s_gate = (a.double().numpy() for a in (t, t_gate, s, s_gate))
    found = []
    for x, y in ((t, s), (t * t_gate[:, None], s * s_gate[..., None, :])):
        found += [np.einsum("xrj,...xrk->...jk", x, y), np.einsum("xrj,xrk->jk", x, x)]
        found += [np.einsum("...xrj,...xrk->...jk", y, y)]
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("population", [(), (3,)])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (9, 1, 3, 4), (2, 5000, 2, 3), (700, 13, 5, 7)])
def test_integers_are_exact(dtype, population, shape):
    args = problem(*shape, *population, dtype=dtype, integer=True)
    for got, want in zip(backward_gram(*args), by_hand(*args), strict=True):
        assert got.dtype == torch.float64 and torch.equal(got, torch.from_numpy(want))


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-14), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("population", [(), (2,)])
def test_agrees_with_the_sums_by_hand(dtype, bound, population):
    args = problem(900, 20, 17, 30, *population, dtype=dtype)
    for got, want in zip(backward_gram(*args), by_hand(*args), strict=True):
        assert abs(got.numpy() - want).max() <= bound * abs(want).max()


def test_what_was_not_asked_for_is_empty():
    args = problem(10, 3, 4, 5, integer=True)
    whole = backward_gram(*args)
    for ungated, within in ((True, False), (False, True), (False, False)):
        got = backward_gram(*args, ungated=ungated, within=within)
        for name, tensor in got._asdict().items():
            asked = (ungated or name.startswith("h_")) and (within or name.endswith("student_teacher"))
            want = getattr(whole, name) if asked else torch.empty(0, dtype=torch.float64)
            assert torch.equal(tensor, want), name
    bare = backward_gram(args[0], None, args[2], None)
    assert torch.equal(bare.beta_student_student, whole.beta_student_student)
    assert bare.h_student_teacher.shape == bare.h_student_student.shape == (0,)


def strided(tensor, kind):
    if kind == "transposed":
        return tensor.mT.contiguous().mT
    wide = torch.full([2 * size + 1 for size in tensor.shape], NAN)
    view = wide[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


@pytest.mark.parametrize("kind", ["transposed", "slice"])
@pytest.mark.parametrize("population", [(), (3,)])
def test_any_strides(kind, population):
    args = problem(300, 6, 9, 11, *population, integer=True)
    for got, want in zip(backward_gram(*(strided(a, kind) for a in args)), backward_gram(*args), strict=True):
        assert torch.equal(got, want)


def test_one_factor_for_all_samples():
    teacher, gate_t, student, gate_s = problem(50, 4, 3, 5, integer=True)
    args = teacher[:1].expand(50, -1, -1), gate_t, student[:1].expand(50, -1, -1), gate_s
    for got, want in zip(backward_gram(*args), by_hand(*args), strict=True):
        assert torch.equal(got, torch.from_numpy(want))


def test_a_student_does_not_depend_on_its_population():
    teacher, gate_t, student, gate_s = problem(300, 5, 6, 9, 5, dtype=torch.float64)
    together = backward_gram(teacher, gate_t, student, gate_s)
    for k in range(5):
        alone = backward_gram(teacher, gate_t, student[k], gate_s[k])
        for name, tensor in alone._asdict().items():
            many = getattr(together, name)
            torch.testing.assert_close(many[k] if many.dim() == 3 else many, tensor, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (6, 0, 4, 5), (6, 3, 0, 5), (6, 3, 4, 0), (6, 3, 4, 5, 0)])
def test_empty_problems(shape):
    _, _, m, n, *population = shape
    out = backward_gram(*problem(*shape))
    sizes = [(*population, m, n), (m, m), (*population, n, n)] * 2
    assert [tuple(a.shape) for a in out] == sizes
    assert not any(a.isnan().any() for a in out)
    if 0 in shape[:2]:
        assert not any(a.any() for a in out)


@pytest.mark.parametrize("where", range(4))
def test_nan_is_kept(where):
    args = problem(600, 8, 4, 5)
    args[where].view(-1)[-1] = NAN  # of the last node of the last sample
    out = backward_gram(*args)
    of_teacher, of_gate = where < 2, where % 2 == 1
    assert int(out.h_student_teacher.isnan().sum()) == (5 if of_teacher else 4)
    assert bool(out.beta_student_teacher.isnan().any()) != of_gate
    assert bool(out.h_teacher_teacher.isnan().any()) == of_teacher
    assert bool(out.h_student_student.isnan().any()) != of_teacher


@pytest.mark.parametrize("precision, tail", [("tf32", 2.0**-12), ("bf16", 2.0**-9)])
@pytest.mark.parametrize("side", [0, 2])
def test_the_specification_rounds_both_operands(precision, tail, side):
    factors = [torch.ones(1, 1, 1), None, torch.ones(1, 1, 1), None]
    factors[side] = factors[side] + tail
    fine, rough = (reference.backward_gram(*factors, True, False, p)[0] for p in ("fp32", precision))
    assert float(fine) == 1 + tail and float(rough) == 1


def test_memory_does_not_grow_with_the_samples(monkeypatch):
    sizes = []
    original = reference._rows
    monkeypatch.setattr(reference, "_rows", lambda *args: sizes.append(len(rows := original(*args))) or rows)
    backward_gram(*problem(5000, 10, 2, 3))
    assert max(sizes) <= reference.ROWS and sum(sizes) == 2 * 3 * 2 * 5000 * 10


@pytest.mark.parametrize("population", [(), (2,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gated, ungated, within", [(True, True, True), (True, False, False), (False, True, True)])
def test_opcheck(population, dtype, gated, ungated, within):
    args = problem(20, 3, 4, 5, *population, dtype=dtype)
    args = args if gated else (args[0], None, args[2], None)
    precision = "fp64" if dtype == torch.float64 else "fp32"
    torch.library.opcheck(torch.ops.fastspec.backward_gram.default, (*args, ungated, within, precision))


def test_compiles_without_a_graph_break():
    args = problem(50, 3, 4, 5, 2)
    compiled = torch.compile(backward_gram, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*args), backward_gram(*args), strict=True):
        assert torch.equal(a, b)


def test_fake_of_a_cuda_tensor():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        teacher, student = torch.empty(10, 4, 3, device="cuda"), torch.empty(2, 10, 4, 9, device="cuda")
        out = backward_gram(teacher, None, student, None, precision="bf16")
    assert [tuple(a.shape) for a in out] == [(2, 3, 9), (3, 3), (2, 9, 9), (0,), (0,), (0,)]
    assert {a.device.type for a in out} == {"cuda"} and {a.dtype for a in out} == {torch.float64}


def test_results_have_names():
    assert BackwardGram._fields[0] == "beta_student_teacher" and len(BackwardGram._fields) == 6


T, G, S, D = torch.zeros(8, 2, 4), torch.zeros(8, 4), torch.zeros(8, 2, 3), torch.zeros(8, 3)
BAD = {
    "integers": ((T.long(), G, S, D), {}, TypeError, "teacher_factor: got dtype torch.int64"),
    "a list": ((T, G, [[[1.0]]], D), {}, TypeError, "student_factor: got list"),
    "rank": ((T[0], G, S, D), {}, ValueError, r"teacher_factor: got shape \[2, 4\]"),
    "rank of the student": ((T, G, S[0], D), {}, ValueError, r"student_factor: got shape \[2, 3\]"),
    "samples": ((T, G, S[1:], D[1:]), {}, ValueError, "student_factor: got shape .* rows of teacher_factor"),
    "rows": ((T, G, S[:, 1:], D), {}, ValueError, "student_factor: got shape"),
    "teacher's gate": ((T, D, S, D), {}, ValueError, r"teacher_gate: got shape \[8, 3\]"),
    "student's gate": ((T, G, S, D[1:]), {}, ValueError, r"student_gate: got shape \[7, 3\]"),
    "gate of one student": ((T, G, S[None], D), {}, ValueError, r"student_gate: got shape \[8, 3\]"),
    "boolean gate": ((T, G > 0, S, D), {}, TypeError, "teacher_gate: got dtype torch.bool"),
    "one gate": ((T, G, S, None), {}, ValueError, "student_gate: got None"),
    "the other gate": ((T, None, S, D), {}, ValueError, "teacher_gate: got None"),
    "nothing": ((T, None, S, None), {"ungated": False}, ValueError, "ungated: got False"),
    "dtypes": ((T, G, S.double(), D), {}, TypeError, "student_factor: got dtype torch.float64"),
    "devices": ((T, G.to("meta"), S, D), {}, ValueError, "teacher_gate: got device meta"),
    "precision": ((T, G, S, D), {"precision": "fp64"}, ValueError, "precision: got 'fp64'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    args, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        backward_gram(*args, **options)

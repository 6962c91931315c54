"""Op chain_gram: Grams of the gated backward maps of all hidden layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastspec.ops.chain_gram import ChainGram, chain_gram, reference
from fastspec.ops.library import native_error

pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = (torch.float64, torch.float32)
NAN = float("nan")
TEACHER, STUDENT = (3, 5, 4), (7, 6, 18)


def draw(*shape, dtype=torch.float32, integer=False):
    return torch.randint(-1, 2, shape).to(dtype) if integer else torch.randn(shape, dtype=torch.float64).to(dtype)


def network(samples, outputs, hidden, *population, slope=0.0, **kind):
    """Maps and gates, lowest first."""
    maps = [draw(*population, a, n, **kind) for n, a in zip(hidden, (*hidden[1:], outputs), strict=True)]
    on = [torch.rand(*population, samples, n) < 0.5 for n in hidden]
    return maps, [torch.where(gate, 1.0, slope).to(maps[0].dtype) for gate in on]


def problem(samples, outputs, teacher=TEACHER, student=STUDENT, population=(), **kind):
    return *network(samples, outputs, teacher, **kind), *network(samples, outputs, student, *population, **kind)


def by_hand(maps, gates):
    """V D [samples, outputs, nodes] of every hidden layer in float64 numpy."""
    maps, gates = ([a.double().numpy() for a in arrays] for arrays in (maps, gates))
    factor, found = maps[-1][None], []
    for layer in reversed(range(len(maps))):
        if layer < len(maps) - 1:
            factor = np.einsum("xca,an->xcn", factor, maps[layer])
        factor = factor * gates[layer][:, None]
        found.append(factor)
    return found[::-1]


def grams(args):
    """By hand, for one student."""
    sides = by_hand(*args[:2]), by_hand(*args[2:])
    for t, s in zip(*sides, strict=True):
        yield [torch.from_numpy(np.einsum("xcj,xck->jk", a, b)) for a, b in ((t, s), (t, t), (s, s))]


def assert_near(got, want, bound):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float64 and a.shape == b.shape
        assert (a - b).abs().max() <= bound * b.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("samples, outputs", [(1, 1), (8, 3), (65, 2), (200, 7), (1100, 1), (150, 16)])
@pytest.mark.parametrize("teacher, student", [((3,), (20,)), ((3, 5), (9, 17)), ((2, 3, 4), (33, 16, 15))])
def test_integers_are_exact(dtype, slope, samples, outputs, teacher, student):
    args = problem(samples, outputs, teacher, student, dtype=dtype, slope=slope, integer=True)
    for got, want in zip(chain_gram(*args), grams(args), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=str)
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_agrees_with_the_products_by_hand(dtype, bound, slope):
    args = problem(150, 20, (20, 30, 25), (60, 70, 50), dtype=dtype, slope=slope)
    for got, want in zip(chain_gram(*args), grams(args), strict=True):
        assert_near(got, want, bound)


@pytest.mark.parametrize("outputs", [4, 20])  # few open gates are packed from 16 outputs on
def test_any_gates(outputs):
    maps, gates, s_maps, s_gates = problem(50, outputs, dtype=torch.float64)
    gates = [gate * torch.randn_like(gate) for gate in gates]
    for own in ([torch.rand_like(gate) for gate in s_gates], [gate * torch.randn_like(gate) for gate in s_gates]):
        args = maps, gates, s_maps, own
        for got, want in zip(chain_gram(*args), grams(args), strict=True):
            assert_near(got, want, 1e-13)


def test_all_gates_off_and_on():
    maps, gates, s_maps, s_gates = problem(20, 4, integer=True)
    for on in (0.0, 1.0):
        args = maps, gates, s_maps, [torch.full_like(gate, on) for gate in s_gates]
        for got, want in zip(chain_gram(*args), grams(args), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_symmetric_matrices_are_symmetric():
    for gram in chain_gram(*problem(100, 5, (40, 30), (50, 35))):
        assert torch.equal(gram.h_teacher_teacher, gram.h_teacher_teacher.T)
        assert torch.equal(gram.h_student_student, gram.h_student_student.T)


def test_within_can_be_left_out():
    args = problem(30, 4)
    for whole, part in zip(chain_gram(*args), chain_gram(*args, within=False), strict=True):
        assert torch.equal(whole.h_student_teacher, part.h_student_teacher)
        assert part.h_teacher_teacher.shape == part.h_student_student.shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outputs", [6, 20])
def test_a_population_is_its_students(dtype, outputs):
    """Bit by bit; torch's products, which take the kernel's place where it is not there, vary with their shape."""
    bound = 0.0 if native_error() is None else 1e-5
    maps, gates, s_maps, s_gates = problem(70, outputs, population=(3,), dtype=dtype)
    together = chain_gram(maps, gates, s_maps, s_gates)
    for k in range(3):
        alone = chain_gram(maps, gates, [m[k] for m in s_maps], [g[k] for g in s_gates])
        for many, one in zip(together, alone, strict=True):
            of_one = many.h_student_teacher[k], many.h_teacher_teacher, many.h_student_student[k]
            assert_near(of_one, one, bound)


@pytest.mark.native
@pytest.mark.parametrize("outputs", [3, 40])
def test_threads_do_not_change_a_bit(outputs):
    args = problem(300, outputs, (20, 30, 25), (60, 70, 50))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(chain_gram(*args))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(
            torch.equal(a, b) for one, two in zip(found[0], other, strict=True) for a, b in zip(one, two, strict=True)
        )


def strided(tensor, kind):
    if kind == "transposed":
        return tensor.mT.contiguous().mT
    if kind == "expanded":
        return tensor[..., :1, :].expand_as(tensor)
    wide = torch.full([2 * size + 1 for size in tensor.shape], NAN)
    return wide[tuple(slice(1, None, 2) for _ in tensor.shape)].copy_(tensor)


@pytest.mark.parametrize("kind", ["transposed", "slice", "expanded"])
@pytest.mark.parametrize("population", [(), (3,)])
def test_any_strides(kind, population):
    args = [[strided(t, kind) for t in tensors] for tensors in problem(40, 3, population=population, integer=True)]
    plain = [[t.clone(memory_format=torch.contiguous_format) for t in tensors] for tensors in args]
    for got, want in zip(chain_gram(*args), chain_gram(*plain), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


EMPTY = {
    "samples": ((0, 3), {}),
    "outputs": ((6, 0), {}),
    "teacher nodes": ((6, 3), {"teacher": (3, 0, 4)}),
    "lowest student nodes": ((6, 3), {"student": (0, 5, 4)}),
    "students": ((6, 3), {"population": (0,)}),
}


@pytest.mark.parametrize("case", EMPTY)
def test_empty_problems(case):
    sizes, options = EMPTY[case]
    args = problem(*sizes, **{"integer": True, **options})
    got, want = chain_gram(*args), reference.chain_gram(*args, True)
    for a, b in zip((matrix for gram in got for matrix in gram), want, strict=True):
        assert torch.equal(a, b)
    if case == "students":
        assert got[0].h_student_teacher.shape == (0, 3, 7) and got[0].h_teacher_teacher.any()
    if case == "lowest student nodes":
        assert got[1].h_student_student.any()


@pytest.mark.parametrize("where", range(4))
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_what_is_not_finite_is_seen_everywhere(where, value):
    args = problem(30, 3)
    args[where][1].view(-1)[-1] = value
    for matrices in (chain_gram(*args), [reference.chain_gram(*args, True)]):
        assert all(matrix.isnan().all() for gram in matrices for matrix in gram)


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=str)
def test_the_specification_itself(dtype, bound, monkeypatch):
    args = problem(90, 5, dtype=dtype, slope=0.1)
    monkeypatch.setattr(reference, "ROWS", 64)
    found = reference.chain_gram(*args, True)
    for i, want in enumerate(grams(args)):
        assert_near(found[3 * i : 3 * i + 3], want, bound)


def test_memory_of_the_specification_does_not_grow_with_the_samples(monkeypatch):
    sizes, original = [], reference._gated_maps
    monkeypatch.setattr(reference, "_gated_maps", lambda m, g: sizes.append(len(g[0])) or original(m, g))
    reference.chain_gram(*problem(9000, 10), True)
    assert max(sizes) * 10 <= reference.ROWS and sum(sizes) == 2 * 9000


@pytest.mark.parametrize("population", [(), (2,)])
@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(population, within, dtype):
    args = problem(20, 3, population=population, dtype=dtype)
    torch.library.opcheck(torch.ops.fastspec.chain_gram.default, (*args, within))


def test_compiles_without_a_graph_break():
    args = problem(20, 3)
    compiled = torch.compile(chain_gram, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(*args), chain_gram(*args), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_fake_of_cuda_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        side = [torch.empty(4, 3, device="cuda")], [torch.empty(10, 3, device="cuda")]
        students = [torch.empty(2, 4, 9, device="cuda")], [torch.empty(2, 10, 9, device="cuda")]
        (gram,) = chain_gram(*side, *students)
    assert [tuple(a.shape) for a in gram] == [(2, 3, 9), (3, 3), (2, 9, 9)]
    assert {a.device.type for a in gram} == {"cuda"} and {a.dtype for a in gram} == {torch.float64}
    assert ChainGram._fields == ("h_student_teacher", "h_teacher_teacher", "h_student_student")


M, G, S, D = [torch.zeros(4, 3), torch.zeros(2, 4)], [torch.zeros(8, 3), torch.zeros(8, 4)], [], []
S, D = [torch.zeros(6, 5), torch.zeros(2, 6)], [torch.zeros(8, 5), torch.zeros(8, 6)]
BAD = {
    "a tensor": ((M[0], G, S, D), TypeError, "teacher_maps: got Tensor; takes a sequence"),
    "no layers": (([], [], [], []), ValueError, "teacher_maps: got 0 tensors"),
    "a gate less": ((M, G[1:], S, D), ValueError, "teacher_gates: got 1 tensors; takes 2"),
    "depth": ((M, G, S[1:], D[1:]), ValueError, "student_maps: got 1 tensors; takes 2"),
    "a list": ((M, G, S, [D[0], [1.0]]), TypeError, r"student_gates\[1\]: got list"),
    "rank": ((M, [G[0][0], G[1]], S, D), ValueError, r"teacher_gates\[0\]: got shape \[3\]"),
    "a population of teachers": (
        ([m[None] for m in M], [g[None] for g in G], S, D),
        ValueError,
        r"teacher_maps\[0\]: got",
    ),
    "nodes above": (
        (M, G, [S[0][1:], S[1]], D),
        ValueError,
        r"student_maps\[0\]: got shape \[5, 5\]; takes 6 nodes above",
    ),
    "nodes of a gate": ((M, G, S, [D[0], D[1][:, 1:]]), ValueError, r"student_gates\[1\]: got shape \[8, 5\]"),
    "samples of a gate": ((M, [G[0], G[1][1:]], S, D), ValueError, r"teacher_gates\[1\]: got shape \[7, 4\]"),
    "samples": ((M, G, S, [d[1:] for d in D]), ValueError, r"student_gates\[0\]: got shape \[7, 5\]; takes 8 samples"),
    "outputs": ((M, G, [S[0], S[1][1:]], D), ValueError, r"student_maps\[1\]: got shape \[1, 6\]; takes 2 outputs"),
    "students": (
        (M, G, [S[0][None], S[1].expand(2, -1, -1)], [d[None] for d in D]),
        ValueError,
        r"student_maps\[1\]: got",
    ),
    "integers": ((M, [g.long() for g in G], S, D), TypeError, r"teacher_gates\[0\]: got dtype torch.int64"),
    "half": (
        tuple([t.half() for t in side] for side in (M, G, S, D)),
        TypeError,
        r"teacher_maps\[0\]: got dtype torch.float16",
    ),
    "dtypes": ((M, G, [s.double() for s in S], D), TypeError, r"student_maps\[0\]: got dtype torch.float64"),
    "devices": ((M, G, S, [D[0], D[1].to("meta")]), ValueError, r"student_gates\[1\]: got device meta"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    args, error, message = BAD[case]
    with pytest.raises(error, match=message):
        chain_gram(*args)


@pytest.mark.native
def test_a_direct_call_stays_within_bounds():
    for args in ((M, G, S, D[:1]), (M, G, [S[0][:, 1:], S[1]], D), (M, [g[1:] for g in G], S, D), ([], [], [], [])):
        with pytest.raises(RuntimeError):
            torch.ops.fastspec.chain_gram.default(*args, True)

"""`measure` of a population: each student as alone, whatever the threads and the company."""

from __future__ import annotations

import pytest
import torch
from measured_networks import SAMPLES, check, inputs, network, population

import fastspec as fs
from fastspec import layerwise
from fastspec.measure import measure
from fastspec.networks import MLP
from fastspec.populations import Population


@pytest.mark.parametrize("slab_bytes", [layerwise.SLAB_BYTES, 1])
def test_a_ragged_population_equals_its_students(slab_bytes: int, monkeypatch) -> None:
    monkeypatch.setattr(layerwise, "SLAB_BYTES", slab_bytes)
    teacher, students = population()
    x = inputs()
    result = measure(teacher, students, x, batch_size=40, coactivation=True, grams=True)
    assert [group.indices.tolist() for group in result.groups] == [[2, 3], [4, 5], [0, 1]]
    for k, single in enumerate(result):
        student = MLP.from_weights(students.weights(k))
        check(single, teacher, student, x)
        moments = result.moments(k)
        torch.testing.assert_close(result.loss[k], single.loss)
        torch.testing.assert_close(result.best_correlation[k], moments.correlation().max(1).values)
        torch.testing.assert_close(result.max_teacher_correlation(k), moments.correlation().max(0).values)
        torch.testing.assert_close(result.layer_score[k], moments.layer_score())
        assert result.success(0.3)[k].tolist() == moments.covered(0.3).tolist()
        assert result.coverage((0.1, 0.3))[k].tolist() == moments.coverage((0.1, 0.3)).tolist()
    assert 0 < int(result.success(0.3).sum()) < 6 * 4
    assert len(result) == 6 and result.samples == SAMPLES


@pytest.mark.parametrize("grams", [False, True])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [3, 2, 5, 4, 1, 0], [4, 0, 5, 2]])
def test_students_side_by_side_are_in_the_populations_order(order: list[int], grams: bool) -> None:
    teacher, students = population()
    students = students.select(order)
    result = measure(teacher, students, inputs(), coactivation=True, grams=grams)
    joined = result.side_by_side()
    assert joined.population is None and joined.teacher_gram is None and joined.student_gram is None
    assert torch.equal(joined.teacher_mean, result.moments(0).teacher_mean) and joined.count == result.samples
    for k in range(len(order)):
        for name in ("student_mean", "student_scatter", "student_active", "cross_scatter", "coactive"):
            of_student = getattr(joined, name)[..., students.nodes(k)]
            assert torch.equal(of_student, getattr(result.moments(k), name)), name


def test_the_text_has_medians_of_each_width() -> None:
    teacher, _ = population()
    students = Population.from_weights([network(5, seed=k).weights() for k in range(3)])
    result = measure(teacher, students, inputs())
    row = str(result).splitlines()[2].split()
    assert row[0] == "3" and row[-1] == f"{result.loss.median():.4g}" != f"{result.loss.mean():.4g}"
    assert row[4] == f"{result.layer_score.median():.4f}"


@pytest.mark.parametrize("threads", [2, 3])
def test_a_student_does_not_depend_on_threads_and_company(threads: int, monkeypatch) -> None:
    monkeypatch.setattr(layerwise, "SLAB_NODES", 1)
    slabs, counted = [], layerwise._slabs
    monkeypatch.setattr(layerwise, "_slabs", lambda *args: slabs.append(counted(*args)) or slabs[-1])
    teacher, students = population(torch.float32)
    x, before = inputs(dtype=torch.float32), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [measure(teacher, students.select([k]), x, batch_size=20).student(0) for k in range(6)]
        slabs.clear()
        torch.set_num_threads(threads)
        together = measure(teacher, students, x, batch_size=20)
        assert [len(stack) for stack in slabs] == [2, 2, 2]
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.loss, other.loss)
        for a, b in zip(
            one.layers["hidden1"].tensors().values(), other.layers["hidden1"].tensors().values(), strict=True
        ):
            assert torch.equal(a, b)


def test_slabs_of_what_is_not_written_have_a_core_each() -> None:
    widths = [[(torch.zeros(p, n, 3), None), (torch.zeros(p, 2, n), None)] for p, n in ((40, 50), (600, 1), (3, 4000))]
    assert [len(layerwise._slabs(stack, 512)) for stack in widths] == [4, 2, 3]
    assert [len(layerwise._slabs(stack, 2048)) for stack in widths] == [1, 1, 3]


@pytest.mark.parametrize("threads, slabs", [(1, 1), (2, 2), (5, 4)])
def test_there_are_slabs_for_all_threads(threads: int, slabs: int, monkeypatch) -> None:
    teacher, found, counted = MLP([6, 5, 3], seed=0), [], layerwise._slabs
    monkeypatch.setattr(layerwise, "_slabs", lambda *args: found.append(counted(*args)) or found[-1])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        measure(teacher, Population.two_layer(teacher, multi=[10], seeds=range(40)), torch.randn(9, 6))
    finally:
        torch.set_num_threads(before)
    assert [len(stack) for stack in found] == [slabs]


@pytest.mark.parametrize("options", [{}, {"grams": True}], ids=str)
def test_a_student_of_one_output_does_not_depend_on_company(options: dict) -> None:
    """torch's product of one student takes another way than that of several."""
    teacher = MLP([20, 10, 1], seed=0)
    students = Population.two_layer(teacher, multi=[1], seeds=range(3))
    x = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0))
    together = measure(teacher, students, x, **options).loss
    assert [float(measure(teacher, students.select([k]), x, **options).loss) for k in range(3)] == together.tolist()


def test_neither_activations_nor_outputs_are_written(monkeypatch) -> None:
    teacher, students = population()
    want = measure(teacher, students, inputs(), grams=True)  # whose activations are
    for written in ("layer_moments_with_activations", "linear"):
        monkeypatch.setattr(layerwise, written, None)
    found = measure(teacher, students, inputs())
    torch.testing.assert_close(found.loss, want.loss)
    torch.testing.assert_close(found.best_correlation, want.best_correlation)


@pytest.mark.native
@pytest.mark.parametrize("backend, calls", [("cpu", 1), ("reference", 0)])
def test_whole_batches_go_to_the_kernel_alone(backend: str, calls: int, monkeypatch) -> None:
    teacher, students = population()
    found, kernel = [], layerwise.layer_moments_and_loss
    monkeypatch.setattr(
        layerwise, "layer_moments_and_loss", lambda *args, **options: found.append(1) or kernel(*args, **options)
    )
    with fs.backend(backend):
        measure(teacher, students.select([0, 1]), inputs())
    assert len(found) == calls


def test_a_precision_that_is_not_the_dtypes_is_refused() -> None:
    teacher, students = population(torch.float32)
    with pytest.raises(ValueError, match="precision: got 'fp64'"):
        measure(teacher, students, inputs(dtype=torch.float32), precision="fp64")


def test_of_deep_students_the_lower_activations_alone_are_written(monkeypatch) -> None:
    teacher, students = MLP([6, 5, 4, 3], seed=0), [MLP([6, 8, 7, 3], seed=k) for k in (1, 2)]
    x, calls, kernel = torch.randn(50, 6), [], layerwise.layer_moments_with_activations
    want = [measure(teacher, student, x) for student in students]

    def counted(*args, **options):
        calls.append(args[1][0].shape)
        return kernel(*args, **options)

    monkeypatch.setattr(layerwise, "layer_moments_with_activations", counted)
    found = measure(teacher, students, x)
    assert calls == [(5, 6)]
    for k in range(2):
        torch.testing.assert_close(found.loss[k], want[k].loss)
        for name, layer in want[k].layers.items():
            torch.testing.assert_close(found.layers[name].cross_scatter[k], layer.cross_scatter)


def overflowing() -> tuple[MLP, Population]:
    """A teacher and students, one of them with outputs whose squares are beyond float32."""
    teacher = MLP([6, 5, 3], seed=0)
    students = Population.two_layer(teacher, multi=[1, 2], seeds=range(3))
    students.w2[students.nodes(1)] *= 1e24
    return teacher, students


@pytest.mark.parametrize("samples", [10, 2000])
def test_a_loss_whose_squares_are_beyond_float32(samples: int) -> None:
    teacher, students = overflowing()
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(0))
    found, without = (measure(teacher, some, x) for some in (students, students.select([0, 2, 3, 4, 5])))
    want = measure(teacher.double(), students.to(torch.float64), x.double())
    torch.testing.assert_close(found.loss, want.loss, rtol=1e-4, atol=0.0)
    assert found.samples == samples and float(found.loss[1]) > 1e38
    others = found.student(0), found.student(2), found.student(3)
    for mine, other in zip(others, (without.student(k) for k in range(3)), strict=True):
        assert torch.equal(mine.loss, other.loss)
        assert torch.equal(mine.layers["hidden1"].cross_scatter, other.layers["hidden1"].cross_scatter)


@pytest.mark.parametrize("samples", [10, 2000])
def test_outputs_beyond_float32_are_refused_in_one_line(samples: int) -> None:
    teacher, students = overflowing()
    students.w2[students.nodes(1)] *= 1e12
    x = 1e9 * torch.randn(samples, 6, generator=torch.Generator().manual_seed(0))
    message = (
        "^data, batch 0, outputs of the student: got [0-9]+ of [0-9]+ values NaN or infinite; takes finite values$"
    )
    with pytest.raises(ValueError, match=message):
        measure(teacher, students, x)


def test_an_error_in_a_thread_is_raised() -> None:
    teacher, students = population()
    students.w1[-1] = 1e200
    with pytest.raises(ValueError, match="hidden1"):
        measure(teacher, students, inputs() * 1e200)


def test_population_takes_the_slope_and_batch_norm_of_its_teacher() -> None:
    teacher = network(4, negative_slope=0.3, batch_norm="before")
    students = Population.from_weights([network(5, seed=k).weights() for k in range(2)])
    result = measure(teacher, students, inputs())
    check(result.student(1), teacher, MLP.from_weights(students.weights(1), negative_slope=0.3), inputs())

"""`Population`: layout, independence of its students, files, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastspec.measure import measure
from fastspec.networks import MLP
from fastspec.populations import Population


def layers(n: int, d: int = 3, c: int = 2, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    sizes = ((n, d), (n,), (c, n), (c,))
    w1, b1, w2, b2 = (torch.randn(size, dtype=dtype) for size in sizes)
    return [(w1, b1), (w2, b2)]


def assert_same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> None:
    for (weight_a, bias_a), (weight_b, bias_b) in zip(a, b, strict=True):
        assert torch.equal(weight_a, weight_b) and torch.equal(bias_a, bias_b)


@pytest.fixture
def ragged() -> tuple[Population, list]:
    given = [layers(n) for n in (4, 1, 7, 4)]
    return Population.from_weights(given, labels={"seed": [3, 4, 5, 6]}), given


def test_weights_come_back(ragged):
    population, given = ragged
    assert len(population) == 4 and population.widths == [4, 1, 7, 4]
    assert population.offsets.tolist() == [0, 4, 5, 12, 16]
    for k, student in enumerate(given):
        assert_same(population.weights(k), student)
        assert torch.allclose(population.fan_out()[k], student[1][0].norm(dim=0))
    assert_same(population.weights(-1), given[3])
    population.weights(0)[0][0].zero_()
    assert_same(population.weights(0), given[0])
    with pytest.raises(IndexError):
        population.weights(4)


def test_packed_layout(ragged):
    population, given = ragged
    (w1, b1), (w2, b2) = given[2]
    assert torch.equal(population.w1[5:12], w1) and torch.equal(population.b1[5:12], b1)
    assert torch.equal(population.w2[5:12], w2.T) and torch.equal(population.b2[2], b2)


def test_groups_stack_students_of_one_width(ragged):
    population, given = ragged
    groups = list(population.groups())
    assert [g.indices.tolist() for g in groups] == [[1], [0, 3], [2]]
    for group in groups:
        for place, k in enumerate(group.indices.tolist()):
            assert_same([(group.w1[place], group.b1[place]), (group.w2[place], group.b2[place])], given[k])


def test_select(ragged):
    population, given = ragged
    some = population.select([2, 0])
    assert some.labels == {"seed": [5, 3]} and some.widths == [7, 4]
    assert_same(some.weights(0), given[2])
    assert_same(some.weights(1), given[0])


def test_to_and_clone(ragged):
    population, _ = ragged
    assert population.to(torch.float64).w2.dtype == torch.float64
    copy = population.clone()
    copy.w1.zero_()
    assert population.w1.abs().min() > 0
    assert copy.labels == population.labels


def test_save_and_load(ragged, tmp_path):
    population, given = ragged
    population.save(tmp_path / "population.safetensors")
    loaded = Population.load(tmp_path / "population.safetensors")
    assert loaded.labels == population.labels
    for k, student in enumerate(given):
        assert_same(loaded.weights(k), student)


def test_load_refuses_other_files(ragged, tmp_path):
    path = tmp_path / "population.safetensors"
    with pytest.raises(FileNotFoundError, match="takes"):
        Population.load(path)
    ragged[0].save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="truncated"):
        Population.load(path)
    MLP([3, 4, 2]).save(path)
    with pytest.raises(ValueError, match="takes a fastspec Population file"):
        Population.load(path)


def test_two_layer_students():
    teacher = MLP([20, 30, 10], dtype=torch.float64)
    population = Population.two_layer(teacher, multi=[1, 3], seeds=[7, 9], std=0.01)
    assert population.labels == {"multi": [1, 1, 3, 3], "seed": [7, 9, 7, 9]}
    assert population.widths == [30, 30, 90, 90] and population.w1.dtype == torch.float64
    assert population.b1.abs().max() == 0 and population.b2.abs().max() == 0
    for weights in (population.w1, population.w2):
        assert abs(float(weights.std()) / 0.01 - 1) < 0.05 and abs(float(weights.mean())) < 0.0005
    assert not torch.equal(population.weights(0)[0][0], population.weights(1)[0][0])


def test_a_student_depends_on_its_seed_and_width_alone():
    teacher = MLP([5, 4, 3])
    torch.manual_seed(1)
    many = Population.two_layer(teacher, multi=[3, 1, 2], seeds=[5, 2, 8])
    torch.manual_seed(2)
    assert_same(Population.two_layer(teacher, multi=[2], seeds=[8]).weights(0), many.weights(8))


def bad_layers(**change: Tensor) -> list:
    (w1, b1), (w2, b2) = layers(4)
    parts = {"w1": w1, "b1": b1, "w2": w2, "b2": b2, **change}
    return [layers(2), [(parts["w1"], parts["b1"]), (parts["w2"], parts["b2"])]]


BAD = {
    "none": ([], ValueError, "students: got no students"),
    "one layer": ([layers(3)[:1]], ValueError, "students[0]: got 1 layers"),
    "list": ([[([[1.0]], None), ([[1.0]], None)]], TypeError, "students[0] w1: got list"),
    "integer": (bad_layers(w1=torch.ones(4, 3).long()), TypeError, "students[1] w1: got dtype"),
    "half": ([layers(3, dtype=torch.float16)], TypeError, "students[0] w1: got dtype"),
    "rank": (bad_layers(w2=torch.ones(2, 4, 1)), ValueError, "students[1] w2: got shape"),
    "inputs": (bad_layers(w1=torch.ones(4, 5)), ValueError, "students[1] w1: got shape [4, 5]"),
    "nodes": (bad_layers(w1=torch.ones(5, 3)), ValueError, "students[1] w1: got shape [5, 3]"),
    "outputs": (bad_layers(w2=torch.ones(3, 4)), ValueError, "students[1] w2: got shape [3, 4]"),
    "bias": (bad_layers(b1=torch.ones(3)), ValueError, "students[1] b1: got shape [3]"),
    "top bias": (bad_layers(b2=torch.ones(3)), ValueError, "students[1] b2: got shape [3]"),
    "dtype": (bad_layers(w2=torch.ones(2, 4).double()), TypeError, "students[1] w2: got dtype"),
    "NaN": (bad_layers(w2=torch.full((2, 4), math.nan)), ValueError, "students[1] w2: got 8 of 8"),
    "infinite": (bad_layers(b1=torch.full((4,), math.inf)), ValueError, "students[1] b1: got 4 of 4"),
    "no nodes": ([layers(0)], ValueError, "students[0] w1: got shape [0, 3]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_students(case: str):
    students, error, message = BAD[case]
    with pytest.raises(error) as caught:
        Population.from_weights(students)
    assert str(caught.value).startswith(message) and "takes" in str(caught.value)


def test_the_stream_of_a_seed_stays_what_it_is():
    """Runs of one version are runs of the next: these numbers may change only with a word in the changelog."""
    students = Population.two_layer(MLP([3, 4, 2]), multi=[1], seeds=[7], std=1.0)
    torch.testing.assert_close(students.w1[0], torch.tensor([-0.461133, 0.384566, -0.676964]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multi": []}, "multi"),
        ({"multi": [0]}, "multi"),
        ({"multi": [1.5]}, "multi"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": []}, "seeds"),
        ({"std": 0.0}, "std"),
        ({"std": math.nan}, "std"),
        ({"teacher": MLP([3, 4, 4, 2])}, "teacher"),
    ],
)
def test_bad_two_layer(change, message):
    with pytest.raises(ValueError, match=f"^{message}: got .*; takes"):
        Population.two_layer(**{"teacher": MLP([3, 4, 2]), "multi": [1], "seeds": [0], **change})


def test_labels_of_another_length():
    with pytest.raises(ValueError, match="labels"):
        Population.from_weights([layers(2)], labels={"seed": [1, 2]})


def test_losses_whose_squares_are_beyond_float32() -> None:
    (w1, b1), (w2, b2) = MLP([6, 4, 3], seed=0).weights()
    teacher = MLP.from_weights([(w1, b1), (1e20 * w2, b2)])
    exact = MLP.from_weights([(w1.double(), b1.double()), (1e20 * w2.double(), b2.double())])
    students = Population.two_layer(teacher, multi=[1, 2], seeds=[0], std=0.5)
    x = torch.randn(101, 6, generator=torch.Generator().manual_seed(1))
    found, want = measure(teacher, students, x).loss, measure(exact, students.to(torch.float64), x.double()).loss
    assert found.min() > 1e38
    torch.testing.assert_close(found, want, rtol=1e-5, atol=0)

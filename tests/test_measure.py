"""`measure` of networks of this package: exact against everything materialised in float64, bounded in memory."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from measured_networks import INPUTS, check, inputs, network, population
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastspec import layerwise
from fastspec.batches import Batch, gather
from fastspec.measure import measure
from fastspec.measurement import Measurement
from fastspec.networks import MLP, ConvNet
from fastspec.population_measurement import PopulationMeasurement


@pytest.mark.parametrize("batch_size", [1, 10, 101, 5000])
@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (network(4), network(9, seed=1)),
        (network(4, bias=False), network(9, seed=1)),
        (network(4, 5, negative_slope=0.1), network(7, 5, seed=1, bias=False, negative_slope=0.1)),
        (network(4, 5, batch_norm="before"), network(7, 8, seed=1, batch_norm="after")),
        (network(3, 4, 5), network(5, 6, 7, seed=1, batch_norm="before")),
        (network(3, 4, 5, batch_norm="after"), network(5, 6, 4, seed=1, batch_norm="after")),
        (network(4), network(9, seed=1, negative_slope=0.2)),
    ],
    ids=["one layer", "no bias", "leaky", "norms", "three layers", "norms after", "unequal slopes"],
)
def test_equals_all_activations_at_once(teacher: MLP, student: MLP, batch_size: int) -> None:
    x = inputs()
    check(measure(teacher, student, x, batch_size=batch_size, coactivation=True, grams=True), teacher, student, x)


def test_one_sample() -> None:
    result = measure(network(4), network(9, seed=1), inputs(1))
    check(result, network(4), network(9, seed=1), inputs(1))
    assert result.layers["hidden1"].undefined_nodes().teacher == 4
    assert "4 + 9" in str(result)


def test_float32_inputs() -> None:
    teacher, student = network(4, 5, dtype=torch.float32), network(8, 10, seed=1, dtype=torch.float32)
    x = inputs(dtype=torch.float32)
    check(measure(teacher, student, x, batch_size=16), teacher, student, x, tolerance=1e-4)


def test_many_batches_are_cut_by_the_memory_bound(monkeypatch) -> None:
    monkeypatch.setattr(layerwise, "ACTIVATION_BYTES", 1)
    monkeypatch.setattr(layerwise, "FEWEST_SAMPLES", 3)
    seen = []
    kernel = layerwise.layer_moments_with_activations
    monkeypatch.setattr(
        layerwise,
        "layer_moments_with_activations",
        lambda pair, *args, **options: (seen.append(len(pair[0])), kernel(pair, *args, **options))[1],
    )
    teacher, student = network(4), network(9, seed=1)
    check(measure(teacher, student, inputs()), teacher, student, inputs())
    assert max(seen) == 3


DATA = {
    "DataLoader": lambda x: DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size=7),
    "generator": lambda x: (part for part in x.split(13)),
    "uneven list": lambda x: [x[:1], x[1:1], x[1:40], x[40:]],
    "tuples": lambda x: [(part, "label") for part in x.split(50)],
    "dicts": lambda x: [{"image": part, "label": 0} for part in x.split(50)],
    "transposed": lambda x: x.T.contiguous().T,
}


@pytest.mark.parametrize("batch_size", [None, 1, 8])
@pytest.mark.parametrize("kind", DATA)
def test_every_kind_of_data(kind: str, batch_size: int | None) -> None:
    teacher, student, x = network(4, 5), network(7, 8, seed=1), inputs()
    check(measure(teacher, student, DATA[kind](x), batch_size=batch_size), teacher, student, x)


def test_a_loader_may_reuse_its_buffer() -> None:
    def loader():
        buffer = torch.empty(4, INPUTS, dtype=torch.float64)
        for part in inputs(40).split(4):
            buffer.copy_(part)
            yield buffer
            buffer.fill_(1e3)

    teacher, student = network(4), network(9, seed=1)
    check(measure(teacher, student, loader()), teacher, student, inputs(40))


def test_memory_does_not_grow_with_the_samples() -> None:
    teacher, student = network(4, dtype=torch.float32), network(64, seed=1, dtype=torch.float32)

    def live_bytes() -> int:
        storages = {}
        for thing in gc.get_objects():
            # not the fakes and wrappers that other tests may have left behind
            if type(thing) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(thing):
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        return sum(storages.values())

    def stream(batches: int, levels: list[int]):
        for i in range(batches):
            yield torch.randn(64, INPUTS)
            if i > 4:
                levels.append(live_bytes())

    short: list[int] = []
    long: list[int] = []
    measure(teacher, student, stream(12, short), batch_size=64)
    measure(teacher, student, stream(48, long), batch_size=64)
    assert max(long) <= max(short) + 64 * INPUTS * 4


def test_modes_and_statistics_stay(monkeypatch) -> None:
    teacher, student = network(4, batch_norm="before"), network(9, seed=1, batch_norm="after")
    teacher.eval()
    student.train()
    student.norms[0].eval()
    before = copy.deepcopy(student.state_dict())
    result = measure(teacher, student, inputs())
    assert result.layers["hidden1"].cross_scatter.requires_grad is False
    assert not teacher.training and student.training and not student.norms[0].training
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


# merging, files and text


def parts(kind: str) -> tuple:
    teacher, students = population()
    student = students if kind == "population" else network(9, seed=1)
    x = inputs()
    return tuple(measure(teacher, student, part, coactivation=True) for part in (x[:30], x[30:], x))


def assert_same(a: Measurement | PopulationMeasurement, b: Measurement | PopulationMeasurement) -> None:
    groups = [
        [group.measurement for group in m.groups] if isinstance(m, PopulationMeasurement) else [m] for m in (a, b)
    ]
    for one, other in zip(*groups, strict=True):
        assert one.samples == other.samples and list(one.layers) == list(other.layers)
        torch.testing.assert_close(one.loss, other.loss)
        for name, moments in one.layers.items():
            torch.testing.assert_close(moments.tensors(), other.layers[name].tensors())


@pytest.mark.parametrize("kind", ["student", "population"])
def test_merge(kind: str) -> None:
    first, second, whole = parts(kind)
    assert_same(first + second, whole)
    assert_same(second.merge(first), whole)


def test_merge_refuses_what_does_not_fit() -> None:
    first, _, _ = parts("student")
    several, _, _ = parts("population")
    with pytest.raises(ValueError, match=r"other: got layers .*hidden2"):
        first + measure(network(4, 5), network(4, 5), inputs())
    with pytest.raises(TypeError, match="other: got PopulationMeasurement"):
        first + several
    with pytest.raises(ValueError, match="other: got students"):
        several + PopulationMeasurement(several.groups[:1])


@pytest.mark.parametrize("kind", ["student", "population"])
def test_save_and_load(kind: str, tmp_path) -> None:
    _, _, whole = parts(kind)
    whole.save(tmp_path / "m.safetensors")
    loaded = type(whole).load(tmp_path / "m.safetensors")
    assert_same(loaded, whole)
    assert str(loaded) == str(whole)
    torch.testing.assert_close(loaded.loss, whole.loss, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["student", "population"])
def test_damaged_and_foreign_files(kind: str, tmp_path) -> None:
    _, _, whole = parts(kind)
    path = tmp_path / "m.safetensors"
    whole.save(path)
    content = path.read_bytes()
    foreign = next(iter(whole)) if kind == "population" else whole.layers["hidden1"]
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"m\.safetensors"):
        type(whole).load(path)
    foreign.save(path)
    with pytest.raises(ValueError, match=r"m\.safetensors.*takes a fastspec \w*Measurement"):
        type(whole).load(path)


def test_text_tells_layers_scores_coverage_and_dead_nodes() -> None:
    teacher = network(4, 5)
    with torch.no_grad():
        teacher.linears[0].bias[0] = -1e3
    lines = str(measure(teacher, teacher, inputs())).splitlines()
    assert lines[0] == "101 samples, loss 0"
    assert lines[1].split() == ["layer", "nodes", "score", ">.5", ">.6", ">.7", ">.8", ">.9", ">.95", "undefined"]
    assert lines[2].split() == ["hidden1", "4", "x", "4", "1.0000", *["75%"] * 6, "1", "+", "1"]
    assert lines[3].split()[:5] == ["hidden2", "5", "x", "5", "1.0000"]


def test_layer_scores_and_coverage() -> None:
    result = measure(network(4, 5), network(7, 8, seed=1), inputs())
    assert result.layer_scores().keys() == result.coverage().keys() == result.layers.keys()
    for name, moments in result.layers.items():
        assert result.layer_scores()[name] == moments.layer_score()
        assert result.coverage(0.5)[name] == moments.coverage(0.5)


# bad input


def with_value(value: float, row: int) -> Tensor:
    x = inputs()
    x[row, 2] = value
    return x


def poisoned(net: MLP) -> MLP:
    with torch.no_grad():
        net.linears[1].weight[0, 0] = torch.nan
    return net


T, S = network(4, 5), network(7, 8, seed=1)
X = inputs()
BAD = {
    "teacher type": ((X, S, X), {}, TypeError, "teacher: got Tensor; takes Module"),
    "student type": ((T, None, X), {}, TypeError, "student: got NoneType; takes Module or Population"),
    "depth": ((T, network(4), X), {}, ValueError, "student: got 1 hidden layers; takes the depth of the teacher, 2"),
    "no hidden layer": ((network(), network(), X), {}, ValueError, "teacher: got a network without hidden layers"),
    "outputs": ((T, MLP([6, 4, 5, 2], dtype=X.dtype), X), {}, ValueError, "student: got 2 outputs"),
    "inputs": ((T, MLP([5, 4, 5, 3], dtype=X.dtype), X), {}, ValueError, "student: got 5 inputs"),
    "networks' dtypes": ((T, network(4, 5, dtype=torch.float32), X), {}, TypeError, "student: got dtype torch.float32"),
    "data dtype": ((T, S, X.float()), {}, TypeError, "data, batch 0: got dtype torch.float32"),
    "data device": ((T, S, X.to("meta")), {}, ValueError, "data, batch 0: got device meta"),
    "integer data": ((T, S, X.long()), {}, TypeError, "data, batch 0: got dtype torch.int64"),
    "data width": ((T, S, X[:, :5]), {}, ValueError, r"data, batch 0: got shape \[101, 5\]; takes \[samples, 6\]"),
    "data rank": ((T, S, X[0]), {}, ValueError, r"data, batch 0: got shape \[6\]"),
    "a number": ((T, S, X[0, 0]), {}, ValueError, "data: got a single number"),
    "data type": ((T, S, "x.pt"), {}, TypeError, "data: got str"),
    "numpy": ((T, S, X.numpy()), {}, TypeError, "data: got ndarray"),
    "a data set": ((T, S, TensorDataset(X)), {}, TypeError, "data: got a TensorDataset.*DataLoader"),
    "a batch": ((T, S, [X, [1, 2]]), {}, TypeError, "data, batch 1: got int"),
    "empty tensor": ((T, S, X[:0]), {}, ValueError, "data: got 0 samples; takes at least one sample"),
    "empty iterable": ((T, S, iter(())), {}, ValueError, "data: got 0 samples"),
    "NaN": ((T, S, with_value(torch.nan, 60).split(25)), {}, ValueError, "data, batch 2: got 1 of 150 values NaN"),
    "infinity": ((T, S, with_value(torch.inf, 9)), {"batch_size": 5}, ValueError, "data, batch 1: got 1 of 30 values"),
    "teacher NaN": ((poisoned(network(4, 5)), S, X), {}, ValueError, "teacher, weight of layer 2: got 1 of 20 values"),
    "student NaN": ((T, poisoned(network(4, 5)), X), {}, ValueError, "student, weight of layer 2: got 1 of 20 values"),
    "batch size 0": ((T, S, X), {"batch_size": 0}, ValueError, "batch_size: got 0"),
    "batch size": ((T, S, X), {"batch_size": 2.5}, ValueError, "batch_size: got 2.5"),
    "population depth": ((T, population()[1], X), {}, ValueError, "student: got 1 hidden layers"),
    "population of a ConvNet": (
        (ConvNet((1, 5, 5), [2], 3), population()[1], X),
        {},
        TypeError,
        "student: got a Popul",
    ),
    "population layers": ((network(4), population()[1], X), {"layers": ["a"]}, TypeError, "student: got a Population"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    args, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        measure(*args, **options)


def test_overflow_names_batches_layer_and_side() -> None:
    teacher, student = network(4, dtype=torch.float32), network(4, seed=1, dtype=torch.float32)
    with torch.no_grad():
        student.linears[0].weight.fill_(3e38)
    x = torch.ones(6, INPUTS)
    with pytest.raises(
        ValueError, match=r"data, batch 0 to 2, hidden1: student: got NaN, infinite or too large activations in 4 of 4"
    ):
        measure(teacher, student, x.split(2))
    with torch.no_grad():
        student.linears[0].weight.fill_(1.0)
        student.linears[1].weight.fill_(3e38)
    with pytest.raises(ValueError, match="data, batch 0, outputs of the student: got 18 of 18 values NaN or infinite"):
        measure(teacher, student, x)


def test_batches_put_together_say_where_they_are_from() -> None:
    x = torch.arange(13.0)[:, None]
    parts = list(gather([Batch(x[:3], "data, batch 0"), Batch(x[3:], "data, batch 1")], 4))
    assert [batch.place for batch in parts] == ["data, batch 0 to 1", *["data, batch 1"] * 3]
    assert [len(batch.x) for batch in parts] == [4, 4, 4, 1] and torch.cat([batch.x for batch in parts]).equal(x)

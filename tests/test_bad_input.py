"""Every kind of bad input, over the public names and the command line: one clear error each.

An error names the argument, what it got and what it takes. Tests of single modules say more about single messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from clear_errors import assert_clear, one_line_error
from safetensors.torch import save_file
from torch import Tensor, nn

import fastspec as fs

N, D, M, K, C = 20, 6, 3, 5, 2  # samples, inputs, teacher nodes, student nodes, outputs


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def spoiled(tensor: Tensor, value: float = math.nan) -> Tensor:
    """A copy with one value that is not finite."""
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


def spoiled_network() -> fs.MLP:
    network = fs.MLP([D, M, C])
    with torch.no_grad():
        network.layers[0].weight[0, 0] = math.nan
    return network


def module(nodes: int = M, inputs: int = D) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, nodes), nn.ReLU(), nn.Linear(nodes, C))


x, t, s = normal(N, D), normal(N, M, seed=1), normal(N, K, seed=2)
W, B, V, A = normal(M, D), normal(M), normal(K, D, seed=1), normal(K, seed=1)
teacher, student = fs.MLP([D, M, C]), fs.MLP([D, K, C], seed=1)
students = fs.Population.two_layer(teacher, multi=[1, 2], seeds=[0, 1])
moments = fs.cross_moments(t, s)
layers = [(W, B), (normal(C, M), normal(C))]


def activations(a: object = t, b: object = s, **options):
    return lambda: fs.cross_moments(a, b, **options)  # type: ignore[arg-type]


def layer(x: object = x, w: object = W, b: object = B, v: object = V, a: object = A, **options):
    return lambda: fs.layer_moments(x, (w, b), (v, a), **options)  # type: ignore[arg-type]


def measured(data: object = x, a: object = teacher, b: object = student, **options):
    return lambda: fs.measure(a, b, data, **options)  # type: ignore[call-overload]


def trained(a: object = teacher, b: object = students, x: object = x, **options):
    return lambda: fs.train_two_layer(a, b, x, **{"steps": 2, **options})  # type: ignore[arg-type]


def population(number: int, part: int, value: object):
    """Two students of which the second has another weight or bias."""
    changed: list = [list(layer) for layer in layers]
    changed[number][part] = value
    return lambda: fs.Population.from_weights([layers, changed])


Case = tuple[str, str, Callable[[], object]]  # the argument that the message names, what is wrong, the call

OF_MOMENTS: list[Case] = [
    ("teacher", "rank", activations(a=t[0])),
    ("student", "rank", activations(b=s[0])),
    ("student", "samples", activations(b=s[:7])),
    ("student", "positions", activations(normal(4, M, 5, 5), normal(4, K, 4, 4))),
    ("teacher", "integers", activations(a=t.long())),
    ("student", "integers", activations(b=s.long())),
    ("student", "dtype", activations(b=s.double())),
    ("student", "device", activations(b=s.to("meta"))),
    ("teacher", "NaN", activations(a=spoiled(t))),
    ("student", "infinity", activations(b=spoiled(s, math.inf))),
    ("student", "squares beyond float32", activations(b=1e30 * s)),
    ("teacher", "no samples", activations(t[:0], s[:0])),
    ("teacher", "no tensor", activations(a=t.tolist())),
    ("moments", "one sample", lambda: fs.cross_moments(t[:1], s[:1]).correlation(undefined="raise")),
    ("undefined", "unknown option", lambda: moments.correlation(undefined="skip")),
    ("thresholds", "range", lambda: moments.coverage(1.5)),
    ("moments", "no counts", moments.observation),
    ("moments", "no Grams", lambda: fs.matching.linear_cka(moments)),
    ("moments", "hard matching of fewer students than teachers", lambda: fs.matching.hard(fs.cross_moments(s, t))),
    ("moments", "greedy matching of fewer students than teachers", lambda: fs.matching.greedy(fs.cross_moments(s, t))),
    ("final", "widths", lambda: moments.rank_of_winners(fs.cross_moments(t, t))),
    ("final", "indices", lambda: moments.rank_of_winners(torch.zeros(M))),  # type: ignore[arg-type]
    ("other", "widths", lambda: moments + fs.cross_moments(t, t)),
    ("teacher_nodes", "negative", lambda: fs.CrossMoments.zeros(-1, K)),
    ("student_nodes", "fraction", lambda: fs.CrossMoments.zeros(M, 2.5)),  # type: ignore[arg-type]
    ("population", "negative", lambda: fs.CrossMoments.zeros(M, K, population=-1)),
    ("index", "no population", lambda: moments.student(0)),
    ("index", "two axes", lambda: fs.cross_moments(t, s[None])[0, 1]),  # type: ignore[index]
]
OF_LAYERS: list[Case] = [
    ("teacher_input", "rank", layer(x=x[0])),
    ("teacher_weight", "rank", layer(w=W[0])),
    ("teacher_weight", "inputs", layer(x=x[:, :5])),
    ("student_weight", "inputs", layer(v=V[:, :5])),
    ("student_bias", "nodes", layer(a=A[:3])),
    ("student_input", "samples", layer(x=(x, x[:7]))),
    ("teacher_input", "integers", layer(x=x.long())),
    ("teacher_weight", "dtype", layer(x=x.double())),
    ("student_weight", "device", layer(v=V.to("meta"))),
    ("teacher", "no samples", layer(x=x[:0])),
    ("teacher", "NaN in the data", layer(x=spoiled(x))),
    ("teacher", "-infinity in the data", layer(x=spoiled(x, -math.inf))),
    ("teacher", "NaN in a weight", layer(w=spoiled(W))),
    ("teacher", "-infinity in a bias", layer(b=spoiled(B, -math.inf))),
    ("student", "infinity in a weight", layer(v=spoiled(V, math.inf))),
    ("student", "NaN in a bias", layer(a=spoiled(A))),
    ("negative_slope", "range", layer(negative_slope=-0.1)),
    ("student", "no pair", lambda: fs.layer_moments(x, (W, B), V)),  # type: ignore[arg-type]
]
OF_MEASURE: list[Case] = [
    ("data, batch 0", "rank", measured(x[0])),
    ("data, batch 0", "inputs", measured(x[:, :5])),
    ("data, batch 0", "integers", measured(x.long())),
    ("data, batch 0", "dtype", measured(x.double())),
    ("data, batch 0", "device", measured(x.to("meta"))),
    ("data, batch 1", "NaN", measured([x, spoiled(x)])),
    ("data, batch 0", "infinity", measured(spoiled(x, math.inf))),
    ("data", "no samples", measured(x[:0])),
    ("data", "no batches", measured([])),
    ("data", "no tensor", measured(x.numpy())),
    ("batch_size", "0", measured(batch_size=0)),
    ("batch_size", "fraction", measured(batch_size=2.5)),
    ("teacher", "no network", measured(a=W)),
    ("teacher, weight of layer 1", "NaN", measured(a=spoiled_network())),
    ("student, weight of layer 1", "NaN", measured(b=spoiled_network())),
    ("student", "depth", measured(b=fs.MLP([D, K, K, C]))),
    ("student", "inputs of networks", measured(b=fs.MLP([D + 1, K, C]))),
    ("student", "outputs", measured(b=fs.MLP([D, K, C + 1]))),
    ("student", "dtype of networks", measured(b=fs.MLP([D, K, C], dtype=torch.float64))),
    ("student", "population of a deep teacher", measured(a=fs.MLP([D, M, M, C]), b=students)),
    ("student", "population of a module", measured(a=module(), b=students)),
    ("layers", "unknown", measured(layers=["nowhere"])),
    ("data, batch 0", "NaN, modules", measured(spoiled(x), module(), module(K))),
    ("data, batch 0", "dtype, modules", measured(x.double(), module(), module(K))),
    ("data, batch 0", "device, modules", measured(x.to("meta"), module(), module(K))),
    ("teacher", "a module without ReLU", measured(a=nn.Linear(D, C), b=module(K))),
]
OF_NETWORKS: list[Case] = [
    ("widths", "one width", lambda: fs.MLP([D])),
    ("widths[1]", "no nodes", lambda: fs.MLP([D, 0, C])),
    ("negative_slope", "range", lambda: fs.MLP([D, M, C], negative_slope=2.0)),
    ("negative_slope", "no number", lambda: fs.MLP([D, M, C], negative_slope=True)),
    ("batch_norm", "unknown option", lambda: fs.MLP([D, M, C], batch_norm="inside")),  # type: ignore[arg-type]
    ("bias", "no option", lambda: fs.MLP([D, M, C], bias=None)),  # type: ignore[arg-type]
    ("dtype", "integers", lambda: fs.MLP([D, M, C], dtype=torch.int64)),
    ("seed", "negative", lambda: fs.MLP([D, M, C], seed=-1)),
    ("x", "rank", lambda: teacher(x[0])),
    ("x", "inputs", lambda: teacher(x[:, :5])),
    ("x", "integers", lambda: teacher(x.long())),
    ("x", "dtype", lambda: teacher(x.double())),
    ("x", "device", lambda: teacher(x.to("meta"))),
    ("layers[1] weight", "widths", lambda: fs.MLP.from_weights([(W, B), (W, B)])),
    ("layers[1] weight", "dtype", lambda: fs.MLP.from_weights([(W, B), (normal(C, M).double(), None)])),
    ("layers[0] weight", "NaN", lambda: fs.MLP.from_weights([(spoiled(W), B)])),
    ("layers[0] weight", "integers", lambda: fs.MLP.from_weights([(W.long(), None)])),
    ("layers[0]", "no pair", lambda: fs.MLP.from_weights([W])),  # type: ignore[list-item]
    ("input_shape", "image too small", lambda: fs.ConvNet((1, 4, 4), [3, 3], C)),
    ("multi", "narrower than the teacher", lambda: fs.networks.student_like(teacher, multi=0.5)),
    ("multi", "no number", lambda: fs.networks.student_like(teacher, multi=None)),  # type: ignore[arg-type]
    ("multi", "a yes", lambda: fs.networks.student_like(teacher, multi=True)),
    ("init", "unknown option", lambda: fs.networks.student_like(teacher, init="lucky")),  # type: ignore[arg-type]
    ("fractions", "all nodes", lambda: fs.pruning.prune(teacher, 1.0)),
    ("widths[1]", "more nodes than vectors", lambda: fs.teachers.separated([2, 100, 2], weight_set=(0.0, 1.0))),
    ("strength_decay", "negative", lambda: fs.teachers.two_layer(D, M, C, strength_decay=-1.0)),
    ("negative_slope", "NaN, to tune with", lambda: fs.teachers.separated([D, M, C], x=x, negative_slope=math.nan)),
    ("weight_set", "a number", lambda: fs.teachers.separated([D, M, C], weight_set=1.0)),  # type: ignore[arg-type]
    ("dtype", "of a teacher, a name", lambda: fs.teachers.separated([D, M, C], dtype="float32")),  # type: ignore[arg-type]
    ("dtype", "of a teacher, integers", lambda: fs.teachers.two_layer(D, M, C, dtype=torch.int64)),
    ("x", "NaN to tune on", lambda: fs.teachers.separated([D, M, C], x=spoiled(x))),
    ("x", "one sample to tune on", lambda: fs.teachers.separated([D, M, C], x=x[:1])),
]
OF_DATA: list[Case] = [
    ("n", "no samples", lambda: fs.data.gaussian(0, D)),
    ("std", "negative", lambda: fs.data.gaussian(N, D, std=-1.0)),
    ("seed", "negative", lambda: fs.data.gaussian(N, D, seed=-1)),
    ("dtype", "integers", lambda: fs.data.gaussian(N, D, dtype=torch.int64)),
    ("high", "below low", lambda: fs.data.uniform(N, D, low=1.0, high=0.0)),
    ("teacher", "NaN", lambda: fs.data.teacher_boundary(spoiled_network(), N)),
    ("teacher", "no MLP", lambda: fs.data.teacher_boundary(module(), N)),  # type: ignore[arg-type]
    ("held_out", "range", lambda: fs.data.digits(held_out=0.001)),
    ("folder", "missing MNIST", lambda: fs.data.mnist("nowhere")),
    ("file", "missing CIFAR-10", lambda: fs.data.cifar10("nowhere")),
]
OF_TRAINING: list[Case] = [
    ("teacher", "no MLP", lambda: fs.Population.two_layer(module(), multi=[1], seeds=[0])),  # type: ignore[arg-type]
    ("teacher", "deep", lambda: fs.Population.two_layer(fs.MLP([D, M, M, C]), multi=[1], seeds=[0])),
    ("multi", "narrower", lambda: fs.Population.two_layer(teacher, multi=[0], seeds=[0])),
    ("multi", "no list", lambda: fs.Population.two_layer(teacher, multi=2, seeds=[0])),  # type: ignore[arg-type]
    ("seeds", "none", lambda: fs.Population.two_layer(teacher, multi=[1], seeds=[])),
    ("std", "infinite", lambda: fs.Population.two_layer(teacher, multi=[1], seeds=[0], std=math.inf)),
    ("students", "no student", lambda: fs.Population.from_weights([])),
    ("students[1] w1", "inputs", population(0, 0, W[:, :5])),
    ("students[1] w1", "nodes", population(1, 0, normal(C, M + 1))),
    ("students[1] w2", "outputs", population(1, 0, normal(C + 1, M))),
    ("students[1] b1", "nodes of a bias", population(0, 1, normal(M + 1))),
    ("students[1] b1", "no tensor", population(0, 1, [0.0] * M)),
    ("students[1] w1", "NaN", population(0, 0, spoiled(W))),
    ("students[1] b2", "infinity", population(1, 1, spoiled(normal(C), math.inf))),
    ("students[1] w2", "dtype", population(1, 0, normal(C, M).double())),
    ("students[1] w2", "device", population(1, 0, normal(C, M).to("meta"))),
    ("students[0]", "a network", lambda: fs.Population.from_weights([teacher])),  # type: ignore[list-item]
    ("k", "no place", lambda: students.weights(1.5)),  # type: ignore[arg-type]
    ("students[1]", "no place", lambda: students.select([0, 0.5])),  # type: ignore[list-item]
    ("students[0] layer 1", "no pair", lambda: fs.Population.from_weights([[W, V]])),  # type: ignore[list-item]
    ("x", "rank", trained(x=x[0])),
    ("x", "inputs", trained(x=x[:, :5])),
    ("x", "integers", trained(x=x.long())),
    ("x", "dtype", trained(x=x.double())),
    ("x", "device", trained(x=x.to("meta"))),
    ("x", "NaN", trained(x=spoiled(x))),
    ("x", "no samples", trained(x=x[:0])),
    ("teacher", "no network", trained(a=None)),
    ("teacher", "inputs", trained(a=fs.MLP([D + 1, M, C]))),
    ("teacher", "outputs", trained(a=fs.MLP([D, M, C + 1]))),
    ("x", "teacher's dtype", trained(a=fs.MLP([D, M, C], dtype=torch.float64))),
    ("teacher outputs", "NaN in a weight", trained(a=spoiled_network())),
    ("students", "no population", trained(b=student)),
    ("steps", "negative", trained(steps=-1)),
    ("batch_size", "0", trained(batch_size=0)),
    ("lr", "negative", trained(lr=-0.1)),
    ("lr", "one negative", trained(lr=[0.1, 0.1, 0.1, -0.1])),
    ("lr", "NaN", trained(lr=math.nan)),
    ("lr", "number of students", trained(lr=[0.1, 0.1])),
    ("lr", "no number", trained(lr="fast")),
    ("lr", "a yes", trained(lr=True)),
    ("schedule", "negative", trained(schedule=[1.0, -1.0])),
    ("schedule", "number of steps", trained(schedule=[1.0])),
    ("schedule", "no numbers", trained(schedule="cosine")),
    ("schedule", "a function that gives none", trained(schedule=lambda step: None)),
    ("seeds", "number of students", trained(seeds=[1])),
    ("seeds", "fractions", trained(seeds=[0.5, 1.5, 2.5, 3.5])),
    ("momentum", "negative", trained(momentum=-0.5)),
    ("momentum", "negative, before a first step", trained(momentum=-0.5, steps=0)),
    ("momentum", "no number", trained(momentum="heavy")),
    ("weight_decay", "negative", trained(weight_decay=-1.0)),
    ("negative_slope", "range", trained(negative_slope=2.0)),
    ("loss_limit", "NaN", trained(loss_limit=math.nan)),
    ("fixed", "unknown option", trained(fixed="both")),
    ("snapshots", "beyond the end", trained(snapshots=[3])),
    ("snapshots", "no list", trained(snapshots=2)),
    ("indices", "dtype", trained(indices=torch.zeros(2, 4))),
    ("indices", "number of steps", trained(indices=torch.zeros(3, 4, dtype=torch.int64))),
    ("indices", "samples there are not", trained(indices=torch.full((2, 4), N))),
    ("indices", "empty batches", trained(indices=torch.zeros(2, 0, dtype=torch.int64))),
]
deep, deep_student = fs.MLP([D, M, M, C]), fs.MLP([D, K, K, C], seed=1)
normed = fs.MLP([D, K, K, C], batch_norm="before")
gelu = nn.Sequential(nn.Linear(D, K), nn.ReLU(), nn.Linear(K, K), nn.GELU(), nn.Linear(K, C))


def theory(name: str, a: object = deep, b: object = deep_student, data: object = x, **options):
    return lambda: getattr(fs.theory, name)(a, b, data, **options)


OF_THEORY: list[Case] = [
    ("student", "depth", theory("backward_gram", b=student)),
    ("student", "outputs", theory("backward_gram", b=fs.MLP([D, K, K, C + 1]))),
    ("student", "inputs of networks", theory("backward_gram", b=fs.MLP([D + 1, K, K, C]))),
    ("student, layer 'norms.0'", "batch norm in training mode", theory("backward_gram", b=normed)),
    ("teacher, layer 'norms.0'", "batch norm in training mode", theory("backward_gram", a=normed)),
    ("student, layer '3'", "an unsupported layer", theory("backward_gram", b=gelu)),
    ("student", "a module without ReLU", theory("backward_gram", b=nn.Linear(D, C))),
    ("teacher", "no network", theory("backward_gram", a=W)),
    ("teacher, weight of layer 1", "NaN in a weight", theory("backward_gram", a=spoiled_network(), b=student)),
    ("data, batch 0", "inputs", theory("backward_gram", data=x[:, :5])),
    ("data, batch 0", "dtype", theory("backward_gram", data=x.double())),
    ("data, batch 1", "NaN", theory("backward_gram", data=[x, spoiled(x)])),
    ("data", "no samples", theory("backward_gram", data=x[:0])),
    ("batch_size", "0", theory("backward_gram", batch_size=0)),
    ("student", "depth", theory("gradient_terms", b=student)),
    ("student", "outputs", theory("gradient_terms", b=fs.MLP([D, K, K, C + 1]))),
    ("teacher, layer 'norms.0'", "batch norm in training mode", theory("gradient_terms", a=normed)),
    ("student, layer '3'", "an unsupported layer", theory("gradient_terms", b=gelu)),
    ("x", "inputs", theory("gradient_terms", data=x[:, :5])),
    ("x", "NaN", theory("gradient_terms", data=spoiled(x))),
    ("x", "no samples", theory("gradient_terms", data=x[:0])),
    ("student", "no MLP", theory("updates", b=gelu)),
    ("method", "unknown option", theory("updates", method="fast")),
    ("x", "device", theory("updates", data=x.to("meta"))),
    ("x", "no tensor", theory("second_moments", data=x.tolist())),
    ("student weight", "inputs", lambda: fs.theory.alignment((W, B), (V[:, :5], A))),
    ("moments", "no counts", lambda: fs.theory.observers(moments)),
]
CALLS = {
    "moments": OF_MOMENTS,
    "layers": OF_LAYERS,
    "measure": OF_MEASURE,
    "networks": OF_NETWORKS,
    "data": OF_DATA,
    "training": OF_TRAINING,
    "theory": OF_THEORY,
}
ROWS = list(chain.from_iterable(CALLS.values()))
IDS = [f"{group}: {argument}, {what}" for group, cases in CALLS.items() for argument, what, _ in cases]


@pytest.mark.parametrize(("argument", "what", "call"), ROWS, ids=IDS)
def test_calls(argument: str, what: str, call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
        call()
    assert_clear(str(caught.value), argument)


OPTIONS = [
    ("lr", ["two-layer", "--lr", "-1"]),
    ("batch_size", ["two-layer", "--batch-size", "0"]),
    ("multi", ["two-layer", "--multi", "0"]),
    ("held_out", ["digits", "--held-out", "2"]),
    ("student_lr", ["digits", "--student-lr", "nan"]),
    ("widths", ["matrix-dynamics", "--widths", "10", "30"]),
    ("lr", ["matrix-dynamics", "--lr", "nan"]),
    ("batch_size", ["measure", "teacher", "student", "x.safetensors", "--batch-size", "0"]),
    ("data, batch 0", ["measure", "teacher", "student", "wide.safetensors"]),
    ("data, batch 0", ["measure", "teacher", "student", "nan.safetensors"]),
    ("data", ["measure", "teacher", "student", "empty.safetensors"]),
    ("student", ["measure", "teacher", "x.safetensors", "x.safetensors"]),
    ("path 'nowhere'", ["measure", "nowhere", "student", "x.safetensors"]),
    ("folder", ["report", "nowhere"]),
]


@pytest.mark.parametrize(("argument", "arguments"), OPTIONS, ids=[" ".join(arguments) for _, arguments in OPTIONS])
def test_values_on_the_command_line(argument: str, arguments: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    teacher.save("teacher")
    student.save("student")
    for name, data in (("x", x), ("wide", normal(N, D + 1)), ("nan", spoiled(x)), ("empty", x[:0])):
        save_file({"x": data}, f"{name}.safetensors")
    error = one_line_error(capsys, *arguments)
    assert_clear(error.removeprefix("fastspec: error: ").rstrip("\n"), argument)
    assert not Path("fastspec-runs").exists()


@pytest.mark.parametrize("arguments", [["two-layer", "--luck", "3"], ["digits", "--steps", "many"], ["experiment"]])
def test_unknown_options(arguments: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert arguments[1 if len(arguments) > 1 else 0] in one_line_error(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []

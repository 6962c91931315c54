"""`measure` of modules that are not ours: named layers, hooks that always come off, modes that come back."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastspec.adapters import evaluation_mode
from fastspec.measure import measure
from fastspec.networks import MLP, ConvNet

SIZE, CLASSES = 12, 5


class VggLike(nn.Module):
    """Convolution, batch norm, in-place ReLU and max pooling, twice, and a classifier, named as torchvision does."""

    def __init__(self, first: int, second: int, *, inplace: bool = True):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=inplace),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.BatchNorm2d(second),
            nn.ReLU(inplace=inplace),
            nn.MaxPool2d(2),
        )
        pooled = second * (SIZE // 4) ** 2
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(pooled, 2 * first), nn.ReLU(inplace=inplace), nn.Linear(2 * first, CLASSES)
        )
        unlike_identity(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Renamed(nn.Module):
    """The same layers under other names, registered in another order than they are called."""

    def __init__(self, first: int, second: int):
        super().__init__()
        self.act_head = nn.LeakyReLU(0.1)
        self.head = nn.Linear(2 * first, CLASSES)
        self.neck = nn.Linear(second * (SIZE // 4) ** 2, 2 * first)
        self.act_high = nn.ReLU()
        self.low = nn.Conv2d(3, first, 3, padding=1)
        self.high = nn.Conv2d(first, second, 3, padding=1)
        self.act_low = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.act_low(self.low(x)), 2)
        x = F.max_pool2d(self.act_high(self.high(x)), 2)
        return self.head(self.act_head(self.neck(x.flatten(1))))


def unlike_identity(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape) + 0.2)


def images(samples: int = 11) -> Tensor:
    return torch.randn(samples, 3, SIZE, SIZE, dtype=torch.float64)


@pytest.fixture
def teacher() -> VggLike:
    return VggLike(3, 4).double()


@pytest.fixture
def student() -> Renamed:
    return Renamed(5, 6).double()


def vgg_activations(network: VggLike, x: Tensor) -> list[Tensor]:
    """Outputs of the three ReLUs, by hand, without a hook."""
    net = copy.deepcopy(network).eval()
    low = F.relu(net.features[1](net.features[0](x)))
    high = F.relu(net.features[5](net.features[4](F.max_pool2d(low, 2))))
    return [low, high, F.relu(net.classifier[1](F.max_pool2d(high, 2).flatten(1)))]


def renamed_activations(net: Renamed, x: Tensor) -> list[Tensor]:
    low = F.relu(net.low(x))
    high = F.relu(net.high(F.max_pool2d(low, 2)))
    return [low, high, F.leaky_relu(net.neck(F.max_pool2d(high, 2).flatten(1)), 0.1)]


def expected(t: Tensor, s: Tensor) -> Tensor:
    """Correlation [teacher, student] over samples and positions."""
    rows = [a.movedim(1, -1).flatten(0, -2).T for a in (t, s)]
    return torch.corrcoef(torch.cat(rows))[: len(rows[0]), len(rows[0]) :]


def has_hooks(network: nn.Module) -> bool:
    return any(module._forward_hooks for module in network.modules())


NAMES = {"features.2": "act_low", "features.6": "act_high", "classifier.2": "act_head"}


@pytest.mark.parametrize("layers", [None, NAMES, list(NAMES.items())], ids=["by order", "dict", "pairs"])
@pytest.mark.parametrize("batch_size", [None, 1, 4])
@torch.no_grad()
def test_layers_of_unequal_names(teacher, student, layers, batch_size) -> None:
    x = images()
    result = measure(teacher, student, x, layers=layers, batch_size=batch_size, coactivation=True)
    assert list(result.layers) == [f"{t} -> {s}" for t, s in NAMES.items()]
    pairs = zip(result.layers.values(), vgg_activations(teacher, x), renamed_activations(student, x), strict=True)
    for moments, t, s in pairs:
        torch.testing.assert_close(moments.correlation(), expected(t, s), equal_nan=True)
        assert int(moments.count) == t[:, 0].numel()
        assert moments.student_active.tolist() == (s > 0).transpose(0, 1).flatten(1).sum(1).tolist()
    outputs = copy.deepcopy(teacher).eval()(x) - student(x)
    torch.testing.assert_close(result.loss, outputs.square().sum(1).mean() / 2)
    assert result.samples == 11
    assert "classifier.2 -> act_head" in str(result)


def test_names_that_both_have(teacher) -> None:
    other = VggLike(6, 4).double()
    result = measure(teacher, other, images(), layers=["features.6", "classifier"])
    assert list(result.layers) == ["features.6", "classifier"]
    assert result.layers["features.6"].cross_scatter.shape == (4, 4)
    everything = measure(teacher, other, images(), layers=None)
    assert list(everything.layers) == list(NAMES)


@torch.no_grad()
def test_a_network_against_itself_and_shared_modules(teacher) -> None:
    x = images()
    result = measure(teacher, teacher, x)
    assert result.loss == 0
    for moments, t in zip(result.layers.values(), vgg_activations(teacher, x), strict=True):
        torch.testing.assert_close(moments.correlation(), expected(t, t), equal_nan=True)


@pytest.mark.parametrize("slope", [0.0, 0.2])
@torch.no_grad()
def test_own_network_beside_a_foreign_one(slope: float) -> None:
    own = MLP([6, 4, 5, 3], negative_slope=slope, batch_norm="after", dtype=torch.float64)
    steps = [("fc1", nn.Linear(6, 7)), ("a", nn.ReLU()), ("fc2", nn.Linear(7, 8)), ("b", nn.ReLU())]
    foreign = nn.Sequential(OrderedDict([*steps, ("fc3", nn.Linear(8, 3))])).double()
    x = torch.randn(20, 6, dtype=torch.float64)
    result = measure(own, foreign, x)
    assert list(result.layers) == ["hidden1 -> a", "hidden2 -> b"]
    own.eval()
    for i, moments in enumerate(result.layers.values()):
        s = foreign[: 2 * i + 2](x)
        torch.testing.assert_close(moments.correlation(), expected(own.activations(x)[i], s), equal_nan=True)
    torch.testing.assert_close(result.loss, (own(x) - foreign(x)).square().sum(1).mean() / 2)
    pre = measure(own, own, x, layers=["linears.0"]).layers["linears.0"]
    torch.testing.assert_close(pre.teacher_mean, own.linears[0](x).mean(0))


@torch.no_grad()
def test_convolutional_networks_of_this_package() -> None:
    options = {"batch_norm": "before", "dtype": torch.float64}
    teacher, student = ConvNet((3, 7, 7), [2, 3], 4, **options), ConvNet((3, 7, 7), [4, 6], 4, seed=1, **options)
    x = torch.randn(9, 3, 7, 7, dtype=torch.float64)
    result = measure(teacher, student, x, batch_size=4)
    teacher.eval(), student.eval()
    assert list(result.layers) == ["hidden1", "hidden2"]
    for moments, t, s in zip(result.layers.values(), teacher.activations(x), student.activations(x), strict=True):
        torch.testing.assert_close(moments.correlation(), expected(t, s), equal_nan=True)
    torch.testing.assert_close(result.loss, (teacher(x) - student(x)).square().sum(1).mean() / 2)


def test_loss_is_none_where_outputs_differ(teacher) -> None:
    other = VggLike(3, 4).double()
    other.classifier[3] = nn.Linear(6, 2).double()
    result = measure(teacher, other, images())
    assert result.loss is None and "loss" not in str(result).splitlines()[0]
    assert (result + result).loss is None


def test_integer_inputs_are_a_modules_own_business() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 5), nn.ReLU())

    assert measure(model(), model(), torch.randint(9, (20, 2))).samples == 20


# modes and hooks come back, whatever happens


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("out of something")


@pytest.mark.parametrize("fails", [False, True])
def test_modes_hooks_and_statistics_come_back(teacher, student, fails: bool) -> None:
    teacher.train()
    teacher.features[1].eval()
    student.eval()
    student.act_high.train()
    if fails:
        student.act_high = nn.Sequential(student.act_high, Fails())
    networks = (teacher, student)
    modes = [[module.training for module in network.modules()] for network in networks]
    statistics = copy.deepcopy(teacher.state_dict())
    if fails:
        with pytest.raises(RuntimeError, match="out of something"):
            measure(teacher, student, images(), layers={"features.2": "act_low"})
    else:
        measure(teacher, student, images(), layers={"features.2": "act_low"})
    assert [[module.training for module in network.modules()] for network in networks] == modes
    assert not has_hooks(teacher) and not has_hooks(student)
    assert all(torch.equal(statistics[name], tensor) for name, tensor in teacher.state_dict().items())


def test_failing_data_takes_hooks_off_too(teacher, student) -> None:
    def data():
        yield images(2)
        assert has_hooks(teacher) and has_hooks(student) and not teacher.training
        raise OSError("no such image")

    with pytest.raises(OSError, match="no such image"):
        measure(teacher, student, data())
    assert not has_hooks(teacher) and not has_hooks(student) and teacher.training


def test_no_gradients(teacher, student) -> None:
    seen = []
    student.head.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    measure(teacher, student, images())
    assert seen == [False]


@pytest.mark.parametrize("data", [images(11), [images(7), images(2), images(2)]], ids=["tensor", "batches"])
def test_no_module_sees_more_samples_than_asked_for(teacher, student, data) -> None:
    seen = []
    student.head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    assert measure(teacher, student, data, batch_size=4).samples == 11
    assert max(seen) == 4 and sum(seen) == 11


def test_inference_mode(teacher, student) -> None:
    with torch.inference_mode():
        assert measure(teacher, student, images()).samples == 11


def test_evaluation_mode_of_a_network_given_twice(teacher) -> None:
    with evaluation_mode(teacher, teacher):
        assert not any(module.training for module in teacher.modules())
    assert all(module.training for module in teacher.modules())


# bad input


class Calls(nn.Module):
    """Two linear layers with one shared ReLU, and layers that nobody calls or that return no tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.relu, self.unused = nn.ReLU(), nn.Linear(6, 6)
        self.recurrent = nn.LSTM(6, 6)
        self.halves, self.total = nn.Unflatten(0, (-1, 2)), Sum()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.second(self.relu(self.first(x))))
        self.halves(x)
        return self.total(self.recurrent(x)[0])


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)


def with_nan(samples: int) -> Tensor:
    x = images(samples)
    x[-1] = torch.nan
    return x


BAD_LAYERS = {
    "a string": ("features.2", TypeError, "layers: got 'features.2'"),
    "a triple": ([("a", "b", "c")], TypeError, "layers: got .'a', 'b', 'c'."),
    "a number": ([3], TypeError, "layers: got 3"),
    "empty": ({}, ValueError, "layers: got no layers"),
    "twice": (["features.2", "features.2"], ValueError, "layers: got a pair twice"),
    "teacher's": ({"feature.2": "act_low"}, ValueError, "got 'feature.2'; takes names of the teacher's.*'features.2'"),
    "student's": ({"features.2": "actlow"}, ValueError, "got 'actlow'; takes names of the student's.*'act_low'"),
    "nothing close": ({"#": "act_low"}, ValueError, "'#'; takes names of the teacher's modules.*'features'"),
    "overwritten": (
        {"features.1": "low"},
        ValueError,
        "teacher's 'features.1': got an output that a later module over",
    ),
    "positions": ({"features.3": "low"}, ValueError, r"data, batch 0, layer features.3 -> low: student: got shape"),
}


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_bad_layers(teacher, student, case: str) -> None:
    layers, error, message = BAD_LAYERS[case]
    with pytest.raises(error, match=message):
        measure(teacher, student, images(), layers=layers)
    assert not has_hooks(teacher) and not has_hooks(student)


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (["relu"], ValueError, "layers, teacher's 'relu': got a second call in one forward pass"),
        (["unused"], ValueError, "layers, teacher's 'unused': got no call in the forward pass"),
        (["recurrent"], TypeError, "layers, teacher's 'recurrent': got an output of type tuple"),
        (["halves"], ValueError, r"layers, teacher's 'halves': got an output of shape \[2, 2, 6\]; takes \[4, nodes"),
        (["total"], ValueError, r"layers, teacher's 'total': got an output of shape \[4\]; takes \[4, nodes"),
    ],
)
def test_modules_that_cannot_be_measured(layers, error, message) -> None:
    with pytest.raises(error, match=message):
        measure(Calls(), Calls(), torch.randn(4, 6), layers=layers)


def test_numbers_of_layers_must_agree(teacher, student) -> None:
    student.extra = nn.ReLU()
    with pytest.raises(
        ValueError, match="layers: got None, with 3 hidden activations in the teacher and 4 in the stud"
    ):
        measure(teacher, student, images())
    with pytest.raises(ValueError, match="teacher: got a network without ReLU or LeakyReLU modules"):
        measure(nn.Linear(3, 3), student, images())


def test_inputs_that_do_not_fit_the_network(teacher, student) -> None:
    with pytest.raises(TypeError, match=r"data, batch 0: got dtype torch.float32; takes the dtype of teacher"):
        measure(teacher, student, images().float())
    with pytest.raises(ValueError, match="data, batch 0: got device meta"):
        measure(teacher, student, images().to("meta"))
    with pytest.raises(ValueError, match="data, batch 1: got 432 of 864 values NaN"):
        measure(teacher, student, [images(2), with_nan(2)])
    with pytest.raises(TypeError, match=r"data, batch 0: got dtype torch.float64; takes the dtype of student"):
        measure(teacher, student.float(), images())


def test_inputs_that_do_not_fit_an_own_network_name_its_side(teacher) -> None:
    with pytest.raises(ValueError, match=r"student, x: got shape \[11, 3, 12, 12\]; takes \[samples, 6\]"):
        measure(teacher, MLP([6, 3, 3, 3, CLASSES], dtype=torch.float64), images())


def test_activations_that_are_not_finite_name_batch_layer_and_side(teacher, student) -> None:
    with torch.no_grad():
        student.high.bias[1] = torch.nan
    message = "data, batch 0, layer features.6 -> act_high: student: got NaN, infinite or too large .* in 1 of 6 nodes"
    with pytest.raises(ValueError, match=message):
        measure(teacher, student, images())
    with torch.no_grad():
        student.high.bias[1] = 0
        teacher.classifier[3].bias[0] = torch.inf
    with pytest.raises(ValueError, match="data, batch 0, outputs of the teacher: got 11 of 55 values"):
        measure(teacher, student, images())


def test_batches_without_samples_are_passed_over() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(20, 3)
    found, whole = measure(network, network, [x[:5], x[:0], x[5:]]), measure(network, network, [x[:5], x[5:]])
    assert found.samples == 20
    for name, moments in whole.layers.items():
        torch.testing.assert_close(found.layers[name].tensors(), moments.tensors(), rtol=0, atol=0)


class TwoPrecisions(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.top, self.low, self.relu = nn.Linear(4, 2).double(), nn.Linear(3, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.relu(self.low(x)).double())


def test_networks_of_two_precisions_take_what_they_take() -> None:
    found = measure(TwoPrecisions(0), TwoPrecisions(1), torch.randn(9, 3))
    assert found.samples == 9 and float(found.loss) > 0

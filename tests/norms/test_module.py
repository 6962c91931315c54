"""Norms in any module: against autograd, sample by sample; verdicts, and what mends them."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastspec.initialization import draw_
from fastspec.networks import MLP
from fastspec.norms import norm_report


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squares(output: Tensor) -> Tensor:
    return output.flatten(1).square().sum(1)


class Functional(nn.Module):
    """Convolutions of several kinds, in-place and functional ReLUs, a skip, and a linear layer on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.third = nn.Conv1d(4, 3, 5, stride=2)
        self.tokens = nn.Linear(3, 6)
        self.top = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.first(x))
        h = h + F.relu(self.second(h))
        h = F.relu(self.third(h.flatten(2)))
        return self.top(F.relu(self.tokens(h.mT)).mean(1))


NETWORKS = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)),
        (5,),
    ),
    "one layer": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU()), (5,)),
    "functional": (Functional, (2, 4, 5)),
    "own": (lambda: MLP([5, 8, 6, 3]), (5,)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", [None, squares])
def test_backward_ratios_are_those_of_autograd(name, loss):
    make, size = NETWORKS[name]
    network, x = make().double(), normal(9, *size)
    found = norm_report(network, x, loss=loss, batch_size=4)
    layers = [network.get_submodule(layer.name) for layer in found.layers]
    assert [layer.kind for layer in found.layers] == [type(layer).__name__ for layer in layers]
    rows = []
    for sample in x:
        outputs: list[Tensor] = []

        def keep(module, inputs, output, outputs=outputs):
            outputs.append(output)
            return output.clone()

        handles = [layer.register_forward_hook(keep) for layer in layers]
        output = network(sample[None])
        for handle in handles:
            handle.remove()
        if loss is None:
            target = torch.rand(3 if name != "one layer" else 8, dtype=torch.float64, generator=_target_draw()).to(
                output
            )
            value = -(target / target.sum() * F.log_softmax(output, 1)).sum()
        else:
            value = loss(output).sum()
        reference = outputs[max(len(outputs) - 2, 0)]
        *gradients, delta = torch.autograd.grad(value, [*(layer.weight for layer in layers), reference])
        rows.append([float(g.norm() / (sample.norm() * delta.norm())) for g in gradients])
    table = torch.tensor(rows, dtype=torch.float64)
    for i, layer in enumerate(found.layers):
        assert float(layer.backward.mean) == pytest.approx(float(table[:, i].mean()), rel=1e-9)
        assert float(layer.backward.worst) == pytest.approx(float((1 - table[:, i]).abs().max()), rel=1e-9)


def _target_draw() -> torch.Generator:
    from fastspec.randomness import generator

    return generator(0, "targets")


def test_forward_ratios_and_gains():
    network, x = NETWORKS["mlp"][0]().double(), normal(50, 5)
    found = norm_report(network, x, batch_size=7)
    h1 = network[0](x).relu()
    h2 = network[2](h1).relu()
    out = network[4](h2)
    for layer, inputs, outputs in zip(found.layers, (x, h1, h2), (h1, h2, out), strict=True):
        gain = outputs.norm(dim=1) / inputs.norm(dim=1)
        assert float(layer.gain.mean) == pytest.approx(float(gain.mean()))
        assert float(layer.gain.std) == pytest.approx(float(gain.std(correction=0)))
        ratio = outputs.norm(dim=1) / x.norm(dim=1)
        assert float(layer.forward.mean) == pytest.approx(float(ratio.mean()))
        assert int(layer.forward.worst_sample) == int((1 - ratio).abs().argmax())
    assert found.samples == 50 and [layer.nodes for layer in found.layers] == [8, 6, 3]


def test_nothing_of_the_network_changes():
    network, x = (
        nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)),
        torch.randn(20, 5),
    )
    network[3].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network[0].weight.requires_grad_(False)
    network[4].bias.grad = torch.ones(3)
    rng = torch.random.get_rng_state()
    norm_report(network, x)
    assert torch.equal(rng, torch.random.get_rng_state())
    assert network.training and not network[3].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert (network[4].bias.grad == 1).all() and network[4].weight.grad is None
    assert not any(layer._forward_hooks for layer in network.modules())


def test_frozen_networks_and_float32():
    network, x = NETWORKS["mlp"][0](), torch.randn(20, 5)
    trainable = norm_report(network, x)
    found = norm_report(network.requires_grad_(False), x)
    for one, other in zip(trainable.layers, found.layers, strict=True):
        assert float(one.backward.mean) == pytest.approx(float(other.backward.mean))


@pytest.mark.parametrize(
    ("scheme", "verdict"),
    [
        ("he_fan_out", "preserves"),
        ("weight_norm_scaled", "preserves"),
        ("inverse_fan_out", "shrinks"),
        ("default", "shrinks"),
    ],
)
def test_verdicts(scheme, verdict):
    network = nn.Sequential(nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 5))
    draw_(network, scheme)
    found = norm_report(network, torch.randn(100, 300))
    assert [layer.verdict for layer in found.layers[:2]] == [verdict] * 2
    assert (verdict == "preserves") == (not set(found.scales()) & {"0", "2"})


def test_the_scale_mends():
    network = nn.Sequential(nn.Linear(50, 400), nn.ReLU(), nn.Linear(400, 60), nn.ReLU(), nn.Linear(60, 5)).double()
    draw_(network, "he_fan_in")
    network[2].bias.data.fill_(0.3)
    x = normal(100, 50)
    found = norm_report(network, x)
    assert found["0"].verdict == "explodes" and found["2"].verdict == "shrinks"
    scales = found.scales()
    assert list(scales) == ["0", "2", "4"]
    with torch.no_grad():
        network[0].weight *= scales["0"]
        network[0].bias *= scales["0"]
    mended = norm_report(network, x)
    assert float(mended["0"].gain.mean) == pytest.approx(1.0)
    with torch.no_grad():
        network[2].weight *= mended["2"].scale
        network[2].bias *= mended["2"].scale
    again = norm_report(network, x)
    assert float(again["2"].gain.mean) == pytest.approx(1.0) and again["2"].verdict == "preserves"
    text = str(found)
    assert "explodes" in text and "shrinks" in text and f"{scales['0']:.3g}" in text


def test_tolerance_and_activation():
    network = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Identity(), nn.Linear(100, 4))
    with torch.no_grad():
        network[0].weight.copy_(1.5 * torch.eye(100))
    x = torch.randn(40, 100)
    linear = norm_report(network, x, activation=lambda z: z)
    assert float(linear["0"].gain.mean) == pytest.approx(1.5) and linear["0"].verdict == "explodes"
    assert norm_report(network, x, activation=lambda z: z, tolerance=0.6)["0"].verdict == "preserves"
    assert float(norm_report(network, x)["0"].gain.mean) == pytest.approx(1.5 / math.sqrt(2), rel=0.05)


def test_the_tolerance_is_a_factor_either_way():
    network = nn.Linear(10, 10, bias=False)
    for gain, verdict in ((0.82, "shrinks"), (0.84, "preserves"), (1.19, "preserves"), (1.21, "explodes")):
        with torch.no_grad():
            network.weight.copy_(gain * torch.eye(10))
        x = torch.randn(9, 10)
        assert norm_report(network, x, activation=lambda z: z)[""].verdict == verdict
        expected = gain * float((x.relu().norm(dim=1) / x.norm(dim=1)).mean())  # of the only layer, a ReLU after it
        assert float(norm_report(network, x)[""].gain.mean) == pytest.approx(expected)


def test_a_layer_that_is_given_nothing_shrinks():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        network[0].bias.fill_(-1e3)
    report = norm_report(network, torch.randn(9, 3))
    assert [report[name].verdict for name in ("0", "2")] == ["shrinks"] * 2
    assert float(report["0"].gain.mean) == 0 and math.isnan(report["2"].gain.mean)
    assert math.isnan(report["0"].scale) and math.isnan(report["2"].scale)


def test_data_in_batches_of_any_kind():
    network, x = NETWORKS["own"][0](), torch.randn(30, 5)
    whole = norm_report(network, x)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(30)), batch_size=8)
    for layer, other in zip(whole.layers, norm_report(network, loader).layers, strict=True):
        assert float(layer.backward.mean) == pytest.approx(float(other.backward.mean))
        assert int(layer.gain.worst_sample) == int(other.gain.worst_sample)


def test_older_weight_norm_and_outputs_that_are_no_logits():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 8)), nn.ReLU(), nn.Unflatten(1, (2, 4)))
    x = torch.randn(6, 5)
    with pytest.raises(ValueError, match=r"loss: got None for a network whose output is shape \[6, 2, 4\]"):
        norm_report(network, x)
    assert float(norm_report(network, x, loss=squares)["0"].backward.mean) == pytest.approx(1.0)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x)


def test_layers_called_by_name_and_samples_that_are_0():
    x = normal(6, 5).float()
    x[2] = 0
    layer = norm_report(Named(), x)["layer"]
    assert int(layer.gain.undefined) == int(layer.forward.undefined) == int(layer.backward.undefined) == 1
    assert layer.gain.mean.isfinite() and float(layer.backward.mean) == pytest.approx(1.0)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class Alternating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.calls = nn.ModuleList(nn.Linear(5, 5) for _ in range(2)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers[self.calls % 2](x)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.aside, self.top = nn.Linear(5, 4), nn.Linear(5, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        return self.top(self.low(x).relu())


def test_a_layer_that_the_output_does_not_use_has_no_gradient():
    report = norm_report(Unused(), torch.randn(6, 5))
    assert [layer.name for layer in report.layers] == ["aside", "low", "top"]  # as they are called
    assert float(report["aside"].backward.mean) == 0 and float(report["aside"].gain.mean) > 0


X = torch.ones(4, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: norm_report(nn.ReLU(), X), "network: got a ReLU without Linear or Conv layers"),
        (lambda: norm_report(Twice(), X), "network: got two calls of layer 'layer'"),
        (lambda: norm_report(nn.Linear(4, 2), X), "network: got inputs of shape"),
        (lambda: norm_report(Alternating(), X, batch_size=2), "data, batch 1: got a forward pass that calls other"),
        (
            lambda: norm_report(nn.Linear(5, 2), X, loss=lambda out: out.sum()),
            "loss: got a function that returns shape",
        ),
        (lambda: norm_report(nn.Linear(5, 2), X, tolerance=-1), "tolerance: got -1"),
        (lambda: norm_report(nn.Linear(5, 2), X, batch_size=0), "batch_size: got 0"),
        (lambda: norm_report(nn.Linear(5, 2), X[:0]), "data: got 0 samples"),
        (lambda: norm_report(nn.Linear(5, 2), X * torch.nan), "data, batch 0: got 20 of 20"),
        (lambda: norm_report(nn.Linear(5, 2), X.double()), "data, batch 0: got dtype"),
        (lambda: norm_report(nn.Linear(5, 2), X)["other"], "name: got 'other'"),
        (
            lambda: norm_report(nn.Sequential(nn.Flatten(0, 1), nn.Linear(1, 2)), X[..., None]),
            "network: got layer '1'|loss",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError, KeyError, RuntimeError), match=message):
        call()

"""Schemes of initial weights: their distributions, what they do to norms, and how they are put into modules."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from fastspec.initialization import SCHEMES, draw_, weights
from fastspec.initialization.layers import fans, weight_layers

IN, OUT = 60, 150
SHAPES = ((OUT, IN), (IN, OUT), (40, 40))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(("fan_out", "fan_in"), SHAPES)
def test_scale(name, fan_out, fan_in):
    w = weights(name, fan_out, fan_in, seed=3)
    assert w.shape == (fan_out, fan_in) and w.dtype == torch.float64
    std = {
        "he_fan_out": math.sqrt(2 / fan_out),
        "he_fan_in": math.sqrt(2 / fan_in),
        "inverse_fan_out": math.sqrt(1 / fan_out),
        "default": math.sqrt(1 / (3 * fan_in)),
        "weight_norm": math.sqrt(1 / fan_in),
    }.get(name, math.sqrt(2 / fan_out))
    assert abs(float(w.square().mean().sqrt()) / std - 1) < 4 / math.sqrt(w.numel())
    assert abs(float(w.mean())) < 4 * std / math.sqrt(w.numel())


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(("fan_out", "fan_in"), SHAPES)
def test_energy_is_that_of_a_relu_layer(name, fan_out, fan_in):
    x = torch.randn(fan_in, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = torch.stack([weights(name, fan_out, fan_in, seed=seed) @ x for seed in range(300)])
    energy = draws.relu().square().sum(1) / x.square().sum()
    wanted = SCHEMES[name].energy(fan_in, fan_out)
    assert abs(float(energy.mean()) - wanted) < 4 * float(energy.std()) / math.sqrt(300)


def test_normal_and_uniform():
    for name in ("he_fan_out", "he_fan_in", "inverse_fan_out"):
        w = weights(name, 300, 300)
        kurtosis = float((w / w.std()).pow(4).mean())
        assert abs(kurtosis - 3) < 0.1
    default = weights("default", 300, 300)
    assert float(default.abs().max()) <= 300**-0.5 and float(default.abs().max()) > 0.999 * 300**-0.5


@pytest.mark.parametrize(("fan_out", "fan_in"), SHAPES)
def test_rows_of_given_norm(fan_out, fan_in):
    scale = math.sqrt(2 * fan_in / fan_out)
    for name, norm in (("weight_norm", 1.0), ("weight_norm_scaled", scale), ("orthogonal", scale)):
        rows = weights(name, fan_out, fan_in).norm(dim=1)
        torch.testing.assert_close(rows, torch.full_like(rows, norm))
    w = weights("orthogonal", fan_out, fan_in) / scale
    for start in range(0, fan_out, fan_in):
        group = w[start : start + fan_in]
        torch.testing.assert_close(group @ group.T, torch.eye(len(group), dtype=torch.float64), rtol=0, atol=1e-12)
    groups = fan_out // fan_in  # whole groups keep every norm exactly
    if groups and fan_out % fan_in == 0:
        x = torch.randn(fan_in, dtype=torch.float64)
        torch.testing.assert_close((w @ x).norm() ** 2, groups * x.norm() ** 2)


def test_orthogonal_directions_have_no_preferred_sign():
    first = torch.stack([weights("orthogonal", 3, 3, seed=s)[0, 0] for s in range(400)])
    assert abs(float(first.sign().mean())) < 0.2


def network():
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.BatchNorm1d(10), nn.Linear(10, 4))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_module_gets_the_same_weights(name):
    net = network()
    net[2].bias.data.fill_(3.0)
    draw_(net, name, seed=5)
    for key, (out, inputs) in (("0", (10, 6)), ("3", (4, 10))):
        layer = net.get_submodule(key)
        assert torch.equal(layer.weight, weights(name, out, inputs, seed=5, layer=key).float())
        assert bool(layer.bias.any()) == (name == "default")
        assert float(layer.bias.detach().abs().max()) <= inputs**-0.5
    assert (net[2].bias == 3.0).all() and (net[2].weight == 1.0).all()


def test_seeds_are_of_each_layer():
    one, other = network(), network()
    state = torch.random.get_rng_state()
    draw_(one, "he_fan_out", seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    other[0] = nn.Linear(6, 10, bias=False)
    other.append(nn.Linear(4, 2))
    draw_(other, "he_fan_out", seed=1)
    assert torch.equal(one[0].weight, other[0].weight) and torch.equal(one[3].weight, other[3].weight)
    draw_(other, "he_fan_out", seed=2)
    assert not torch.equal(one[0].weight, other[0].weight)
    same = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    draw_(same, "he_fan_out")
    assert not torch.equal(same[0].weight, same[1].weight)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(3, 5), (3, 5)),
        (nn.Conv1d(3, 5, 4), (12, 20)),
        (nn.Conv2d(3, 5, (2, 4)), (24, 40)),
        (nn.Conv3d(3, 5, 2), (24, 40)),
        (nn.Conv2d(4, 8, 3, groups=2), (18, 36)),
    ],
)
def test_fans(layer, expected):
    assert fans(layer) == expected


@pytest.mark.parametrize("name", ["he_fan_out", "weight_norm_scaled", "orthogonal"])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_keep_norms(name, groups):
    conv = nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", bias=False, groups=groups).double()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    energy = []
    for seed in range(300):
        draw_(conv, name, seed=seed)
        with torch.no_grad():
            energy.append(conv(x).relu().square().sum() / x.square().sum())
    found = torch.stack(energy)
    assert abs(float(found.mean()) - 1) < 4 * float(found.std()) / math.sqrt(300)


@pytest.mark.parametrize("name", SCHEMES)
def test_weight_normalised_layers(name):
    plain = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Conv1d(10, 4, 1))
    draw_(plain, name, seed=2)
    new = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Conv1d(10, 4, 1))
    for i in (0, 2):
        nn.utils.parametrizations.weight_norm(new[i])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older weight norm calls itself deprecated
        old = nn.Sequential(
            nn.utils.weight_norm(nn.Linear(6, 10)), nn.ReLU(), nn.utils.weight_norm(nn.Conv1d(10, 4, 1))
        )
    for net in (new, old):
        draw_(net, name, seed=2)
        x = torch.randn(3, 6)
        torch.testing.assert_close(net[0](x), plain[0](x))
        for i in (0, 2):
            torch.testing.assert_close(net[i].weight, plain[i].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one_norm = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 10), dim=None))
    draw_(one_norm, name, seed=2)
    torch.testing.assert_close(one_norm[0](x), plain[0](x))
    gains = new[0].parametrizations.weight.original0.flatten(), old[0].weight_g.flatten()
    for gain in gains:
        torch.testing.assert_close(gain, plain[0].weight.norm(dim=1))


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def forward(self, x):
        return x + self.branch(x)


def test_residual_branches_are_divided_by_their_number():
    net = nn.Sequential(*(Block(8) for _ in range(5)))
    draw_(net, "he_fan_out", seed=1)
    whole = [block.branch[2].weight.clone() for block in net]
    draw_(net, "he_fan_out", seed=1, branches=[f"{i}.branch" for i in range(5)])
    for block, weight in zip(net, whole, strict=True):
        torch.testing.assert_close(block.branch[2].weight, weight / 5)
    x = torch.randn(400, 8)
    with torch.no_grad():
        growth = float((net(x).norm(dim=1) / x.norm(dim=1)).mean())
    assert 1 < growth < math.e  # (1 + 1/B)^B at most


def test_a_branch_is_not_one_whose_name_begins_alike():
    layers = {"b1": nn.Linear(3, 3), "b10": nn.Linear(3, 3)}
    whole, halved = nn.ModuleDict(copy.deepcopy(layers)), nn.ModuleDict(layers)
    draw_(whole, "he_fan_out")
    draw_(halved, "he_fan_out", branches=["b1", "b10"])
    for name in layers:
        torch.testing.assert_close(halved[name].weight, whole[name].weight / 2)


def test_networks_of_any_kind():
    attention = nn.TransformerEncoderLayer(8, 2, 16)
    before = attention.self_attn.in_proj_weight.clone()
    draw_(attention, "he_fan_out")
    assert list(weight_layers(attention)) == ["self_attn.out_proj", "linear1", "linear2"]
    assert torch.equal(attention.self_attn.in_proj_weight, before)  # not a layer


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_(network(), "xavier"), "scheme: got 'xavier'; takes one of he_fan_out"),
        (lambda: draw_(nn.ReLU(), "he_fan_in"), "network: got a ReLU without Linear or Conv layers"),
        (lambda: draw_("net", "he_fan_in"), "network: got str"),
        (lambda: draw_(nn.Sequential(nn.LazyLinear(3)), "he_fan_in"), "network: got layer '0', whose inputs"),
        (lambda: draw_(network(), "he_fan_in", seed=-1), "seed: got -1"),
        (lambda: draw_(network(), "he_fan_in", branches="0"), "branches: got '0'; takes a list"),
        (lambda: draw_(network(), "he_fan_in", branches=["7"]), "branches: got '7'"),
        (lambda: draw_(network(), "he_fan_in", branches=["1"]), "branches: got '1', a module without"),
        (lambda: draw_(Block(4), "he_fan_in", branches=["branch", "branch.2"]), "branches: got 'branch.2', within"),
        (
            lambda: draw_(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), "he_fan_in"),
            "network: got layer '', whose parametrisation",
        ),
        (lambda: weights("he_fan_in", 0, 3), "fan_out: got 0"),
        (lambda: weights("he_fan_in", 3, 2.0), "fan_in: got 2.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()

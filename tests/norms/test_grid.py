"""Norms of grids of random networks: against a loop over samples with autograd, and against the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fastspec as fs
from fastspec.initialization.schemes import stream, weights
from fastspec.norms import Grid, grid, norm_report, ratios
from fastspec.norms.coordinates import coordinates
from fastspec.theory import norms


def inputs(samples: int = 30, d: int = 7, seed: int = 0) -> Tensor:
    return fs.data.gaussian(samples, d, std=2.0, seed=seed, dtype=torch.float64)


def by_autograd(layers: list[Tensor], top: Tensor, x: Tensor, target: Tensor) -> tuple[list[float], list[float]]:
    """Forward and backward ratios of one network [nodes, below] on one sample [d]."""
    kept = [w.clone().requires_grad_() for w in layers]
    h, sizes = x, []
    for w in kept:
        z = w @ h
        h = z.relu()
        sizes.append(h.norm())
    loss = -(target * torch.log_softmax(top @ h, 0)).sum()
    *gradients, delta = torch.autograd.grad(loss, [*kept, z])
    size = x.norm()
    return [float((s / size).detach()) for s in sizes], [float(g.norm() / (size * delta.norm())) for g in gradients]


@pytest.mark.parametrize("packed", [None, True])
@pytest.mark.parametrize(("width", "depth"), [(9, 1), (9, 4), (17, 3)])
def test_ratios_are_those_of_single_samples(width, depth, packed):
    x = inputs()
    layers = [
        torch.stack([weights("he_fan_out", width, 7 if i == 0 else width, seed=s, layer=str(i)) for s in range(3)])
        for i in range(depth)
    ]
    top = torch.randn(3, 5, width, dtype=torch.float64)
    target = torch.rand(30, 5, dtype=torch.float64)
    target /= target.sum(1, keepdim=True)
    found = ratios.ratios(layers, top, x, target, packed=packed)
    assert found.forward.shape == found.backward.shape == (3, depth, 30)
    for s in range(3):
        for i in range(30):
            forward, backward = by_autograd([w[s] for w in layers], top[s], x[i], target[i])
            assert found.forward[s, :, i].tolist() == pytest.approx(forward, rel=1e-10, nan_ok=True)
            assert found.backward[s, :, i].tolist() == pytest.approx(backward, rel=1e-10, nan_ok=True)


@pytest.fixture
def small_pieces(monkeypatch):
    """One network and a few samples at a time."""
    monkeypatch.setattr(ratios, "CHUNK_BYTES", 1)
    monkeypatch.setattr(ratios, "FEWEST_SAMPLES", 7)
    monkeypatch.setattr(grid, "SLAB_BYTES", 1)


GRID = Grid(("he_fan_out", "default"), (8, 12), (1, 3), (0, 4, 9), outputs=4, steps=2)


def test_pieces_do_not_matter(small_pieces, monkeypatch):
    pieces = norm_report(GRID, {"a": inputs(), "b": inputs(40, 3)})
    monkeypatch.undo()
    whole = norm_report(GRID, {"a": inputs(), "b": inputs(40, 3)})
    for way in ("forward", "backward"):
        for name, tensor in getattr(whole, way)._asdict().items():
            torch.testing.assert_close(getattr(getattr(pieces, way), name), tensor, equal_nan=True)
    torch.testing.assert_close(pieces.coordinate, whole.coordinate, equal_nan=True)


def test_report_is_the_statistics_of_its_networks():
    x = inputs()
    report = norm_report(GRID, x)
    assert report.forward.mean.shape == (1, 2, 2, 2, 3, 3)
    target = grid.random_targets(30, 4)
    layers = [weights("default", 12, 7 if i == 0 else 12, seed=4, layer=str(i)) for i in range(3)]
    top = torch.randn(4, 12, dtype=torch.float64, generator=stream(4, "softmax"))
    single = [by_autograd(layers, top, x[i], target[i]) for i in range(30)]
    for way, values in zip((report.forward, report.backward), zip(*single, strict=True), strict=True):
        table = torch.tensor(values, dtype=torch.float64)  # [sample, layer]
        one = ratios.Spread(*(tensor[0, 1, 1, 1, 1] for tensor in way))
        torch.testing.assert_close(one.mean, table.mean(0))
        torch.testing.assert_close(one.std, table.std(0, correction=0), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(one.error, (1 - table).abs().mean(0))
        torch.testing.assert_close(one.square, table.square().mean(0))
        torch.testing.assert_close(one.square_std, table.square().std(0, correction=0), rtol=1e-6, atol=1e-7)
        worst = (1 - table).abs().max(0)
        torch.testing.assert_close(one.worst, worst.values)
        assert one.worst_sample[:-1].equal(worst.indices[:-1]) and not one.undefined.any()
    shallow = report.forward.mean[0, :, :, 0]
    assert shallow[..., 0].isfinite().all() and shallow[..., 1:].isnan().all()
    assert (report.forward.worst_sample[0, :, :, 0, :, 1:] == -1).all()


def test_labelled_arrays():
    report = norm_report(GRID, {"noise": inputs()})
    dataset = report.to_xarray()
    one = dataset.sel(data="noise", scheme="default", width=12, depth=3, seed=4, layer=2)
    assert float(one.backward_mean) == float(report.backward.mean[0, 1, 1, 1, 1, 1])
    assert dataset.coordinate.dims[-2:] == ("row", "step")
    assert "default, width 12, depth 3: forward" in str(report) and "noise, 30 samples" in str(report)


def test_expectations_are_those_of_theory():
    report = norm_report(Grid(width=(40,), depth=(2, 3)), {"noise": inputs()})
    found = report.expected(0.9)
    assert list(found) == [("noise", 40, 2), ("noise", 40, 3)]
    assert found["noise", 40, 3] == (
        norms.energy_variance(40, 3),
        norms.error_for(40, 0.9, samples=30, layers=3),
        norms.published_bound(40, 0.9, samples=30, layers=3),
    )


def test_dead_samples_are_counted_not_averaged():
    x = torch.eye(2, dtype=torch.float64)
    layers = [torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)]  # sample 1 reaches no node
    top, target = torch.tensor([[[1.0], [2.0]]], dtype=torch.float64), torch.tensor([[1.0, 0.0]] * 2).double()
    found = ratios.ratios(layers, top, x, target)
    assert found.forward[0, 0].tolist() == [1.0, 0.0]
    assert found.backward[0, 0, 0] == 1.0 and found.backward[0, 0, 1].isnan()
    running = ratios.Running()
    running.add(found.backward)
    running.add(found.backward[..., :1])
    spread = running.finish()
    assert int(spread.undefined) == 1 and float(spread.mean) == 1.0 and float(spread.worst) == 0.0
    none = ratios.Running()
    none.add(found.backward[..., 1:])
    spread = none.finish()
    assert (
        int(spread.undefined) == 1 and spread.mean.isnan() and spread.worst.isnan() and int(spread.worst_sample) == -1
    )


SEEDS = 60


@pytest.mark.parametrize(("scheme", "width", "factor"), [
    ("he_fan_out", 40, 1.0), ("he_fan_in", 40, 1.0), ("inverse_fan_out", 40, 0.5), ("weight_norm", 40, 0.5),
    ("weight_norm_scaled", 40, 1.0), ("orthogonal", 40, 1.0), ("default", 40, 1 / 6),
])  # fmt: skip
def test_each_layer_multiplies_the_energy(scheme, width, factor):
    d, depth = 25, 4
    report = norm_report(Grid((scheme,), (width,), (depth,), range(SEEDS)), inputs(20, d))
    energy = report.forward.square[0, 0, 0, 0]  # [seed, layer]
    first = fs.initialization.SCHEMES[scheme].energy(d, width)
    for layer in range(depth):
        error = float(energy[:, layer].std()) / math.sqrt(SEEDS)
        assert abs(float(energy[:, layer].mean()) - first * factor**layer) < 4 * error


def test_variance_of_the_energy_is_exact():
    seeds, width, depth = 1000, 60, 3
    report = norm_report(Grid(("he_fan_out",), (width,), (depth,), range(seeds)), inputs(1, 6))
    deviation = (report.forward.square[0, 0, 0, 0] - 1).square()  # [seed, layer]
    for layer in range(depth):
        error = float(deviation[:, layer].std()) / math.sqrt(seeds)
        assert abs(float(deviation[:, layer].mean()) - norms.energy_variance(width, layer + 1)) < 4 * error


def test_norms_are_within_the_bounds():
    samples, depth, width = 200, 4, 600
    report = norm_report(Grid(("he_fan_out",), (width,), (depth,), (0, 1)), inputs(samples, 50))
    each = norms.error_for(width, 0.99, samples=samples, layers=depth)  # of the squared norm, in every layer
    for layer in range(depth):
        bound = (1 + each) ** ((layer + 1) / 2) - 1
        assert float(report.forward.worst[..., layer].max()) < bound
        assert float(report.forward.worst[..., layer].max()) > bound / 8  # it says something
    published = norms.published_bound(width, 0.95, samples=samples, layers=depth)
    assert float(report.forward.error.mean()) < published < float(report.forward.worst.max())


def test_coordinates():
    x, d, width = inputs(20, 6), 6, 10
    layers = [torch.randn(2, width, d, dtype=torch.float64) / 3, torch.randn(2, width, width, dtype=torch.float64) / 3]
    top, target = torch.randn(2, 3, width, dtype=torch.float64), torch.full((20, 3), 1 / 3, dtype=torch.float64)
    found = coordinates(layers, top, x, target, steps=3, lr=0.1)
    assert found.shape == (2, 3, 4)
    for p in range(2):
        net = fs.MLP.from_weights([(layers[0][p], None), (layers[1][p], None), (top[p], None)])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for step in range(4):
            activations, output = net.activations_and_output(x)
            sizes = [float(h.square().mean().sqrt()) for h in (*activations, output)]
            assert found[p, :, step].tolist() == pytest.approx(sizes, rel=1e-9)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(output, target).backward()
            optimizer.step()


def test_coordinate_check_of_a_grid_sees_the_scale():
    report = norm_report(Grid(("he_fan_out", "he_fan_in"), (30, 120, 480), (3,), (0, 1, 2)), inputs(50, 30))
    size = report.coordinate[0, :, :, 0].mean(2)[:, :, 2, 0]  # [scheme, width], uppermost hidden layer
    slope = (size[:, 2] / size[:, 0]).log() / math.log(16)
    assert abs(float(slope[0]) + 0.5) < 0.1 and abs(float(slope[1])) < 0.1  # 1 / sqrt(width), and level
    logits = report.coordinate[0, :, :, 0, :, 3, 0].mean(-1)  # of weights N(0, 1 / width)
    assert (logits / size > 0.7).all() and (logits / size < 1.4).all()


def test_the_text_has_means_and_the_worst():
    report = norm_report(Grid(width=(5,), depth=(1, 3)), inputs())
    for line, k in zip(str(report).splitlines()[-2:], range(2), strict=True):
        for way, spread in (("forward", report.forward), ("backward", report.backward)):
            error, worst = (table[0, 0, 0, k, 0] for table in (spread.error, spread.worst))  # [layer]
            assert f"{way} {float(error.nanmean()):.3f} ({float(worst.nan_to_num(0).max()):.2f})" in line


def test_the_coordinate_check_looks_at_few_samples():
    x = inputs(grid.CHECKED_SAMPLES + 9)
    few, all_of_them = (norm_report(Grid(width=(5,), depth=(2,)), part).coordinate for part in (x[:-9], x))
    assert torch.equal(few, all_of_them)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": ("xavier",)}, "scheme: got 'xavier'"),
        ({"scheme": "he_fan_in"}, "scheme: got 'he_fan_in'; takes a sequence"),
        ({"width": ()}, "width: got"),
        ({"width": (5, 5)}, "width: got"),
        ({"depth": (0,)}, "depth: got 0"),
        ({"seeds": (-1,)}, "seeds: got -1"),
        ({"outputs": 1}, "outputs: got 1"),
        ({"steps": -1}, "steps: got -1"),
        ({"lr": math.nan}, "lr: got nan"),
    ],
)
def test_bad_grids(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        norm_report(Grid(**change), inputs())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(4, 3), "data: got 4 samples that are all 0"),
        (torch.full((4, 3), torch.nan), "data: got 12 of 12 values"),
        (torch.ones(4), "data: got shape"),
        (torch.ones(0, 3), "data: got shape"),
        ({}, "data: got no data sets"),
        ({"x": torch.ones(4, dtype=torch.int64)}, r"data\['x'\]: got dtype"),
        ([torch.ones(4, 3)], "data: got list"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises((ValueError, TypeError), match=message):
        norm_report(Grid(width=(5,)), data)


def test_networks_of_another_kind():
    with pytest.raises(TypeError, match="networks: got str; takes a Grid or a Module"):
        norm_report("resnet", inputs())

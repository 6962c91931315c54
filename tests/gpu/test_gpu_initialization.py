"""Norms at initialisation and closed forms on the GPU: what the CPU finds."""

from __future__ import annotations

import pytest
import torch
from gpu_problems import DEVICE
from torch import nn

import fastspec as fs
from fastspec.norms import Grid
from fastspec.theory import gaussian

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grids(dtype):
    grid = Grid(("he_fan_out", "orthogonal"), (30, 100), (1, 4), (0, 1, 2), steps=2)
    x = fs.data.gaussian(500, 40, dtype=dtype)
    here, there = (fs.norm_report(grid, data) for data in (x, x.to(DEVICE)))
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    for way in ("forward", "backward"):
        for name, tensor in getattr(here, way)._asdict().items():
            if name != "worst_sample":
                torch.testing.assert_close(getattr(getattr(there, way), name), tensor, equal_nan=True, **tolerance)
    torch.testing.assert_close(there.coordinate, here.coordinate, equal_nan=True, **tolerance)


def test_modules():
    convolution = nn.Conv2d(2, 8, 3, padding=1)
    network = nn.Sequential(convolution, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(200, 30), nn.ReLU())
    network.append(nn.Linear(30, 4)).double()
    x = torch.randn(50, 2, 5, 5, dtype=torch.float64)
    here = fs.norm_report(network, x)
    there = fs.norm_report(network.to(DEVICE), x)
    for one, other in zip(here.layers, there.layers, strict=True):
        assert (one.name, one.verdict) == (other.name, other.verdict)
        for part in ("gain", "forward", "backward"):
            torch.testing.assert_close(getattr(other, part).mean.cpu(), getattr(one, part).mean)


def test_schemes_draw_the_same_weights():
    layers = [nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5)).to(device) for device in ("cpu", DEVICE)]
    for name in fs.initialization.SCHEMES:
        for network in layers:
            fs.initialization.draw_(network, name, seed=3)
        for one, other in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
            assert torch.equal(one, other.cpu())


@pytest.mark.parametrize("bias", [False, True])
def test_closed_forms(bias):
    sides = [(torch.randn(n, 6), torch.randn(n) if bias else None) for n in (4, 7)]
    moved = [(w.to(DEVICE), None if b is None else b.to(DEVICE)) for w, b in sides]
    here, there = gaussian.layer_moments(*sides), gaussian.layer_moments(*moved)
    torch.testing.assert_close(there.correlation().cpu(), here.correlation())
    torch.testing.assert_close(there.observation().cpu(), here.observation())

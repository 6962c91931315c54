"""Batch-norm biases: of modules, state dicts and files, made by hand and by training on digits."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fastspec as fs
from fastspec.batchnorm import VGG19_BN, batchnorm_bias


def by_hand() -> nn.Sequential:
    """12 layers, of which 1, 4 and 10 are batch norms: 1 of 4, 3 of 4 and 0 of 2 biases are not positive."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.LayerNorm(4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2), nn.BatchNorm1d(2), nn.ReLU(),
    )  # fmt: skip
    net[1].bias.data = torch.tensor([0.1, -0.2, 0.3, 1e-30])
    net[4].bias.data = torch.tensor([-0.1, 0.0, -0.0, 0.3])
    net[10].bias.data = torch.tensor([0.1, 0.2])
    return net


FOUND = {"1": 25.0, "4": 75.0, "10": 0.0}


def test_module_and_state_dict():
    for network in (by_hand(), by_hand().state_dict(), {"state_dict": by_hand().state_dict(), "epoch": 3}):
        found = batchnorm_bias(network)
        assert found.percent == FOUND and list(found.percent) == list(FOUND)
    assert batchnorm_bias(nn.BatchNorm1d(3)).percent == {"": 100.0}
    assert str(batchnorm_bias(by_hand())).splitlines()[2].split() == ["4", "4", "75.00", "%"]


@pytest.mark.parametrize("file", ["net.pt", "net.pth", "net.safetensors", "checkpoint.pt", "parallel.pt"])
def test_files(file, tmp_path):
    state = by_hand().state_dict()
    path = tmp_path / file
    if path.suffix == ".safetensors":
        save_file(state, path)  # whose header is in alphabetical order
    elif file == "checkpoint.pt":
        torch.save({"epoch": 3, "model": state, "optimizer": {"lr": 0.1}}, path)
    elif file == "parallel.pt":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    prefix = "module." if file == "parallel.pt" else ""
    assert batchnorm_bias(path).percent == {f"{prefix}{name}": value for name, value in FOUND.items()}
    assert list(batchnorm_bias(str(path)).percent) == [f"{prefix}{name}" for name in FOUND]


def test_a_network_trained_on_digits(tmp_path):
    digits = fs.data.digits()
    network = fs.MLP([64, 40, 40, 10], batch_norm="before")
    assert list(batchnorm_bias(network).percent.values()) == [100.0, 100.0]  # as they start, at 0
    fs.train(digits.train.y, network, digits.train.x, steps=300, lr=0.01, optimizer=torch.optim.Adam)
    found = batchnorm_bias(network).percent
    assert found == {f"norms.{i}": 100 * float((network.norms[i].bias <= 0).double().mean()) for i in (0, 1)}
    assert 30 < found["norms.0"] < 95  # nodes of the first layer have become active on a minority of the digits
    network.save(tmp_path / "network.safetensors")
    assert batchnorm_bias(tmp_path / "network.safetensors").percent == found


def test_published_reading():
    assert len(VGG19_BN) == 16 and VGG19_BN[0] == 81.25 and VGG19_BN[-1] == 100.0
    channels = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    for percent, width in zip(VGG19_BN, channels, strict=True):  # percentages of so many channels
        assert abs(percent * width / 100 - round(percent * width / 100)) < 0.005 * width / 100 + 1e-9


def test_bad_input(tmp_path):
    spoilt = by_hand()
    spoilt[4].bias.data[0] = torch.nan
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "x.pt").write_text("x")
    (tmp_path / "x.safetensors").write_text("x")
    torch.save(by_hand(), tmp_path / "module.pt")
    save_file({"w": torch.ones(2)}, tmp_path / "none.safetensors")
    for network, message in (
        (nn.Linear(3, 2), "network: got no BatchNorm layer"),
        ({}, "network: got no BatchNorm layer"),
        (3, "network: got int"),
        (spoilt, "network, bias of '4': got 1 of 4"),
        (tmp_path / "nowhere.pt", "network '.*nowhere.pt': got no such file"),
        (tmp_path / "x.txt", "got the suffix '.txt'"),
        (tmp_path / "x.pt", "network '.*x.pt': got a truncated or foreign file"),
        (tmp_path / "x.safetensors", "network '.*x.safetensors': got a truncated or foreign file"),
        (
            tmp_path / "module.pt",
            "network '.*module.pt': got a truncated or foreign file, or one of more than tensors;",
        ),
        (tmp_path / "none.safetensors", "got no BatchNorm layer"),
    ):
        with pytest.raises((ValueError, TypeError, OSError), match=message):
            batchnorm_bias(network)

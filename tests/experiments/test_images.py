"""Images: every data set and kind of teacher, pruning, what is measured, and the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from image_folders import write_cifar10, write_mnist

from fastspec import data
from fastspec.experiments.cli import main
from fastspec.experiments.digits import measurement
from fastspec.networks import MLP, ConvNet
from fastspec.pruning import prune
from fastspec.tensor_files import load_tensors


def of(weights, prefix, network):
    """A network with the saved weights."""
    with torch.no_grad():
        for i, layer in enumerate(network.layers, start=1):
            layer.weight.copy_(weights[f"{prefix}.w{i}"])
            layer.bias.copy_(weights[f"{prefix}.b{i}"])
    return network


def weights_of(folder):
    return load_tensors(folder / "weights.safetensors", "weights of a run")[0]


def test_without_pruning_it_is_the_digits_run(tiny_digits, tiny_images, tmp_path):
    plain = replace(tiny_images, network="dense", prune=0.0, evaluation_samples=0)
    found, expected = plain.run(tmp_path / "images"), tiny_digits.run(tmp_path / "digits")
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert found.teacher_nodes.values.tolist() == [6, 5]
    assert found.whole_teacher_accuracy_held_out == found.teacher_accuracy_held_out


def test_a_pruned_convolutional_teacher(tiny_images, tmp_path):
    results = tiny_images.run(tmp_path / "pruned")
    weights = weights_of(tmp_path / "pruned")
    whole = replace(tiny_images, prune=0.0).run(tmp_path / "whole")
    unpruned = of(weights_of(tmp_path / "whole"), "teacher", ConvNet((1, 8, 8), [6, 5], 10))
    teacher = of(weights, "teacher", ConvNet((1, 8, 8), [4, 4], 10))
    for layer, expected in zip(teacher.layers, prune(unpruned, 0.34).network.layers, strict=True):
        assert torch.equal(layer.weight, expected.weight)
    assert results.teacher_nodes.values.tolist() == [4, 4] and whole.teacher_nodes.values.tolist() == [6, 5]
    assert results.whole_teacher_accuracy_held_out == whole.teacher_accuracy_held_out
    assert results.best_correlation.isel(teacher=slice(4, None)).isnull().all()

    held_out = data.digits().held_out
    held_out = data.Samples(held_out.x[:100].reshape(-1, 1, 8, 8), held_out.y[:100])
    student = of(weights, "student x2 seed 1", ConvNet((1, 8, 8), [8, 8], 10))
    for name, value in measurement(teacher, student, held_out, 6).items():
        np.testing.assert_allclose(results[name].sel(multi=2, seed=1).isel(step=-1), value, rtol=1e-5)


@pytest.mark.parametrize("network", ["dense", "convolutional"])
@pytest.mark.parametrize(("name", "write"), [("mnist", write_mnist), ("cifar10", write_cifar10)])
def test_local_files(name, write, network, tiny_images, tmp_path):
    (tmp_path / "files").mkdir()
    write(tmp_path / "files")
    options = replace(
        tiny_images, data=name, folder=str(tmp_path / "files"), network=network, samples=4, batch_size=4, seeds=1,
        multi=(1,), evaluation_samples=0,
    )  # fmt: skip
    splits = options.splits()
    source = (data.mnist if name == "mnist" else data.cifar10)(tmp_path / "files", flat=network == "dense")
    assert torch.equal(splits.train.x, source.train.x[:4]) and torch.equal(splits.train.y, source.train.y[:4])
    assert torch.equal(splits.held_out.x, source.held_out.x)
    assert isinstance(options.untrained(), MLP if network == "dense" else ConvNet)
    results = options.run(tmp_path / "run")
    assert results.train_images == 4 and results.held_out_images == len(source.held_out)
    assert results.loss.notnull().all()
    assert main(["report", str(tmp_path / "run")]) == 0


def test_more_images_than_there_are(tiny_images):
    with pytest.raises(ValueError, match=r"^samples: got 1348; takes at most 1347"):
        replace(tiny_images, samples=1348).splits()
    assert len(replace(tiny_images, samples=1347, evaluation_samples=9999).splits().held_out) == 450


def test_damaged_files_are_named(tiny_images, tmp_path):
    (tmp_path / "files").mkdir()
    write_mnist(tmp_path / "files")
    file = tmp_path / "files" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    options = replace(tiny_images, data="mnist", folder=str(tmp_path / "files"), samples=4, batch_size=4)
    with pytest.raises(ValueError, match=r"^file .*t10k-images"):
        options.run(tmp_path / "run")
    write_mnist(tmp_path / "files")
    assert options.run(tmp_path / "run").loss.notnull().all()  # mended, the same run goes on


def test_report(tiny_images, tmp_path, capsys):
    tiny_images.run(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "convolutional teacher of scikit-learn's digits" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.md").read_text()
    assert "6-5 hidden channels" in page and "left 4-4" in page
    assert {path.stem for path in (tmp_path / "run" / "figures").iterdir()} == {"layer-scores", "matches"}

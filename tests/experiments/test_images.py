"""Images: every data set and kind of teacher, pruning, what is measured, and the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from image_folders import write_cifar10, write_mnist

from fastspec import data
from fastspec.digits_report import layer_table
from fastspec.experiments import cli, digits
from fastspec.experiments.cli import main
from fastspec.experiments.console import Console
from fastspec.experiments.digits import accuracy, classes, flush_, measurement
from fastspec.experiments.images import CIFAR10, Images
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
    assert "Students of a pruned convolutional teacher of scikit-learn's digits" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.md").read_text()
    assert "6-5 hidden channels" in page and "left 4-4" in page
    assert {path.stem for path in (tmp_path / "run" / "figures").iterdir()} == {"layer-scores", "matches"}


def test_wide_convolutional_students_stay_alive_by_default(tmp_path):
    options = Images(network="convolutional", multi=(5,), teacher_steps=30, student_steps=3, measurements=2)
    results = options.run(tmp_path)
    assert (results.constant_students.isel(step=-1) < 125).all()


def test_augmented_epochs(tiny_images, tmp_path):
    (tmp_path / "files").mkdir()
    write_cifar10(tmp_path / "files")
    options = replace(
        tiny_images, data="cifar10", folder=str(tmp_path / "files"), augment=True, batch_size=5, prune=0.0
    )
    x = options.splits().train.x
    draw = options.inputs(x, 7)
    assert torch.equal(draw(2), data.crops_and_flips(x, seed=7, epoch=2))
    flat = replace(options, network="dense")
    assert torch.equal(flat.inputs(x.flatten(1), 7)(2), draw(2).flatten(1))
    found = options.run(tmp_path / "augmented")
    plain = replace(options, augment=False).run(tmp_path / "plain")
    assert (found.loss.isel(step=-1) != plain.loss.isel(step=-1)).all()
    with pytest.raises(ValueError, match="augment: got True with digits"):
        replace(tiny_images, augment=True).run(tmp_path / "digits")


def test_activations_are_never_those_of_all_images():
    seen = []
    network = ConvNet((1, 8, 8), [2], 10)
    network.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    samples = data.Samples(data.gaussian(700, (1, 8, 8)), torch.arange(700) % 10)
    with torch.no_grad():
        expected = network(samples.x).argmax(1)
    del seen[:]
    assert torch.equal(classes(network, samples.x), expected)
    assert accuracy(network, samples) == (expected == samples.y).double().mean()
    assert max(seen) <= 256


def test_subnormal_weights_are_flushed(tiny_images, tmp_path, monkeypatch):
    tiny = torch.finfo(torch.float32).tiny
    network = MLP([2, 1, 1], bias=False)
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.tensor([[tiny / 2, tiny]]))
        network.layers[1].weight.copy_(torch.tensor([[-tiny / 4]]))
    flush_(network)
    assert network.layers[0].weight.tolist() == [[0.0, tiny]] and network.layers[1].weight.item() == 0.0

    def spoilt(*arguments, **options):
        history = train(*arguments, **options)
        with torch.no_grad():
            arguments[1].layers[0].weight[0] = tiny / 2
        return history

    train = digits.train
    monkeypatch.setattr(digits, "train", spoilt)
    weights = replace(tiny_images, prune=0.0).run(tmp_path) and weights_of(tmp_path)
    assert (weights["teacher.w1"][0] == 0).all()


class Stopping(Console):
    """A console that notes where each stage begins, and on which somebody presses Ctrl-C in a stage at a step."""

    def __init__(self, stage=0, step=10**9):
        super().__init__(quiet=True)
        self.titles, self.begun, self.at = [], [], (stage, step)

    def stage(self, title, unit="steps"):
        inner, number = super().stage(title, unit), len(self.begun)
        self.titles.append(title)
        self.begun.append(None)
        console = self

        class Stage:
            def __enter__(self):
                advance = inner.__enter__()

                def noted(done, total):
                    if console.begun[number] is None:
                        console.begun[number] = done
                    if number == console.at[0] and done >= console.at[1]:
                        raise KeyboardInterrupt
                    advance(done, total)

                return noted

            def __exit__(self, *error):
                return inner.__exit__(*error)

        return Stage()


@pytest.mark.parametrize(("stage", "step"), [(0, 1), (1, 3), (2, 8)])
def test_a_run_goes_on_within_a_training(stage, step, tiny_images, tmp_path):
    options = replace(tiny_images, teacher_steps=300)
    whole = options.run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        options.run(tmp_path / "broken", console=Stopping(stage, step))
    console = Stopping()
    assert options.run(tmp_path / "broken", console=console).identical(whole)
    assert console.begun[0] >= step and not any(console.begun[1:])
    assert console.titles[-1] == "images: student 4 of 4, 2×, learns logits"


def test_a_teacher_that_diverges_is_refused(tiny_images, tmp_path):
    with pytest.raises(
        ValueError, match=r"^teacher_lr: got 1e\+30, with which the teacher diverges at step \d+; takes"
    ):
        replace(tiny_images, teacher_lr=1e30).run(tmp_path)


def test_students_that_diverge_are_reported(tiny_images, tmp_path):
    results = replace(tiny_images, student_lr=50.0, student_steps=60, network="dense", prune=0.0).run(tmp_path)
    assert (results.diverged_step > 0).all() and results.loss.isel(step=-1).isnull().all()
    assert results.loss.isel(step=0).notnull().all()
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.md").read_text()
    assert "| student 2× | diverged | – | – |" in page and "| 1 | 2× | – |" in page and "| nan" not in page


def test_layers_without_live_nodes_are_reported(tiny_images, tmp_path):
    results = tiny_images.run(tmp_path)
    assert "no node varies" not in {row[2] for row in layer_table(results, [4, 4]).rows}
    results.layer_score.loc[{"layer": 2, "multi": 1}] = np.nan
    rows = {(row[0], row[1]): row[2] for row in layer_table(results, [4, 4]).rows}
    assert [layer for layer, score in rows.items() if score == "no node varies"] == [("2", "1×")]


def test_the_preset_is_asked_for_by_name(monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "_run", lambda *call: asked.append(call))
    assert main(["images", "--preset", "cifar10", "--folder", "files", "--prune", "0.1"]) == 0
    assert asked == [(replace(CIFAR10, folder="files", prune=0.1), cli.RUNS / "images-cifar10", False)]
    assert CIFAR10.untrained().architecture() == ConvNet((3, 32, 32), [64] * 4, 10).architecture()

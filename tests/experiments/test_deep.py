"""Deep runs: what they record, side by side and with batch norm, and the published presets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastspec import data, teachers
from fastspec.experiments import cli
from fastspec.experiments.cli import main
from fastspec.experiments.console import Console
from fastspec.experiments.deep import LUCK_MATTERS, STUDENT_SPECIALIZATION, Deep
from fastspec.experiments.deep_job import HELD_OUT_SEED
from fastspec.measure import measure
from fastspec.networks import MLP
from fastspec.tensor_files import load_tensors
from fastspec.theory import backward_gram


@pytest.fixture(scope="module")
def run(tiny_deep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep") / "run"
    return tiny_deep.run(folder), load_tensors(folder / "weights.safetensors", "weights of a run")[0]


def network(weights, prefix):
    return MLP.from_weights([(weights[f"{prefix}.w{i}"], weights[f"{prefix}.b{i}"]) for i in (1, 2, 3)])


def test_the_end_is_what_the_saved_weights_give(run, tiny_deep):
    results, weights = run
    held_out = data.gaussian(80, 5, std=1.0, seed=HELD_OUT_SEED)
    teacher = network(weights, "teacher")
    for samples in (60, 100):
        for multi in (1, 2):
            for seed in (0, 1):
                student = network(weights, f"n{samples}-x{multi}.student seed {seed}")
                found = results.sel(samples=samples, multi=multi, seed=seed).isel(step=-1)
                measured = measure(teacher, student, held_out)
                np.testing.assert_allclose(found.loss, measured.loss, rtol=1e-5)
                for layer, (moments, m) in enumerate(zip(measured.layers.values(), (3, 4), strict=True)):
                    one = found.isel(layer=layer)
                    np.testing.assert_allclose(one.layer_score, moments.layer_score(), atol=1e-5)
                    np.testing.assert_allclose(one.best_correlation[:m], moments.best_student().values, atol=1e-5)
                    np.testing.assert_array_equal(one.best_student[:m], moments.best_student().indices)
                    n = m * multi
                    best = moments.best_teacher().values
                    np.testing.assert_allclose(one.max_correlation[:n], best, atol=1e-5)
                    assert np.isnan(one.max_correlation[n:]).all() and np.isnan(one.best_correlation[m:]).all()


def test_winners_lead_at_the_end_and_students_learn(run):
    results, _ = run
    last, first = results.isel(step=-1), results.isel(step=0)
    known = last.best_correlation.notnull()
    assert (last["rank"].where(known) == 0).sum() == known.sum()
    assert (first["rank"] > 0).any()
    assert (last.loss < 0.7 * first.loss).all() and (last.diverged_step == -1).all()
    assert np.isnan(first.loss_train).all() and (results.loss_train.isel(step=slice(1, None)) > 0).all()


def test_seeds_are_what_they_are_alone(run, tiny_deep, tmp_path):
    results, _ = run
    alone = replace(tiny_deep, seeds=1, multi=(2,), samples=(100,)).run(tmp_path)
    chosen = results.sel(samples=[100], multi=[2], seed=[0])
    for name in ("loss", "layer_score"):
        np.testing.assert_allclose(alone[name], chosen[name], rtol=1e-3)


@pytest.mark.parametrize("batch_norm", ["before", "after"])
def test_batch_norm_and_fresh_samples(batch_norm, tiny_deep, tmp_path):
    options = replace(tiny_deep, batch_norm=batch_norm, fresh=True, samples=(60,), multi=(2,))
    results = options.run(tmp_path)
    assert results.loss.notnull().all() and (results.isel(step=-1).loss < results.isel(step=0).loss).all()
    assert (results.loss.isel(step=0).sel(seed=0) != results.loss.isel(step=0).sel(seed=1)).all()


class Interrupting(Console):
    """A console on which somebody presses Ctrl-C at the n-th report of progress."""

    def __init__(self, reports):
        super().__init__(quiet=True)
        self.reports = reports

    def _safe_point(self):
        self.reports -= 1
        if self.reports == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("reports", [3, 9])
def test_an_interrupted_run_with_batch_norm_goes_on(reports, tiny_deep, tmp_path):
    options = replace(tiny_deep, batch_norm="before", samples=(60,), multi=(2,))
    whole = options.run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        options.run(tmp_path / "broken", console=Interrupting(reports))
    assert options.run(tmp_path / "broken").identical(whole)


def test_a_lost_measurement_is_made_again(tiny_deep, tmp_path):
    options = replace(tiny_deep, samples=(60,), multi=(2,))
    whole = options.run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        options.run(tmp_path / "broken", console=Interrupting(6))
    lost = sorted((tmp_path / "broken" / "parts").glob("*.step*"))
    assert lost and list((tmp_path / "broken" / "parts").glob("*.checkpoint"))
    lost[0].unlink()
    assert options.run(tmp_path / "broken").identical(whole)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_student_that_diverges(seeds, tiny_deep, tmp_path):
    results = replace(tiny_deep, samples=(60,), multi=(2,), seeds=seeds, lr=1e6, lr_drop_epoch=0).run(tmp_path)
    assert (results.diverged_step >= 0).all()
    assert results.loss.isel(step=0).notnull().all() and results.loss.isel(step=-1).isnull().all()
    cli.redraw(tmp_path)


def test_a_tuned_teacher_is_half_active():
    job = Deep(hidden=(4, 5), inputs=6, outputs=7, tuned=True, evaluation_samples=1001).jobs()[0]
    teacher, x = job.teacher(), job.inputs(1001, HELD_OUT_SEED)
    first, second = [(activation > 0).double().mean(0) for activation in teacher.activations(x)]
    assert (first - 0.5).abs().max() < 0.002 and (second < 0.501).all() and (second - 0.5).abs().median() < 0.02
    assert torch.allclose(teacher(x).std(0), torch.ones(7), atol=1e-3)


def test_the_rate_is_that_of_the_mean_over_samples_and_outputs(tiny_deep, tmp_path):
    """One step from one batch of all samples, by torch.nn.MSELoss and torch.optim.SGD."""
    options = replace(tiny_deep, samples=(10,), multi=(2,), seeds=1, steps=1, lr_drop_epoch=0, dtype="float64")
    options.run(tmp_path)
    weights = load_tensors(tmp_path / "weights.safetensors", "weights of a run")[0]
    teacher = network(weights, "teacher")
    from fastspec.networks import student_like

    student, x = student_like(teacher, multi=2, seed=0), data.gaussian(10, 5, std=1.0, dtype=torch.float64)
    optimizer = torch.optim.SGD(student.parameters(), options.lr)
    torch.nn.functional.mse_loss(student(x), teacher(x).detach()).backward()
    optimizer.step()
    for name, tensor in (("w1", student.layers[0].weight), ("b3", student.layers[2].bias)):
        torch.testing.assert_close(weights[f"n10-x2.student seed 0.{name}"], tensor.detach())


def test_presets(monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "_run", lambda *call: asked.append(call))
    assert main(["deep", "--preset", "luck-matters", "--seeds", "3"]) == 0
    assert main(["deep", "--preset=student-specialization"]) == 0
    assert main(["deep"]) == 0
    (first, out, _), (second, _, _), (third, elsewhere, _) = asked
    assert first == replace(LUCK_MATTERS, seeds=3) and second == STUDENT_SPECIALIZATION and third == Deep()
    assert (out, elsewhere) == (cli.RUNS / "deep-luck-matters", cli.RUNS / "deep")
    assert LUCK_MATTERS.snapshots[-1] == LUCK_MATTERS.steps == 40 * (100_000 // 64)
    assert STUDENT_SPECIALIZATION.steps * STUDENT_SPECIALIZATION.batch_size == 2 * 10**7
    assert STUDENT_SPECIALIZATION.weight_set == teachers.STUDENT_SPECIALIZATION
    assert LUCK_MATTERS.weight_set == teachers.LUCK_MATTERS


def test_a_preset_of_another_command_is_a_mistake(capsys):
    assert main(["deep", "--preset", "icml2020"]) == 2
    assert "icml2020" in capsys.readouterr().err


def test_deep_and_report(tiny_deep, tmp_path, capsys):
    tiny_deep.run(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Layer scores" in shown and "100 samples" in shown
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert drawn == {"scores", "losses", "ranks", "matches", "blocks", "l-shape"}


def test_strength_is_how_outputs_answer_a_node(run):
    """By autograd: the derivative of the outputs with respect to a hidden activation."""
    results, weights = run
    student = network(weights, "n100-x2.student seed 1").double()
    x = data.gaussian(80, 5, std=1.0, seed=HELD_OUT_SEED, dtype=torch.float64)
    squares = [torch.zeros(6, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)]
    activations, output = student.activations_and_output(x)
    for c in range(6):
        gradients = torch.autograd.grad(output[:, c].sum(), activations, retain_graph=True)
        for total, g in zip(squares, gradients, strict=True):
            total += g.square().sum(0)
    found = results.strength.sel(samples=100, multi=2, seed=1).isel(step=-1)
    for layer, total in enumerate(squares):
        np.testing.assert_allclose(found.isel(layer=layer)[: len(total)], (total / len(x)).sqrt(), rtol=1e-4)
    assert results.teacher_strength.isel(layer=1, teacher=slice(4)).notnull().all()
    assert (results.teacher_activity.isel(layer=0, teacher=slice(3)) > 0).all()


def test_blocks_make_up_the_whole(run):
    results, weights = run
    student, teacher = network(weights, "n100-x2.student seed 0"), network(weights, "teacher")
    grams = backward_gram(teacher, student, data.gaussian(80, 5, std=1.0, seed=HELD_OUT_SEED))
    one = results.sel(samples=100, multi=2, seed=0).isel(step=-1)
    for layer, gram in enumerate(grams.values()):
        for name, matrix in (("beta_blocks", gram.beta_student_student), ("h_blocks", gram.h_student_student)):
            winners, across, others = one[name].isel(layer=layer).values
            whole = winners**2 + 2 * across**2 + others**2
            np.testing.assert_allclose(whole, matrix.square().sum(), rtol=1e-4)
            wins = torch.from_numpy(np.unique(one.best_student.isel(layer=layer)[: (3, 4)[layer]]))
            np.testing.assert_allclose(winners, matrix[wins][:, wins].norm(), rtol=1e-4)
    assert results.beta_blocks.sel(seed=1).isnull().all()

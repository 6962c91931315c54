"""Tiny experiments, a second each."""

from __future__ import annotations

import shutil

import pytest

from fastspec.experiments.ablation import Ablation
from fastspec.experiments.deep import Deep
from fastspec.experiments.digits import Digits
from fastspec.experiments.images import Images
from fastspec.experiments.init import Init
from fastspec.experiments.matrix_dynamics import MatrixDynamics
from fastspec.experiments.ode import Ode
from fastspec.experiments.sample_complexity import SampleComplexity
from fastspec.experiments.two_layer import TwoLayer


@pytest.fixture(scope="session")
def tiny_two_layer():
    return TwoLayer(
        teacher_nodes=(2, 3), multi=(1, 2), teacher_strength_decay=(0.0, 1.0), seeds=2, inputs=6, outputs=4,
        samples=200, evaluation_samples=100, steps=60, lr=0.05, measurements=4,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_digits():
    return Digits(hidden=(6, 5), multi=(1, 2), seeds=2, teacher_steps=30, student_steps=20, measurements=3)


@pytest.fixture(scope="session")
def tiny_matrix_dynamics():
    return MatrixDynamics(
        widths=(4, 3, 5, 4), seeds=2, batch_size=8, steps=20, evaluation_samples=50, measurements=4, dtype="float32"
    )


@pytest.fixture(scope="session")
def tiny_init():
    return Init(
        scheme=("he_fan_out", "default"), width=(5, 9), depth=(1, 3), seeds=3, data=("gaussian", "digits"), inputs=6,
        samples=20, outputs=3, steps=2,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_deep():
    return Deep(
        hidden=(3, 4), inputs=5, outputs=6, multi=(1, 2), seeds=2, samples=(60, 100), evaluation_samples=80,
        data_std=1.0, steps=40, batch_size=10, lr=0.3, lr_drop_epoch=5, measurements=4,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_ode():
    return Ode(inputs=(10, 20), seeds=3, time=3.0, measurements=4, lean=0.2)


@pytest.fixture(scope="session")
def tiny_ablation():
    return Ablation(
        hidden=(3, 4), inputs=5, outputs=(6, 4), multi=(2, 1), batch_norm=("none", "before"),
        teacher=("separated", "random"), batch_size=(10, 20), lr=(0.3, 0.1), data_std=(1.0, 2.0), seeds=2, samples=60,
        evaluation_samples=80, epochs=2,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_sample_complexity():
    return SampleComplexity(
        hidden=(3, 4), inputs=5, outputs=6, multi=(1, 2), seeds=2, samples=(20, 100), evaluation_samples=80, steps=40,
        batch_size=10, lr=0.3, boundary_mean=1.0, boundary_sigma=0.5,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_images():
    return Images(
        hidden=(6, 5), multi=(1, 2), seeds=2, teacher_steps=30, student_steps=20, measurements=3,
        evaluation_samples=100, network="convolutional", prune=0.34,
    )  # fmt: skip


@pytest.fixture(scope="session")
def finished_digits(tiny_digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "digits"
    tiny_digits.run(folder)
    return folder


@pytest.fixture
def digits_run(finished_digits, tmp_path):
    """A finished digits run, to be spoilt."""
    return shutil.copytree(finished_digits, tmp_path / "run")

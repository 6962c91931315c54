"""fastspec: which student node has become which teacher node, when, and why.

import fastspec as fs

teacher = fs.teachers.separated([20, 50, 75, 100], seed=0)
student = fs.networks.student_like(teacher, multi=10, seed=1)
report = fs.measure(teacher, student, fs.data.gaussian(100_000, 20, std=10.0, seed=2))
print(report)
"""

import warnings

from fastspec import data, initialization, matching, networks, norms, pruning, statistics, teachers, theory
from fastspec.batchnorm import batchnorm_bias
from fastspec.config import show_config
from fastspec.measure import Measurement, PopulationMeasurement, measure
from fastspec.moments import CrossMoments, cross_moments, layer_moments, layer_moments_with_activations
from fastspec.networks import MLP, ConvNet
from fastspec.norms import norm_report
from fastspec.ops.backends import backend, default_device
from fastspec.ops.library import native_error
from fastspec.populations import Population
from fastspec.training import History, TrainingHistory, train, train_two_layer

__version__ = "0.1.0"

if native_error() is not None:
    warnings.warn(
        f"{native_error()}; running on the torch reference path, slower and with the same results", stacklevel=2
    )

__all__ = [
    "MLP",
    "ConvNet",
    "CrossMoments",
    "History",
    "Measurement",
    "Population",
    "PopulationMeasurement",
    "TrainingHistory",
    "backend",
    "batchnorm_bias",
    "cross_moments",
    "data",
    "default_device",
    "initialization",
    "layer_moments",
    "layer_moments_with_activations",
    "matching",
    "measure",
    "networks",
    "norm_report",
    "norms",
    "pruning",
    "show_config",
    "statistics",
    "teachers",
    "theory",
    "train",
    "train_two_layer",
]

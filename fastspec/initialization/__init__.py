"""Initial weights: schemes for any network, and rules for students of a teacher."""

from fastspec.initialization.layers import draw_
from fastspec.initialization.schemes import SCHEMES, Scheme, scheme, weights
from fastspec.initialization.students import Rule, WeightLayer, default_, initialize_, normal_, uniform_

__all__ = [
    "SCHEMES",
    "Rule",
    "Scheme",
    "WeightLayer",
    "default_",
    "draw_",
    "initialize_",
    "normal_",
    "scheme",
    "uniform_",
    "weights",
]

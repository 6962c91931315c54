"""The theory of teacher-student ReLU networks: the structure of their gradients, and the dynamics that follow from it;
in `gaussian`, `norms` and `online`, closed forms for Gaussian inputs, norms at initialisation, and online learning.

Tian, Jiang, Gong, Morcos, Luck Matters, arXiv 1905.13405; Tian, Student Specialization, ICML 2020, arXiv 1909.13458.
"""

from fastspec.theory import gaussian, norms, online
from fastspec.theory.alignment import Alignment, alignment, observers
from fastspec.theory.backward import LayerGram, backward_gram
from fastspec.theory.dynamics import Moments, second_moments, step, updates
from fastspec.theory.gradients import GradientTerms, gradient_terms
from fastspec.theory.l_shape import LShape, l_shape
from fastspec.theory.normalization import Projection, batch_norm_projections

__all__ = [
    "Alignment",
    "GradientTerms",
    "LShape",
    "LayerGram",
    "Moments",
    "Projection",
    "alignment",
    "backward_gram",
    "batch_norm_projections",
    "gaussian",
    "gradient_terms",
    "l_shape",
    "norms",
    "observers",
    "online",
    "second_moments",
    "step",
    "updates",
]

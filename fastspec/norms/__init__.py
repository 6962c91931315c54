"""Do activations and gradients keep their norms at initialisation? For grids of random networks, and for any module."""

from fastspec.norms.grid import Grid, NormReport
from fastspec.norms.module import LayerNorms, ModuleNorms
from fastspec.norms.report import norm_report

__all__ = ["Grid", "LayerNorms", "ModuleNorms", "NormReport", "norm_report"]

"""`norm_report`: one question, asked of a grid of random networks or of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import overload

import torch
from torch import Tensor, nn

from fastspec.batches import Data
from fastspec.norms.grid import Grid, NormReport, measure_grid
from fastspec.norms.module import Loss, ModuleNorms, measure_module
from fastspec.ops.checks import refuse


@overload
def norm_report(networks: Grid, data: Tensor | Mapping[str, Tensor], *, progress: bool | None = None) -> NormReport: ...


@overload
def norm_report(
    networks: nn.Module,
    data: Data,
    *,
    loss: Loss | None = None,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    tolerance: float = 0.2,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> ModuleNorms: ...


def norm_report(
    networks: Grid | nn.Module,
    data: Data | Mapping[str, Tensor],
    *,
    loss: Loss | None = None,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    tolerance: float = 0.2,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> NormReport | ModuleNorms:
    """Do activations and weight gradients keep the norm of the inputs at initialisation?

    networks: a `Grid` of random ReLU networks, or any module, whose weights are taken as they are.
    data: for a grid, inputs [N, d] or several such tensors by name, on the device where the work is to be done; no
        sample all 0. For a module, what `measure` takes: a tensor, a DataLoader or an iterable of batches.

    Of a grid every network's forward ratio ||h_l|| / ||x|| and backward ratio ||dloss/dW_l||_F / (||x|| ||delta||) is
    found for every layer and sample (Arpit & Bengio, arXiv 1901.03611): their mean, spread and worst sample, in a
    `NormReport` with the coordinate check. Networks of one shape go through together, samples in chunks; activations
    are not stored. `fastspec.theory.norms` has what to expect.

    Of a module every Linear and Conv layer is looked at, in evaluation mode, batch norm therefore as evaluation has it.
    loss: a function from the network's output to the loss of every sample [N], for the backward ratios; None is the
        cross-entropy with random probabilities, for outputs [N, C].
    activation: what follows the layers; nothing follows the last one. tolerance: a layer preserves norms where its
        gain, the mean of ||activation(layer(h))|| / ||h||, is within a factor 1 + tolerance of 1. By chance alone the
        gain of a layer of m nodes is off by about sqrt(5 / m) / 2.
    batch_size: at most so many samples at a time. progress: a bar on stderr; None shows it after two seconds if stderr
        is a terminal.
    Returns a `ModuleNorms`: for every layer its verdict, and the scale that would mend it; gradients of the module's
    parameters are left as they are.
    Raises ValueError or TypeError, naming the argument, for whatever does not fit.
    """
    if isinstance(networks, Grid):
        if isinstance(data, Tensor) or (
            isinstance(data, Mapping) and all(isinstance(x, Tensor) for x in data.values())
        ):
            return measure_grid(networks, data, progress)
        refuse("data", type(data).__name__, "a tensor [samples, inputs], or tensors by name", TypeError)
    if not isinstance(networks, nn.Module):
        refuse("networks", type(networks).__name__, "a Grid or a Module", TypeError)
    return measure_module(
        networks,
        data,
        loss=loss,
        activation=activation,
        tolerance=tolerance,
        batch_size=batch_size,
        progress=progress,
    )

"""Labelled arrays of results, and names for weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastspec.networks import MLP, ConvNet

if TYPE_CHECKING:
    import xarray as xr

Array = tuple[tuple[str, ...], float | np.generic, str]  # dimensions, what fills it, what it means


def labelled(coordinates: Mapping[str, Sequence[float] | Sequence[str]], arrays: Mapping[str, Array]) -> xr.Dataset:
    """A data set of filled arrays of the dtype of what fills them: float64 and int64 for Python's numbers."""
    import xarray as xr

    sizes = {name: len(values) for name, values in coordinates.items()}
    variables: dict[str, Any] = {
        name: (dims, np.full([sizes[dim] for dim in dims], fill), {"long_name": text})
        for name, (dims, fill, text) in arrays.items()
    }
    axes: dict[str, Any] = {name: np.array(values) for name, values in coordinates.items()}
    return xr.Dataset(variables, axes)


def logarithmic_steps(steps: int, count: int) -> list[int]:
    """0, `steps`, and up to `count - 2` steps between, evenly spaced on a logarithmic axis."""
    spaced = np.geomspace(max(1.0, steps / 300), steps, count - 1)
    return sorted({0, steps, *(int(step) for step in spaced.round())})


def named(prefix: str, network: MLP | ConvNet) -> dict[str, Tensor]:
    """The weights of a network as `prefix.w1` [out, in], or [out, in, kernel, kernel] of a convolution, `prefix.b1`
    [out], and so on upwards."""
    weights: dict[str, Tensor] = {}
    for i, layer in enumerate(network.layers, start=1):
        weights[f"{prefix}.w{i}"] = layer.weight.detach().clone().cpu()
        if layer.bias is not None:
            weights[f"{prefix}.b{i}"] = layer.bias.detach().clone().cpu()
    return weights

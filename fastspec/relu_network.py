"""What every ReLU network of this package is: hidden layers with optional batch norm, a linear top layer, a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastspec.initialization import WeightLayer, default_
from fastspec.ops.checks import (
    check_finite,
    check_integer,
    check_real,
    check_same_kind,
    check_tensor,
    refuse,
    shape,
)
from fastspec.randomness import generator
from fastspec.tensor_files import load_tensors, save_tensors

Layer = tuple[Tensor, Tensor | None]  # weight [out, in] and bias [out]
BatchNorm = Literal["before", "after"]
Network = TypeVar("Network", bound="ReluNetwork")


class ReluNetwork(nn.Module):
    """Base of `MLP` and `ConvNet`, which set `norms` and give their `layers` and `architecture()`."""

    norms: nn.ModuleList
    input_shape: tuple[int, ...]

    def __init__(self, negative_slope: float, batch_norm: BatchNorm | None):
        super().__init__()
        check_real("negative_slope", negative_slope, "a number in [0, 1]", 0.0, 1.0)
        if batch_norm not in (None, "before", "after"):
            refuse("batch_norm", repr(batch_norm), "None, 'before' or 'after' (the ReLU)")
        self.negative_slope = float(negative_slope)
        self.batch_norm = batch_norm

    @property
    def layers(self) -> list[WeightLayer]:
        """Linear and convolutional layers, lowest first."""
        raise NotImplementedError

    def architecture(self) -> dict[str, Any]:
        """The keyword arguments that build this network again, weights aside."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x [N, *input_shape] -> outputs [N, C]."""
        return self.activations_and_output(x)[1]

    def activations(self, x: Tensor) -> list[Tensor]:
        """Outputs of the hidden ReLUs, lowest first: [N, nodes] or [N, channels, height, width].

        With batch norm after the ReLU these are its inputs, so that they are ReLU outputs in every network.
        """
        return self.activations_and_output(x)[0]

    def activations_and_output(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Both of the above in one pass over the layers."""
        layout = f"[samples, {', '.join(map(str, self.input_shape))}]"
        check_tensor("x", x, (1 + len(self.input_shape),), layout)
        if x.shape[1:] != self.input_shape:
            refuse("x", shape(x), f"{layout}, the inputs of the network")
        weight = self.layers[0].weight
        if x.device != weight.device or not torch.is_autocast_enabled(x.device.type):  # which casts inputs itself
            check_same_kind(weights=weight, x=x)
        activations = []
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            if self.batch_norm == "before":
                x = self.norms[i](x)
            x = F.leaky_relu(x, self.negative_slope) if self.negative_slope else F.relu(x)
            activations.append(x)
            if self.batch_norm == "after":
                x = self.norms[i](x)
        return activations, self.layers[-1](x.flatten(1))

    def _reset(self, seed: int) -> None:
        default_(self.layers, generator(seed, "network"))

    def save(self, path: str | os.PathLike) -> None:
        """Write weights, batch-norm statistics and architecture to a safetensors file."""
        architecture = {"network": type(self).__name__, **self.architecture()}
        save_tensors(path, "network", self.state_dict(), architecture=json.dumps(architecture))

    @classmethod
    def load(cls: type[Network], path: str | os.PathLike) -> Network:
        """The network that `save` wrote, on the CPU and in evaluation mode.

        Raises FileNotFoundError for a missing file and ValueError, naming the path, for a truncated or foreign one.
        """
        tensors, metadata = load_tensors(path, "network")
        name, takes = f"path {os.fspath(path)!r}", f"a saved {cls.__name__}"
        try:
            architecture = json.loads(metadata["architecture"])
            kind = architecture.pop("network")
            dtype = next(t.dtype for key, t in tensors.items() if key.endswith("weight"))
            if kind == cls.__name__:
                network = cls(**{**architecture, "dtype": dtype})
                network.load_state_dict(tensors)
        except (LookupError, TypeError, AttributeError, StopIteration, RuntimeError, ValueError) as error:
            refuse(name, f"weights that do not fit their architecture ({error})", takes)
        if kind != cls.__name__:
            refuse(name, f"a saved {kind}", takes)
        for key, tensor in tensors.items():
            check_finite(f"{name}, {key}", tensor)
        return network.eval()


def check_widths(argument: str, widths: Sequence[int], at_least: int) -> list[int]:
    """Check that `widths` are at least `at_least` positive integers, and return them as a list."""
    takes = f"a sequence of at least {at_least} positive integers"
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        refuse(argument, type(widths).__name__, takes, TypeError)
    if len(widths) < at_least:
        refuse(argument, repr(list(widths)), takes)
    for i, width in enumerate(widths):
        check_integer(f"{argument}[{i}]", width)
    return list(widths)


def check_layer(argument: str, layer: object) -> Layer:
    """`layer`, checked to be a linear one: weight [out, in] and bias [out] or None, finite, of one size."""
    if not (isinstance(layer, (tuple, list)) and len(layer) == 2):
        refuse(argument, type(layer).__name__, "a pair (weight, bias or None)", TypeError)
    weight, bias = layer
    check_tensor(f"{argument} weight", weight, (2,), "[out, in]")
    check_finite(f"{argument} weight", weight)
    if bias is None:
        return weight, None
    check_tensor(f"{argument} bias", bias, (1,), "[out]")
    check_finite(f"{argument} bias", bias)
    if len(bias) != len(weight):
        refuse(f"{argument} bias", shape(bias), f"shape [{len(weight)}], the rows of its weight")
    return weight, bias


def norms_for(kind: type[nn.Module], batch_norm: BatchNorm | None, widths: Sequence[int], **factory) -> nn.ModuleList:
    """One batch norm for each of `widths`, or none."""
    return nn.ModuleList(kind(width, **factory) for width in widths if batch_norm)

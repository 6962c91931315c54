"""A scheme of initial weights, applied in place to the layers of any network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from fastspec.initialization.schemes import scheme, stream
from fastspec.ops.checks import refuse

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
AnyLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def weight_layers(network: nn.Module) -> dict[str, AnyLayer]:
    """The linear and convolutional layers of a network by name, in the order of `named_modules`."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LAYERS)}


def fans(layer: AnyLayer) -> tuple[int, int]:
    """Fan-in and fan-out: the inputs of an output, and the outputs that an input reaches (at stride 1, off borders)."""
    weight = layer.weight
    window = weight[0, 0].numel()
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return weight.shape[1] * window, weight.shape[0] // groups * window


def draw_(network: nn.Module, name: str, *, seed: int = 0, branches: Sequence[str] = ()) -> None:
    """Draw the weights of all linear and convolutional layers of `network` by the scheme `name`, in place.

    name: of `SCHEMES`, each with its source: "he_fan_out", "he_fan_in", "inverse_fan_out", "weight_norm",
        "weight_norm_scaled", "orthogonal" or "default". Rows are an output's weights, those of a convolution all of its
        window; fan-out counts the outputs that an input reaches, window included. Biases are set to 0, by "default" as
        PyTorch sets them. Other modules, such as batch norm and transposed convolutions, stay as they are.
    seed: of all layers; each draws numbers of its own by its name, whatever other layers there are.
    branches: names of the modules that are residual branches: the last weight layer within each is divided by their
        number, so that a sum over B blocks keeps its scale (Arpit & Bengio, arXiv 1901.03611).
    Layers under `torch.nn.utils.parametrizations.weight_norm` (and the older `torch.nn.utils.weight_norm`) get the
    same weights, as direction and norm.

    Raises ValueError or TypeError, naming the argument, for an unknown scheme or branch, a network without layers,
    layers that wait for their first input, and parametrisations that cannot hold the weights.
    """
    if not isinstance(network, nn.Module):
        refuse("network", type(network).__name__, "a Module", TypeError)
    found, layers = scheme(name), weight_layers(network)
    if not layers:
        refuse("network", f"a {type(network).__name__} without Linear or Conv layers", "one that has some")
    for key, layer in layers.items():
        if isinstance(getattr(layer, "weight", None), UninitializedParameter):
            refuse("network", f"layer {key!r}, whose inputs are not known yet", "layers that have weights")
    shares = _shares(network, layers, branches)
    with torch.no_grad():
        for key, layer in layers.items():
            fan_in, fan_out = fans(layer)
            source = stream(seed, key)
            rows = found.draw(len(layer.weight), layer.weight[0].numel(), source)
            _set_weight(key, layer, (found.scale(fan_in, fan_out) / shares.get(key, 1) * rows).view(layer.weight.shape))
            if layer.bias is not None and name == "default":
                layer.bias.copy_(found.draw(1, len(layer.bias), source)[0] * found.scale(fan_in, fan_out))
            elif layer.bias is not None:
                layer.bias.zero_()


def _shares(network: nn.Module, layers: dict[str, AnyLayer], branches: Sequence[str]) -> dict[str, int]:
    """What the last layer of every branch is divided by."""
    if isinstance(branches, str) or not isinstance(branches, Sequence):
        refuse("branches", repr(branches), "a list of names of modules", TypeError)
    modules = dict(network.named_modules())
    last = {}
    for branch in branches:
        if branch not in modules or not branch:
            refuse("branches", repr(branch), f"names of modules, such as {', '.join(list(modules)[1:4])}")
        within = [key for key in layers if key == branch or key.startswith(f"{branch}.")]
        if not within:
            refuse("branches", f"{branch!r}, a module without Linear or Conv layers", "modules that have some")
        if within[-1] in last:
            refuse("branches", f"{branch!r}, within or around another branch", "modules that share no layer")
        last[within[-1]] = len(branches)
    return last


def _set_weight(name: str, layer: AnyLayer, weight: Tensor) -> None:
    """Copy [out, ...] into a layer, through its parametrisation if it has one."""
    weight = weight.to(layer.weight)
    if parametrize.is_parametrized(layer, "weight"):
        try:
            layer.weight = weight  # type: ignore[assignment]  # parametrize takes a tensor
            held = torch.allclose(layer.weight, weight, rtol=1e-4, atol=1e-4 * float(weight.abs().max()))
        except (RuntimeError, ValueError, NotImplementedError):
            held = False
        if not held:
            refuse("network", f"layer {name!r}, whose parametrisation changes its weights", "weight_norm or none")
    elif hasattr(layer, "weight_g"):  # the older weight norm, by a forward hook
        old: Any = layer
        over = [axis for axis, size in enumerate(old.weight_g.shape) if size == 1] or None  # None: one norm for all
        norm = torch.linalg.vector_norm(weight, dim=over, keepdim=old.weight_g.dim() > 0)
        old.weight_v.copy_(weight)
        old.weight_g.copy_(norm)
        old.weight = weight
    else:
        layer.weight.copy_(weight)

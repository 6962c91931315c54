"""The batch-norm bias check of Luck Matters (Tian et al. 2019): how many biases of BatchNorm layers are not positive.

A node whose batch-norm bias is not positive is active on a minority of the samples.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastspec.ops.checks import check_finite, refuse

FORMATS = (".safetensors", ".pt", ".pth")
NESTED = ("state_dict", "model_state_dict", "model", "net")  # under which checkpoints keep a network's state
TAKES = "a Module, a state dict, or the path of a .safetensors, .pt or .pth file"

# of the pretrained torchvision VGG19-BN: percentages of its 16 layers, as Luck Matters reports them
VGG19_BN = (
    81.25, 54.69, 71.88, 64.84, 75.39, 76.17, 77.34, 89.45, 98.05, 97.07, 96.48, 99.22, 99.22, 99.41, 99.22, 100.00,
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class BatchNormBias:
    """What `batchnorm_bias` finds, layers in the order of the network; `print(found)` shows a table."""

    biases: dict[str, Tensor]  # [channels] each, on the CPU

    @property
    def percent(self) -> dict[str, float]:
        """The percentage of a layer's biases that are not above 0."""
        return {name: 100 * float((bias <= 0).double().mean()) for name, bias in self.biases.items()}

    def __str__(self) -> str:
        rows = [("layer", "channels", "bias <= 0")]
        rows += [(name, str(len(self.biases[name])), f"{value:.2f} %") for name, value in self.percent.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        return "\n".join(lines)


def batchnorm_bias(network: nn.Module | Mapping[str, Any] | str | os.PathLike) -> BatchNormBias:
    """For every BatchNorm layer the percentage of biases that are not above 0.

    network: a module; a state dict; or a .safetensors, .pt or .pth file with a state dict, alone or as checkpoints keep
        it, under "state_dict", "model_state_dict", "model" or "net". Nothing is unpickled but tensors (`weights_only`).
        In a state dict a BatchNorm layer is known by its running mean.
    `VGG19_BN` is the published reading of the pretrained torchvision VGG19-BN.
    Raises ValueError, TypeError or FileNotFoundError, naming the argument, for files that cannot be read, networks
    without BatchNorm layers that have biases, and biases that are NaN or infinite.
    """
    if isinstance(network, nn.Module):
        layers = [(name, m.bias) for name, m in network.named_modules() if isinstance(m, _BatchNorm)]
        biases: dict[str, Tensor] = {name: bias for name, bias in layers if bias is not None}
    else:
        state = _state(network)
        prefixes = [key.removesuffix("running_mean") for key in state if key.split(".")[-1] == "running_mean"]
        biases = {prefix.rstrip("."): state[f"{prefix}bias"] for prefix in prefixes if f"{prefix}bias" in state}
    if not biases:
        refuse("network", "no BatchNorm layer with biases", TAKES)
    found = {name: bias.detach().cpu().double() for name, bias in biases.items()}
    for name, bias in found.items():
        check_finite(f"network, bias of {name!r}", bias)
    return BatchNormBias(found)


def _state(network: object) -> Mapping[str, Tensor]:
    """The tensors of a network by name."""
    if isinstance(network, (str, os.PathLike)):
        name = f"network {os.fspath(network)!r}"
        state = _read(Path(network), name)
    else:
        name, state = "network", network
    for key in NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        refuse(name, type(state).__name__, TAKES, TypeError)
    return {key: tensor for key, tensor in state.items() if isinstance(key, str) and isinstance(tensor, Tensor)}


def _read(path: Path, name: str) -> Any:
    if not path.is_file():
        refuse(name, "no such file", TAKES, FileNotFoundError)
    if path.suffix not in FORMATS:
        refuse(name, f"the suffix {path.suffix!r}", ", ".join(FORMATS))
    try:
        return _safetensors(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:  # whose message is pages about unpickling
        refuse(name, "a truncated or foreign file, or one of more than tensors", TAKES)
    except (ValueError, OSError, EOFError, RuntimeError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        refuse(name, f"a truncated or foreign file, or one of more than tensors ({reason})", TAKES)


def _safetensors(path: Path) -> dict[str, Tensor]:
    """In the order of numbered names, as the file itself keeps none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None

    def natural(key: str) -> list[tuple[bool, int, str]]:
        return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in key.split(".")]

    return {key: state[key] for key in sorted(state, key=natural)}

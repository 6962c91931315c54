"""Networks and inputs from files that a user names."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastspec.networks import MLP, ConvNet
from fastspec.ops.checks import refuse
from fastspec.populations import Population

FORMATS = ".npy, .npz, .safetensors or .pt"
NAME = "x"  # of the inputs in a file of several arrays


def load_teacher(path: Path) -> MLP | ConvNet:
    """A network that fastspec saved; one error naming the file for anything else."""
    return _load("teacher", path, (MLP, ConvNet))


def load_student(path: Path) -> MLP | ConvNet | Population:
    """A network or a population that fastspec saved; one error naming the file for anything else."""
    return _load("student", path, (MLP, ConvNet, Population))


def _load(argument: str, path: Path, kinds: tuple[Any, ...]) -> Any:
    refused: list[str] = []
    for kind in kinds:
        try:
            return kind.load(path)
        except ValueError as error:
            refused.append(str(error))
    got = next((text for text in refused if "got a saved" not in text and "got a fastspec" not in text), refused[0])
    takes = " or ".join(f"a saved {kind.__name__}" for kind in kinds)
    raise ValueError(f"{argument}: {got.partition('; takes')[0]}; takes {takes}")


def load_data(path: Path, network: torch.nn.Module) -> Tensor:
    """The inputs in a data file, in the dtype of `network` where they are floating; nothing is unpickled."""
    name, takes = f"data file {str(path)!r}", f"inputs [samples, ...] in {FORMATS}, alone or named {NAME!r}"
    if not path.is_file():
        refuse(name, "no such file", takes, FileNotFoundError)
    readers = {".npy": _numpy, ".npz": _numpy, ".safetensors": _safetensors, ".pt": _torch}
    if path.suffix not in readers:
        refuse(name, f"the suffix {path.suffix!r}", FORMATS)
    try:
        found = readers[path.suffix](path)
    except pickle.UnpicklingError:
        refuse(name, "a truncated or foreign file, or one of more than tensors", takes)
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        refuse(name, f"a truncated or foreign file ({str(error).splitlines()[0]})", takes)
    if isinstance(found, dict):
        if NAME not in found and len(found) != 1:
            refuse(name, f"arrays named {sorted(map(str, found))}", takes)
        found = found[NAME] if NAME in found else next(iter(found.values()))
    if not isinstance(found, Tensor):
        refuse(name, type(found).__name__, takes, TypeError)
    return found.to(next(network.parameters()).dtype) if found.is_floating_point() else found


def _numpy(path: Path) -> Any:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return _tensor(loaded)
    with loaded:
        return {name: _tensor(loaded[name]) for name in loaded.files}


def _tensor(array: np.ndarray) -> Tensor:
    """An array of numbers, of any byte order."""
    if array.dtype.kind not in "biufc":
        raise ValueError(f"an array of {array.dtype}")
    return torch.from_numpy(np.asarray(array, array.dtype.newbyteorder("=")))


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)

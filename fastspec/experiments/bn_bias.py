"""The batch-norm biases of a saved network, as a run with a table and a bar chart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from fastspec.batchnorm import batchnorm_bias
from fastspec.experiments.console import Console
from fastspec.experiments.experiment import Experiment
from fastspec.experiments.results import RunFolder
from fastspec.ops.checks import refuse

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class BnBias(Experiment):
    """The percentage of batch-norm biases that are not above 0, for every BatchNorm layer of a saved network."""

    name: ClassVar[str] = "bn-bias"

    file: str
    """A state dict: .safetensors, .pt or .pth."""
    sha256: str
    """Of the file."""

    @classmethod
    def of(cls, path: Path) -> BnBias:
        """The run for the file as it is now."""
        if not path.is_file():
            refuse(f"network {str(path)!r}", "no such file", "a .safetensors, .pt or .pth file", FileNotFoundError)
        return cls(str(path), hashlib.sha256(path.read_bytes()).hexdigest())

    def check(self) -> None:
        if not self.file:
            refuse("file", repr(self.file), "the path of a file")
        batchnorm_bias(self.file)  # refused before a folder is made for it

    def work(self, folder: RunFolder, console: Console) -> tuple[xr.Dataset, dict[str, Tensor]]:
        import xarray as xr

        found = batchnorm_bias(self.file)
        percent = list(found.percent.values())
        channels = [len(bias) for bias in found.biases.values()]
        arrays = {
            "percent": ("layer", np.array(percent), {"long_name": "percentage of biases that are not above 0"}),
            "channels": ("layer", np.array(channels), {"long_name": "channels of the layer"}),
        }
        return xr.Dataset(arrays, {"layer": list(found.biases)}), dict(found.biases)

"""What an experiment is: options that are checked, and a run in a folder that can be interrupted."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from fastspec.experiments.console import Console
from fastspec.experiments.results import RunFolder
from fastspec.workers import one_thread

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Experiment(ABC):
    """A frozen dataclass of options: the Python call, the command line and the saved configuration."""

    name: ClassVar[str]
    single_threaded: ClassVar[bool] = False  # products too small for two threads, which a busy machine slows further

    @abstractmethod
    def check(self) -> None:
        """ValueError or TypeError, naming the option, for one that cannot be."""

    @abstractmethod
    def work(self, folder: RunFolder, console: Console) -> tuple[xr.Dataset, dict[str, Tensor]]:
        """Results and weights; finished parts are kept in the folder, and those found there are not made again."""

    def run(self, out: str | os.PathLike, *, overwrite: bool = False, console: Console | None = None) -> xr.Dataset:
        """Run in the folder `out`, or go on there; the labelled results, also saved (see `RunFolder`).

        Ctrl-C raises KeyboardInterrupt; the same call goes on from what is saved, and ends with the same bits.
        """
        self.check()
        console = console or Console(quiet=True)
        with one_thread() if self.single_threaded else nullcontext():
            folder = RunFolder.start(out, self.name, asdict(self), overwrite=overwrite)
            if folder.finished:
                console.say(f"{folder.path}: finished before, nothing to do")
                return folder.results()
            with console.interruptible():
                results, weights = self.work(folder, console)
            return folder.finish(results, weights)

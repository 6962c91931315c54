"""The main job: Gaussian teachers and handwritten digits, small enough for two cores and a minute."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from fastspec.experiments.console import Console
from fastspec.experiments.digits import Digits
from fastspec.experiments.results import RunFolder
from fastspec.experiments.two_layer import TwoLayer

GAUSSIAN, DIGITS = "gaussian", "digits"  # folders of the two parts, each a run of its own


def _reduced() -> TwoLayer:
    return TwoLayer(inputs=30, outputs=20, lr=0.02, steps=10_000, evaluation_samples=4_000)


@dataclass(frozen=True)
class Demo:
    """A two-layer run on Gaussian data at reduced size, and the digits run: about a minute on two cores."""

    name: ClassVar[str] = "demo"

    gaussian: TwoLayer = field(default_factory=_reduced)
    digits: Digits = field(default_factory=Digits)

    def run(self, out: str | os.PathLike, *, overwrite: bool = False, console: Console | None = None) -> RunFolder:
        """Run both parts in the folder `out`, or go on there."""
        self.gaussian.check()
        self.digits.check()
        folder = RunFolder.start(out, self.name, asdict(self), overwrite=overwrite)
        self.gaussian.run(folder.path / GAUSSIAN, overwrite=overwrite, console=console)
        self.digits.run(folder.path / DIGITS, overwrite=overwrite, console=console)
        return folder

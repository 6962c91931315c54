"""Readings of the published figures: 20 teacher nodes, 100 epochs, means of 32 seeds."""

from __future__ import annotations

from dataclasses import dataclass

TEACHER_NODES, SEEDS = 20, 32


@dataclass(frozen=True)
class Success:
    """The share of seeds in which every one of the teacher nodes first..last is covered at 0.95."""

    decay: float
    multi: int
    nodes: tuple[int, int]
    share: float
    at_least: bool = False

    def __str__(self) -> str:
        first, last = self.nodes
        nodes = f"node {first}" if first == last else f"lowest of nodes {first} to {last}"
        return f"success rate, decay {self.decay:g}, {self.multi}×, {nodes}"

    @property
    def published(self) -> str:
        return f"{'≥ ' if self.at_least else ''}{self.share:g}"


@dataclass(frozen=True)
class Loss:
    """Mean over seeds of log10 of the evaluation loss, the squared difference averaged over samples and outputs."""

    decay: float
    multi: int
    log10: float

    def __str__(self) -> str:
        return f"log10 evaluation loss, decay {self.decay:g}, {self.multi}×"

    @property
    def published(self) -> str:
        return f"{self.log10:g}"


READINGS: tuple[Success | Loss, ...] = (
    *(Success(1.0, multi, (0, 19), 1.0) for multi in (2, 5, 10)),
    Success(1.0, 1, (0, 10), 0.97, at_least=True),
    Success(1.0, 1, (13, 13), 0.87),
    Success(1.0, 1, (16, 16), 0.53),
    Success(1.0, 1, (19, 19), 0.31),
    *(Success(0.5, multi, (0, 19), 1.0) for multi in (2, 5, 10)),
    Success(0.5, 1, (19, 19), 0.9),
    *(Loss(1.0, multi, log10) for multi, log10 in ((1, -2.95), (2, -7.75), (5, -6.5), (10, -6.0))),
)

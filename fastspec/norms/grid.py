"""Grids of random ReLU networks, and what is found of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastspec.initialization.schemes import scheme, stream, weights
from fastspec.norms.coordinates import coordinates
from fastspec.norms.ratios import Running, Spread, chunks, ratios
from fastspec.ops.checks import check_finite, check_integer, check_real, check_tensor, refuse, shape
from fastspec.progress import Progress
from fastspec.randomness import SEEDS
from fastspec.theory import norms

if TYPE_CHECKING:
    import xarray as xr

SLAB_BYTES = 256 * 2**20  # aimed at for the weights of the networks that go through together
CHECKED_SAMPLES = 128  # of the coordinate check
AXES = ("data", "scheme", "width", "depth", "seed", "layer")


@dataclass(frozen=True)
class Grid:
    """Random bias-free ReLU networks on d inputs, d those of the data: one for every combination.

    scheme: names of `fastspec.initialization.SCHEMES`. width: nodes of every hidden layer. depth: hidden layers.
    seeds: of the weights. outputs: of the softmax above, whose weights are N(0, 1) and whose targets are random
    probabilities: they are where gradients start, as in the published code of Arpit & Bengio (arXiv 1901.03611).
    steps, lr: of the coordinate check; 0 steps check initialisation alone. There the softmax's weights are N(0, 1 /
    width), and 128 samples are looked at. Gradients are of the weights themselves, also where rows are normalised.
    """

    scheme: Sequence[str] = ("he_fan_out",)
    width: Sequence[int] = (100, 500, 1000)
    depth: Sequence[int] = (10,)
    seeds: Sequence[int] = (0,)
    outputs: int = 20
    steps: int = 0
    lr: float = 0.01

    def check(self) -> None:
        """ValueError or TypeError, naming the argument, for an empty axis or a value that cannot be."""
        for name in ("scheme", "width", "depth", "seeds"):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Sequence):
                refuse(name, repr(values), "a sequence of values", TypeError)
            if not values or len(set(values)) < len(values):
                refuse(name, repr(tuple(values)), "one value or more, all different")
        for one in self.scheme:
            scheme(one)
        for name, low, high in (("width", 1, None), ("depth", 1, None), ("seeds", 0, SEEDS - 1)):
            for value in getattr(self, name):
                check_integer(name, value, low, high)
        check_integer("outputs", self.outputs, 2)
        check_integer("steps", self.steps, 0)
        check_real("lr", self.lr, "a finite number of at least 0", 0.0)


class Slab(NamedTuple):
    """Networks of one scheme, width and depth that go through together."""

    scheme: int  # places on the axes of the grid
    width: int
    depth: int
    seeds: slice

    def draw(self, grid: Grid, inputs: int, like: Tensor) -> tuple[list[Tensor], Tensor]:
        """Weights [P, nodes, nodes below] of every layer, and of the softmax [P, C, nodes]."""
        name, width, depth = grid.scheme[self.scheme], grid.width[self.width], grid.depth[self.depth]
        seeds = grid.seeds[self.seeds]
        layers = [
            torch.stack(
                [weights(name, width, inputs if i == 0 else width, seed=s, layer=str(i)).to(like) for s in seeds]
            )
            for i in range(depth)
        ]
        tops = [torch.randn(grid.outputs, width, dtype=torch.float64, generator=stream(s, "softmax")) for s in seeds]
        return layers, torch.stack(tops).to(like)


class Expected(NamedTuple):
    """What He's scheme by fan-out lets one expect of a width and depth."""

    variance: float  # of ||h||^2 / ||x||^2 after the last layer, exactly
    error: float  # bound on the relative error of a layer's squared norm, for all samples and layers
    published: float  # what the paper's code plots as its bound


@dataclass(frozen=True, eq=False, repr=False)
class NormReport:
    """What `norm_report` finds of a grid; `print(report)` shows the largest layer errors of every network.

    Tensors are on the CPU, with the axes [data, scheme, width, depth, seed, layer], NaN (or -1) above the depth.
    forward: of ||h_l|| / ||x||, backward: of ||dloss/dW_l||_F / (||x|| ||delta||), over the samples.
    coordinate: [.., depth, seed, layer + 1, step], root mean square activations of the coordinate check, the logits
    after the hidden layers (at layer `depth`).
    """

    grid: Grid
    data: Sequence[str]
    samples: Mapping[str, int]
    forward: Spread
    backward: Spread
    coordinate: Tensor

    def expected(self, confidence: float = 0.95) -> dict[tuple[str, int, int], Expected]:
        """By data set, width and depth, from `fastspec.theory.norms`; the bounds with a probability `confidence`."""
        cells = [(d, w, k) for d in self.data for w in self.grid.width for k in self.grid.depth]
        return {
            (d, w, k): Expected(
                norms.energy_variance(w, k),
                norms.error_for(w, confidence, samples=self.samples[d], layers=k),
                norms.published_bound(w, confidence, samples=self.samples[d], layers=k),
            )
            for d, w, k in cells
        }

    def to_xarray(self) -> xr.Dataset:
        """All of it as labelled arrays; layers are numbered from 1."""
        import xarray as xr

        layers = max(self.grid.depth)
        arrays: dict[str, Any] = {
            f"{name}_{part}": (AXES, tensor.numpy(), {"long_name": f"{part} of the {name} ratio over samples"})
            for name in ("forward", "backward")
            for part, tensor in getattr(self, name)._asdict().items()
        }
        what = {"long_name": "root mean square activation; the logits after the uppermost layer"}
        arrays["coordinate"] = ((*AXES[:-1], "row", "step"), self.coordinate.numpy(), what)
        axes: dict[str, Any] = {
            "data": list(self.data),
            "scheme": list(self.grid.scheme),
            "width": list(self.grid.width),
            "depth": list(self.grid.depth),
            "seed": list(self.grid.seeds),
            "layer": list(range(1, layers + 1)),
            "row": list(range(1, layers + 2)),
            "step": list(range(self.grid.steps + 1)),
        }
        return xr.Dataset(arrays, axes)

    def __str__(self) -> str:
        lines = ["mean |1 - ratio| over layers, samples and seeds; in brackets, of the worst layer and sample"]
        ways = {"forward": self.forward, "backward": self.backward}
        for d, name in enumerate(self.data):
            lines.append(f"{name}, {self.samples[name]:,} samples")
            for s, w, k in np.ndindex(self.forward.mean.shape[1:4]):
                cells = []
                for way, spread in ways.items():
                    error, worst = float(spread.error[d, s, w, k].nanmean()), _largest(spread.worst[d, s, w, k])
                    cells.append(f"{way} {error:.3f} ({worst:.2f})")
                network = f"{self.grid.scheme[s]}, width {self.grid.width[w]}, depth {self.grid.depth[k]}"
                lines.append(f"  {network}: {', '.join(cells)}")
        return "\n".join(lines)


def _largest(values: Tensor) -> float:
    return float(values.nan_to_num(nan=-math.inf).max())


@dataclass
class _Tables:
    """Results in their places."""

    size: tuple[int, ...]
    tables: dict[str, Tensor] = field(default_factory=dict)

    def put(self, name: str, place: tuple[Any, ...], values: Tensor, layers: int) -> None:
        """values [P, L, ..] into [.., seed, layers, ..]."""
        if name not in self.tables:
            fill = torch.nan if values.is_floating_point() else -1
            self.tables[name] = torch.full((*self.size, layers, *values.shape[2:]), fill, dtype=values.dtype)
        self.tables[name][place][:, : values.shape[1]] = values.cpu()

    def spread(self, name: str) -> Spread:
        return Spread(*(self.tables[f"{name} {part}"] for part in Spread._fields))


def measure_grid(grid: Grid, data: Tensor | Mapping[str, Tensor], progress: bool | None) -> NormReport:
    """The report of a grid on one or more data sets [N, d], in their dtype and on their device."""
    grid.check()
    sets = _data_sets(data)
    jobs = [(d, x, slab) for d, x in enumerate(sets.values()) for slab in _slabs(grid, x)]
    tables = _Tables((len(sets), len(grid.scheme), len(grid.width), len(grid.depth), len(grid.seeds)))
    most, networks = max(grid.depth), sum(slab.seeds.stop - slab.seeds.start for *_, slab in jobs)
    with Progress("norms", networks, "networks", progress) as bar:
        for d, x, slab in jobs:
            layers, top = slab.draw(grid, x.shape[1], x)
            target = random_targets(len(x), grid.outputs).to(x)
            forward, backward = Running(), Running()
            for part in chunks(layers, len(x)):
                found = ratios(layers, top, x[part], target[part])
                forward.add(found.forward)
                backward.add(found.backward)
            place = (d, slab.scheme, slab.width, slab.depth, slab.seeds)
            for name, running in (("forward", forward), ("backward", backward)):
                for part_name, values in running.finish()._asdict().items():
                    tables.put(f"{name} {part_name}", place, values, most)
            few = slice(CHECKED_SAMPLES)
            top = top / top.shape[-1] ** 0.5
            checked = coordinates(layers, top, x[few], target[few], steps=grid.steps, lr=grid.lr)
            tables.put("coordinate", place, checked, most + 1)
            bar.advance(len(top))
    counts = {name: len(x) for name, x in sets.items()}
    return NormReport(
        grid, list(sets), counts, tables.spread("forward"), tables.spread("backward"), tables.tables["coordinate"]
    )


def _slabs(grid: Grid, x: Tensor) -> Iterator[Slab]:
    for s in range(len(grid.scheme)):
        for w, width in enumerate(grid.width):
            for k, depth in enumerate(grid.depth):
                size = width * (x.shape[1] + (depth - 1) * width + grid.outputs) * x.element_size()
                each = max(1, SLAB_BYTES // size)
                for start in range(0, len(grid.seeds), each):
                    yield Slab(s, w, k, slice(start, min(start + each, len(grid.seeds))))


def random_targets(samples: int, outputs: int) -> Tensor:
    """Random probabilities [samples, outputs]."""
    drawn = torch.rand(samples, outputs, dtype=torch.float64, generator=stream(0, "targets"))
    return drawn / drawn.sum(1, keepdim=True)


def _data_sets(data: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Data sets by name, checked."""
    sets = dict(data) if isinstance(data, Mapping) else {"data": data}
    if not sets:
        refuse("data", "no data sets", "a tensor [samples, inputs], or tensors by name")
    for name, x in sets.items():
        argument = name if name == "data" else f"data[{name!r}]"
        check_tensor(argument, x, (2,), "[samples, inputs]")
        if 0 in x.shape:
            refuse(argument, shape(x), "one sample and one input or more")
        check_finite(argument, x)
        silent = int((x == 0).all(1).sum())
        if silent:
            refuse(argument, f"{silent} samples that are all 0, whose norm no ratio has", "samples that are not all 0")
    return sets

"""Populations: many two-layer students of any widths, packed one after the other."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.networks import MLP
from fastspec.ops.checks import (
    check_finite,
    check_integer,
    check_real,
    check_same_kind,
    check_tensor,
    refuse,
    shape,
)
from fastspec.ops.two_layer_sgd import Packed
from fastspec.randomness import SEEDS, generator, on_cpu
from fastspec.tensor_files import load_tensors, save_tensors

Layers = Sequence[tuple[Tensor, Tensor | None]]


class Group(NamedTuple):
    """The students of one width, stacked in torch's layout."""

    indices: Tensor  # [P_g] int64, their places in the population
    w1: Tensor  # [P_g, n, d]
    b1: Tensor  # [P_g, n]
    w2: Tensor  # [P_g, C, n]
    b2: Tensor  # [P_g, C]


class Population:
    """P two-layer students with d inputs and C outputs; student k owns the nodes offsets[k] .. offsets[k + 1].

    w1 [nodes, d], b1 [nodes], w2 [nodes, C] (a row is the fan-out of a node), b2 [P, C]; offsets [P + 1] int64 on CPU.
    labels: one list of P integers per name (`multi`, `seed`), or nothing.
    `len(p)`, `p.widths`, `p.weights(k)`, `p.groups()`, `p.fan_out()`, `p.save(path)`, `Population.load(path)`.
    """

    def __init__(self, weights: Packed, offsets: Tensor, labels: dict[str, list[int]] | None = None):
        self.packed = weights
        self.w1, self.b1, self.w2, self.b2 = weights
        self.offsets = offsets.cpu()
        self.labels = dict(labels or {})

    @staticmethod
    @on_cpu
    def two_layer(teacher: MLP, *, multi: Sequence[int], seeds: Sequence[int], std: float = 0.005) -> Population:
        """One student for every (multi, seed), multi outermost, with `multi` x the teacher's hidden nodes.

        All weights are N(0, std^2), biases 0 (Student Specialization, Tian, ICML 2020). A student's weights come from
        a generator seeded by its seed alone. teacher: an `MLP` with one hidden layer; its dtype and device are taken.
        labels: `multi` and `seed`.
        """
        if not isinstance(teacher, MLP):
            refuse("teacher", type(teacher).__name__, "an MLP with one hidden layer", TypeError)
        layers = teacher.weights()
        if len(layers) != 2:
            refuse("teacher", f"{len(layers) - 1} hidden layers", "an MLP with one hidden layer")
        (w1, _), (w2, _) = layers
        for name, values, low in (("multi", multi, 1), ("seeds", seeds, 0)):
            if not isinstance(values, Sequence) or len(values) == 0:
                refuse(name, repr(values), "a sequence of one or more integers")
            for value in values:
                check_integer(name, value, low, SEEDS - 1)
        check_real("std", std, "a finite positive number", math.ulp(0.0))
        students: list[Layers] = []
        labels: dict[str, list[int]] = {"multi": [], "seed": []}
        for factor in multi:
            for seed in seeds:
                draw = generator(seed, "two-layer student")
                n = factor * w1.shape[0]
                first = torch.randn(n, w1.shape[1], generator=draw, dtype=torch.float64) * std
                top = torch.randn(w2.shape[0], n, generator=draw, dtype=torch.float64) * std
                students.append([(first.to(w1), None), (top.to(w2), None)])
                labels["multi"].append(factor)
                labels["seed"].append(seed)
        return Population.from_weights(students, labels=labels)

    @staticmethod
    def from_weights(students: Sequence[Layers], *, labels: dict[str, list[int]] | None = None) -> Population:
        """Students given as [(w1 [n, d], b1 [n] or None), (w2 [C, n], b2 [C] or None)]; n may differ, d and C may not.

        float32 or float64. Raises ValueError or TypeError for whatever does not fit, NaN and infinity included.
        """
        if not isinstance(students, Sequence):
            refuse("students", type(students).__name__, "a sequence of [(w1, b1), (w2, b2)]", TypeError)
        if len(students) == 0:
            refuse("students", "no students", "one or more")
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for k, layers in enumerate(students):
            name = f"students[{k}]"
            if not isinstance(layers, Sequence):
                refuse(name, type(layers).__name__, "[(w1, b1), (w2, b2)]", TypeError)
            if len(layers) != 2:
                refuse(name, f"{len(layers)} layers", "[(w1, b1), (w2, b2)]")
            for i, layer in enumerate(layers, 1):
                if not (isinstance(layer, (tuple, list)) and len(layer) == 2):
                    refuse(f"{name} layer {i}", type(layer).__name__, f"a pair (w{i}, b{i} or None)", TypeError)
            (w1, b1), (w2, b2) = layers
            check_tensor(f"{name} w1", w1, (2,), "[nodes, inputs]")
            check_tensor(f"{name} w2", w2, (2,), "[outputs, nodes]")
            for i, bias in ((1, b1), (2, b2)):
                if bias is not None:
                    check_tensor(f"{name} b{i}", bias, (1,), "[nodes]" if i == 1 else "[outputs]")
            b1 = w1.new_zeros(w1.shape[0]) if b1 is None else b1
            b2 = w2.new_zeros(w2.shape[0]) if b2 is None else b2
            first = parts[0] if parts else (w1, b1, w2.mT, b2)
            expected = {
                "w1": (w1, (w2.shape[1], first[0].shape[1])),
                "b1": (b1, (w2.shape[1],)),
                "w2": (w2, (first[2].shape[1], w1.shape[0])),
                "b2": (b2, (first[2].shape[1],)),
            }
            for part, (tensor, size) in expected.items():
                check_same_kind(**{"students[0] w1": first[0], f"{name} {part}": tensor})
                if tensor.shape != size:
                    refuse(f"{name} {part}", shape(tensor), f"shape {list(size)}")
                check_finite(f"{name} {part}", tensor)
            if w1.shape[0] == 0:
                refuse(f"{name} w1", shape(w1), "at least one node")
            parts.append((w1, b1, w2.mT, b2))
        if parts[0][0].dtype not in (torch.float32, torch.float64):
            refuse("students[0] w1", f"dtype {parts[0][0].dtype}", "float32 or float64", TypeError)
        for label, values in (labels or {}).items():
            if len(values) != len(parts):
                refuse(f"labels[{label!r}]", f"{len(values)} values", f"one for each of the {len(parts)} students")
        widths = torch.tensor([0] + [len(part[0]) for part in parts])
        w1, b1, w2 = (torch.cat([part[i] for part in parts]).detach() for i in range(3))
        b2 = torch.stack([part[3] for part in parts]).detach()
        return Population(Packed(w1, b1, w2, b2), widths.cumsum(0), labels)

    def __len__(self) -> int:
        return len(self.b2)

    def __repr__(self) -> str:
        widths = sorted(set(self.widths))
        return (
            f"Population({len(self)} students, {self.w1.shape[1]} inputs, {self.b2.shape[1]} outputs, widths {widths})"
        )

    @property
    def widths(self) -> list[int]:
        """Hidden nodes of every student."""
        return self.offsets.diff().tolist()

    def nodes(self, k: int) -> slice:
        """Student `k`'s rows of w1, b1 and w2."""
        k = self._place("k", k)
        return slice(int(self.offsets[k]), int(self.offsets[k + 1]))

    def _place(self, argument: str, k: int) -> int:
        """A student's place, counted from 0; negative ones from the end."""
        try:
            return range(len(self))[k]
        except (IndexError, TypeError) as error:
            refuse(argument, repr(k), f"an integer from {-len(self)} to {len(self) - 1}, a student", type(error))

    def weights(self, k: int) -> list[tuple[Tensor, Tensor]]:
        """Student `k` in torch's layout: [(w1 [n, d], b1 [n]), (w2 [C, n], b2 [C])], copies."""
        rows = self.nodes(k)
        w1, b1, w2 = self.w1[rows].clone(), self.b1[rows].clone(), self.w2[rows].mT.contiguous()
        return [(w1, b1), (w2, self.b2[k].clone())]

    def groups(self) -> Iterator[Group]:
        """The students of each width, narrowest first; views of the population where they are neighbours."""
        widths = torch.tensor(self.widths)
        for n in sorted(set(self.widths)):
            indices = (widths == n).nonzero().flatten()
            students, rows = self._places(indices, n)
            w1, b1 = self.w1[rows].unflatten(0, (-1, n)), self.b1[rows].unflatten(0, (-1, n))
            w2 = self.w2[rows].unflatten(0, (-1, n)).mT.contiguous()
            yield Group(indices, w1, b1, w2, self.b2[students])

    def _places(self, students: Tensor, n: int) -> tuple[Tensor | slice, Tensor | slice]:
        """Students of `n` nodes and their rows, as indices of tensors; as slices, which copy nothing, of neighbours."""
        first, last = int(students[0]), int(students[-1])
        if last - first + 1 == len(students):
            return slice(first, last + 1), slice(int(self.offsets[first]), int(self.offsets[last + 1]))
        rows = (self.offsets[students][:, None] + torch.arange(n)).flatten()
        return students.to(self.b2.device), rows.to(self.w1.device)

    def select(self, students: Sequence[int]) -> Population:
        """The given students, in the given order."""
        if len(students) == 0:
            refuse("students", "no students", "one or more")
        ks = [self._place(f"students[{i}]", k) for i, k in enumerate(students)]
        labels = {name: [values[k] for k in ks] for name, values in self.labels.items()}
        return Population.from_weights([self.weights(k) for k in ks], labels=labels)

    def fan_out(self) -> list[Tensor]:
        """The norm of every hidden node's fan-out, one tensor [n] per student."""
        norms = torch.linalg.vector_norm(self.w2, dim=1)
        return [norms[self.nodes(k)] for k in range(len(self))]

    def to(self, *args: object, **kwargs: object) -> Population:
        """The same students on another device or in another dtype, as `torch.Tensor.to`."""
        return self._map(lambda t: t.to(*args, **kwargs))  # type: ignore[call-overload]

    def clone(self) -> Population:
        """A copy that shares no memory."""
        return self._map(torch.clone)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Population:
        return Population(Packed(*(function(t) for t in self.packed)), self.offsets, self.labels)

    def save(self, path: str | os.PathLike) -> None:
        """Write weights, offsets and labels to a safetensors file."""
        tensors = {**self.packed._asdict(), "offsets": self.offsets}
        save_tensors(path, "Population", tensors, labels=json.dumps(self.labels))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Population:
        """Read what `save` wrote; ValueError for a truncated or foreign file, FileNotFoundError for none."""
        tensors, metadata = load_tensors(path, "Population")
        try:
            packed = Packed(*(tensors[name] for name in Packed._fields))
            return cls(packed, tensors["offsets"], json.loads(metadata["labels"]))
        except (LookupError, ValueError) as error:
            refuse(f"path {os.fspath(path)!r}", f"a damaged file ({error})", "a fastspec Population file")

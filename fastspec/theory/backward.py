"""`backward_gram`: how much teacher and student nodes of a layer share of the way to the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from fastspec.adapters import check_placement
from fastspec.batches import Data, read
from fastspec.measure import MODULE_BATCH
from fastspec.networks import MLP
from fastspec.ops.backward_gram import backward_gram as gram_op
from fastspec.ops.chain_gram import chain_gram
from fastspec.ops.checks import check_finite, check_integer, refuse, shape
from fastspec.theory.chains import Chain, chain, check_chains, forward, with_one
from fastspec.theory.tracing import Pass, Tracer, tracers

BATCH = 4096


@dataclass(frozen=True, eq=False)
class LayerGram:
    """Means over the samples of beta = V^T V and H = D V^T V D of one hidden layer, float64.

    V [C, nodes] is what a unit of each node's activation adds to the outputs, D its gate: 1, or the slope where the
    pre-activation is not above 0. Luck Matters (Tian et al. 2019, section 3) writes beta* for `beta_student_teacher`,
    [teacher, student] here as every matrix of a teacher and a student, and so the transpose of theirs.
    """

    beta_student_teacher: Tensor  # [m, n]
    beta_teacher_teacher: Tensor  # [m, m]
    beta_student_student: Tensor  # [n, n]
    h_student_teacher: Tensor  # [m, n]
    h_teacher_teacher: Tensor  # [m, m]
    h_student_student: Tensor  # [n, n]
    samples: int

    def strength(self) -> Tensor:
        """sqrt(E beta_kk) of every student node [n], the norm of its fan-out where no hidden layer is above it.

        The height of a node in the L-shape of Student Specialization (Tian, ICML 2020); `layer.best_teacher()` of
        `fastspec.measure` is its place on the other axis.
        """
        return self.beta_student_student.diagonal().clamp_min(0).sqrt()

    def teacher_strength(self) -> Tensor:
        """The same of every teacher node [m]."""
        return self.beta_teacher_teacher.diagonal().clamp_min(0).sqrt()

    def to(self, device: torch.device | str) -> LayerGram:
        """The same on another device."""
        return LayerGram.of([getattr(self, name).to(device) for name in MATRICES], self.samples)

    @classmethod
    def of(cls, matrices: Sequence[Tensor], samples: int) -> LayerGram:
        """From the six matrices in the order of the fields."""
        return cls(**dict(zip(MATRICES, matrices, strict=True)), samples=samples)


MATRICES = tuple(field.name for field in fields(LayerGram))[:-1]


@torch.no_grad()
def backward_gram(
    teacher: nn.Module,
    student: nn.Module,
    data: Data,
    *,
    augmented: bool = False,
    within: bool = True,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> dict[str, LayerGram]:
    """E_x[beta] and E_x[H] of every hidden layer, lowest first, in one pass over the data.

    teacher, student: two `MLP`s; or a `ConvNet` or any module of linear, convolutional, pooling and batch-norm layers
        with nn.ReLU or nn.LeakyReLU modules, which goes the general way, by autograd. Equal depth, inputs and outputs
        [samples, C]. In evaluation mode: batch norm with its running statistics is a part of V, its Jacobian included.
    data: as in `fastspec.measure`.
    augmented: matrices with one more row and column, of the node that is always 1, whose fan-out are the biases above
        (two `MLP`s only).
    within: False leaves out, as [0], the matrices of one network with itself.
    batch_size: at most so many samples at a time, which bounds memory whatever the number of samples; fewer where the
        backward maps are large.

    Nodes of convolutional layers are channels, and sums run over positions: V of a position counts as one more output.
    Raises ValueError or TypeError, naming the argument and the layer, for networks that do not fit each other or the
    data, batch norm or dropout in training mode, layers that are not piecewise linear, and values that are NaN or
    infinite.
    """
    for name, network in (("teacher", teacher), ("student", student)):
        if not isinstance(network, nn.Module):
            refuse(name, type(network).__name__, "a Module", TypeError)
    if batch_size is not None:
        check_integer("batch_size", batch_size)
    device = next((weight.device for network in (teacher, student) for weight in network.parameters()), None)

    def check(place: str, x: Tensor) -> None:
        check_placement(place, x, teacher=teacher, student=student)

    running: _Chains | _Traced
    if isinstance(teacher, MLP) and isinstance(student, MLP):
        running = _Chains(chain("teacher", teacher), chain("student", student), augmented, within)
    elif augmented:
        refuse("augmented", "True, with networks that are not fully connected", "False, or two MLPs")
    else:
        running = _Traced(*tracers(teacher, student), within)
    for x, place in read(data, batch_size or running.batch, check, progress, device):
        running.add(x, place)
    return running.finish()


class _Chains:
    """The running sums of two fully connected networks.

    Only H is summed over the samples: a layer's mean beta is W^T E[H] W, W being the map to the layer above, and E[H]
    of the outputs I.
    """

    batch = BATCH

    def __init__(self, teacher: Chain, student: Chain, augmented: bool, within: bool):
        check_chains(teacher, student)
        self.chains, self.augmented, self.within, self.samples = (teacher, student), augmented, within, 0
        maps = [c.augmented() if augmented else c.weights for c in self.chains]
        self.maps = [[_single(m) for m in side[1:]] for side in maps]  # to the layers above the hidden ones
        self.sums: list[list[Tensor]] = []  # of every hidden layer: three float64 matrices

    def add(self, x: Tensor, place: str) -> None:
        inputs = self.chains[0].weights[0].shape[1]
        if x.dim() != 2 or x.shape[1] != inputs:
            refuse(place, shape(x), f"[samples, {inputs}]")
        gates = [[_single(gate) for gate in forward(c, x).gates] for c in self.chains]
        if self.augmented:
            gates = [[with_one(gate) for gate in side] for side in gates]
        self.samples += len(x)
        found = [list(h) for h in chain_gram(self.maps[0], gates[0], self.maps[1], gates[1], within=self.within)]
        for known, new in zip(self.sums, found, strict=False):
            for total, part in zip(known, new, strict=True):
                total += part
        self.sums = self.sums or found

    def finish(self) -> dict[str, LayerGram]:
        found = {}
        above: Sequence[Tensor] | None = None
        for layer in reversed(range(len(self.sums))):
            h = [total / self.samples for total in self.sums[layer]]
            for matrix in h:
                check_finite(f"data, hidden{layer + 1}", matrix)
            found[f"hidden{layer + 1}"] = LayerGram.of([*self._betas(layer, above), *h], self.samples)
            above = h
        return dict(reversed(found.items()))

    def _betas(self, layer: int, above: Sequence[Tensor] | None) -> list[Tensor]:
        """The three matrices beta of a layer from those H of the layer above; None is I, of the outputs."""
        t, s = (maps[layer].double() for maps in self.maps)
        betas = []
        for i, (a, b) in enumerate(((t, s), (t, t), (s, s))):
            wanted = self.within or i == 0
            betas.append(a.mT @ (b if above is None else above[i] @ b) if wanted else a.new_empty(0))
        return betas


def _single(tensor: Tensor) -> Tensor:
    """In float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _Traced:
    """The running sums of any two networks, whose backward maps are found by autograd."""

    batch = MODULE_BATCH

    def __init__(self, teacher: Tracer, student: Tracer, within: bool):
        self.tracers, self.within, self.samples = (teacher, student), within, 0
        self.sums: dict[str, list[Tensor]] = {}

    def add(self, x: Tensor, place: str) -> None:
        """Rows of the op are outputs and positions; gates of positions differ, so that gated maps are passed on."""
        passes = [tracer(x, place) for tracer in self.tracers]
        _check_passes(passes)
        self.samples += len(x)
        outputs = passes[0].output.shape[1]
        for output in range(outputs):
            rows = [p.backward_map(output) for p in passes]
            for i, (t, s) in enumerate(zip(*rows, strict=True)):
                g_t, g_s = (p.gates[i] for p in passes)
                betas = gram_op(_by_position(t), None, _by_position(s), None, within=self.within)[:3]
                hs = gram_op(_by_position(t * g_t), None, _by_position(s * g_s), None, within=self.within)[:3]
                name, found = _name(passes, i), [*betas, *hs]
                known = self.sums.get(name)
                self.sums[name] = found if known is None else [a + b for a, b in zip(known, found, strict=True)]

    def finish(self) -> dict[str, LayerGram]:
        for name, sums in self.sums.items():
            for matrix in sums:
                check_finite(f"data, {name}", matrix)
        return {name: LayerGram.of([m / self.samples for m in sums], self.samples) for name, sums in self.sums.items()}


def _name(passes: Sequence[Pass], i: int) -> str:
    """Of a layer; where teacher and student call it differently, "teacher's -> student's"."""
    teacher, student = (p.names[i] for p in passes)
    return teacher if teacher == student else f"{teacher} -> {student}"


def _check_passes(passes: Sequence[Pass]) -> None:
    teacher, student = passes
    if teacher.output.shape != student.output.shape:
        refuse(
            "student", f"{student.output.shape[1]} outputs", f"the outputs of the teacher, {teacher.output.shape[1]}"
        )
    for t_name, t, s_name, s in zip(teacher.names, teacher.gates, student.names, student.gates, strict=True):
        if t.shape[2:] != s.shape[2:]:
            got = f"positions {list(s.shape[2:])}"
            refuse(f"student, layer {s_name!r}", got, f"those of the teacher's {t_name!r}, {list(t.shape[2:])}")


def _by_position(factor: Tensor) -> Tensor:
    """[N, nodes, *space] -> [N, positions, nodes]."""
    return factor.flatten(2).mT if factor.dim() > 2 else factor.unsqueeze(1)

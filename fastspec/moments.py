"""Moments of a layer pair: what one pass over the samples keeps of teacher and student activations."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from fastspec import merging, statistics
from fastspec.ops.checks import check_integer, refuse, shape
from fastspec.ops.cross_moments import Moments
from fastspec.ops.cross_moments import cross_moments as cross_moments_op
from fastspec.ops.layer_moments import layer_moments as layer_moments_op
from fastspec.ops.moments_and_loss import moments_and_loss as moments_and_loss_op
from fastspec.tensor_files import load_tensors, save_tensors

Layer = tuple[Tensor, Tensor | None]  # weight [*P, nodes, inputs], bias [*P, nodes] or None
SideInputs = tuple[Tensor, Tensor, Tensor | None]  # input [*P, samples, inputs], weight, bias
OPTIONAL = ("coactive", "teacher_gram", "student_gram")


@dataclass(frozen=True, eq=False, repr=False)
class CrossMoments:
    """Moments of `m` teacher nodes against `n` student nodes; `*P` is the population axis, if there is one.

    A scatter is a sum over samples of products of centred activations, `Σ (t_j − t̄_j)(s_k − s̄_k)`. All tensors are
    on the device of the inputs, statistics in float64 and counts in int64. A node is active where it is above 0.
    """

    count: Tensor  # [] samples (times positions)
    teacher_mean: Tensor  # [m]
    student_mean: Tensor  # [*P, n]
    teacher_scatter: Tensor  # [m]
    student_scatter: Tensor  # [*P, n]
    cross_scatter: Tensor  # [*P, m, n]
    teacher_active: Tensor  # [m] int64
    student_active: Tensor  # [*P, n] int64
    coactive: Tensor | None = None  # [*P, m, n] int64
    teacher_gram: Tensor | None = None  # [m, m] scatter within the teacher
    student_gram: Tensor | None = None  # [*P, n, n] scatter within each student

    merge = __add__ = merging.merge
    all_reduce = merging.all_reduce

    check_finite = statistics.check_finite
    correlation = statistics.correlation
    undefined_nodes = statistics.undefined_nodes
    best_student = statistics.best_student
    best_teacher = statistics.best_teacher
    layer_score = statistics.layer_score
    match_counts = statistics.match_counts
    covered = statistics.covered
    coverage = statistics.coverage
    success_rate = statistics.success_rate
    rank_of_winners = statistics.rank_of_winners
    activity = statistics.activity
    coactivation = statistics.coactivation
    observation = statistics.observation

    @classmethod
    def zeros(
        cls,
        teacher_nodes: int,
        student_nodes: int,
        *,
        population: int | None = None,
        coactivation: bool = False,
        grams: bool = False,
        device: torch.device | str | None = None,
    ) -> CrossMoments:
        """Moments of 0 samples, the neutral element of `merge`; ValueError for numbers of nodes or students below 0."""
        check_integer("teacher_nodes", teacher_nodes, 0)
        check_integer("student_nodes", student_nodes, 0)
        if population is not None:
            check_integer("population", population, 0)
        m, n = teacher_nodes, student_nodes
        kept = [name for name in _layout(m, n, population) if name not in OPTIONAL]
        kept += ["coactive"] * coactivation + ["teacher_gram", "student_gram"] * grams
        layout = _layout(m, n, population)
        return cls(**{name: torch.zeros(layout[name], dtype=_dtype(name), device=device) for name in kept})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> CrossMoments:
        """The inverse of `tensors()`; ValueError or TypeError for missing, unknown or misshapen tensors."""
        required = {field.name for field in fields(cls)} - set(OPTIONAL)
        if not required <= tensors.keys() <= required | set(OPTIONAL):
            wrong = ", ".join(sorted((required - tensors.keys()) | (tensors.keys() - required - set(OPTIONAL))))
            refuse("tensors", f"missing or unknown names: {wrong}", f"{sorted(required)} and of {list(OPTIONAL)}")
        cross = tensors["cross_scatter"]
        if cross.dim() not in (2, 3):
            refuse("cross_scatter", shape(cross), "[*population, teacher nodes, student nodes]")
        layout = _layout(cross.shape[-2], cross.shape[-1], cross.shape[0] if cross.dim() == 3 else None)
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != layout[name]:
                refuse(name, shape(tensor), f"shape {list(layout[name])}, by the shape of cross_scatter")
            if tensor.dtype != _dtype(name):
                refuse(name, f"dtype {tensor.dtype}", str(_dtype(name)), TypeError)
        return cls(**tensors)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that is present, by name."""
        present = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in present.items() if tensor is not None}

    def save(self, path: str | os.PathLike) -> None:
        """Write to a safetensors file."""
        save_tensors(path, "CrossMoments", self.tensors())

    @classmethod
    def load(cls, path: str | os.PathLike) -> CrossMoments:
        """Read what `save` wrote; one ValueError, naming the path, for a truncated or foreign file."""
        tensors, _ = load_tensors(path, "CrossMoments")
        try:
            return cls.from_tensors(tensors)
        except (ValueError, TypeError) as error:
            raise ValueError(f"path {os.fspath(path)!r}: {error}") from None

    def to(self, device: torch.device | str) -> CrossMoments:
        """The same moments on another device."""
        return self._map(lambda name, tensor: tensor.to(device))

    def __repr__(self) -> str:
        m, n = self.cross_scatter.shape[-2:]
        students = "" if self.population is None else f" of each of {self.population} students"
        kept = [f", {name}" for name in OPTIONAL if getattr(self, name) is not None]
        return f"CrossMoments({self.count} samples, {m} teacher nodes, {n} student nodes{students}{''.join(kept)})"

    @property
    def population(self) -> int | None:
        """The number of students, or None where there is no population axis."""
        return self.student_mean.shape[0] if self.student_mean.dim() == 2 else None

    def student(self, index: int) -> CrossMoments:
        """The moments of one student of the population, without the population axis."""
        return self[index]

    def __getitem__(self, index: int | slice | Tensor) -> CrossMoments:
        """The moments of chosen students of the population: an int drops the axis, a slice or index tensor keeps it."""
        if self.population is None:
            refuse("index", repr(index), "moments with a population axis; these are of a single student")
        if not isinstance(index, (int, slice, Tensor)):
            refuse("index", repr(index), "an int, a slice or a tensor of indices", TypeError)
        shared = ("count", "teacher_mean", "teacher_scatter", "teacher_active", "teacher_gram")
        return self._map(lambda name, tensor: tensor if name in shared else tensor[index])

    def _map(self, change: Callable[[str, Tensor], Tensor]) -> CrossMoments:
        return CrossMoments(**{name: change(name, tensor) for name, tensor in self.tensors().items()})


def of_students(name: str) -> bool:
    """Whether a tensor of `CrossMoments` is of the students, and has their population axis."""
    return name.startswith(("student_", "cross_")) or name == "coactive"


def _layout(m: int, n: int, population: int | None) -> dict[str, tuple[int, ...]]:
    p = () if population is None else (population,)
    teacher, student, cross = (m,), (*p, n), (*p, m, n)
    return {
        "count": (),
        "teacher_mean": teacher,
        "student_mean": student,
        "teacher_scatter": teacher,
        "student_scatter": student,
        "cross_scatter": cross,
        "teacher_active": teacher,
        "student_active": student,
        "coactive": cross,
        "teacher_gram": (m, m),
        "student_gram": (*p, n, n),
    }


def _dtype(name: str) -> torch.dtype:
    counts = ("count", "teacher_active", "student_active", "coactive")
    return torch.int64 if name in counts else torch.float64


@torch.no_grad()
def cross_moments(
    teacher_activations: Tensor,
    student_activations: Tensor,
    *,
    coactivation: bool = False,
    grams: bool = False,
    precision: str | None = None,
    check: bool = True,
) -> CrossMoments:
    """Moments of given activations.

    teacher_activations: [samples, m] or [samples, m, *space]; every position counts as a sample.
    student_activations: [*P, samples, n] or [*P, samples, n, *space], of the same dtype (float64, float32, float16 or
    bfloat16) and device; any strides. Products are formed in float32 (float64 for float64), in full precision for
    activations between about 1e-15 and 1e15 (1e-140 and 1e140) in size.
    coactivation: also count, for every pair, the samples where both are active.
    grams: also keep the scatter within each network, for CKA and CCA.
    precision: of the matrix products: "fp64" for float64 tensors, for others "fp32", "tf32x3" (three products of tf32,
        nearly fp32), "tf32" or "bf16", which round both operands; None is "fp64" or "fp32". Means, scatters of single
        nodes and counts are not rounded. A CPU, which has no units for the lower ones, computes them in fp32.
    check: refuse activations that are NaN or infinite, for which the host waits for a GPU. Without it,
        `CrossMoments.check_finite` refuses them once many batches are merged, as NaN stays NaN.
    To compare a network with itself pass it twice.
    Raises ValueError or TypeError, naming the argument, for wrong shapes, dtypes, devices and precisions, for no
    samples at all, and for activations that are NaN or infinite.
    """
    t, s = teacher_activations, student_activations
    raw = cross_moments_op(t, s, coactivation, precision)
    moments = _moments(raw, len(t) * math.prod(t.shape[2:]), check)
    if not grams:
        return moments
    students = [(s,)] if s.dim() == t.dim() else [(k,) for k in s]
    return _with_grams(moments, partial(_within, precision=precision), (t,), students)


@torch.no_grad()
def layer_moments(
    x: Tensor | tuple[Tensor, Tensor],
    teacher: Layer,
    student: Layer,
    *,
    negative_slope: float = 0.0,
    coactivation: bool = False,
    grams: bool = False,
    precision: str | None = None,
    check: bool = True,
) -> CrossMoments:
    """Moments of `relu(x @ weight.T + bias)` of teacher and student, in one pass that never stores the activations.

    x: [samples, inputs] for both, or a pair (teacher's [samples, d_t], student's [*P, samples, d_s] or [samples, d_s]).
    teacher: (weight [m, d_t], bias [m] or None); student: (weight [*P, n, d_s], bias [*P, n] or None); weights are
    [out, in] as torch has them. All of one dtype (float64, float32, float16 or bfloat16) and device; any strides.
    negative_slope: of a leaky ReLU, in [0, 1]. coactivation, grams, precision, check: as in `cross_moments`;
    grams take another pass.
    Raises ValueError or TypeError, naming the argument, for wrong shapes, dtypes, devices and precisions, for no
    samples at all, and for activations that are NaN or infinite.
    """
    t, s = _sides(x, teacher, student)
    raw, _ = layer_moments_op(*t, *s, negative_slope, coactivation, precision=precision)
    moments = _moments(raw, len(t[0]), check)
    if not grams:
        return moments

    def within(x: Tensor, weight: Tensor, bias: Tensor | None) -> Moments:
        return layer_moments_op(x, weight, bias, x, weight, bias, negative_slope, precision=precision)[0]

    return _with_grams(moments, within, t, _one_by_one(s))


@torch.no_grad()
def layer_moments_with_activations(
    x: Tensor | tuple[Tensor, Tensor],
    teacher: Layer,
    student: Layer,
    *,
    negative_slope: float = 0.0,
    coactivation: bool = False,
    grams: bool = False,
    precision: str | None = None,
    check: bool = True,
) -> tuple[CrossMoments, tuple[Tensor, Tensor]]:
    """`layer_moments`, and the activations ([samples, m], [*P, samples, n]): the inputs of the next layer."""
    t, s = _sides(x, teacher, student)
    raw, activations = layer_moments_op(*t, *s, negative_slope, coactivation, True, precision)
    assert activations is not None
    moments = _moments(raw, len(t[0]), check)
    if grams:
        students = [(activations[1],)] if moments.population is None else [(k,) for k in activations[1]]
        moments = _with_grams(moments, partial(_within, precision=precision), activations[:1], students)
    return moments, activations


def layer_moments_and_loss(
    x: Tensor | tuple[Tensor, Tensor],
    teacher: tuple[Layer, Layer],
    student: tuple[Layer, Layer],
    *,
    negative_slope: float = 0.0,
    coactivation: bool = False,
) -> tuple[CrossMoments, Tensor]:
    """`layer_moments` of the lower of two layers, and the loss of the upper one's outputs, [*P] float64: the sum over
    the samples of 1/2 ||teacher - student||^2, not finite where a square is beyond the dtype, float64 or float32."""
    t, s = _sides(x, teacher[0], student[0])
    raw, loss = moments_and_loss_op(
        (*t, *teacher[1]), (*s, *student[1]), negative_slope=negative_slope, coactivation=coactivation
    )
    return _moments(raw, len(t[0]), True), loss


def _moments(raw: Moments, count: int, check: bool) -> CrossMoments:
    """Wrap an op's result, refusing no samples and, if asked, activations that are not finite."""
    if count == 0:
        refuse("teacher", "0 samples", "at least one sample")
    parts = raw._asdict()
    if raw.coactive.dim() == 1:  # not asked for
        del parts["coactive"]
    moments = CrossMoments(count=torch.full((), count, device=raw.teacher_mean.device), **parts)
    if check:
        moments.check_finite()
    return moments


def _sides(x: Tensor | tuple[Tensor, Tensor], teacher: Layer, student: Layer) -> tuple[SideInputs, SideInputs]:
    """(input, weight, bias) of teacher and student."""
    inputs = (x, x) if isinstance(x, Tensor) else x
    for name, pair, takes in (
        ("x", inputs, "a tensor, or a pair (teacher's input, student's input)"),
        ("teacher", teacher, "a pair (weight, bias or None)"),
        ("student", student, "a pair (weight, bias or None)"),
    ):
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            refuse(name, type(pair).__name__, takes, TypeError)
    return (inputs[0], *teacher), (inputs[1], *student)


def _within(activations: Tensor, precision: str | None) -> Moments:
    return cross_moments_op(activations, activations, precision=precision)


def _one_by_one(student: SideInputs) -> list[SideInputs]:
    """The inputs of every single student of a population."""
    x, weight, bias = student
    if weight.dim() == 2:
        return [student]
    return [(x[k] if x.dim() == 3 else x, weight[k], None if bias is None else bias[k]) for k in range(len(weight))]


def _with_grams(
    moments: CrossMoments, against_itself: Callable[..., Moments], teacher: tuple, students: Sequence[tuple]
) -> CrossMoments:
    """Add the scatter within the teacher and within each student; an op computes it from their inputs."""
    *_, n = moments.student_mean.shape
    within = [against_itself(*student).cross_scatter for student in students]
    empty = moments.student_mean.new_empty(0, n, n)
    student_gram = within[0] if moments.population is None else torch.stack(within) if within else empty
    return replace(moments, teacher_gram=against_itself(*teacher).cross_scatter, student_gram=student_gram)

"""What a two-layer run records of one population at one step, and what follows once training is over."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, pad

from fastspec.measure import measure
from fastspec.networks import MLP
from fastspec.populations import Group, Population
from fastspec.statistics import Best, best, constant_nodes, rank_of
from fastspec.workers import one_thread, workers

leaky_relu_backward = torch.ops.aten.leaky_relu_backward
GRADIENT_SAMPLES = 512  # at a time, at least
GRADIENT_VALUES = 2**18  # at a time, of a student
GPU_GRADIENT_VALUES = 2**24  # the same of the students of a width on a GPU


def node_table(students: Population) -> Tensor:
    """The nodes of every student in the packed weights [P, widest] int64, on the CPU; where it has none, N, which no
    node has."""
    widths = students.offsets.diff()
    place = torch.arange(int(widths.max()))
    return torch.where(place < widths[:, None], students.offsets[:-1, None] + place, students.offsets[-1])


@torch.no_grad()
def snapshot(
    teacher: MLP, students: Population, train: Tensor, held_out: Tensor, levels: Sequence[float]
) -> dict[str, Tensor]:
    """Everything that is recorded at one step, by name; P students of N nodes in all, m teacher nodes.

    loss, loss_train, constant_students [P]; best_correlation, best_correlation_train, best_student, sine [P, m];
    students [P, levels, m]; correlation [N, m] and fan_out [N] of single nodes. Computed on the device of the data,
    returned on the CPU.
    """
    teacher, students = _beside(train, teacher, students)
    measured, on_train = (measure(teacher, students, x, progress=False) for x in (held_out, train))
    with one_thread():  # for what is small
        table = node_table(students).to(train.device)
        moments = measured.side_by_side()
        rho = moments.correlation()  # [m, N]
        values, places = _best(rho, table)
        on_train_values, _ = _best(on_train.side_by_side().correlation(), table)
        found = {
            "loss": measured.loss,
            "loss_train": on_train.loss,
            "correlation": rho.mT.float(),
            "best_correlation": values.float(),
            "best_student": places,
            "constant_students": _by_student(constant_nodes(moments)[1], table, False).sum(-1),
            "best_correlation_train": on_train_values.float(),
        }
        found["students"] = students_of(found["correlation"], students, levels)
        found["sine"] = sines(teacher, students, found["best_student"])
        found["fan_out"] = torch.linalg.vector_norm(students.w2, dim=1)
    return {name: tensor.cpu().contiguous() for name, tensor in found.items()}


def _best(rho: Tensor, table: Tensor) -> Best:
    """The best node of every student for each teacher node, by the correlations rho [m, N] of single nodes: [P, m]."""
    values, places = best(_by_student(rho, table, torch.nan))
    return Best(values.mT, places.mT)


def _by_student(of_nodes: Tensor, table: Tensor, nothing: float | bool) -> Tensor:
    """[.., N] of single nodes as [.., P, widest], with `nothing` where a student has fewer."""
    return pad(of_nodes, (0, 1), value=nothing)[..., table]


def _beside(x: Tensor, teacher: MLP, students: Population) -> tuple[MLP, Population]:
    """Both networks on the device of x."""
    if x.device == students.w1.device and x.device == next(teacher.parameters()).device:
        return teacher, students
    return copy.deepcopy(teacher).to(x.device), students.to(x.device)


def students_of(correlation: Tensor, students: Population, levels: Sequence[float]) -> Tensor:
    """How many nodes of each student have teacher node j as their best, above each level: [P, levels, m] int32."""
    p, m = len(students), correlation.shape[1]
    values, teachers = best(correlation)  # NaN, which is above no level, and -1
    owner = torch.arange(p).repeat_interleave(students.offsets.diff()).to(correlation.device)
    above = values > torch.tensor(levels).to(values).unsqueeze(1)  # [levels, N]
    counts = torch.zeros(len(levels), p * m, dtype=torch.int32, device=correlation.device)
    return counts.index_add_(1, owner * m + teachers.clamp(min=0), above.int()).unflatten(1, (p, m)).transpose(0, 1)


def sines(teacher: MLP, students: Population, best_student: Tensor) -> Tensor:
    """sin of the angle between each teacher node's fan-in and that of its best student node [P, m]; NaN for none."""
    (w1, _), _ = teacher.weights()
    rows = students.offsets[:-1, None].to(best_student.device) + best_student.clamp(min=0)
    u = torch.nn.functional.normalize(students.w1.double()[rows], dim=-1)  # [P, m, d]
    v = torch.nn.functional.normalize(w1.double(), dim=-1)  # [m, d]
    across = u - (u * v).sum(-1, keepdim=True) * v
    return across.norm(dim=-1).masked_fill(best_student < 0, torch.nan).float()


@torch.no_grad()
def per_sample_gradient(teacher: MLP, students: Population, x: Tensor) -> dict[str, Tensor]:
    """Size of g_1(x) = D V^T (teacher(x) - student(x)), the negative gradient of 1/2 |teacher - student|^2 with respect
    to the hidden pre-activations (Student Specialization, Tian, ICML 2020), over samples and nodes: gradient_max and
    the root mean square over samples of its norm, gradient_rms, [P] float64.
    """
    teacher, students = _beside(x, teacher, students)
    on_cpu, slope = x.device.type == "cpu", teacher.negative_slope
    values = GRADIENT_VALUES if on_cpu else GPU_GRADIENT_VALUES
    largest, squares = (torch.zeros(len(students), dtype=torch.float64, device=x.device) for _ in range(2))

    def some(group: Group) -> None:
        indices, w1, b1, w2, b2 = group
        here = indices.to(x.device)
        samples = max(GRADIENT_SAMPLES, values // b1.numel())
        for part, answer in zip(x.split(samples), y.split(samples), strict=True):
            z = torch.baddbmm(b1.unsqueeze(1), part.expand(len(b1), -1, -1), w1.mT)  # [students, samples, n]
            residual = torch.baddbmm(b2.unsqueeze(1), leaky_relu(z, slope), w2.mT)
            torch.sub(answer, residual, out=residual)
            g = leaky_relu_backward(residual @ w2, z, slope, False)
            low, high = g.amin((1, 2)), g.amax((1, 2))
            largest[here] = torch.maximum(largest[here], torch.maximum(-low, high).double())
            squares[here] += g.square_().sum((1, 2)).double()

    groups = list(students.groups())
    if on_cpu:  # one student at a time stays in a core's cache
        groups = [Group(*(t[k : k + 1] for t in group)) for group in groups for k in range(len(group.indices))]
    with workers(len(groups) if on_cpu else 1) as spread:
        y = teacher(x)
        spread(some, groups)
    return {"gradient_max": largest.cpu(), "gradient_rms": (squares / len(x)).sqrt().cpu()}


def ranks(students: Population, correlation: Tensor, winner: Tensor) -> Tensor:
    """The rank of each teacher node's final winner [P, m] by the correlations [N, m] of an earlier step, [P, m]."""
    rank = torch.empty(winner.shape, dtype=torch.float32)
    widths, table = students.offsets.diff(), node_table(students)
    for n in widths.unique().tolist():
        some = (widths == n).nonzero().flatten()
        rank[some] = rank_of(winner[some], correlation[table[some, :n]].mT).float()
    return rank

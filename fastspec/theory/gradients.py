"""`gradient_terms`: what pulls a student node towards the teacher's nodes, and what pushes it from the student's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastspec.adapters import check_placement
from fastspec.networks import MLP
from fastspec.ops.checks import check_finite, check_tensor, refuse, shape
from fastspec.theory.chains import Chain, backward_maps, chain, check_chains, check_statistics, forward, with_one
from fastspec.theory.normalization import normalization_pull_back
from fastspec.theory.tracing import Pass, check_depths, tracer, untouched

FACTOR_BYTES = 16 * 2**20  # of the backward maps that are at hand at one time


@dataclass(frozen=True, eq=False)
class GradientTerms:
    """One hidden layer of a student: g = D [A f* - B f] for every sample, tensors [N, nodes, *space].

    gradient: g by autograd, minus the derivative of 1/2 ||teacher - student||^2 of each sample (with batch norm in
        training mode, of all samples' sum) by the pre-activation, what goes into the ReLU.
    gate: D, 1 or the slope. teacher_term: A f*, A = V^T V*. student_term: B f, B = V^T V.
    Activations end with a 1 for the biases (Luck Matters, Tian et al. 2019, theorem 1).
    """

    gradient: Tensor
    gate: Tensor
    teacher_term: Tensor
    student_term: Tensor

    def predicted(self) -> Tensor:
        """D [A f* - B f]."""
        return self.gate * (self.teacher_term - self.student_term)

    def error(self) -> float:
        """The largest difference between `predicted` and `gradient`, relative to the largest of either term."""
        return _relative((self.predicted() - self.gradient).abs(), self)

    def gap(self) -> float:
        """The largest |A f* - B f| of a unit whose gate is 1, relative to the largest of either term.

        0 where the gradient is 0: there sum_j alpha_kj f*_j(x) = sum_k' beta_kk' f_k'(x) for every active node k
        (Student Specialization, Tian, ICML 2020); ReLUs whose gates are off say nothing.
        """
        return _relative((self.teacher_term - self.student_term).abs() * (self.gate == 1), self)


def _relative(difference: Tensor, terms: GradientTerms) -> float:
    if not difference.numel():
        return 0.0
    largest = max(float(terms.teacher_term.abs().max()), float(terms.student_term.abs().max()))
    return float(difference.max()) / largest if largest else float(difference.max())


def gradient_terms(teacher: nn.Module, student: nn.Module, x: Tensor) -> dict[str, GradientTerms]:
    """Both terms of the gradient at every hidden layer of the student, lowest first, and the gradient by autograd.

    teacher, student: as in `backward_gram`; x [N, ...] in their dtype and on their device. For two `MLP`s V, A and B
    are formed sample by sample from the weights, batch norm folded into them, and share nothing with autograd. For
    other networks A f* and B f are V^T, by autograd, of the outputs of teacher and student.
    The student may be in training mode: batch norm then has the statistics of x, whose samples belong together, and
    V^T includes the Jacobian of the normalisation over the batch; running statistics are left as they are. Dropout may
    not, nor the teacher's batch norm.
    Raises ValueError or TypeError naming the argument and the layer, as `backward_gram` does.
    """
    for name, network in (("teacher", teacher), ("student", student)):
        if not isinstance(network, nn.Module):
            refuse(name, type(network).__name__, "a Module", TypeError)
    check_tensor("x", x, range(2, 9), "[samples, ...]")
    if not len(x):
        refuse("x", shape(x), "at least one sample")
    check_placement("x", x, teacher=teacher, student=student)
    check_finite("x", x)
    check_statistics("teacher", teacher)
    in_batches = _with_batch_statistics(student)
    if not in_batches:
        check_statistics("student", student)
    of_teacher, of_student = tracer("teacher", teacher), tracer("student", student)
    check_depths(of_teacher, of_student)
    chains: tuple[Chain, Chain] | None = None
    if isinstance(teacher, MLP) and isinstance(student, MLP) and not in_batches:
        chains = chain("teacher", teacher), chain("student", student)
        check_chains(*chains)
    with torch.no_grad(), untouched(student):
        passed, answer = of_student(x), of_teacher(x).output.detach()
        if answer.shape != passed.output.shape:
            refuse("student", f"{passed.output.shape[1]} outputs", f"the outputs of the teacher, {answer.shape[1]}")
        output = passed.output.detach()
        gradients = passed.pull_back_to_pre_activations(answer - output)
        terms: Sequence[Sequence[Tensor]]
        if chains is not None:
            terms = _sample_by_sample(*chains, x)
        elif isinstance(student, MLP):
            terms = [_through_batches(student, passed, x, rows) for rows in (answer, output)]
        else:
            terms = [passed.pull_back(answer), passed.pull_back(output)]
    for name, gradient in zip(passed.names, gradients, strict=True):
        check_finite(f"x, layer {name!r}, gradient", gradient)
    found = zip(passed.names, gradients, passed.gates, *terms, strict=True)
    return {name: GradientTerms(*tensors) for name, *tensors in found}


def _with_batch_statistics(network: nn.Module) -> bool:
    """Whether the network has batch norm in training mode; dropout in training mode is refused."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not any(norm.training for norm in norms):
        return False
    for name, layer in network.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p:
            refuse(f"student, layer {name!r}", f"{type(layer).__name__} in training mode", "evaluation mode")
    return True


def _sample_by_sample(teacher: Chain, student: Chain, x: Tensor) -> list[list[Tensor]]:
    """A f* and B f of every hidden layer, from the augmented backward maps of both networks."""
    maps = [c.augmented() for c in (teacher, student)]
    size = sum(m[0].numel() for m in (*maps[0][1:], *maps[1][1:])) * teacher.outputs * x.element_size()
    terms: list[list[list[Tensor]]] = [[[] for _ in range(student.hidden)] for _ in range(2)]
    for part in x.split(max(1, FACTOR_BYTES // max(1, size))):
        passes = [forward(c, part) for c in (teacher, student)]
        ways = [backward_maps(m, [with_one(g) for g in p.gates]) for m, p in zip(maps, passes, strict=True)]
        for (layer, v_teacher), (_, v_student) in zip(*ways, strict=True):
            for i, (v, p) in enumerate(((v_teacher, passes[0]), (v_student, passes[1]))):
                output = v @ with_one(p.activations[layer]).unsqueeze(-1)  # V* f* or V f, [N, C, 1]
                term = (v_student.mT @ output).squeeze(-1)  # [N, nodes + 1]
                terms[i][layer].append(term[:, :-1])
    return [[torch.cat(parts) for parts in side] for side in terms]


def _through_batches(student: MLP, passed: Pass, x: Tensor, rows: Tensor) -> list[Tensor]:
    """V^T rows of every hidden layer [N, nodes], lowest first, V with the Jacobian of the batch's normalisation."""
    terms: list[Tensor] = []
    for i in reversed(range(len(student.norms))):
        rows = rows @ student.layers[i + 1].weight
        if student.batch_norm == "after":
            rows = normalization_pull_back(student.norms[i], passed.activations[i].detach(), rows)
        terms.append(rows)
        rows = rows * passed.gates[i]
        if student.batch_norm == "before":
            below = passed.activations[i - 1].detach() if i else x
            rows = normalization_pull_back(student.norms[i], student.layers[i](below), rows)
    return terms[::-1]

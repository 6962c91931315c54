"""Op `chain_gram`: inner products of gated backward maps of all hidden layers, which are never written to memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.ops import library
from fastspec.ops.chain_gram import reference
from fastspec.ops.checks import check_same_kind, check_tensor, refuse, shape


class ChainGram(NamedTuple):
    """What `chain_gram` returns for each hidden layer: float64 sums over the samples; `*P` an optional population axis.

    The teacher-student matrix is [teacher, student]. What was not asked for is empty, [0].
    """

    h_student_teacher: Tensor  # [*P, m, n]
    h_teacher_teacher: Tensor  # [m, m]
    h_student_student: Tensor  # [*P, n, n]


def _fake(
    teacher_maps: Sequence[Tensor],
    teacher_gates: Sequence[Tensor],
    student_maps: Sequence[Tensor],
    student_gates: Sequence[Tensor],
    within: bool,
) -> list[Tensor]:
    results = []
    for t, s in zip(teacher_gates, student_gates, strict=True):
        population, m, n = s.shape[:-2], t.shape[-1], s.shape[-1]
        for i, size in enumerate(((*population, m, n), (m, m), (*population, n, n))):
            results.append(t.new_empty(size if within or i == 0 else (0,), dtype=torch.float64))
    return results


library.define(
    "chain_gram",
    "(Tensor[] teacher_maps, Tensor[] teacher_gates, Tensor[] student_maps, Tensor[] student_gates, bool within) -> "
    "Tensor[]",
    reference=reference.chain_gram,
    fake=_fake,
)

_op = torch.ops.fastspec.chain_gram.default

_MAP, _GATE = "[*students, nodes above, nodes]", "[*students, samples, nodes]"


def chain_gram(
    teacher_maps: Sequence[Tensor],
    teacher_gates: Sequence[Tensor],
    student_maps: Sequence[Tensor],
    student_gates: Sequence[Tensor],
    *,
    within: bool = True,
) -> list[ChainGram]:
    """Sums over N samples of H = D* V*^T V D of every hidden layer, lowest first.

    maps: one for each hidden layer, lowest first: the weights of the layer above it, [nodes above, nodes], the last
        [outputs, nodes]. gates: [N, nodes] for each, the derivatives of activations by pre-activations (for a ReLU 0
        and 1). A population of students has maps [P, nodes above, nodes] and gates [P, N, nodes], for one teacher.
        All are float64 or all float32, on one device, of any strides.
    within: compute the matrices of one network with itself.
    V of the highest hidden layer is its map, and V_{l-1} = V_l D_l W_l below; the means over samples are E[H] of Luck
    Matters (Tian et al. 2019, section 3), whose H* [student, teacher] is the transpose of `h_student_teacher`.
    Memory beyond the results does not grow with N. Where a map or a gate is NaN or infinite all results are NaN.
    Raises ValueError or TypeError, naming the argument, for wrong numbers, ranks, shapes, dtypes or devices.
    """
    networks = (
        ("teacher", teacher_maps, teacher_gates, (2,)),
        ("student", student_maps, student_gates, (2, 3)),
    )
    for side, maps, gates, ranks in networks:
        for name, tensors in ((f"{side}_maps", maps), (f"{side}_gates", gates)):
            if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
                refuse(name, type(tensors).__name__, "a sequence of tensors, one for each hidden layer", TypeError)
            if not tensors or len(tensors) != len(teacher_maps):
                depth = len(teacher_maps) or "one or more"
                refuse(name, f"{len(tensors)} tensors", f"{depth}, one for each hidden layer of the teacher")
        _check_chain(side, maps, gates, ranks)
    first = teacher_maps[0]
    if first.dtype not in (torch.float64, torch.float32):
        refuse("teacher_maps[0]", f"dtype {first.dtype}", "float64 or float32", TypeError)
    named = {
        f"{side}_{what}[{i}]": tensor
        for side, maps, gates, _ in networks
        for what, tensors in (("maps", maps), ("gates", gates))
        for i, tensor in enumerate(tensors)
    }
    check_same_kind(**named)
    samples, outputs = teacher_gates[0].shape[0], teacher_maps[-1].shape[0]
    if student_gates[0].shape[-2] != samples:
        refuse("student_gates[0]", shape(student_gates[0]), f"{samples} samples, as teacher_gates[0]")
    if student_maps[-1].shape[-2] != outputs:
        refuse(f"student_maps[{len(student_maps) - 1}]", shape(student_maps[-1]), f"{outputs} outputs, the teacher's")
    found = _op(list(teacher_maps), list(teacher_gates), list(student_maps), list(student_gates), within)
    return [ChainGram(*found[i : i + 3]) for i in range(0, len(found), 3)]


def _check_chain(side: str, maps: Sequence[Tensor], gates: Sequence[Tensor], ranks: Sequence[int]) -> None:
    """Check that maps and gates of one network, or of a population, follow each other."""
    for i, (weight, gate) in enumerate(zip(maps, gates, strict=True)):
        check_tensor(f"{side}_maps[{i}]", weight, ranks, _MAP)
        check_tensor(f"{side}_gates[{i}]", gate, (maps[0].dim(),), _GATE)
        if weight.shape[:-2] != maps[0].shape[:-2] or weight.dim() != maps[0].dim():
            refuse(f"{side}_maps[{i}]", shape(weight), f"the students of {side}_maps[0], {shape(maps[0])}")
        if gate.shape != (*weight.shape[:-2], gates[0].shape[-2], weight.shape[-1]):
            takes = f"{_GATE} with the samples of {side}_gates[0] and the nodes of {side}_maps[{i}], {shape(weight)}"
            refuse(f"{side}_gates[{i}]", shape(gate), takes)
        if i and maps[i - 1].shape[-2] != weight.shape[-1]:
            refuse(f"{side}_maps[{i - 1}]", shape(maps[i - 1]), f"{weight.shape[-1]} nodes above, as {side}_maps[{i}]")

"""Benchmarks of `backward_gram`: E[beta] and E[H] of all hidden layers, against the per-sample loop and torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.compare import Case, Families, Peer, at_floor, compare, lack_of_memory, ratio, summary
from benchmarks.gate import Bounds, WrongResultError
from benchmarks.harness import Entry, Options, register, target
from benchmarks.ops import chain_gram
from benchmarks.rates import RateCalls
from fastspec import data, teachers
from fastspec.networks import MLP, student_like
from fastspec.theory import backward_gram

# inputs, hidden nodes of the teacher, outputs; multiple; samples
SHAPES = (
    ((20, 50, 75, 100, 125, 100), 2, 64),  # Student Specialization's deep Gaussian study
    ((20, 10, 15, 20, 25, 100), 10, 64),  # Luck Matters'
    ((20, 50, 75, 100, 125, 100), 2, 2048),
)
QUICK_SHAPES = (((6, 5, 7, 4), 2, 16),)
LOOP_MOST = 64  # samples, up to which the loops run

Grams = list[Tensor]  # of the hidden layers, lowest first: E[beta*], E[H*] [m, n], E[beta], E[H] [n, n] of each


class Pair(NamedTuple):
    """Teacher and student, and samples [N, inputs]."""

    teacher: MLP
    student: MLP
    x: Tensor

    @staticmethod
    def random(widths: Sequence[int], multi: int, samples: int, device: str) -> Pair:
        """A separated teacher with half of its gates on, a student of torch's own distribution, Gaussian samples."""
        x = data.gaussian(samples, widths[0], std=10.0, seed=0)
        many = data.gaussian(2000, widths[0], std=10.0, seed=1)
        teacher = teachers.separated(widths, seed=0, x=many)
        return Pair(teacher.to(device), student_like(teacher, multi=multi, seed=1).to(device), x.to(device))

    def double(self) -> Pair:
        return Pair(_copy(self.teacher), _copy(self.student), self.x.double())


def _copy(network: MLP) -> MLP:
    return MLP.from_weights([(w.double(), None if b is None else b.double()) for w, b in network.weights()])


def fastspec(pair: Pair) -> Grams:
    """The function under test; it also computes the teacher's own matrices, which no peer does."""
    found = backward_gram(*pair)
    return [
        matrix
        for g in found.values()
        for matrix in (g.beta_student_teacher, g.h_student_teacher, g.beta_student_student, g.h_student_student)
    ]


def loop(pair: Pair) -> Grams:
    """As the research code: H of every sample, [samples, nodes + 1, nodes + 1], multiplied sample by sample."""
    return _by_recursion(pair, _one_by_one)


def batched(pair: Pair) -> Grams:
    """The same recursion in batched products: what one writes first to be rid of the loop."""
    return _by_recursion(pair, lambda left, h, right: left @ h @ right)


def _one_by_one(left: Tensor, h: Tensor, right: Tensor) -> Tensor:
    beta = h.new_empty(len(h), len(left), right.shape[1])
    for i in range(len(h)):
        beta[i] = left @ h[i] @ right
    return beta


@torch.no_grad()
def _by_recursion(pair: Pair, product) -> Grams:
    maps = [_augmented(network) for network in (pair.teacher, pair.student)]
    gates = [[(f > 0).to(f.dtype) for f in network.activations(pair.x)] for network in (pair.teacher, pair.student)]
    samples, outputs = len(pair.x), len(maps[0][-1]) - 1
    found: dict[int, Grams] = {layer: [] for layer in range(len(gates[0]))}
    for side in (0, 1):  # the teacher, then the student itself
        h = torch.eye(outputs + 1, dtype=pair.x.dtype, device=pair.x.device).repeat(samples, 1, 1)
        for layer in reversed(range(len(gates[0]))):
            beta = product(maps[side][layer + 1].T, h, maps[1][layer + 1])
            h = beta.clone()
            h[:, :, :-1] *= gates[1][layer][:, None, :]
            h[:, :-1, :] *= gates[side][layer][:, :, None]
            found[layer] += [beta.mean(0)[:-1, :-1], h.mean(0)[:-1, :-1]]
    return [matrix for grams in found.values() for matrix in grams]


def _augmented(network: MLP) -> list[Tensor]:
    """[[W, b], [0, 1]] of every layer, also at the top, whose 1 then stands for one more output."""
    maps = []
    for weight, bias in network.weights():
        assert bias is not None
        last = pad(weight.new_ones(1, 1), (weight.shape[1], 0))
        maps.append(torch.cat([torch.cat([weight, bias[:, None]], 1), last]))
    return maps


def jacobians(pair: Pair) -> Grams:
    """torch.func: vmap(jacrev) of the outputs by all hidden activations at once, then einsum."""
    maps = [list(_jacobians(network, pair.x)) for network in (pair.teacher, pair.student)]
    found = []
    for (t, g_t), (s, g_s) in zip(*maps, strict=True):
        for left, gate in ((t, g_t), (s, g_s)):
            a, b = left * gate.unsqueeze(1), s * g_s.unsqueeze(1)
            found += [torch.einsum("xcj,xck->jk", *sides) / len(pair.x) for sides in ((left, s), (a, b))]
    return found


def _jacobians(network: MLP, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """V [N, C, nodes] and gates [N, nodes] of every hidden layer, lowest first."""
    layers = [(weight, weight.new_zeros(len(weight)) if bias is None else bias) for weight, bias in network.weights()]

    def output(shifts: tuple[Tensor, ...], one: Tensor) -> Tensor:
        for (weight, bias), shift in zip(layers[:-1], shifts, strict=True):
            one = torch.relu(weight @ one + bias) + shift
        weight, bias = layers[-1]
        return weight @ one + bias

    zeros = tuple(x.new_zeros(len(weight)) for weight, _ in layers[:-1])
    found = torch.func.vmap(torch.func.jacrev(output), (None, 0))(zeros, x)
    with torch.no_grad():
        yield from zip(found, [(f > 0).to(f.dtype) for f in network.activations(x)], strict=True)


def check(name: str, result: Grams, truth: Grams, samples: int, bounds: Bounds) -> Entry:
    """The gate of `compare`: the largest error of a matrix, relative to its largest element."""
    error = max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(result, truth, strict=True))
    if not error <= bounds.rho:
        raise WrongResultError(f"{name}: got an error against float64 of {error:.3g} (limit {bounds.rho:.3g})")
    return {"h": error}


def chains(pair: Pair) -> chain_gram.Chains:
    """What the op is given, whose least work this is."""
    with torch.no_grad():
        gates = [[(f > 0).to(f.dtype) for f in network.activations(pair.x)] for network in (pair.teacher, pair.student)]
    maps = [[weight for weight, _ in network.weights()[1:]] for network in (pair.teacher, pair.student)]
    return chain_gram.Chains(maps[0], gates[0], maps[1], gates[1])


def case(shape: tuple[tuple[int, ...], int, int], options: Options) -> Case:
    widths, multi, samples = shape
    pair = Pair.random(widths, multi, samples, options.device)
    hidden = "-".join(map(str, widths[1:-1]))
    bytes_moved = sum(w.numel() for network in pair[:2] for w, _ in network.weights()) + pair.x.numel()
    results = sum(n * (m + n) for m, n in zip(widths[1:-1], pair.student.hidden_widths, strict=True))
    return Case(
        label=f"{hidden} x {multi}, {samples:,} samples",
        shape={"depth": len(widths) - 1, "multi": multi, "samples": samples, "outputs": widths[-1]},
        copies=[pair],
        truth=batched(pair.double()),
        samples=samples,
        operations=chain_gram.operations(chains(pair), samples),
        moved=4.0 * bytes_moved + 2 * 8.0 * results,
        check=check,
    )


def contenders(item: Case, options: Options) -> Families:
    """The peers by family; the largest of the last family's arrays decide whether it fits in memory."""
    pair: Pair = item.copies[0]
    many = None if item.samples <= LOOP_MOST else f"more than {LOOP_MOST} samples"
    nodes = sum(pair.student.hidden_widths)
    need = 3.0 * 4 * item.samples * max(pair.student.hidden_widths) ** 2
    jacobian = 4.0 * 4 * item.samples * nodes * pair.teacher.widths[-1]
    return {
        "loop": [Peer("loop", loop, skip=many)],
        "batched": [Peer("batched", batched, rounds=3, skip=lack_of_memory(need, options.device))],
        "jacrev": [Peer("jacrev", jacobians, rounds=3, skip=lack_of_memory(jacobian, options.device))],
    }


@register("backward_gram", "E[beta] and E[H] of deep networks, against the per-sample loop and torch, float32")
def speed(options: Options) -> Entry:
    rates = RateCalls(options.device, quick=options.quick)
    entries = []
    for shape in QUICK_SHAPES if options.quick else SHAPES:
        item = case(shape, options)
        entries.append(compare(item, fastspec, contenders(item, options), rates, options))
    found = {"axes": "teacher x multiple", "error_of": "h", **summary(entries)}
    goal = target(f"over the per-sample loop, {entries[0]['label']}", ratio(entries[0], "loop"), at_least=50, unit="x")
    return found | {"targets": [goal | {"at_floor": at_floor(entries[0], "loop")}]}

"""Forward and backward ratios of stacks of bias-free ReLU networks, a chunk of samples at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.ops.linear_relu import linear_relu

CHUNK_BYTES = 64 * 2**20  # aimed at for the activations of a stack of networks
FEWEST_SAMPLES = 64  # at a time


class Ratios(NamedTuple):
    """Of P networks of L layers on N samples, float64; NaN where a sample sends no gradient to the layers."""

    forward: Tensor  # [P, L, N], ||h_l|| / ||x||
    backward: Tensor  # [P, L, N], ||dloss / dW_l||_F / (||x|| ||delta||)


@torch.no_grad()
def ratios(weights: Sequence[Tensor], top: Tensor, x: Tensor, target: Tensor, *, packed: bool | None = None) -> Ratios:
    """All samples at once.

    weights: [P, nodes, nodes below] each, lowest first. top: [P, C, nodes], the weights of the softmax. x: [N, d].
    target: [N, C], probabilities. The gradient of a layer's weights is delta_l h_(l-1)^T for one sample, and delta is
    that of the uppermost hidden layer, 1[h > 0] * top^T (softmax - target).
    packed: keep a bit for every gate, by the op `linear_relu`, in place of the activations; None does so on a GPU,
        where the op is a kernel.
    """
    packed = x.is_cuda if packed is None else packed
    size, h = _norm(x), x  # [N]
    forward, gates = [], []
    for weight in weights:
        if packed:
            h, gate, _, _ = linear_relu(h, weight, None)  # [P, N, nodes]
        else:
            h = gate = torch.relu_(h @ weight.mT)
        forward.append(_norm(h))
        gates.append(gate)
    delta = _gated((torch.softmax(h @ top.mT, -1) - target) @ top, gates[-1])  # [P, N, nodes]
    first, backward = _norm(delta), []
    for i in reversed(range(len(weights))):
        if i + 1 < len(weights):
            delta = _gated(delta @ weights[i + 1], gates[i])
        backward.append(_norm(delta) / first * (forward[i - 1] / size if i else 1.0))
    return Ratios(torch.stack(forward, 1) / size, torch.stack(backward[::-1], 1))


def chunks(weights: Sequence[Tensor], samples: int) -> Iterator[slice]:
    """The samples in pieces whose activations, of all layers and networks, take about `CHUNK_BYTES`."""
    nodes = sum(weight.shape[0] * weight.shape[1] for weight in weights)
    step = max(FEWEST_SAMPLES, CHUNK_BYTES // (nodes * weights[0].element_size()))
    yield from (slice(start, min(start + step, samples)) for start in range(0, samples, step))


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)


def _gated(delta: Tensor, gate: Tensor) -> Tensor:
    """delta [.., nodes] where gates are open: packed [.., bytes], or activations [.., nodes] above 0."""
    if gate.dtype != torch.uint8:
        return torch.ops.aten.threshold_backward(delta, gate, 0)
    places = torch.arange(8, dtype=torch.uint8, device=gate.device)
    bits = (gate.unsqueeze(-1) >> places & 1).flatten(-2)[..., : delta.shape[-1]]
    return delta.mul_(bits.to(delta.dtype))


class Spread(NamedTuple):
    """Ratios over the samples, [.., L] each."""

    mean: Tensor
    std: Tensor
    error: Tensor  # mean of |1 - ratio|
    worst: Tensor  # largest |1 - ratio|
    worst_sample: Tensor  # int64, where that is; -1 where no sample has a ratio
    square: Tensor  # mean of ratio^2
    square_std: Tensor  # of ratio^2
    undefined: Tensor  # int64, samples without a ratio


class Running:
    """The spread of ratios that come in chunks of samples."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # [4, .., L]: powers 1, 2 and 4, and |1 - ratio|
        self.worst = self.place = self.defined = self.samples = torch.zeros((), dtype=torch.int64)

    def add(self, ratios: Tensor) -> None:
        """[.., L, samples], float64."""
        known = ~ratios.isnan()
        error = (1 - ratios).abs().nan_to_num(nan=-1.0)  # [.., L, samples]
        sums = torch.stack([*(ratios.pow(k).nansum(-1) for k in (1, 2, 4)), (1 - ratios).abs().nansum(-1)])
        worst, place = error.max(-1)
        if self.sums is None:
            self.sums, self.worst, self.place = torch.zeros_like(sums), torch.full_like(worst, -1.0), place
            self.defined = self.samples = torch.zeros_like(place)
        self.sums = self.sums + sums
        self.place = torch.where(worst > self.worst, place + self.samples, self.place)
        self.worst = torch.maximum(worst, self.worst)
        self.defined = self.defined + known.sum(-1)
        self.samples = self.samples + ratios.shape[-1]

    def finish(self) -> Spread:
        assert self.sums is not None
        mean, square, fourth, error = self.sums / self.defined  # NaN where there is none
        none = self.defined == 0
        return Spread(
            mean,
            (square - mean.square()).clamp(min=0).sqrt(),
            error,
            self.worst.masked_fill(none, torch.nan),
            self.place.masked_fill(none, -1),
            square,
            (fourth - square.square()).clamp(min=0).sqrt(),
            self.samples - self.defined,
        )

"""A plain training loop for one deep network: labels, or the outputs of a teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastspec.adapters import check_placement, evaluation_mode, forward
from fastspec.ops.checks import check_finite, check_integer, check_real, check_tensor, refuse, shape
from fastspec.randomness import generator

OnSnapshot = Callable[[int], object]
Report = Callable[[int, int], object]
REPORT_EVERY = 100  # steps


def train_supervised(
    network: nn.Module,
    x: Tensor,
    target: Tensor | nn.Module,
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    input_noise: float = 0.0,
    seed: int = 0,
    snapshots: Iterable[int] = (),
    on_snapshot: OnSnapshot | None = None,
    progress: Report | None = None,
) -> None:
    """Train `network` in place, with Adam and a learning rate that falls from `lr` to 0 along half a cosine.

    x [N, d]. target: labels int64 [N], learned by cross-entropy, or a teacher from [N, d] to [N, C], learned by the
    mean over the batch of 1/2 ||teacher(x) - network(x)||^2 at the very inputs the network sees.
    batch_size: samples drawn with replacement at every step. input_noise: standard deviation of fresh Gaussian noise
    added to every input of a batch, in the units of x; labels stay as they are, a teacher answers the noisy input.
    weight_decay: as in torch.optim.Adam. seed: of batches and noise.
    snapshots: numbers of steps after which `on_snapshot(step)` is called, 0 is the start. progress: called with
    (step, steps) now and then.
    The same seed on the same machine gives the same bits. Raises ValueError or TypeError naming the argument.
    """
    _check_data(network, x, target)
    for name, count, low in (("steps", steps, 0), ("batch_size", batch_size, 1)):
        check_integer(name, count, low)
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("input_noise", input_noise)):
        check_real(name, value, "a finite number of at least 0", 0.0)
    stops = set(snapshots)
    for stop in stops:
        check_integer("snapshots", stop, 0, steps)
    draw = generator(seed, "supervised training")
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    for step in range(steps + 1):
        if step in stops and on_snapshot is not None:
            on_snapshot(step)
            network.train()
        if progress is not None and (step % REPORT_EVERY == 0 or step == steps):
            progress(step, steps)
        if step == steps:
            break
        rows = torch.randint(len(x), (batch_size,), generator=draw).to(x.device)
        batch = x[rows]
        if input_noise:
            noise = torch.randn(batch.shape, generator=draw, dtype=x.dtype)
            batch = batch + input_noise * noise.to(x.device)
        loss = _loss(network, batch, target, rows)
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


def _loss(network: nn.Module, batch: Tensor, target: Tensor | nn.Module, rows: Tensor) -> Tensor:
    if isinstance(target, Tensor):
        return F.cross_entropy(network(batch), target[rows])
    with torch.no_grad(), evaluation_mode(target):
        answer = target(batch)
    return (network(batch) - answer).square().sum(1).mean() / 2


def _check_data(network: nn.Module, x: Tensor, target: Tensor | nn.Module) -> None:
    if not isinstance(network, nn.Module):
        refuse("network", type(network).__name__, "a Module", TypeError)
    check_tensor("x", x, (2,), "[samples, inputs]")
    if len(x) == 0:
        refuse("x", shape(x), "one sample or more")
    check_finite("x", x)
    check_placement("x", x, network=network)
    outputs = _one_output("network", network, x)
    if isinstance(target, nn.Module):
        check_placement("x", x, target=target)
        answers = _one_output("target", target, x)
        if answers.shape != outputs.shape:
            refuse("target", f"{answers.shape[1]} outputs", f"a teacher with the {outputs.shape[1]} of the network")
        return
    if not isinstance(target, Tensor) or target.dtype != torch.int64:
        got = f"dtype {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
        refuse("target", got, "int64 labels [samples], or a teacher module", TypeError)
    if target.shape != (len(x),):
        refuse("target", shape(target), f"[{len(x)}], one label for each sample of x")
    low, high = (int(label) for label in target.aminmax())
    if low < 0 or high >= outputs.shape[1]:
        refuse("target", f"labels from {low} to {high}", f"labels in [0, {outputs.shape[1]}), the network's outputs")


@torch.no_grad()
def _one_output(side: str, network: nn.Module, x: Tensor) -> Tensor:
    with evaluation_mode(network):
        return forward(side, network, x[:1])

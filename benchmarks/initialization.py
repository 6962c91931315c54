"""`norm_report` against the published scripts' loop over samples, and against batches in plain torch.

The loop is that of the published code of Arpit & Bengio (arXiv 1901.03611): one sample at a time through numpy, each
weight matrix copied before it is used. Its time is linear in the samples, so that a share of them is timed.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import fastspec as fs
from benchmarks.gate import WrongResultError
from benchmarks.harness import Entry, Options, geometric_mean, interleave, register, target
from benchmarks.rates import RateCalls
from fastspec.initialization.schemes import stream, weights
from fastspec.norms import Grid
from fastspec.norms.grid import random_targets

OUTPUTS, SEED, SCHEME = 20, 0, "he_fan_out"
SHAPE, QUICK_SHAPE = (2000, 500, 1000, 10), (200, 50, 60, 4)  # samples, inputs, width, layers
SHARE, QUICK_SHARE = 60, 20  # samples of the loops
ERROR = {torch.float32: 1e-4, torch.float64: 1e-10}  # largest error of a ratio's mean against the loop, in float64


@dataclass(frozen=True)
class Problem:
    """One network, its samples, and the samples that a loop takes."""

    x: Tensor  # [N, d]
    target: Tensor  # [N, C]
    layers: list[Tensor]  # [width, nodes below]
    top: Tensor  # [C, width]
    share: int

    @staticmethod
    def random(shape: tuple[int, int, int, int], share: int, dtype: torch.dtype, device: str = "cpu") -> Problem:
        samples, inputs, width, depth = shape
        layers = [
            weights(SCHEME, width, width if i else inputs, seed=SEED, layer=str(i)).to(dtype) for i in range(depth)
        ]
        top = torch.randn(OUTPUTS, width, dtype=torch.float64, generator=stream(SEED, "softmax")).to(dtype)
        x = fs.data.gaussian(samples, inputs, dtype=dtype)
        target = random_targets(samples, OUTPUTS).to(device, dtype)
        return Problem(x.to(device), target, [w.to(device) for w in layers], top.to(device), share)

    @property
    def grid(self) -> Grid:
        return Grid((SCHEME,), (len(self.layers[0]),), (len(self.layers),), (SEED,), OUTPUTS)

    @property
    def operations(self) -> float:
        """Of the matrix products, forward and backward."""
        hidden = sum(w.numel() for w in self.layers)
        return 2.0 * len(self.x) * (2 * hidden - self.layers[0].numel() + 2 * self.top.numel())


def report(problem: Problem, samples: int) -> Tensor:
    """The whole of `norm_report`, drawing of weights included: mean ratios [2, layers]."""
    found = fs.norm_report(problem.grid, problem.x[:samples], progress=False)
    return torch.stack([found.forward.mean.flatten(), found.backward.mean.flatten()])


def published_loop(problem: Problem, samples: int) -> Tensor:
    """One sample at a time, with the operations of the published scripts."""
    return _loop(problem, samples, lambda matrix: 1.0 * matrix)


def lean_loop(problem: Problem, samples: int) -> Tensor:
    """The same loop without copies of the weights."""
    return _loop(problem, samples, lambda matrix: matrix)


def _loop(problem: Problem, samples: int, taken: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    layers, top = [w.cpu().numpy() for w in problem.layers], problem.top.cpu().numpy()
    depth = len(layers)
    forward, backward = np.zeros((depth, samples)), np.zeros((depth, samples))
    for n, (x, aim) in enumerate(zip(problem.x[:samples].cpu().numpy(), problem.target.cpu().numpy(), strict=False)):
        kept, h = [x], 1.0 * x
        for i in range(depth):
            h = np.maximum(0, taken(layers[i]).dot(h))
            kept.append(h)
            forward[i, n] = np.linalg.norm(h) / np.linalg.norm(x)
        logits = top.dot(h)
        power = np.exp(logits - logits.max())
        delta = first = (h > 0) * top.T.dot(power / power.sum() - aim)
        for i in reversed(range(depth)):
            size = np.linalg.norm(kept[i]) * np.linalg.norm(delta)
            backward[i, n] = size / (np.linalg.norm(x) * np.linalg.norm(first))
            delta = (kept[i] > 0) * taken(layers[i].T).dot(delta)
    return torch.from_numpy(np.stack([forward.mean(1), backward.mean(1)]))


def batched(problem: Problem, samples: int) -> Tensor:
    """All samples at once in plain torch; every activation is kept for its gate."""
    kept = [problem.x[:samples]]
    for w in problem.layers:
        kept.append(torch.relu(kept[-1] @ w.T))
    sizes = [h.norm(dim=1) for h in kept]
    delta = (torch.softmax(kept[-1] @ problem.top.T, 1) - problem.target[:samples]) @ problem.top * (kept[-1] > 0)
    first, backward = delta.norm(dim=1), []
    for i in reversed(range(len(problem.layers))):
        backward.append((sizes[i] * delta.norm(dim=1) / (sizes[0] * first)).mean())
        if i:
            delta = delta @ problem.layers[i] * (kept[i] > 0)
    return torch.stack([torch.stack([(size / sizes[0]).mean() for size in sizes[1:]]), torch.stack(backward[::-1])])


PEERS: dict[str, Callable[[Problem, int], Tensor]] = {
    "fastspec": report,
    "published loop": published_loop,
    "lean loop": lean_loop,
    "batched": batched,
}
LOOPS = ("published loop", "lean loop")


def gate(problem: Problem) -> dict[str, float]:
    """The largest error of each peer's mean ratios, of the samples that a loop takes, against a float64 loop.

    Raises WrongResultError where one is too large for the dtype.
    """
    exact = Problem(
        problem.x.double(),
        problem.target.double(),
        [w.double() for w in problem.layers],
        problem.top.double(),
        problem.share,
    )
    truth = lean_loop(exact, problem.share)
    found = {name: float((call(problem, problem.share).cpu() - truth).abs().max()) for name, call in PEERS.items()}
    for name, error in found.items():
        if not error <= ERROR[problem.x.dtype]:
            raise WrongResultError(f"{name}: got an error of {error:.3g}, limit {ERROR[problem.x.dtype]:g}")
    return found


def case(problem: Problem, rates: RateCalls, options: Options) -> Entry:
    """The entry of one dtype: all samples for what takes batches, a share of them, scaled, for the loops."""
    errors, samples = gate(problem), len(problem.x)
    counts = {name: problem.share if name in LOOPS else samples for name in PEERS}
    calls = {name: (lambda call=call, n=counts[name]: call(problem, n)) for name, call in PEERS.items()}
    timings = interleave({**calls, **rates.calls}, options.rounds, device=options.device)
    measured = rates.rates(timings["matrix"].median, timings["copy"].median)
    floor = measured.floor(problem.operations, problem.x.element_size() * sum(w.numel() for w in problem.layers))
    peers: Entry = {}
    for name in PEERS:
        scale, rounds = samples / counts[name], timings[name].rounds
        ratios = [scale * rounds[r] / timings["fastspec"].rounds[r] for r in rounds]
        seconds = scale * timings[name].median
        peers[name] = {
            "settings": {"samples timed": counts[name]},
            "error": {"ratio": errors[name]},
            "rounds_ms": [scale * t * 1e3 for t in rounds.values()],
            "median_ms": seconds * 1e3,
            "of_matrix_rate": problem.operations / seconds / measured.matrix,
            "of_floor": floor / seconds,
            "times_slower": statistics.median(ratios),
        }
    width, depth = len(problem.layers[0]), len(problem.layers)
    dtype = str(problem.x.dtype).removeprefix("torch.")
    shown = ", ".join(f"{peers[name]['times_slower']:.2f}x over {name}" for name in PEERS if name != "fastspec")
    print(f"  {dtype}: {peers['fastspec']['median_ms']:.0f} ms, {shown}", file=sys.stderr, flush=True)
    return {
        "label": f"{samples:,} x {problem.x.shape[1]}, {depth} x {width}, {dtype}",
        "shape": {"samples": samples, "inputs": problem.x.shape[1], "width": width, "layers": depth},
        "operations": problem.operations,
        "rates": {"matrix_gflops": measured.matrix / 1e9, "copy_gbytes": measured.copy / 1e9, "floor_ms": floor * 1e3},
        "best": {name: name for name in PEERS if name != "fastspec"},
        "peers": peers,
    }


@register("norm_report", "norms of a random network at initialisation, against the published loop over samples")
def speed(options: Options) -> Entry:
    shape, share = (QUICK_SHAPE, QUICK_SHARE) if options.quick else (SHAPE, SHARE)
    entries = []
    for dtype in (torch.float32, torch.float64):
        rates = RateCalls(options.device, dtype, quick=options.quick)
        entries.append(case(Problem.random(shape, share, dtype, options.device), rates, options))
    names = entries[0]["best"]
    means = {name: geometric_mean([entry["peers"][name]["times_slower"] for entry in entries]) for name in names}
    slowest = min(entry["peers"]["published loop"]["times_slower"] for entry in entries)
    targets = [] if options.quick else [target("over the published loop, either dtype", slowest, at_least=20, unit="x")]
    return {
        "axes": "samples x inputs, layers x width",
        "error_of": "ratio",
        "cases": entries,
        "geometric_means": means,
        "targets": targets,
    }

"""Benchmarks of the op `two_layer_sgd`: students of the two-layer study against the ways in which they are trained."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks import jax_peer, study
from benchmarks.compare import OURS, Case, Families, Peer, at_floor, best, compare, failure, ratio, summary
from benchmarks.harness import Entry, Options, register, smallest, target
from benchmarks.rates import RateCalls
from benchmarks.training import BATCH, INPUTS, OUTPUTS, SAMPLES, Training, Weights, check, fastspec
from benchmarks.training_peers import bmm, bmm_plain, compiled_vmap, on_threads, serial, serial_lean, vmapped

STUDENTS = 32
# teacher nodes, student nodes in multiples of them, steps: thousands at a time in the study, here enough to hide a call
SHAPES = ((5, 1, 1000), (10, 2, 480), (10, 5, 400), (20, 5, 304), (20, 10, 200))
QUICK_SHAPES = ((5, 1, 16), (10, 2, 16))
PILOT = 24  # steps in which the variants of a peer are compared
OVER_BMM = {5: 6.0, 20: 4.0, 50: 2.5, 100: 1.8, 200: 1.6}  # wanted in float32, by student nodes; in float64 1.6


def case(shape: tuple[int, int, int], dtype: torch.dtype, options: Options) -> Case:
    """The students of one cell of the study; the serial loop in float64 is the truth."""
    nodes, multi, steps = shape
    training, width = Training.of_study(nodes, multi, steps, STUDENTS, dtype, options.device), nodes * multi
    values = 2 * STUDENTS * width * (INPUTS + OUTPUTS) + SAMPLES * (INPUTS + OUTPUTS)
    return Case(
        label=f"{width} nodes, {steps} steps",
        shape={"students": STUDENTS, "nodes": width, "inputs": INPUTS, "outputs": OUTPUTS, "batch": BATCH}
        | {"steps": steps},
        copies=[training],
        truth=serial_lean(training.to(torch.float64)),
        samples=steps * BATCH,
        operations=2.0 * steps * STUDENTS * BATCH * width * (2 * INPUTS + 3 * OUTPUTS),
        moved=float(dtype.itemsize * values),
        check=check,
    )


def contenders(item: Case, options: Options) -> Families:
    """The peers by family, each at its best number of threads; of `bmm` the two best variants."""
    training: Training = item.copies[0]
    pilot, few = training.head(PILOT), min(3, options.rounds)

    def fastest(
        name: str,
        call: Callable[..., Weights],
        variants: Sequence[dict] = ({},),
        keep: int = 1,
        rounds: int | None = None,
    ) -> list[Peer]:
        peers = []
        for threads, settings in itertools.product(sorted({1, torch.get_num_threads()}), variants):
            label = ", ".join([name, f"threads {threads}", *(f"{key} {value}" for key, value in settings.items())])
            limited = on_threads(partial(call, **settings), threads)
            peers.append(Peer(label, limited, {"threads": threads, **settings}, rounds))
        return best(peers, pilot, keep=keep, device=options.device)

    layouts = [{"unit": unit, "transposed": transposed} for unit in (1, 8, 16) for transposed in (False, True)]
    return {
        "bmm": fastest("bmm", bmm, layouts, keep=2),
        "bmm plain": fastest("bmm plain", bmm_plain),
        "vmap": fastest("vmap", vmapped),
        "compiled vmap": [_compiled(pilot, options)],
        "jax": [Peer("jax", jax_peer.trained, {"version": jax_peer.version()}, skip=jax_peer.missing())],
        "serial": fastest("serial", serial, rounds=few),
        "serial lean": fastest("serial lean", serial_lean, rounds=few),
    }


def _compiled(pilot: Training, options: Options) -> Peer:
    if options.quick and not options.compile:
        return Peer("compiled vmap", vmapped, skip="quick runs compile nothing without --compile")
    call = compiled_vmap()
    return Peer("compiled vmap", call, skip=failure(call, pilot))


def _speed(dtype: torch.dtype, options: Options) -> Entry:
    rates = RateCalls(options.device, dtype, options.quick)
    entries = []
    for shape in QUICK_SHAPES if options.quick else SHAPES:
        item = case(shape, dtype, options)
        entries.append(compare(item, fastspec, contenders(item, options), rates, options))
    return {
        "axes": f"{STUDENTS} students, {INPUTS} inputs, {OUTPUTS} outputs, batch {BATCH}",
        "error_of": "weights",
        "gemm": "sgemm" if dtype == torch.float32 else "dgemm",
        **summary(entries),
        "targets": [] if options.quick else _targets(entries, dtype),
    }


@register("two_layer_sgd", f"training {STUDENTS} two-layer students, against torch and JAX, float32")
def single(options: Options) -> Entry:
    return _speed(torch.float32, options)


@register("two_layer_sgd_fp64", "the same in float64")
def double(options: Options) -> Entry:
    return _speed(torch.float64, options)


@register("two_layer_study", "an epoch of the two-layer study, and the time of all of it")
def whole_study(options: Options) -> Entry:
    return study.foretell(options)


def _targets(entries: Sequence[Entry], dtype: torch.dtype) -> list[Entry]:
    by_nodes = {entry["shape"]["nodes"]: entry for entry in entries}

    def over(name: str, family: str, nodes: int, least: float) -> Entry:
        entry = by_nodes[nodes]
        found = target(f"over {name}, {nodes} nodes", ratio(entry, family), at_least=least, unit="x")
        return {**found, "at_floor": at_floor(entry, family)}

    wide = [e["peers"][OURS].get("of_matrix_rate", math.nan) for n, e in by_nodes.items() if n >= 100]
    return [
        *(over("bmm", "bmm", nodes, least if dtype == torch.float32 else 1.6) for nodes, least in OVER_BMM.items()),
        over("the serial loop", "serial", 100, 25.0),
        target("share of the gemm rate, 100 nodes or more, smallest", smallest(wide), at_least=0.6),
    ]

"""`mlp_sgd_step` on a GPU: steps in rooms that are kept, and in CUDA graphs of them."""

from __future__ import annotations

import atexit
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from fastspec.ops.gpu import devices
from fastspec.ops.gpu.layout import on_device_of
from fastspec.ops.mlp_sgd_step import matrix_shapes, reference
from fastspec.ops.mlp_sgd_step.matrix_room import MatrixRoom
from fastspec.ops.mlp_sgd_step.room import Room
from fastspec.ops.mlp_sgd_step.shapes import GRAIN, Layout
from fastspec.ops.mlp_sgd_step.students import Problem, Students

ROOMS = 4  # that are kept for later calls
KEPT = 512 * 2**20  # bytes of a room that is


class Steps:
    """A room and its graphs."""

    def __init__(self, problem: Problem):
        self.room: Students = Room(problem) if problem.tiles is None else MatrixRoom(problem, problem.tiles)
        # a room that is not kept is so large that its steps take longer than their launches
        self.captures = problem.device.type == "cuda" and self.room.bytes <= KEPT
        self.graphs: dict[int, torch.cuda.CUDAGraph | None] = {}

    def make(self, steps: int) -> None:
        """The first time by launches, which compile the kernels; then by a graph that is captured at the second."""
        room = self.room
        if not self.captures or torch.cuda.is_current_stream_capturing():
            room.launch(steps)
            return
        graph = self.graphs.get(steps)
        if steps in self.graphs and graph is None:
            graph = torch.cuda.CUDAGraph()
            stream = torch.cuda.Stream(room.problem.device)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                room.launch(steps)
        self.graphs[steps] = graph
        if graph is None:
            room.launch(steps)
        else:
            graph.replay()


_kept: OrderedDict[tuple[Problem, int], Steps] = OrderedDict()
_one_at_a_time = threading.Lock()
atexit.register(_kept.clear)  # graphs must go while CUDA is there


def mlp_sgd_step(
    x: Tensor,
    y: Tensor,
    parameters: Tensor,
    buffers: Tensor | None,
    indices: Tensor,
    lr: Tensor,
    diverged_step: Tensor,
    widths: Sequence[int],
    bias: Sequence[bool],
    first_step: int,
    momentum: float,
    weight_decay: float,
    negative_slope: float,
    loss_limit: float,
    normalize: bool,
    gradient_norms: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Signature and results of the op."""
    population, (steps, batch) = parameters.shape[:-1], indices.shape[-2:]
    rule = (momentum, weight_decay, negative_slope, loss_limit, normalize, gradient_norms)
    if not steps or not parameters.numel():
        return reference.mlp_sgd_step(
            x, y, parameters, buffers, indices, lr, diverged_step, widths, bias, first_step, *rule, precision
        )
    tiles = None
    if precision in matrix_shapes.PRECISIONS:
        tiles = matrix_shapes.matrix_tiles(tuple(widths), batch, precision, devices.rates_of(x).warpgroups)
    unit = GRAIN if tiles is None else tiles.width
    layout = Layout(tuple(widths), tuple(bias), batch, x.dtype == torch.float64, unit)
    students, own = (population[0] if population else 1), indices.dim() > 2
    problem = Problem(layout, students, own, y.dtype == torch.int64, *rule, precision, tiles, x.device)

    def flat(t: Tensor) -> Tensor:
        return t.view(students, *t.shape[1:]) if population else t.unsqueeze(0)

    moved = torch.empty(parameters.shape, dtype=x.dtype, device=x.device)
    kept = torch.empty_like(moved) if momentum else x.new_empty(0)
    losses = x.new_empty((*population, steps), dtype=torch.float64)
    norms = losses.new_empty((*losses.shape, layout.layers) if gradient_norms else (0,))
    diverged = torch.empty(population, dtype=torch.int64, device=x.device)
    rows = indices.movedim(-2, 0)
    with _one_at_a_time, on_device_of(x):
        made = _steps(problem)
        room = made.room
        room.enter(flat(parameters), None if buffers is None else flat(buffers), flat(diverged_step))
        for start, end in _groups(steps, room.steps):
            count = end - start
            room.gather(x, y, rows[start:end], lr[start:end], first_step + start)
            made.make(count)
            flat(losses)[:, start:end].copy_(room.losses[:count, :students].T)
            if room.norms is not None:
                found = room.norms[:count, : students * layout.layers].view(count, students, layout.layers)
                flat(norms)[:, start:end].copy_(found.movedim(0, 1))
        room.leave(flat(moved), flat(kept) if momentum else None, flat(diverged))
    return moved, kept, losses, norms, diverged


def _groups(steps: int, longest: int) -> Iterator[tuple[int, int]]:
    """Steps that are made together: as many as a room holds, then powers of two, so that a few graphs do."""
    start = 0
    while start < steps:
        while longest > steps - start:
            longest //= 2
        yield start, start + longest
        start += longest


def _steps(problem: Problem) -> Steps:
    """The steps of a problem: of a stream's earlier call if they were kept, or new ones."""
    if problem.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return Steps(problem)
    stream = torch.cuda.current_stream()
    key = problem, stream.cuda_stream
    made = _kept.pop(key, None) or _apart(problem, stream)
    if made.room.bytes <= KEPT:
        _kept[key] = made
        if len(_kept) > ROOMS:
            _kept.popitem(last=False)
    return made


def _apart(problem: Problem, stream: torch.cuda.Stream) -> Steps:
    """Steps made in a thread of its own: what is kept must neither come from the memory pool that torch.compile's
    graphs lend to a thread, nor be a tensor of inference mode.
    """

    def made() -> Steps:
        with torch.cuda.stream(stream):
            return Steps(problem)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(made).result()

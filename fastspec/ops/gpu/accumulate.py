"""Host side of the one-pass kernel: rounds of spans, slabs of tiles, and what is carried from round to round."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.ops.gpu.centre import centre_kernel
from fastspec.ops.gpu.layout import Space, grain, index_type, on_device_of, reach, strides
from fastspec.ops.gpu.merge import merge_kernel
from fastspec.ops.gpu.moments import moments_kernel
from fastspec.ops.gpu.sizes import SPANS, WORKSPACE, Tiles, ceil_div, span_of

MERGE_ROWS, MERGE_COLUMNS = 8, 64

Outputs = tuple[Tensor, ...]  # as `fastspec.ops.cross_moments.Moments` names them


class Side(NamedTuple):
    """A network's layer: an input with weight and bias, or activations alone."""

    x: Tensor  # input [N, d] or [P, N, d]; activations [N, nodes, *space] or [P, N, nodes, *space]
    weight: Tensor | None = None  # [nodes, d] or [P, nodes, d]
    bias: Tensor | None = None  # [nodes] or [P, nodes]


class Centred(NamedTuple):
    """Activations of one network about the shifts of their spans, and the spans' statistics."""

    values: Tensor  # [spans * span, nodes], zeros after the last sample
    sums: Tensor  # [spans, 4, nodes]: first, shift, sum, sum of squares
    active: Tensor  # [spans, nodes] int32


def centre(
    buffer: Tensor, samples: int, span: int, slope: float, kept: Tensor | None = None, each: int | None = None
) -> Centred:
    """Gate pre-activations [spans * span, nodes] and centre them, in place; rows after `samples` become 0.

    kept: [samples, n], or [students, samples, n] for students that have `each` columns side by side: where the
    activations go.
    """
    spans, nodes = len(buffer) // span, buffer.shape[1]
    found = Centred(buffer, buffer.new_empty(spans, 4, nodes), buffer.new_empty(spans, nodes, dtype=torch.int32))
    population = kept is not None and kept.dim() == 3
    students = len(kept) if kept is not None and population else 1
    n = nodes if kept is None else kept.shape[-1]
    to = strides(kept, population, 1)
    with on_device_of(buffer):
        centre_kernel[(ceil_div(nodes, 32), spans)](
            buffer, found.sums, found.active, kept, samples, nodes, span, slope, students, n, each or nodes, *to,
            ROWS=32, NODES=32, num_warps=4, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip
    return found


class Workspace(NamedTuple):
    """The sums of a round's spans over a slab of columns."""

    cross: Tensor  # [spans, m, width]
    coactive: Tensor | None  # [spans, m, width] int32
    teacher: Tensor  # [spans, 4, m]: first, shift, sum, sum of squares
    student: Tensor  # [spans, 4, width]
    teacher_active: Tensor  # [spans, m] int32
    student_active: Tensor  # [spans, width] int32

    @classmethod
    def empty(cls, like: Tensor, spans: int, m: int, width: int, dtype: torch.dtype, counts: bool) -> Workspace:
        new = like.new_empty
        return cls(
            new((spans, m, width), dtype=dtype),
            new((spans, m, width), dtype=torch.int32) if counts else None,
            new((spans, 4, m), dtype=dtype),
            new((spans, 4, width), dtype=dtype),
            new((spans, m), dtype=torch.int32),
            new((spans, width), dtype=torch.int32),
        )

    @classmethod
    def fitting(
        cls, like: Tensor, samples: int, span: int, m: int, columns: int, tile: int, dtype: torch.dtype, counts: bool
    ) -> Workspace:
        """Of as many spans, and then tiles of columns, as there are and as there is room for."""
        every = min(ceil_div(samples, span), SPANS)
        column = m * tile * (dtype.itemsize + 4 * counts)  # bytes of a tile of columns and one span
        slab = min(max(WORKSPACE // (column * every), 1), ceil_div(columns, tile))
        return cls.empty(like, min(max(WORKSPACE // (column * slab), 1), every), m, slab * tile, dtype, counts)


class Accumulator:
    """The moments of one teacher against students, as they gather round by round.

    out: a moments op's eight outputs; of a single student, the two matrices may be slices of student nodes.
    own_inputs: the students of a population have inputs of their own, and so tiles of their own.
    """

    def __init__(
        self,
        out: Outputs,
        samples: int,
        precision: str,
        tiles: Tiles,
        own_inputs: bool = False,
        workspace: Workspace | None = None,
    ):
        self.out, self.samples, self.precision, self.tiles = out, samples, precision, tiles
        self.m, self.n = out[4].shape[-2:]
        self.population = out[4].dim() == 3
        self.students = out[4].shape[0] if self.population else 1
        self.flat = not own_inputs
        self.span, self.done = span_of(samples, self.m), 0
        if self.flat:
            self.columns = ceil_div(self.students * self.n, tiles.students)  # in tiles
        else:
            self.columns = self.students * ceil_div(self.n, tiles.students)
        self._workspace = workspace
        self._carried: list[tuple[Tensor, Tensor]] | None = None

    @property
    def workspace(self) -> Workspace:
        """The one that was given, or one of its own, made when it is first needed."""
        if self._workspace is None:
            dtype = torch.float64 if self.precision == "fp64" else torch.float32
            tile, counts = self.tiles.students, self.out[7].dim() > 1
            columns = self.columns * tile
            self._workspace = Workspace.fitting(
                self.out[0], self.samples, self.span, self.m, columns, tile, dtype, counts
            )
        return self._workspace

    @property
    def carried(self) -> list[tuple[Tensor, Tensor]]:
        """References and sums of both sides, before a round and after it: made when a first round is not the last."""
        if self._carried is None:
            new = self.out[0].new_empty
            self._carried = [(new((2, self.m)), new((2, self.students * self.n))) for _ in range(2)]
        return self._carried

    def add(
        self, teacher: Side, student: Side, slope: float = 0.0, activations: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Add all samples of both sides; every call but the last brings whole spans.

        activations: contiguous [N, m] and [P, N, n] to be written, where the sides are layers.
        """
        space = Space.of(teacher.x, student.x) if teacher.weight is None else Space([1] * 3, [0] * 3, [0] * 3)
        samples = len(teacher.x) * space.positions
        arguments = self._arguments(teacher, student, space, activations)
        spans, (most, _, width) = ceil_div(samples, self.span), self.workspace.cross.shape
        slab = width // self.tiles.students
        with on_device_of(teacher.x):
            for first in range(0, spans, most):
                here = min(most, spans - first)
                for tile in range(0, self.columns, slab):
                    tiles = min(slab, self.columns - tile)
                    part = {"first_span": first, "first_tile": tile, "width": width, "span": self.span}
                    grid = ceil_div(self.m, self.tiles.teachers) * tiles, here
                    moments_kernel[grid](**arguments, samples=samples, slope=slope, **part)
                    self._merge(self.workspace, samples, here, tiles * self.tiles.students, part)
                self._round_done(min(here * self.span, samples - first * self.span))

    def add_centred(self, teacher: Centred, student: Centred, samples: int) -> None:
        """Add activations that are centred already; their products are torch's. Students lie side by side, each in
        whole tiles."""
        spans, nodes = len(teacher.sums), student.values.shape[1]
        t, s = (side.values.view(spans, self.span, -1) for side in (teacher, student))
        work = Workspace(torch.bmm(t.mT, s), None, teacher.sums, student.sums, teacher.active, student.active)
        part = {"first_span": 0, "first_tile": 0, "width": nodes, "span": self.span}
        with on_device_of(teacher.values):
            self._merge(work, samples, spans, nodes, part)
        self._round_done(samples)

    def _round_done(self, samples: int) -> None:
        self.done += samples
        if self._carried is not None:
            self._carried.reverse()

    def _arguments(
        self, teacher: Side, student: Side, space: Space, activations: tuple[Tensor, Tensor] | None
    ) -> dict[str, object]:
        """Those arguments of `moments_kernel` that no part of the pass changes."""
        layered, own, work = teacher.weight is not None, student.x.dim() > teacher.x.dim(), self.workspace
        _, t_row, t_column = strides(teacher.x, False, 2)
        s_student, s_row, s_column = strides(student.x, own, 2)
        _, tw_node, tw_input = strides(teacher.weight, False, 2)
        sw_student, sw_node, sw_input = strides(student.weight, self.population, 2)
        _, tb_node = strides(teacher.bias, False, 1)
        sb_student, sb_node = strides(student.bias, self.population, 1)
        d_t, d_s = (teacher.x.shape[1], student.x.shape[-1]) if layered else (0, 0)

        last = (t_column, s_column, tw_input, sw_input) if layered else (t_column, s_column)
        unit = grain(last, (t_row, s_row, s_student, tw_node, sw_node, sw_student, d_t, d_s))
        if not layered and (space.positions > 1 or self.m % 4 or self.n % 4):
            unit = 1
        node_unit = 1 if layered else unit
        one_x = student.x[0] if own and layered else student.x
        at_once = None if space.positions > 1 else self.tiles.rows
        index = index_type(
            reach(teacher.x, 0, at_once),
            reach(one_x, one_x.dim() - teacher.x.dim(), at_once),
            reach(teacher.weight),
            reach(student.weight),
            0 if activations is None else activations[1].numel(),
        )
        return {
            **dict(zip(("p_tx", "p_tw", "p_tb"), teacher, strict=True)),
            **dict(zip(("p_sx", "p_sw", "p_sb"), student, strict=True)),
            **{
                "p_cross": work.cross,
                "p_coactive": work.coactive,
                "p_teacher": work.teacher,
                "p_student": work.student,
            },
            **{"p_teacher_active": work.teacher_active, "p_student_active": work.student_active},
            **dict(zip(("p_ta", "p_sa"), activations or (None, None), strict=True)),
            **{"m": self.m // node_unit, "n": self.n // node_unit, "students": self.students},
            **{"d_t": d_t // unit, "d_s": d_s // unit},
            **{"s_tx_row": t_row // unit, "s_tx_column": t_column},
            **{"s_tw_node": tw_node // unit, "s_tw_input": tw_input, "s_tb_node": tb_node},
            **{"s_sx_student": s_student // unit, "s_sx_row": s_row // unit, "s_sx_column": s_column},
            **{"s_sw_student": sw_student // unit, "s_sw_node": sw_node // unit, "s_sw_input": sw_input},
            **{"s_sb_student": sb_student, "s_sb_node": sb_node},
            **dict(zip(("size1", "size2", "size3"), space.sizes, strict=True)),
            **dict(zip(("s_tx_1", "s_tx_2", "s_tx_3"), space.teacher, strict=True)),
            **dict(zip(("s_sx_1", "s_sx_2", "s_sx_3"), space.student, strict=True)),
            **{"SPACE": space.positions > 1, "FLAT": self.flat, "PRECISION": self.precision},
            **{"ROWS": self.tiles.rows, "TEACHERS": self.tiles.teachers, "STUDENTS": self.tiles.students},
            # inputs that come one by one take more registers each
            **{"INPUTS": self.tiles.inputs if unit > 1 else 16, "INDEX": index, "GRAIN": unit, "NODE_GRAIN": node_unit},
            **{
                "num_warps": self.tiles.warps,
                "num_stages": self.tiles.stages if unit > 1 or not layered else 1,
                "enable_fp_fusion": True,
            },
        }

    def _merge(self, work: Workspace, samples: int, spans: int, columns: int, part: dict[str, int]) -> None:
        """Add a round's spans, of `samples` here, to what was carried; on the last round make the outputs of it."""
        t_mean, s_mean, t_scatter, s_scatter, scatter, t_active, s_active, coactive = self.out
        rows = min(spans * self.span, samples - part["first_span"] * self.span)
        first, last = self.done == 0, self.done + rows == self.samples
        nothing = t_mean, s_mean
        (t_before, s_before), (t_after, s_after) = (nothing, nothing) if first and last else self.carried
        merge_kernel[(ceil_div(self.m, MERGE_ROWS) * ceil_div(columns, MERGE_COLUMNS),)](
            work.cross,
            work.coactive,
            work.teacher,
            work.student,
            work.teacher_active,
            work.student_active,
            t_before,
            t_after,
            s_before,
            s_after,
            t_mean,
            s_mean,
            t_scatter,
            s_scatter,
            scatter,
            t_active,
            s_active,
            None if work.coactive is None else coactive,
            self.samples,
            samples,
            self.m,
            self.n,
            self.students,
            scatter.stride(0) if self.population else 0,
            scatter.stride(-2),
            spans,
            **part,
            FIRST=first,
            LAST=last,
            FLAT=self.flat,
            STUDENTS=self.tiles.students,
            ROWS=MERGE_ROWS,
            COLUMNS=MERGE_COLUMNS,
            num_warps=4,
            num_stages=1,
            enable_fp_fusion=True,
        )

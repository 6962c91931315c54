"""A population that is trained by several processes, each a share of its students."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from fastspec.ops.checks import refuse
from fastspec.ops.two_layer_sgd import Packed
from fastspec.populations import Population


class Share:
    """The students of this process: dealt out widest first, back and forth, so that all shares weigh about the same."""

    def __init__(self, students: Population, group: dist.ProcessGroup):
        processes = dist.get_world_size(group)
        if len(students) < processes:
            refuse("students", f"{len(students)} students for {processes} processes", "one for each process, or more")
        widths = students.widths
        dealt = sorted(range(len(students)), key=lambda k: -widths[k])
        turns = [min(i % (2 * processes), 2 * processes - 1 - i % (2 * processes)) for i in range(len(students))]
        self._whole, self._group = students, group
        self._members = [[k for k, turn in zip(dealt, turns, strict=True) if turn == r] for r in range(processes)]
        self.indices: Sequence[int] = self._members[dist.get_rank(group)]
        self.students = students.select(self.indices)

    def of_table(self, table: Tensor) -> Tensor:
        """This share's rows of a table with one for each student."""
        return table[torch.tensor(self.indices, device=table.device)]

    def whole(self, weights: Packed) -> Packed:
        """The weights of all students, in their order, from every process's own."""
        every = torch.arange(len(self._whole.w1))
        nodes = [torch.cat([every[self._whole.nodes(k)] for k in members]) for members in self._members]
        w1, b1, w2 = (self._gather(t, nodes) for t in weights[:3])
        return Packed(w1, b1, w2, self.whole_table(weights.b2))

    def whole_table(self, table: Tensor) -> Tensor:
        """A table with one row for each student, from every process's own."""
        return self._gather(table, [torch.tensor(members) for members in self._members])

    def _gather(self, mine: Tensor, places: Sequence[Tensor]) -> Tensor:
        """out[places[r]] = what process r has."""
        out, here = mine.new_empty(sum(map(len, places)), *mine.shape[1:]), dist.get_rank(self._group)
        for rank, rows in enumerate(places):
            part = mine.contiguous() if rank == here else mine.new_empty(len(rows), *mine.shape[1:])
            dist.broadcast(part, group_src=rank, group=self._group)
            out[rows.to(out.device)] = part
        return out

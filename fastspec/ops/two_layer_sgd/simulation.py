"""When a GPU is done with the blocks of a population, on paper."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

RESERVED = 1024  # bytes of shared memory that the system takes for each block
FILE = 65536  # registers of a multiprocessor


class Device(NamedTuple):
    """What the plans need to know of a GPU."""

    multiprocessors: int
    shared_bytes: int  # of a multiprocessor
    block_shared_bytes: int  # of a block at most, beside the kernel's static shared memory
    cluster_blocks: int  # blocks of a cluster at most; 1 without clusters


H200 = Device(132, 228 * 1024, 227 * 1024 - 64, 8)


class Cost(NamedTuple):
    """One step of one block, in clocks of a multiprocessor."""

    work: float  # with all four schedulers busy
    alone: float  # when no other block is there

    @property
    def share(self) -> float:
        """Of a multiprocessor, which a block takes when it is alone."""
        return self.work / self.alone


class Group(NamedTuple):
    """Students of one width, which are one launch."""

    nodes: int
    students: tuple[int, ...]
    plan: Mapping[str, Any]
    cost: Cost


class Schedule(NamedTuple):
    """When the multiprocessors are done, in clocks a step."""

    finished: tuple[float, ...]  # [multiprocessors]
    work: float  # all that is to do

    @property
    def clocks(self) -> float:
        """When the last one is done."""
        return max(self.finished)

    @property
    def utilisation(self) -> float:
        """The mean of the finishing times as a fraction of the last one."""
        return sum(self.finished) / len(self.finished) / self.clocks


class Multiprocessor:
    """Blocks that share a multiprocessor in proportion to what each would take alone."""

    def __init__(self, device: Device):
        self.bytes, self.registers = device.shared_bytes, FILE
        self.load = 0.0
        self.changed = 0  # how often blocks have come or gone
        self._now = self._progress = 0.0  # progress: clocks that a block has had, as if it were alone
        self._running: list[tuple[float, int, Group]] = []  # progress at which a block is done

    def room(self, group: Group) -> int:
        """For how many more blocks there is memory."""
        size, registers = self._needs(group)
        return min(self.bytes // size, self.registers // registers)

    def start(self, group: Group, now: float) -> None:
        """Give a block its place."""
        self._advance(now)
        heapq.heappush(self._running, (self._progress + group.cost.alone, self.changed, group))
        self._change(group, 1)

    def finish(self, now: float) -> None:
        """Take away the block that is done."""
        self._advance(now)
        _, _, group = heapq.heappop(self._running)
        self._change(group, -1)

    def end(self) -> float | None:
        """When the next block will be done, if nothing changes before."""
        if not self._running:
            return None
        return self._now + (self._running[0][0] - self._progress) * max(1.0, self.load)

    def _needs(self, group: Group) -> tuple[int, int]:
        return group.plan["shared_bytes"] + RESERVED, group.plan["threads"] * group.plan["registers"]

    def _change(self, group: Group, sign: int) -> None:
        size, registers = self._needs(group)
        self.bytes, self.registers = self.bytes - sign * size, self.registers - sign * registers
        self.load += sign * group.cost.share
        self.changed += 1

    def _advance(self, now: float) -> None:
        self._progress += (now - self._now) / max(1.0, self.load)
        self._now = now


def simulate(groups: Sequence[Group], device: Device = H200) -> Schedule:
    """Blocks start in the order of their groups, a cluster as soon as there is room for all of its blocks.

    Raises ValueError for a cluster that the whole device has no room for.
    """
    processors = [Multiprocessor(device) for _ in range(device.multiprocessors)]
    finished = [0.0] * len(processors)
    events: list[tuple[float, int, int]] = []  # time, multiprocessor, its `changed`
    now = 0.0

    def announce(m: int) -> None:
        end = processors[m].end()
        if end is not None:
            heapq.heappush(events, (end, m, processors[m].changed))

    def wait() -> float:
        time, m, changed = heapq.heappop(events)
        if changed == processors[m].changed:
            processors[m].finish(time)
            finished[m] = time
            announce(m)
        return time

    for group in groups:
        for _ in group.students:
            while sum(p.room(group) for p in processors) < group.plan["ranks"]:
                if not events:
                    raise ValueError(f"a GPU of {device.multiprocessors} multiprocessors has no room for {group.plan}")
                now = wait()
            for _ in range(group.plan["ranks"]):
                m = min((p.load, m) for m, p in enumerate(processors) if p.room(group))[1]
                processors[m].start(group, now)
                announce(m)
    while events:
        wait()
    return Schedule(tuple(finished), sum(len(g.students) * g.plan["ranks"] * g.cost.work for g in groups))

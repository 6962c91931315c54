"""A memory checker and race detector for Triton's interpreter, which by itself reads and writes any address."""

from __future__ import annotations

import numpy as np
import torch
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

NOBODY, MANY, RELEASED = -1, -2, -3


class Launch:
    """Who has read and written each element of a launch's tensors.

    What a program wrote before it counted itself by an atomic is there for those that have counted themselves.
    """

    def __init__(self, tensors: list[torch.Tensor]):
        addresses = [addresses_of(tensor) for tensor in tensors if tensor.numel()]
        self.addresses = np.unique(np.concatenate(addresses)) if addresses else np.empty(0, np.uint64)
        self.reader, self.writer = (np.full(len(self.addresses), NOBODY) for _ in range(2))
        self.counted: set[int] = set()

    def elements(self, pointers: np.ndarray, mask: np.ndarray) -> np.ndarray:
        asked = pointers[np.broadcast_to(mask, pointers.shape).astype(bool)]
        found = np.searchsorted(self.addresses, asked)
        there = found < len(self.addresses)
        there &= self.addresses[np.minimum(found, len(self.addresses) - 1)] == asked
        assert there.all(), f"{int((~there).sum())} of {there.size} addresses are no element of any argument"
        return found

    @staticmethod
    def alone(who: np.ndarray, program: int) -> np.ndarray:
        return (who == NOBODY) | (who == program)

    def load(self, pointers: np.ndarray, mask: np.ndarray, program: int) -> None:
        at = self.elements(pointers, mask)
        there = (self.writer[at] == RELEASED) & (program in self.counted)
        assert (self.alone(self.writer[at], program) | there).all(), "a program reads what another has written"
        self.reader[at] = np.where(self.alone(self.reader[at], program), program, MANY)

    def store(self, pointers: np.ndarray, mask: np.ndarray, program: int) -> None:
        at = self.elements(pointers, mask)
        assert len(np.unique(at)) == len(at), "a program writes an element twice at once"
        assert self.alone(self.writer[at], program).all(), "two programs write one element"
        assert self.alone(self.reader[at], program).all(), "a program writes what another has read"
        self.writer[at] = program

    def atomic(self, pointers: np.ndarray, mask: np.ndarray, program: int) -> None:
        at = self.elements(pointers, mask)
        assert ((self.writer[at] == NOBODY) & (self.reader[at] == NOBODY)).all(), "an atomic of what others access"
        self.writer[self.writer == program] = RELEASED
        self.counted.add(program)


def addresses_of(tensor: torch.Tensor) -> np.ndarray:
    offsets = np.zeros((), np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = offsets[..., None] + np.arange(size) * stride
    return (tensor.data_ptr() + offsets.ravel() * tensor.element_size()).astype(np.uint64)


def watch(monkeypatch) -> None:
    """Check every access of every launch."""
    builder, launches = type(interpreter.interpreter_builder), []
    call, load, store = interpreter.GridExecutor.__call__, builder.create_masked_load, builder.create_masked_store
    atomic = builder.create_atomic_rmw

    def launch(self, *args, **kwargs):
        given = [x.base if isinstance(x, TensorDescriptor) else x for x in (*args, *kwargs.values())]
        tensors = [x for x in given if isinstance(x, torch.Tensor)]
        launches.append(Launch(tensors))
        call(self, *args, **kwargs)
        launches.pop()

    def program(self) -> int:
        (x, y, z), (_, height, depth) = self.grid_idx, self.grid_dim
        return (x * height + y) * depth + z

    def checked_load(self, pointers, mask, *rest, **options):
        launches[-1].load(pointers.data, mask.data, program(self))
        return load(self, pointers, mask, *rest, **options)

    def checked_store(self, pointers, value, mask, *rest):
        launches[-1].store(pointers.data, mask.data, program(self))
        return store(self, pointers, value, mask, *rest)

    def checked_atomic(self, operation, pointers, value, mask, order, scope):
        assert order == ir.MEM_SEMANTIC.ACQUIRE_RELEASE
        launches[-1].atomic(pointers.data, mask.data, program(self))
        return atomic(self, operation, pointers, value, mask, order, scope)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    monkeypatch.setattr(builder, "create_atomic_rmw", checked_atomic)
    monkeypatch.setattr(builder, "create_masked_load", checked_load)
    monkeypatch.setattr(builder, "create_masked_store", checked_store)

"""What this machine can do at this moment: the rate of a large square matrix product, and of a large copy.

They are timed in the same rotation as the peers, so that a busy neighbour slows both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rates:
    """Operations per second of a square matrix product, and bytes per second (read + written) of a copy."""

    matrix: float
    copy: float

    def floor(self, operations: float, moved: float) -> float:
        """Seconds that nothing made of `operations` in matrix products and `moved` bytes can beat."""
        return max(operations / self.matrix, moved / self.copy)


class RateCalls:
    """The two calls to time, and the arithmetic from seconds to rates."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32, quick: bool = False):
        self.size = {"cuda": 8192, "cpu": 1024 if quick else 3072}[device]
        self.elements = {"cuda": 2**28, "cpu": 2**22 if quick else 2**26}[device]
        a = torch.randn(self.size, self.size, device=device).to(dtype)
        b, out = torch.randn_like(a), torch.empty_like(a)
        source = torch.randn(self.elements, device=device)
        copy = torch.empty_like(source)
        self.calls: dict[str, Callable[[], object]] = {
            "matrix": lambda: torch.mm(a, b, out=out),
            "copy": lambda: copy.copy_(source),
        }
        for call in self.calls.values():
            call()

    def rates(self, matrix_seconds: float, copy_seconds: float) -> Rates:
        return Rates(2.0 * self.size**3 / matrix_seconds, 8.0 * self.elements / copy_seconds)

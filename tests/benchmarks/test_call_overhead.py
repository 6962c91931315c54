"""pytest-benchmark of the host's cost of a call; runs each call once unless --benchmark-enable (`make bench`)."""

from __future__ import annotations

import pytest

from benchmarks.overhead import small_calls

CALLS = small_calls()


@pytest.mark.parametrize("name", CALLS)
def test_call_overhead(benchmark, name):
    benchmark.group = "call on tiny tensors"
    assert benchmark(CALLS[name]) is not None

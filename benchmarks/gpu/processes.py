"""Commands that end in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
GRACE = 45.0  # seconds that a process gets, at most, to end what it is at


class Done(NamedTuple):
    """How a process ended; status None if its time was over."""

    status: int | None
    output: str


def run(command: Sequence[str], until: float, environment: Mapping[str, str] | None = None) -> Done:
    """Run a command in the repository's root until a time, its output passed on and kept."""
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **(environment or {})}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    lines: list[str] = []

    def pass_on() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            sys.stderr.write(line)

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    try:
        status: int | None = process.wait(max(until - time.time(), 0.0))
    except subprocess.TimeoutExpired:
        status = None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    reader.join(GRACE)
    return Done(status, "".join(lines))


def soon(until: float) -> float:
    """When a process should begin nothing more, so that it ends by itself before `until`."""
    return until - min(GRACE, 0.2 * max(until - time.time(), 0.0))

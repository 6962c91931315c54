"""How long the parts of a run took, summed over its interruptions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastspec.atomic_files import write_atomically


class Clock:
    """Wall seconds of each job's activities, in a JSON file {job: {activity: seconds}} that an interrupted run goes on
    with.

    seconds: what earlier runs took. A killed process loses the time since the last `save`, and work done twice counts
    twice.
    """

    def __init__(self, path: Path, seconds: dict[str, dict[str, float]]):
        self._path, self.seconds = path, seconds
        self._last = time.monotonic()

    def lap(self, job: str, activity: str) -> None:
        """Add the time since the last lap, or since the clock was made, to an activity."""
        now = time.monotonic()
        activities = self.seconds.setdefault(job, {})
        activities[activity] = activities.get(activity, 0.0) + now - self._last
        self._last = now

    @contextmanager
    def until_left(self, job: str, activity: str) -> Iterator[None]:
        """A lap from the last one to the end of the block, however that comes, and saved."""
        try:
            yield
        finally:
            self.lap(job, activity)
            self.save()

    def save(self) -> None:
        rounded = {job: {name: round(s, 3) for name, s in parts.items()} for job, parts in self.seconds.items()}
        text = json.dumps(rounded, indent=2) + "\n"
        write_atomically(self._path, lambda partial: partial.write_text(text))

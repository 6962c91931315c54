"""Progress: what is said, and how much time is said to be left."""

from __future__ import annotations

import json
import signal

import pytest

from fastspec.experiments import console
from fastspec.experiments.clock import Clock
from fastspec.experiments.console import Console, TimeLeft


@pytest.fixture
def wait(monkeypatch):
    """A function that lets seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


@pytest.fixture
def shown(monkeypatch):
    """What the bar was given: (title, count, share, seconds left)."""
    calls = []

    class Bar(console._NoBar):
        def __call__(self, *call):
            calls.append(call)

    monkeypatch.setattr(console, "_bar", lambda *, quiet: Bar())
    return calls


def test_time_left_does_not_count_what_was_found(wait):
    left = TimeLeft()
    assert left(50, 100) is None
    wait(10)
    assert left(60, 100) == pytest.approx(40)
    wait(10)
    assert left(60, 100) == pytest.approx(80)


def test_a_study_weighs_its_jobs_by_cost(wait, shown):
    with Console(quiet=True).study({"small": 10.0, "found": 70.0, "large": 20.0}) as study:
        with study.job("small") as advance:
            advance(0, 100)
            wait(10)
            advance(50, 100)
            wait(10)
            advance(100, 100)
        study.found("found")
        with study.job("large") as advance:
            advance(1, 4)  # a quarter was made before
            wait(20)
            advance(3, 4)
    titles, counts, shares, left = zip(*shown, strict=True)
    assert titles == ("job 1 of 3, small",) * 3 + ("job 3 of 3, large",) * 2
    assert shares == pytest.approx((0.0, 0.05, 0.1, 0.85, 0.95))
    assert counts[-1] == "step 3 of 4, 95% of the study"
    assert left[:3] == (None, pytest.approx(10 * 95 / 5), pytest.approx(20 * 90 / 10))
    assert left[3:] == (pytest.approx(20 * 15 / 10), pytest.approx(40 * 5 / 20))  # 70 and 5 of 100 cost nothing


@pytest.mark.parametrize(("left", "text"), [(None, ""), (40.2, ", about 40 s left"), (1500.0, ", about 25 min left")])
def test_plain_lines_say_what_is_left(left, text, wait, capsys):
    bar = console._PlainBar()
    wait(console.QUIET_SECONDS - 1)
    bar("a job", "step 1 of 9", 0.1, left)
    assert capsys.readouterr().err == ""
    wait(2)
    bar("a job", "step 1 of 9", 0.1, left)
    assert capsys.readouterr().err == f"a job: step 1 of 9{text}\n"


def test_the_end_needs_no_plain_line(wait, capsys):
    bar = console._PlainBar()
    wait(console.QUIET_SECONDS + 1)
    bar("a job", "step 9 of 9", 1.0, None)
    assert capsys.readouterr().err == ""


def test_ctrl_c_stops_at_the_next_safe_point_and_a_second_one_at_once():
    quiet, before, reached = Console(quiet=True), signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), quiet.interruptible(), quiet.stage("work") as advance:
        signal.raise_signal(signal.SIGINT)
        reached.append("between two steps")
        advance(1, 2)
        reached.append("after the step")
    assert reached == ["between two steps"] and signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), quiet.interruptible():
        signal.raise_signal(signal.SIGINT)
        reached.append("between two steps")
        signal.raise_signal(signal.SIGINT)
        reached.append("after the second")
    assert reached == ["between two steps"] * 2 and signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), quiet.interruptible():
        signal.raise_signal(signal.SIGINT)  # the end is a safe point too


def test_a_clock_goes_on_from_its_file(wait, tmp_path):
    for _ in range(2):
        path = tmp_path / "timings.json"
        clock = Clock(path, json.loads(path.read_text()) if path.exists() else {})
        for activity, seconds in (("training", 3), ("evaluation", 2), ("training", 1)):
            wait(seconds)
            clock.lap("a", activity)
        clock.save()
    assert json.loads(path.read_text()) == {"a": {"training": 8.0, "evaluation": 4.0}}

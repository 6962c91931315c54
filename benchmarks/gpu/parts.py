"""The parts of `make gpu`, each in processes of its own that end in time: what it came to, as an entry of the result.

An entry has `state`: "passed", "failed", "left out" (no time) or "not there" (this machine lacks it), and `why`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.plugin import LEFT_OUT
from benchmarks.gpu.processes import Done, run, soon
from benchmarks.gpu.result import Result, about, failure
from benchmarks.harness import Entry

TESTS = "tests/gpu"
STATES = ("passed", "not there", "left out", "failed")  # the worst last
SMALL = ("tests/gpu/test_gpu_small_calls.py", "tests/gpu/test_gpu_small_populations.py")
NO_TESTS = 5  # exit status of pytest
PYTEST_WORKERS = 4  # where xdist is there: most of the time goes into compiling kernels


def test(until: float, outcomes: Path, only: str | None, device: str) -> Entry:
    """`pytest -m gpu`; tests that no longer fit are left out by `plugin`. `outcomes` is kept if the run is cut."""
    if importlib.util.find_spec("pytest") is None:
        return {"state": "failed", "why": "pytest is not installed"}
    workers = ["-n", str(PYTEST_WORKERS)] if importlib.util.find_spec("xdist") and device == "cuda" else []
    command = [*_pytest(until, outcomes), *workers, *(["-k", only] if only else []), *SMALL, TESTS]
    done = run(command, until, {} if device == "cuda" else {"FASTSPEC_GPU_TESTS_ON": device})
    found = [json.loads(line) for line in outcomes.read_text().splitlines()] if outcomes.exists() else []
    outcomes.unlink(missing_ok=True)
    late = [test["test"] for test in found if LEFT_OUT in test["why"]]
    count = Counter(test["outcome"] for test in found)
    skipped = count["skipped"] - len(late)
    entry: Entry = {
        "why": f"{count['passed']} passed, {count['failed']} failed, {skipped} skipped, {len(late)} left out",
        "failed": [test for test in found if test["outcome"] == "failed"],
        "skipped": [test for test in found if test["outcome"] == "skipped" and test["test"] not in late],
        "left_out": late,
        "slowest": [(t["test"], t["seconds"]) for t in sorted(found, key=lambda test: -test["seconds"])[:10]],
    }
    if done.status == NO_TESTS:
        return {"state": "not there", **entry, "why": f"no test matches {only!r}"}
    if done.status is None:
        entry["why"] += "; ended in the middle, the time was over"
        return {"state": "failed" if entry["failed"] else "left out", **entry}
    return {"state": "passed" if done.status == 0 else "failed", **entry}


def sanitizer(until: float) -> Entry:
    """Small calls of every op under compute-sanitizer's memcheck, those of CUDA C++ kernels under racecheck too."""
    found = [_sanitized("memcheck", SMALL, until), _sanitized("racecheck", SMALL[1:], until)]
    worst = max(found, key=lambda part: STATES.index(part["state"]))
    return {"state": worst["state"], "why": "; ".join(part["why"] for part in found)}


def _sanitized(checker: str, tests: Sequence[str], until: float) -> Entry:
    tool = find_sanitizer()
    if tool is None:
        return {"state": "not there", "why": "no compute-sanitizer on PATH or beside nvcc"}
    command = [tool, "--tool", checker, "--error-exitcode", "99", *_pytest(until, None), "-x", *tests]
    done = run(command, until, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    said = [line for line in done.output.splitlines() if line.startswith("=========")]
    why = said[-1].strip("= ") if said else f"status {done.status}"
    if done.status is None:
        return {"state": "left out", "why": "ended, the time was over"}
    if any("not supported" in line.lower() for line in said):
        return {"state": "not there", "why": f"compute-sanitizer does not work here: {said[0].strip('= ')}"}
    return {"state": "passed" if done.status == 0 else "failed", "why": f"{checker}: {why}"}


def find_sanitizer() -> str | None:
    """compute-sanitizer on PATH, beside nvcc, or where CUDA is usually installed."""
    found, nvcc = shutil.which("compute-sanitizer"), shutil.which("nvcc")
    if found:
        return found
    roots = [Path(nvcc).resolve().parents[1]] if nvcc else []
    roots += [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    places = [root / folder / "compute-sanitizer" for root in roots for folder in ("bin", "compute-sanitizer")]
    return next((str(place) for place in places if place.is_file()), None)


def bench(until: float, result: Result, items: Sequence[str], arguments: Sequence[str]) -> Entry:
    """The items one after the other; a process that breaks is named, and another takes the rest."""
    pending, done = list(items), Done(0, "")
    result.body["planned"] = pending
    result.write()
    while pending and time.time() < until:
        worker = [sys.executable, "-m", "benchmarks.gpu.worker", str(result.path.resolve()), *pending]
        done = run([*worker, *arguments, "--until", str(soon(until))], until)
        result.body = Result.load(result.path).body
        item = result.body["running"]
        if done.status in (0, None) or item is None:
            break
        end = done.output.strip().rpartition("\n")[2][-500:]
        result.add_case({**about(item), "failed": f"the process ended with status {done.status}: {end}"})
        pending = _without_measured(pending, result)
    pending = _without_measured(pending, result)
    result.body["running"] = None
    late = f", {len(pending)} left out" if pending else ""
    broken = bool(pending) and done.status not in (0, None)
    failed = [case for case in result.body["cases"] if failure(case)]
    return {
        "state": "failed" if failed or broken else "left out" if pending else "passed",
        "why": f"{len(result.body['cases']) - len(failed)} measured, {len(failed)} failed{late}",
        "left_out": pending,
    }


def _without_measured(items: Sequence[str], result: Result) -> list[str]:
    done = {case["item"] for case in result.body["cases"]}
    return [item for item in items if item not in done]


def _pytest(until: float, outcomes: Path | None) -> list[str]:
    """pytest without the options of this project's own runs, whose plugins may not be there."""
    kept = ["--outcomes", str(outcomes)] if outcomes else []
    plugin = ["-p", "benchmarks.gpu.plugin", "--until", str(soon(until)), *kept]
    return [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-m", "gpu", *plugin]

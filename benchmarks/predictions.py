"""`python -m benchmarks.predictions [--update]`: what the models of GPU kernels foretell, as tables.

--update writes them between the marks in the READMEs of `layer_moments` and `two_layer_sgd`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.gpu.populations import CLOCK, POPULATIONS, SHAPE
from fastspec.ops.gpu.devices import device_rates
from fastspec.ops.layer_moments import plans
from fastspec.ops.precision import PRECISIONS
from fastspec.ops.two_layer_sgd.schedule import arrange
from fastspec.ops.two_layer_sgd.simulation import H200, simulate

OPS = Path(__file__).parents[1] / "fastspec" / "ops"
BEGIN, END = "<!-- predictions -->\n", "<!-- /predictions -->\n"
SHAPES = (  # samples, inputs, teacher nodes, student nodes, students
    (2**20, 20, 50, 500, 1),
    (2**20, 100, 20, 200, 1),
    (2**20, 100, 20, 200, 256),
    (2**20, 100, 100, 1000, 1),
    (2**20, 784, 256, 2560, 1),
    (2**20, 1024, 1024, 8192, 1),
    (2**17, 4096, 4096, 32768, 1),
)


STUDY = [[m * multi for multi in (1, 2, 5, 10) for _ in range(32)] for m in (5, 10, 20)]  # widths of the jobs
DECAYS, STUDY_STEPS = 6, 100_000


def layers(device: str = "H200") -> str:
    """Milliseconds of recompute / stream / blocks for every shape and precision; the plan that is taken is bold."""
    rows = [["N, inputs, teacher x student", *PRECISIONS], ["---", *["---:"] * len(PRECISIONS)]]
    for samples, inputs, m, n, students in SHAPES:
        many = "" if students == 1 else f", {students} students"
        row = [f"{samples:,}, {inputs}, {m} x {n}{many}"]
        for precision in PRECISIONS:
            rates = device_rates(device)
            taken = plans.choose(samples, inputs, m, n, precision, blocks=students > 1, device=rates).name
            found = plans.candidates(samples, inputs, m, n, precision, population=students, device=rates)
            shown = [f"{plan.seconds * 1e3:.3g}" for plan in found]
            row.append(" / ".join(f"**{t}**" if p.name == taken else t for p, t in zip(found, shown, strict=True)))
        rows.append(row)
    return _rows(rows)


def populations() -> str:
    """Microseconds of a step of all students on an H200, and what share of its peak that is."""
    groups = [(f"{p.students:,} of {p.nodes} nodes", [p.nodes] * p.students) for p in POPULATIONS]
    groups += [(f"a job of the study, {m} teacher nodes", job) for m, job in zip((5, 10, 20), STUDY, strict=True)]
    groups.append(("the whole grid at once", [n for job in STUDY for n in job for _ in range(DECAYS)]))
    rows = [
        ["students", "fp32, µs a step", "of the peak", "utilisation", "fp64, µs a step", "of the peak", "utilisation"]
    ]
    rows.append(["---", *["---:"] * 6])
    for name, widths in groups:
        row = [name]
        for value_bytes, peak in ((4, 256), (8, 128)):  # operations of a multiprocessor and clock
            schedule = simulate(arrange(tuple(widths), tuple((SHAPE | {"value_bytes": value_bytes}).items()), H200))
            work = sum(2.0 * SHAPE["batch"] * n * (2 * SHAPE["inputs"] + 3 * SHAPE["outputs"]) for n in widths)
            share = work / (schedule.clocks * H200.multiprocessors * peak)
            row += [f"{schedule.clocks / CLOCK * 1e6:.2f}", f"{share:.0%}", f"{schedule.utilisation:.0%}"]
        rows.append(row)
    return _rows(rows)


def study(value_bytes: int) -> float:
    """Seconds of all training of the two-layer study, job after job, on an H200."""
    shape = tuple((SHAPE | {"value_bytes": value_bytes}).items())
    clocks = sum(DECAYS * simulate(arrange(tuple(job), shape, H200)).clocks for job in STUDY)
    return STUDY_STEPS * clocks / CLOCK


TABLES = {"layer_moments": layers, "two_layer_sgd": populations}


def readme(op: str) -> Path:
    """The page that has an op's table."""
    return OPS / op / "README.md"


def _rows(rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    for op, table in TABLES.items():
        text = table()
        if "--update" in sys.argv[1:]:
            before, _, rest = readme(op).read_text().partition(BEGIN)
            readme(op).write_text(before + BEGIN + text + END + rest.partition(END)[2])
        print(f"{op}\n{text}")
    print(f"training of the whole study, job after job: {study(4):.1f} s in fp32, {study(8):.1f} s in fp64")


if __name__ == "__main__":
    main()

"""`python -m benchmarks.predictions [--update]`: what the cost model of `layer_moments` foretells, as a table.

--update writes it between the marks in fastspec/ops/layer_moments/README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastspec.ops.gpu.devices import device_rates
from fastspec.ops.layer_moments import plans
from fastspec.ops.precision import PRECISIONS

README = Path(__file__).parents[1] / "fastspec" / "ops" / "layer_moments" / "README.md"
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


def table(device: str = "H200") -> str:
    """Milliseconds of recompute / stream for every shape and precision; the plan that is taken is bold."""
    rows = [["N, inputs, teacher x student", *PRECISIONS], ["---", *["---:"] * len(PRECISIONS)]]
    for samples, inputs, m, n, students in SHAPES:
        many = "" if students == 1 else f", {students} students"
        row = [f"{samples:,}, {inputs}, {m} x {n}{many}"]
        for precision in PRECISIONS:
            rates = device_rates(device)
            taken = plans.choose(samples, inputs, m, n, precision, device=rates).name
            found = plans.candidates(samples, inputs, m, n, precision, population=students, device=rates)
            shown = [f"{plan.seconds * 1e3:.3g}" for plan in found]
            row.append(" / ".join(f"**{t}**" if p.name == taken else t for p, t in zip(found, shown, strict=True)))
        rows.append(row)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    text = table()
    if "--update" in sys.argv[1:]:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(before + BEGIN + text + END + rest.partition(END)[2])
    print(text, end="")


if __name__ == "__main__":
    main()

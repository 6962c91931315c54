"""Tables from result files: `python -m benchmarks.table FILE...` prints them, `--update README.md` puts them in place.

In a document, a table stands between `<!-- benchmark: NAME -->` and `<!-- /benchmark -->`; NAME is a result file's
path below benchmarks/results, without `.json`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.result import best_peer, by_problem, targets
from benchmarks.harness import Entry

RESULTS = Path(__file__).parent / "results"
BUSY = 0.1  # cores that other processes may use before a measurement is called disturbed
MARKED = re.compile(r"(<!-- benchmark: (\S+) -->\n).*?(<!-- /benchmark -->)", re.DOTALL)


def render(result: Entry) -> str:
    """One result file as markdown: tables, targets with their verdicts, and where it was measured."""
    if "parts" in result:  # of `make gpu`
        parts = [_parts(result["parts"]), *_gpu_cases(result["cases"])]
    else:
        parts = [_speeds(result)] if "cases" in result else []
    if "memory" in result:
        parts.append(_memory(result["memory"]))
    if "study" in result:
        parts.append(_study(result["study"]))
    if "overhead_us" in result:
        rows = [[name, _number(us)] for name, us in result["overhead_us"].items()]
        parts.append(markdown(["call on tiny tensors", "µs"], rows))
    if result.get("targets") and "parts" not in result:
        parts.append(_targets(result["targets"]))
    parts.append(_source(result))
    return "\n\n".join(parts)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table: first column left, the others right, padded to be readable as text."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [("-" * w if i == 0 else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def _speeds(result: Entry) -> str:
    families = list(result["geometric_means"])
    error_of = result.get("error_of", "rho")
    axes = result.get("axes", "samples x inputs, teacher x student")
    unit = "µs a step" if "steps" in result["cases"][0]["shape"] else "ms"
    gemm = result.get("gemm", "sgemm")
    header = [axes, f"fastspec {unit}", f"of {gemm}", "of floor", f"error of {error_of}"]
    rows = []
    for case in result["cases"]:
        ours = case["peers"]["fastspec"]
        row = [case["label"], _time(case), _percent(ours.get("of_matrix_rate")), _percent(ours.get("of_floor"))]
        row.append(f"{ours['error'][error_of]:.0e}" if "error" in ours else "wrong")
        rows.append([*row, *(_ratio(case, case["best"][name]) for name in families)])
    means = ["-" if mean is None else f"{mean:.2f}x" for mean in result["geometric_means"].values()]
    rows.append(["geometric mean", "", "", "", "", *means])
    return markdown([*header, *families], rows)


def _parts(parts: Entry) -> str:
    rows = [[name, part["state"], f"{part['seconds']:.0f}", part["why"]] for name, part in parts.items()]
    return markdown(["part", "", "s", "what came of it"], rows)


def _gpu_cases(cases: list[Entry]) -> list[str]:
    """Tables of layers and networks, and of populations."""
    populations = [case for case in cases if "over_peers" in case]
    layers = [case for case in cases if "over_peers" not in case]
    return [*([_precisions(layers)] if layers else []), *([_populations(populations)] if populations else [])]


def _populations(cases: list[Entry]) -> str:
    header = ["training", "precision", "fastspec ms", "predicted ms", "of the rate of products", "over eager"]
    header += ["over the best other peer", "error of weights", "targets missed"]
    rows = []
    for (problem, precision), measured in by_problem(cases).items():
        case = measured[0]
        if "peers" not in case:
            rows.append([problem, precision, "failed", *["-"] * 6])
            continue
        ours, (name, over) = case["peers"]["fastspec"], best_peer(measured, ("eager",))
        rows.append([
            case["label"], precision, "wrong" if "wrong" in ours else f"{ours['median_ms']:.3g}",
            f"{case['predicted_ms']:.3g}" if "predicted_ms" in case else "-",
            _percent(ours.get("of_matrix_rate")), _ratio(case, case["best"].get("eager")),
            "-" if name is None else f"{over:.2f}x ({name})",
            f"{ours['error']['weights']:.0e}" if "error" in ours else "-",
            ", ".join(t["what"] for t in targets(measured) if not t["pass"]) or "none",
        ])  # fmt: skip
    return markdown(header, rows)


def _precisions(cases: list[Entry]) -> str:
    """One row for each problem and precision, peers compiled or not."""
    header = ["samples x inputs, teacher x student", "precision", "fastspec ms", "of floor", "over eager"]
    header += ["over the best peer", "error of rho", "flipped gates", "extra MB", "plan", "targets missed"]
    rows = []
    for (problem, precision), measured in by_problem(cases).items():
        case = measured[0]
        if "peers" not in case:
            rows.append([problem, precision, "failed", *["-"] * 8])
            continue
        ours, (name, over) = case["peers"]["fastspec"], best_peer(measured)
        flipped, extra, plan = case.get("flipped_gates"), case.get("extra_bytes"), case.get("plan")
        rows.append([
            case["label"], precision, "wrong" if "wrong" in ours else f"{ours['median_ms']:.3g}",
            _percent(ours.get("of_floor")), _ratio(case, case["best"].get("eager")),
            "-" if name is None else f"{over:.2f}x ({name})",
            f"{ours['error']['rho']:.0e}" if "error" in ours else "-",
            "-" if flipped is None else f"{flipped['fastspec']:.1e}",
            "-" if extra is None else f"{extra / 1e6:.0f}", "-" if plan is None else plan["name"],
            ", ".join(t["what"] for t in targets(measured) if not t["pass"]) or "none",
        ])  # fmt: skip
    return markdown(header, rows)


def _ratio(case: Entry, peer: str | None) -> str:
    found = case["peers"].get(peer, {}) if peer else {}
    if found.get("times_slower") is None:
        return "-"
    chunk = found["settings"].get("chunk")
    return f"{found['times_slower']:.2f}x" + (f" ({chunk})" if chunk else "")


def _memory(rows: Sequence[Entry]) -> str:
    def shape(row: Entry) -> str:
        samples, inputs, teacher, student = row["shape"]
        return f"{samples:,} x {inputs}, {teacher} x {student}"

    cells = [
        [row["peer"] + (f" ({row['chunk']})" if row["chunk"] else ""), shape(row), f"{row['extra'] / 1e6:.1f}"]
        for row in rows
    ]
    return markdown(["peer", "samples x inputs, teacher x student", "extra MB"], cells)


def _study(rows: Sequence[Entry]) -> str:
    names = ["training", "measuring"] + ["gradient"] * any("gradient_s" in row for row in rows)
    titles = {"training": f"{rows[0]['steps']:,} steps, s", "measuring": "measuring, s", "gradient": "gradients, s"}
    header = ["dtype, teacher nodes", "students", *(titles[name] for name in names), "error of weights"]
    cells = []
    for row in rows:
        found = [*("-" for _ in names), "wrong"]
        if "wrong" not in row:
            found = [*(f"{row[f'{name}_s']:.2f}" for name in names), f"{row['error']['weights']:.0e}"]
        cells.append([f"{row['dtype']}, {row['teacher']}", str(row["students"]), *found])
    return markdown(header, cells)


def _targets(targets: Sequence[Entry]) -> str:
    floors = any("at_floor" in t for t in targets)
    rows = []
    for t in targets:
        got, floor = (
            none if t.get(key) is None else f"{_number(t[key])}{t['unit']}"
            for key, none in (("got", "not measured"), ("at_floor", "-"))
        )
        rows.append([t["name"], t["want"], got, *([floor] if floors else []), "PASS" if t["pass"] else "MISS"])
    return markdown(["target", "wanted", "measured", *(["at the floor"] if floors else []), ""], rows)


def _source(result: Entry) -> str:
    commit = (result["commit"] or "unknown")[:10]
    if result["uncommitted_changes"]:
        commit += " with uncommitted changes"
    doubts = ["small shapes"] if result["quick"] else []
    if result["neighbours_cores"] > BUSY:
        doubts.append(f"other processes kept {result['neighbours_cores']:.1f} cores busy")
    quote = f" Not a measurement to quote: {'; '.join(doubts)}." if doubts else ""
    return (
        f"`{result['command']}`: {result['device']}, {result['threads']} threads, "
        f"torch {result['versions']['torch']}, commit {commit}, {result['date'][:10]}.{quote}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _time(case: Entry) -> str:
    """Milliseconds of the call, or microseconds of one of its steps."""
    found = case["peers"]["fastspec"].get("median_ms")
    if found is None:
        return "-"
    return f"{found * 1e3 / case['shape']['steps'] if 'steps' in case['shape'] else found:.1f}"


def update(document: str, results: Path = RESULTS) -> str:
    """The document with its marked tables rendered; raises FileNotFoundError where a result file is missing."""

    def fill(match: re.Match[str]) -> str:
        result = json.loads((results / f"{match[2]}.json").read_text())
        return f"{match[1]}{render(result)}\n{match[3]}"

    return MARKED.sub(fill, document)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="result files to print")
    parser.add_argument("--update", type=Path, action="append", default=[], metavar="DOCUMENT")
    args = parser.parse_args()
    for path in args.files:
        print(render(json.loads(path.read_text())), end="\n\n")
    for path in args.update:
        path.write_text(update(path.read_text()))


if __name__ == "__main__":
    main()

"""Tables are generated from result files, and only from them."""

from __future__ import annotations

import json

import pytest

from benchmarks import table

RESULT = {
    "command": "python -m benchmarks --only layer_moments",
    "quick": False,
    "device": "A CPU, 2 cores",
    "threads": 2,
    "versions": {"torch": "2.13.0"},
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "date": "2026-01-02T03:04:05+00:00",
    "neighbours_cores": 0.02,
    "cases": [
        {
            "label": "10 x 2, 3 x 4",
            "shape": {"samples": 10},
            "best": {"chunked": "chunked 512", "corrcoef": "corrcoef"},
            "peers": {
                "fastspec": {"median_ms": 12.34, "of_matrix_rate": 0.8, "of_floor": 0.81, "error": {"rho": 2e-7}},
                "chunked 512": {"times_slower": 1.456, "settings": {"chunk": 512}},
                "corrcoef": {"skipped": "needs 900 GiB", "settings": {}},
            },
        }
    ],
    "geometric_means": {"chunked": 1.456, "corrcoef": None},
    "targets": [
        {"name": "faster", "want": ">= 1.3x", "got": 1.456, "unit": "x", "pass": True},
        {"name": "smaller", "want": "<= 64 MB", "got": None, "unit": " MB", "pass": False},
    ],
}


def cells(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_render():
    rows = cells(table.render(RESULT))
    assert ["10 x 2, 3 x 4", "12.3", "80%", "81%", "2e-07", "1.46x (512)", "-"] in rows
    assert ["geometric mean", "", "", "", "", "1.46x", "-"] in rows
    assert ["faster", ">= 1.3x", "1.46x", "PASS"] in rows
    assert ["smaller", "<= 64 MB", "not measured", "MISS"] in rows
    assert "commit 0123456789, 2026-01-02." in table.render(RESULT)


def test_a_target_may_say_what_the_floor_would_reach():
    over, smaller = RESULT["targets"]
    rows = cells(table.render({**RESULT, "targets": [{**over, "at_floor": 1.6}, {**over, "at_floor": None}, smaller]}))
    assert rows[-5] == ["target", "wanted", "measured", "at the floor", ""]
    assert rows[-3] == ["faster", ">= 1.3x", "1.46x", "1.6x", "PASS"]
    assert rows[-2] == ["faster", ">= 1.3x", "1.46x", "-", "PASS"]
    assert rows[-1] == ["smaller", "<= 64 MB", "not measured", "-", "MISS"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"neighbours_cores": 0.7}, "Not a measurement to quote: other processes kept 0.7 cores busy."),
        ({"quick": True}, "Not a measurement to quote: small shapes."),
        ({"uncommitted_changes": True}, "commit 0123456789 with uncommitted changes"),
    ],
)
def test_doubts_are_printed(change, says):
    assert says in table.render({**RESULT, **change})
    assert says not in table.render(RESULT)


def test_memory_and_overhead():
    rest = {k: v for k, v in RESULT.items() if k not in ("cases", "targets")}
    rows = [{"peer": "chunked", "chunk": 512, "shape": [1_000_000, 2, 3, 4], "extra": 5_250_000, "result": 8}]
    assert ["chunked (512)", "1,000,000 x 2, 3 x 4", "5.2"] in cells(table.render({**rest, "memory": rows}))
    assert ["an op", "12.3"] in cells(table.render({**rest, "overhead_us": {"an op": 12.345}}))


def test_update_fills_marked_places_and_nothing_else(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "layer_moments.json").write_text(json.dumps(RESULT))
    document = "before\n<!-- benchmark: cpu/layer_moments -->\nold\n<!-- /benchmark -->\nafter\n"
    once = table.update(document, tmp_path)
    assert once.startswith("before\n<!-- benchmark: cpu/layer_moments -->\n| samples") and "old" not in once
    assert once.endswith("<!-- /benchmark -->\nafter\n")
    assert table.update(once, tmp_path) == once
    with pytest.raises(FileNotFoundError):
        table.update(document.replace("cpu/", "gpu/"), tmp_path)

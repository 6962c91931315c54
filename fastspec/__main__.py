"""The command `fastspec`, also as `python -m fastspec`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command; 2, with one sentence, where the extra that it needs is not installed."""
    try:
        from fastspec.experiments.cli import main as run
    except ModuleNotFoundError as missing:
        print(f"fastspec: error: no module {missing.name!r}; the command needs the extra `lab`", file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m fastspec` is the command `fastspec`."""

from fastspec.experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

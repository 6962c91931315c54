"""The command where its extra is not installed."""

from __future__ import annotations

import subprocess
import sys


def test_the_missing_extra_is_named():
    program = "import sys; sys.modules['tyro'] = None; from fastspec.__main__ import main; sys.exit(main())"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.endswith("fastspec: error: no module 'tyro'; the command needs the extra `lab`\n")

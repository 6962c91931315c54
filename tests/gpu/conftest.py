"""cuBLAS as deterministic as the fixture that poisons memory asks for; it must be said before CUDA starts."""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

"""Build of fastspec's native code. Everything else is in pyproject.toml.

Environment switches:

    FASTSPEC_NATIVE   auto (default)  build fastspec/_C and fastspec/_host; without a compiler, install without them
    ├── 1                             the same, but a failed build is an error
    └── 0                             no native code: every op runs on its torch reference path
    MAX_JOBS          how many files compile at a time (default: one a core and 1 GB of free memory)
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = os.environ.get("FASTSPEC_NATIVE", "auto")
if NATIVE not in ("auto", "0", "1"):
    sys.exit(f"FASTSPEC_NATIVE: got {NATIVE!r}; takes auto, 0 or 1")

TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10: one binary serves it and every later torch


def jobs() -> int:
    if "MAX_JOBS" in os.environ:
        return max(1, int(os.environ["MAX_JOBS"]))
    free_gigabytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    return max(1, min(os.cpu_count() or 1, free_gigabytes))


def extensions() -> list[Extension]:
    try:
        import pybind11
        import torch
        from torch.utils.cpp_extension import include_paths
    except ImportError as error:
        if NATIVE == "1":
            raise
        print(f"fastspec: no native code: {error}; install torch and pybind11 first, and use --no-build-isolation")
        return []
    flags = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden"]
    flags += ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas"]
    kernels = sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))
    bindings = sorted(str(path) for path in Path("csrc").glob("torch_*.cpp"))
    depends = sorted(str(path) for path in Path("csrc").rglob("*.h"))
    return [
        Extension(
            "fastspec._C",
            [*bindings, *kernels],
            include_dirs=["csrc/include"],
            define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
            library_dirs=[str(Path(torch.__file__).parent / "lib")],
            libraries=["torch_cpu"],
            extra_compile_args=[*flags, *(f"-isystem{path}" for path in include_paths())],
            depends=depends,
        ),
        Extension(
            "fastspec._host",
            sorted(str(path) for path in Path("csrc").glob("host_*.cpp")),
            include_dirs=["csrc/include", pybind11.get_include()],
            extra_compile_args=flags,
            depends=depends,
        ),
    ]


class BuildNative(build_ext):
    """Compiles files side by side; under FASTSPEC_NATIVE=auto a failed build installs the package without."""

    def build_extensions(self) -> None:
        compile_one = self.compiler.compile

        def compile_all(sources, *args, **kwargs):
            with ThreadPoolExecutor(jobs()) as pool:
                lists = pool.map(lambda source: compile_one([source], *args, **kwargs), sources)
                return [objects for one in lists for objects in one]

        self.compiler.compile = compile_all
        super().build_extensions()

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            if NATIVE == "1":
                raise
            print(f"fastspec: no native code: {error}", file=sys.stderr)
            for extension in self.extensions:
                extension.optional = True
            self.extensions = []

    def get_ext_filename(self, name: str) -> str:
        path = Path(super().get_ext_filename(name))
        # _C has no Python in it, so its name carries no Python version.
        return str(path.with_name("_C.so") if path.name.startswith("_C.") else path)

    def get_export_symbols(self, extension: Extension) -> list[str]:
        return []


setup(ext_modules=[] if NATIVE == "0" else extensions(), cmdclass={"build_ext": BuildNative})

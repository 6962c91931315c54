"""Build of fastspec's native code. Everything else is in pyproject.toml.

Environment switches:

    FASTSPEC_NATIVE   auto (default)  build fastspec/_C and fastspec/_host; without a compiler, install without them
    ├── 1                             the same, but a failed build is an error
    └── 0                             no native code: every op runs on its torch reference path
    FASTSPEC_CUDA     auto (default)  build fastspec/_cuda where there is an nvcc; a failed build goes without
    ├── 1                             the same, but no nvcc or a failed build is an error
    └── 0                             no CUDA kernels: what has one runs on its reference on a GPU
        FASTSPEC_CUDA_ARCHS           default 80;90a;100; code for these, and PTX of the last for what comes later
    MAX_JOBS          how many files compile at a time (default: one a core and 1 GB of free memory)

The build asks for no GPU and no CUDA build of torch.
"""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

NATIVE = os.environ.get("FASTSPEC_NATIVE", "auto")
if NATIVE not in ("auto", "0", "1"):
    sys.exit(f"FASTSPEC_NATIVE: got {NATIVE!r}; takes auto, 0 or 1")

CUDA = os.environ.get("FASTSPEC_CUDA", "auto")
if CUDA not in ("auto", "0", "1"):
    sys.exit(f"FASTSPEC_CUDA: got {CUDA!r}; takes auto, 0 or 1")
CUDA_ARCHS = os.environ.get("FASTSPEC_CUDA_ARCHS", "80;90a;100").split(";")

TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10: one binary serves it and every later torch


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


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
    python_module = {"include_dirs": ["csrc/include", pybind11.get_include()], "depends": depends}
    cuda = []
    if CUDA == "1" or (CUDA == "auto" and nvcc() is not None):
        macros = [("FASTSPEC_CUDA_ARCHS", f'"{" ".join(CUDA_ARCHS)}"')]
        sources = ["csrc/cuda_module.cpp", *sorted(str(path) for path in Path("csrc/cuda").glob("*.cu"))]
        cuda = [Extension("fastspec._cuda", sources, define_macros=macros, extra_compile_args=flags, **python_module)]
    return [
        *cuda,
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
            extra_compile_args=[*flags, "-ffp-contract=off"],
            **python_module,
        ),
    ]


class BuildNative(build_ext):
    """Compiles files side by side; a library that fails to build is left out, unless its switch is 1."""

    def build_extensions(self) -> None:
        compile_one = self.compiler.compile

        def compile_all(sources, *args, **kwargs):
            with ThreadPoolExecutor(jobs()) as pool:
                lists = pool.map(lambda source: compile_one([source], *args, **kwargs), sources)
                return [objects for one in lists for objects in one]

        self.compiler.compile = compile_all
        super().build_extensions()

    def build_extension(self, extension) -> None:
        cuda = extension.name == "fastspec._cuda"
        try:
            self.build_cuda(extension) if cuda else super().build_extension(extension)
        except Exception as error:
            if (CUDA if cuda else NATIVE) == "1":
                raise
            print(f"fastspec: going on without {extension.name}: {error}", file=sys.stderr)
            extension.optional = True

    def build_cuda(self, extension) -> None:
        """g++ compiles the module, nvcc the kernels; nvcc links, with CUDA's runtime inside."""
        compiler = nvcc()
        if compiler is None:
            raise RuntimeError("FASTSPEC_CUDA=1 needs nvcc on the PATH or under CUDA_HOME")
        target = Path(self.get_ext_fullpath(extension.name))
        if not self.force and not newer_group([*extension.sources, *extension.depends], str(target)):
            return
        for folder in (target.parent, Path(self.build_temp)):
            folder.mkdir(parents=True, exist_ok=True)
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHS]
        codes.append(f"-gencode=arch=compute_{CUDA_ARCHS[-1]},code=compute_{CUDA_ARCHS[-1]}")
        options = ["-std=c++20", "-O3", "-Icsrc/include", "-Xcompiler=-fPIC,-fvisibility=hidden", *codes]
        options += [f"--threads={jobs()}", "-Xptxas=--warn-on-spills,--warn-on-local-memory-usage"]
        objects = self.compiler.compile(
            [source for source in extension.sources if source.endswith(".cpp")],
            output_dir=self.build_temp,
            macros=extension.define_macros,
            include_dirs=extension.include_dirs,
            extra_postargs=extension.extra_compile_args,
            depends=extension.depends,
        )
        for source in extension.sources:
            if source.endswith(".cu"):
                objects.append(str(Path(self.build_temp) / f"{Path(source).stem}.cu.o"))
                self.spawn([compiler, *options, "-c", source, "-o", objects[-1]])
        self.spawn([compiler, "-shared", *codes, "-o", str(target), *objects])

    def get_ext_filename(self, name: str) -> str:
        path = Path(super().get_ext_filename(name))
        # _C has no Python in it, so its name carries no Python version.
        return str(path.with_name("_C.so") if path.name.startswith("_C.") else path)

    def get_export_symbols(self, extension: Extension) -> list[str]:
        return []


setup(ext_modules=[] if NATIVE == "0" else extensions(), cmdclass={"build_ext": BuildNative})

"""Every Triton kernel as real calls launch it, compiled for GPUs that are not here.

`python -m tests.compiled.launches --update` writes budgets.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from fastspec.ops.backward_gram import triton as backward_gram
from fastspec.ops.cross_moments import triton as cross_moments
from fastspec.ops.gpu import accumulate, devices, squares
from fastspec.ops.layer_moments import plans
from fastspec.ops.layer_moments import triton as layer_moments
from fastspec.ops.linear_relu import triton as linear_relu
from fastspec.ops.mlp_sgd_step import matrix_room, parameter_count, room, students
from fastspec.ops.mlp_sgd_step import triton as mlp_sgd_step
from fastspec.ops.precision import PRECISIONS

BUDGETS = Path(__file__).with_name("budgets.json")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DEVICES = {80: "A100", 90: "H200", 100: "B200"}
MATRIX_UNITS = ("HGMMA", "UTCHMMA", "UTCQMMA", "HMMA", "DMMA")
TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
TYPES |= {torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8"}
LAUNCHED = (
    (accumulate, "moments_kernel"),
    (accumulate, "merge_kernel"),
    (accumulate, "centre_kernel"),
    (squares, "squares_kernel"),
    (squares, "sum_blocks_kernel"),
    (linear_relu, "linear_relu_kernel"),
    (linear_relu, "sum_blocks_kernel"),
    (backward_gram, "gram_kernel"),
    (room, "layer_kernel"),
    (room, "loss_kernel"),
    (room, "update_kernel"),
    (students, "norms_kernel"),
    (students, "normalize_kernel"),
    (matrix_room, "up_kernel"),
    (matrix_room, "down_kernel"),
    (matrix_room, "update_matrix_kernel"),
    (matrix_room, "labels_kernel"),
    (matrix_room, "stop_kernel"),
    (matrix_room, "operands_kernel"),
    (matrix_room, "gather_kernel"),
)


class Launch(NamedTuple):
    """A kernel and the arguments and options of one call."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]

    def source(self) -> ASTSource:
        """The kernel specialised as Triton specialises a call with these arguments."""
        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        attributes: dict[tuple[int], list] = {}
        compile_time = {p.name for p in self.kernel.params if p.is_constexpr}
        for i, name in enumerate(self.kernel.arg_names):
            value, special = self.arguments[name], not self.kernel.params[i].do_not_specialize
            if name in compile_time or value is None or (isinstance(value, int) and value == 1 and special):
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, TensorDescriptor):
                signature[name] = f"tensordesc<{TYPES[value.base.dtype]}{value.block_shape}>"
            elif isinstance(value, torch.Tensor):
                signature[name] = f"*{TYPES[value.dtype]}"
                if value.data_ptr() % 16 == 0:
                    attributes[(i,)] = [["tt.divisibility", 16]]
            elif isinstance(value, float):
                signature[name] = self.kernel.params[i].annotation_type or "fp32"
            else:
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if value % 16 == 0 and special:
                    attributes[(i,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes)

    def compiled(self, architecture: int) -> tuple[Any, str, str]:
        """The compiled kernel, what it uses, and its instructions."""
        compiled = triton.compile(self.source(), target=GPUTarget("cuda", architecture, 32), options=self.options)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage, code = (_run("cuobjdump", flag, file.name) for flag in ("-res-usage", "-sass"))
        return compiled, usage, code

    def figures(self, architecture: int) -> dict[str, Any]:
        """Registers, accesses to spilled ones, bytes of shared memory, and the matrix unit of the compiled kernel."""
        compiled, usage, code = self.compiled(architecture)
        found = re.search(r"REG:(\d+)", usage)
        assert found is not None, usage
        units = [unit for unit in MATRIX_UNITS if re.search(rf"\b{unit}\b", code)]
        return {
            "registers": int(found[1]),
            "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
            "shared": compiled.metadata.shared,
            "matrix units": units,
        }


def main_loop(code: str) -> Counter[str]:
    """Instructions of the shortest loop that multiplies matrices, by name."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)]
    found = []
    for at, text in lines:
        target = re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < at:
            body = [line for place, line in lines if int(target[1], 16) <= place <= at]
            names = Counter(re.sub(r"^@!?U?P\w+ ", "", line).split()[0] for line in body)
            if any(name.startswith(MATRIX_UNITS) for name in names):
                found.append(names)
    return min(found, key=Counter.total)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / tool), *arguments], capture_output=True, text=True, check=True).stdout


@contextmanager
def device(architecture: int) -> Iterator[None]:
    """The host code plans for a GPU of this architecture."""
    rates = devices.device_rates(DEVICES[architecture])
    with mock.patch.object(devices, "_of_device", lambda _: rates):
        yield


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches are written down instead of made."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any):
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*values: Any, **named: Any) -> None:
                options = {k: named.pop(k) for k in ("num_warps", "num_stages", "enable_fp_fusion") if k in named}
                arguments = dict(zip(self.kernel.arg_names, values, strict=False)) | named
                launches.append(Launch(self.kernel, arguments, options))

            return launch

    with ExitStack() as stack:
        for module, name in LAUNCHED:
            stack.enter_context(mock.patch.object(module, name, Recorder(getattr(module, name))))
        yield launches


@cache
def calls(architecture: int) -> dict[str, Launch]:
    """Every kernel x plan x precision, by name, with the widths of common studies, as a device launches it."""
    with device(architecture):
        return _calls(whole=architecture == 90)


def _calls(whole: bool) -> dict[str, Launch]:
    named: dict[str, Launch] = {}

    def keep(name: str, launches: list[Launch], kernels: tuple[str, ...]) -> None:
        for launch in launches:
            kernel = launch.kernel.__name__
            if kernel in kernels:
                named.setdefault(f"{kernel}, {name}", launch)

    for precision in PRECISIONS:
        dtype = torch.float64 if precision == "fp64" else torch.float32
        for m, extras in ((20, False), (50, False), (100, False), (100, True)):
            with recorded() as launches, plans.force("recompute"):
                layer_moments.layer_moments(*_layer(m, dtype), 0.0, precision, extras, extras)
            what = "with counts and activations" if extras else f"m={m}"
            keep(f"recompute, {precision}, {what}", launches, ("moments_kernel",))
            with recorded() as launches, plans.force("recompute"):
                layer_moments.layer_moments(*_layer(m, dtype, inputs=21), 0.0, precision, extras, extras)
            keep(f"recompute, {precision}, {what}, 21 inputs", launches, ("moments_kernel",))
        for counts in (False, True):
            with recorded() as launches, plans.force("stream"):
                layer_moments.layer_moments(*_layer(100, dtype), 0.0, precision, counts, False)
            what = "with counts" if counts else "plain"
            keep(f"stream, {precision}, {what}", launches, ("moments_kernel",))
            keep(precision, launches, ("centre_kernel", "linear_relu_kernel"))
            with recorded() as launches, plans.force("blocks"):
                layer_moments.layer_moments(*_layer(100, dtype), 0.0, precision, counts, True)
            keep(f"blocks, {precision}, {what}", launches, ("moments_kernel", "merge_kernel", "centre_kernel"))
            with recorded() as launches:
                cross_moments.cross_moments(torch.empty(4096, 100, dtype=dtype), _students(dtype), precision, counts)
            keep(f"activations, {precision}, {what}", launches, ("moments_kernel",))
            if precision in ("fp64", "fp32"):
                keep(f"{precision}, {what}", launches, ("merge_kernel",))
        with recorded() as launches:
            space = torch.empty(8, 64, 30, 30, dtype=dtype)
            cross_moments.cross_moments(space, space, precision, False)
        keep(f"positions, {precision}", launches, ("moments_kernel",))
        with recorded() as launches:
            linear_relu.linear_relu(*_layer(100, dtype)[3:], 0.0, precision)
        keep(f"with gates, {precision}", launches, ("linear_relu_kernel", "sum_blocks_kernel"))
        with recorded() as launches:
            teacher, student = torch.empty(64, 100, 250, dtype=dtype), torch.empty(2, 64, 100, 1000, dtype=dtype)
            gates = teacher[:, 0].clone(), student[:, :, 0].clone()
            backward_gram.backward_gram(teacher, gates[0], student, gates[1], True, False, precision)
        keep(f"gated and not, {precision}", launches, ("gram_kernel",))
    for dtype in (torch.float64, torch.float32):
        y, f, b = (torch.empty(*size, dtype=dtype) for size in ((4096, 50), (8, 4096, 50), (8, 50)))
        for bias in (b, None):
            with recorded() as launches:
                squares.summed_squares(y, f, bias)
            name = f"{TYPES[dtype]}, {'no ' if bias is None else ''}bias"
            keep(name, launches, ("squares_kernel", "sum_blocks_kernel"))
        for what, batch, options in (("plain", 64, {}), ("labels and all options", 16, {"everything": True})):
            with recorded() as launches:
                mlp_sgd_step.mlp_sgd_step(*_deep(dtype, batch, **options))
            for launch in launches:
                given, parts = launch.arguments, []
                if launch.kernel.__name__ == "layer_kernel":
                    parts = ["down" if given["DOWN"] else "up", "hidden" if given["HIDDEN"] else "top"]
                    parts += ["in parts"] if given["p_parts"] is not None else []
                keep(", ".join([TYPES[dtype], what, *parts]), [launch], (launch.kernel.__name__,))
    for size, precision, everything in MATRIX if whole else MATRIX[:2]:
        widths, batch = ([4096] * 5, 8192) if size == "large" else (SMALL, 64)
        with recorded() as launches:
            mlp_sgd_step.mlp_sgd_step(*_deep(torch.float32, batch, everything, precision, widths, "meta"))
        for launch in launches:
            given, kernel = launch.arguments, launch.kernel.__name__
            kind = [given["KIND"]] if "KIND" in given else []
            kind += ["answers"] if given.get("PRECISION") == "fp32" else []
            what = "labels and all options" if everything else "plain"
            keep(", ".join([precision, size, what, *kind]), [launch], (kernel,))
    distinct: dict[str, str] = {}  # many calls come to the same kernel
    for name in sorted(named):
        launch = named[name]
        distinct.setdefault(f"{launch.source().hash()} {launch.options}", name)
    return {name: named[name] for name in distinct.values()}


MATRIX = (  # students on matrix units: how large, precision, with all options; the first two on every device
    ("large", "bf16", False), ("large", "tf32", False), ("large", "bf16", True), ("large", "tf32", True),
    ("small", "bf16", False), ("small", "tf32", True), ("small", "tf32x3", False),
)  # fmt: skip
SMALL = [20, 500, 750, 1000, 1250, 100]  # the largest student of Luck Matters' teachers at ten times their width


def _deep(
    dtype: torch.dtype,
    batch: int,
    everything: bool = False,
    precision: str | None = None,
    widths: Sequence[int] = SMALL,
    device: str = "cpu",
) -> tuple[Any, ...]:
    """A call of one step."""
    bias = [True] * (len(widths) - 1)
    zeros = partial(torch.zeros, device=device)
    x, y = zeros(200, widths[0], dtype=dtype), zeros(200, widths[-1], dtype=dtype)
    parameters = zeros(parameter_count(widths, bias), dtype=dtype)
    rows, rates, diverged = zeros(1, batch, dtype=torch.int64), zeros(1).double(), zeros((), dtype=torch.int64)
    rule = (0.9, 0.1, 0.1, 1e9, True, True) if everything else (0.0, 0.0, 0.0, 1e9, False, False)
    labels = zeros(200, dtype=torch.int64)
    given = x, labels if everything else y, parameters, None, rows, rates, diverged, widths, bias, 0, *rule
    return *given, precision or TYPES[dtype]


def _layer(m: int, dtype: torch.dtype, inputs: int = 100) -> tuple[torch.Tensor, ...]:
    x = torch.empty(4096, inputs, dtype=dtype)
    teacher, student = torch.empty(m, inputs, dtype=dtype), torch.empty(2, 1000, inputs, dtype=dtype)
    return x, teacher, teacher[:, 0].clone(), x, student, student[..., 0].clone()


def _students(dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(2, 4096, 1000, dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile every Triton kernel and show or write its figures.")
    parser.add_argument("--update", action="store_true", help="write budgets.json")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--architectures", type=int, nargs="+", default=list(DEVICES))
    given = parser.parse_args()
    budgets: dict[str, Any] = {"triton": triton.__version__}
    for architecture in given.architectures:
        kernels = budgets[f"sm_{architecture}"] = {}
        for name, launch in calls(architecture).items():
            if given.only in name:
                kernels[name] = launch.figures(architecture)
                print(f"sm_{architecture}", name, *kernels[name].values(), sep="  ", flush=True)
    if given.update:
        BUDGETS.write_text(json.dumps(budgets, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

"""The command `fastspec`."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from fastspec import config
from fastspec.experiments.ablation import Ablation
from fastspec.experiments.bn_bias import BnBias
from fastspec.experiments.console import Console
from fastspec.experiments.deep import LUCK_MATTERS, STUDENT_SPECIALIZATION, Deep
from fastspec.experiments.demo import Demo
from fastspec.experiments.digits import Digits
from fastspec.experiments.doctor import show_plans
from fastspec.experiments.experiment import Experiment
from fastspec.experiments.files import load_data, load_student, load_teacher
from fastspec.experiments.images import CIFAR10, Images
from fastspec.experiments.init import ARPIT2019, Init
from fastspec.experiments.matrix_dynamics import MatrixDynamics
from fastspec.experiments.ode import Ode
from fastspec.experiments.reports import redraw
from fastspec.experiments.sample_complexity import SampleComplexity
from fastspec.experiments.summary import print_summary
from fastspec.experiments.two_layer import ICML2020, TwoLayer
from fastspec.ops.backends import default_device
from fastspec.ops.checks import refuse

RUNS = Path("fastspec-runs")
STYLE = (tyro.conf.FlagCreatePairsOff,)
ABOUT = """Which student node has become which teacher node, when, and why?

Experiments write a folder: config.json, results.nc, weights.safetensors, figures and a report. Ctrl-C leaves a folder \
that the same command goes on with. `--debug` anywhere shows tracebacks of errors."""


def demo(out: Path = RUNS / "demo", overwrite: bool = False) -> None:
    """See it work: Gaussian teachers and handwritten digits, in about a minute.

    Args:
        out: Folder of the run; an unfinished run there goes on.
        overwrite: Throw away another run in that folder.
    """
    _run(Demo(), out, overwrite)


def two_layer(
    experiment: OmitArgPrefixes[TwoLayer],
    preset: Literal["icml2020"] | None = None,
    out: Path = RUNS / "two-layer",
    overwrite: bool = False,
) -> None:
    """Populations of two-layer students learn separated two-layer teachers, over any grid.

    Args:
        preset: Start from a published study, icml2020 (Student Specialization); options beside it replace its own.
        out: Folder of the run; an unfinished run there goes on.
        overwrite: Throw away another run in that folder.
    """
    _run(experiment, out, overwrite)


def deep(
    experiment: OmitArgPrefixes[Deep],
    preset: Literal["luck-matters", "student-specialization"] | None = None,
    out: Path = RUNS / "deep",
    overwrite: bool = False,
) -> None:
    """Deep students learn a deep separated teacher from Gaussian inputs.

    Args:
        preset: Start from a published experiment; options beside it replace its own.
        out: Folder of the run; an unfinished run there goes on.
        overwrite: Throw away another run in that folder.
    """
    _run(experiment, out, overwrite)


def ablation(experiment: OmitArgPrefixes[Ablation], out: Path = RUNS / "ablation", overwrite: bool = False) -> None:
    """Deep students, one thing at a time changed: width, batch norm, teacher, batch size, learning rate, outputs.

    Args:
        out: Folder of the run; an unfinished run there goes on.
        overwrite: Throw away another run in that folder.
    """
    _run(experiment, out, overwrite)


def sample_complexity(
    experiment: OmitArgPrefixes[SampleComplexity], out: Path = RUNS / "sample-complexity", overwrite: bool = False
) -> None:
    """Students learn from few or many distinct samples, Gaussian ones or those about the teacher's boundaries.

    Args:
        out: Folder of the run; an unfinished run there goes on.
        overwrite: Throw away another run in that folder.
    """
    _run(experiment, out, overwrite)


def digits(experiment: OmitArgPrefixes[Digits], out: Path = RUNS / "digits", overwrite: bool = False) -> None:
    """A deep teacher learns handwritten digits, wider students learn from its logits.

    Args:
        out: Folder of the run; an unfinished run there goes on.
        overwrite: Throw away another run in that folder.
    """
    _run(experiment, out, overwrite)


def images(
    experiment: OmitArgPrefixes[Images],
    preset: Literal["cifar10"] | None = None,
    out: Path = RUNS / "images",
    overwrite: bool = False,
) -> None:
    """Students of dense or convolutional teachers of digits, MNIST or CIFAR-10, pruned or not.

    Args:
        preset: Start from the networks of Student Specialization on CIFAR-10; options beside it replace its own.
        out: Folder of the run; an unfinished run there goes on.
        overwrite: Throw away another run in that folder.
    """
    _run(experiment, out, overwrite)


def matrix_dynamics(
    experiment: OmitArgPrefixes[MatrixDynamics], out: Path = RUNS / "matrix-dynamics", overwrite: bool = False
) -> None:
    """Over-realised students follow the matrix dynamics of Luck Matters: who keeps a fan-out, and who loses it.

    Args:
        out: Folder of the run; an unfinished run there goes on.
        overwrite: Throw away another run in that folder.
    """
    _run(experiment, out, overwrite)


def init(
    experiment: OmitArgPrefixes[Init],
    preset: Literal["arpit2019"] | None = None,
    out: Path = RUNS / "init",
    overwrite: bool = False,
) -> None:
    """Do schemes of initial weights keep the norms of activations and gradients, at every width and depth?

    Args:
        preset: Start from a published study, arpit2019 (norms at initialisation); options beside it replace its own.
        out: Folder of the run; an unfinished run there goes on.
        overwrite: Throw away another run in that folder.
    """
    _run(experiment, out, overwrite)


def ode(experiment: OmitArgPrefixes[Ode], out: Path = RUNS / "ode", overwrite: bool = False) -> None:
    """Online learning of two-layer students beside the equation of their order parameters.

    Args:
        out: Folder of the run; an unfinished run there goes on.
        overwrite: Throw away another run in that folder.
    """
    _run(experiment, out, overwrite)


def bn_bias(
    file: Annotated[Positional[Path], arg(metavar="FILE")], out: Path = RUNS / "bn-bias", overwrite: bool = False
) -> None:
    """Count the batch-norm biases of a saved network that are not positive, layer by layer.

    Args:
        file: A state dict: .safetensors, .pt or .pth.
        out: Folder of the run.
        overwrite: Throw away another run in that folder.
    """
    _run(BnBias.of(file), out, overwrite)


def measure(
    teacher: Annotated[Positional[Path], arg(metavar="TEACHER")],
    student: Annotated[Positional[Path], arg(metavar="STUDENT")],
    data: Annotated[Positional[Path], arg(metavar="DATA")],
    save: Annotated[Path | None, arg(metavar="PATH")] = None,
    batch_size: Annotated[int | None, arg(metavar="INT")] = None,
) -> None:
    """Compare two saved networks on a data file, layer by layer.

    Args:
        teacher: A network saved by fastspec (.safetensors).
        student: Another one, or a saved population of two-layer students.
        data: Inputs [samples, ...]: .npy, .npz, .safetensors or .pt, an array alone or under the name x.
        save: Also save the measurement here (.safetensors).
        batch_size: Samples at a time.
    """
    from fastspec.measure import measure as measured

    if save is not None and (save.is_dir() or not save.parent.is_dir()):
        refuse("save", repr(str(save)), "a file in a folder that exists")
    teacher_network = load_teacher(teacher)
    x = load_data(data, teacher_network)
    device = default_device()
    found = measured(teacher_network.to(device), load_student(student).to(device), x, batch_size=batch_size)
    print(found)
    if save is not None:
        found.save(save)


def report(folder: Annotated[Positional[Path], arg(metavar="DIR")]) -> None:
    """Draw the figures and the report of a run again, from its saved results alone.

    Args:
        folder: The folder of a finished run.
    """
    print_summary(redraw(folder), folder)


def doctor(
    plan: tuple[int, int, int, int] | None = None,
    precision: str = "fp32",
    population: int = 1,
    device: str | None = None,
) -> None:
    """Say what this installation has: versions, native code, threads, GPUs, and why something is not there.

    Args:
        plan: Instead, the plans of a GPU for measuring a layer: SAMPLES INPUTS TEACHER-NODES STUDENT-NODES.
        precision: Of the plans' matrix products: fp64, fp32, tf32x3, tf32 or bf16.
        population: Students that are measured together.
        device: Whose plans: A100, H100, H200 or B200; the GPU that is here, if there is one.
    """
    if plan is None:
        config.show_config()
    else:
        show_plans(*plan, precision=precision, population=population, device=device)


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "two-layer": two_layer,
    "deep": deep,
    "ablation": ablation,
    "sample-complexity": sample_complexity,
    "digits": digits,
    "images": images,
    "matrix-dynamics": matrix_dynamics,
    "init": init,
    "ode": ode,
    "bn-bias": bn_bias,
    "measure": measure,
    "report": report,
    "doctor": doctor,
}


PRESETS: dict[str, tuple[str, Callable[..., None], Experiment]] = {
    "icml2020": ("two-layer", two_layer, ICML2020),
    "luck-matters": ("deep", deep, LUCK_MATTERS),
    "student-specialization": ("deep", deep, STUDENT_SPECIALIZATION),
    "arpit2019": ("init", init, ARPIT2019),
    "cifar10": ("images", images, CIFAR10),
}  # command, what runs it, and its options


def commands(given: Sequence[str]) -> dict[str, Callable[..., None]]:
    """The commands, with the defaults of the preset that the call names."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--preset", choices=PRESETS)
    try:
        preset = parser.parse_known_args(given)[0].preset
    except argparse.ArgumentError:
        return COMMANDS  # where the mistake is explained
    if preset is None:
        return COMMANDS
    name, command, experiment = PRESETS[preset]
    if name not in given:
        return COMMANDS  # where the mistake is explained
    return {**COMMANDS, name: partial(command, experiment=experiment, out=RUNS / f"{name}-{preset}")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, 2 for a mistake in the call, 1 for another error, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or os.environ.get("FASTSPEC_DEBUG", "0") not in ("", "0")
    given = [argument for argument in given if argument != "--debug"] or ["--help"]
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands(given), prog="fastspec", description=ABOUT, args=given, config=STYLE
        )
    except (ValueError, TypeError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"fastspec: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        if debug:
            traceback.print_exc()
        print(f"fastspec: {str(stopped) or 'interrupted'}", file=sys.stderr)
        return 130
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 2
    return 0


def _run(experiment: Demo | Experiment, out: Path, overwrite: bool) -> None:
    try:
        experiment.run(out, overwrite=overwrite, console=Console())
        print_summary(redraw(out), out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the same command goes on with the run in {out}") from None

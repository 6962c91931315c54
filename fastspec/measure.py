"""`measure`: every hidden layer of a teacher and a student, and the loss, in one pass over the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from fastspec.adapters import Layers, check_placement, evaluation_mode, pair_by_name, tap_pair
from fastspec.batches import Data, read, waits
from fastspec.layerwise import measure_layers
from fastspec.measurement import Measurement
from fastspec.moments import Layer, cross_moments
from fastspec.networks import MLP
from fastspec.ops.checks import check_integer, refuse
from fastspec.population_measurement import MeasuredGroup, PopulationMeasurement
from fastspec.populations import Population
from fastspec.running import Running
from fastspec.workers import one_by_one, workers

MODULE_BATCH = 256  # samples at a time, where the caller leaves it open


@overload
def measure(
    teacher: nn.Module,
    student: Population,
    data: Data,
    *,
    layers: Layers | None = None,
    coactivation: bool = False,
    grams: bool = False,
    precision: str | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> PopulationMeasurement: ...


@overload
def measure(
    teacher: nn.Module,
    student: nn.Module | Sequence[MLP],
    data: Data,
    *,
    layers: Layers | None = None,
    coactivation: bool = False,
    grams: bool = False,
    precision: str | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Measurement: ...


@torch.no_grad()
def measure(
    teacher: nn.Module,
    student: nn.Module | Population | Sequence[MLP],
    data: Data,
    *,
    layers: Layers | None = None,
    coactivation: bool = False,
    grams: bool = False,
    precision: str | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Measurement | PopulationMeasurement:
    """Moments of every hidden layer of teacher against student, and the loss, in one pass over the data.

    teacher: an `MLP` or any module.
    student: an `MLP`, any module, or, for a two-layer `MLP` teacher, a `Population`, which has the teacher's slope;
        or, for an `MLP` teacher, a list of `MLP`s of one shape and the teacher's slope, measured side by side.
    data: inputs [samples, ...], a DataLoader, or any iterable of batches; a batch is a tensor, or a tuple, list or
        dict whose first entry is the input. Inputs must be of the networks' dtype, and on their device or on the CPU,
        from where they are moved batch by batch.
    layers: for modules, which activations to pair: {"teacher.layer": "student.layer", ...}, a list of names that both
        networks have, or a list of pairs, names as in `named_modules()`. None pairs the hidden layers of networks of
        this package and, of any other module, the outputs of all its nn.ReLU and nn.LeakyReLU submodules, both in the
        order in which a forward pass computes them; their numbers must be equal. Activations are
        [samples, nodes, *space], and every position counts as a sample. A named submodule must be called once in a
        forward pass. A network that calls F.relu has no submodule to name for it: give it an nn.ReLU, or name the
        block that ends with it. The input of an in-place ReLU is overwritten; name the ReLU instead.
    coactivation, grams, precision: as in `fastspec.moments.cross_moments`; the outputs, of which the loss is, have the
        precision of the dtype.
    batch_size: at most so many samples at a time, which bounds memory whatever the number of samples: by default 8192
        to 16,384 for two `MLP`s (up to 131,072 on a GPU), fewer if they are wide, and 256 for other modules. Smaller
        batches of the data are put together for `MLP`s and passed on as they are to other modules.
    progress: a progress bar on stderr; None shows it after two seconds if stderr is a terminal.

    The networks are evaluated in evaluation mode, without gradients, and every submodule is left in the mode it was
    in. Two `MLP`s of one negative slope go through `layer_moments`, layer by layer, batch norm folded into the weights,
    each activation computed once; students of a population in stacks of equal width. On the CPU their highest hidden
    layer and the loss are one pass, `moments_and_loss`, without `grams`.
    Returns a `Measurement`, with a population axis for a list; or a `PopulationMeasurement` for a population.
    Raises ValueError or TypeError, naming the argument and the batch, for networks that do not fit each other or the
    data, unknown layers, weights, data or activations that are NaN or infinite, and data without samples. On a GPU NaN
    and infinity are refused at the end, activations by their layer alone: nothing before waits for the device.
    """
    several = list(student) if isinstance(student, (list, tuple)) else None
    for name, network, kinds in (("teacher", teacher, (nn.Module,)), ("student", student, (nn.Module, Population))):
        if not isinstance(network, kinds) and (name == "teacher" or several is None):
            refuse(name, type(network).__name__, " or ".join(kind.__name__ for kind in kinds), TypeError)
    if batch_size is not None:
        check_integer("batch_size", batch_size)
    wanted = {"coactivation": coactivation, "grams": grams, "precision": precision}
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress, **wanted}
    if several is not None:
        return _side_by_side(teacher, several, layers, data, options)
    if isinstance(student, Population):
        if layers is not None or not isinstance(teacher, MLP):
            got = (
                f"a Population, a {type(teacher).__name__} as teacher and {'no' if layers is None else 'some'} `layers`"
            )
            refuse("student", got, "a Population with an MLP as teacher and no `layers`", TypeError)
        return _population(teacher, student, data, options)
    if layers is None and isinstance(teacher, MLP) and isinstance(student, MLP) and _one_slope(teacher, student):
        slope, stacks = teacher.negative_slope, [student.folded()]
        return measure_layers(teacher.folded(), stacks, data, negative_slope=slope, spread=one_by_one, **options)[0]
    assert isinstance(student, nn.Module)
    return _tapped(teacher, student, layers, data, batch_size or MODULE_BATCH, progress, wanted)


def _side_by_side(
    teacher: nn.Module, students: Sequence[MLP], layers: Layers | None, data: Data, options: dict[str, Any]
) -> Measurement:
    """The measurement of students of one shape, with a population axis."""
    takes = "MLPs of one shape and of the teacher's slope, an MLP as teacher and no `layers`"
    networks = [teacher, *students]
    if len(networks) < 2 or layers is not None or not all(isinstance(n, MLP) for n in networks):
        kinds = ", ".join(sorted({type(n).__name__ for n in networks}))
        got = f"a list of {len(students)}, networks {kinds}, {'no' if layers is None else 'some'} `layers`"
        refuse("student", got, takes)
    assert isinstance(teacher, MLP)
    folded = [student.folded() for student in students]
    shapes = {(s.negative_slope, *s.widths, *(b is None for _, b in f)) for s, f in zip(students, folded, strict=True)}
    if len(shapes) > 1 or students[0].negative_slope != teacher.negative_slope:
        refuse("student", f"networks of widths {sorted({tuple(s.widths) for s in students})}", takes)
    stack: list[Layer] = [
        (torch.stack([w for w, _ in layer]), _stacked([b for _, b in layer])) for layer in zip(*folded, strict=True)
    ]
    slope = teacher.negative_slope
    with workers(1 if waits(stack[0][0].device) else len(students)) as spread:
        return measure_layers(teacher.folded(), [stack], data, negative_slope=slope, spread=spread, **options)[0]


def _stacked(biases: Sequence[Tensor | None]) -> Tensor | None:
    """Biases [out] of every student as [P, out], or None of none."""
    given = [b for b in biases if b is not None]
    return torch.stack(given) if given else None


def _population(teacher: MLP, students: Population, data: Data, options: dict[str, Any]) -> PopulationMeasurement:
    """The measurement of a population, in stacks of equal width."""
    with workers(1 if waits(students.w1.device) else len(students)) as spread:
        groups = list(students.groups())
        stacks: list[list[Layer]] = [[(group.w1, group.b1), (group.w2, group.b2)] for group in groups]
        slope = teacher.negative_slope
        measurements = measure_layers(teacher.folded(), stacks, data, negative_slope=slope, spread=spread, **options)
    pairs = zip(groups, measurements, strict=True)
    return PopulationMeasurement([MeasuredGroup(group.indices, measurement) for group, measurement in pairs])


def _device(*networks: nn.Module) -> torch.device | None:
    """Where the networks' weights are, if they have any."""
    return next((weight.device for network in networks for weight in network.parameters()), None)


def _one_slope(teacher: MLP, student: MLP) -> bool:
    return teacher.negative_slope == student.negative_slope


def _tapped(
    teacher: nn.Module,
    student: nn.Module,
    layers: Layers | None,
    data: Data,
    batch_size: int,
    progress: bool | None,
    options: dict[str, Any],
) -> Measurement:
    """The measurement of any two modules, by their taps."""
    running = Running()

    def check(place: str, x: Tensor) -> None:
        check_placement(place, x, teacher=teacher, student=student)

    teacher_tap, student_tap = tap_pair(teacher, student, layers)
    with evaluation_mode(teacher, student), teacher_tap, student_tap:
        for x, place in read(data, batch_size, check, progress, _device(teacher, student)):
            t, s = teacher_tap(x), student_tap(x)
            for name, t_activations, s_activations in pair_by_name(t, s):
                try:
                    checked = not waits(t_activations.device)
                    moments = cross_moments(t_activations, s_activations, check=checked, **options)
                except (ValueError, TypeError) as error:
                    raise type(error)(f"{place}, layer {name}: {error}") from None
                running.add(name, moments)
            out, answer = s.output, t.output
            if isinstance(out, Tensor) and isinstance(answer, Tensor) and out.shape == answer.shape:
                running.add_loss(place, answer, out)
            else:
                running.loss = None  # for good
            running.samples += len(x)
    return running.finish()

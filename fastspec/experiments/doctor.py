"""Which plan a GPU takes to measure a layer, and why."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from fastspec.ops.checks import refuse
from fastspec.ops.gpu.devices import DEVICES, device_rates
from fastspec.ops.layer_moments import plans


def show_plans(
    samples: int,
    inputs: int,
    teacher_nodes: int,
    student_nodes: int,
    *,
    precision: str = "fp32",
    population: int = 1,
    device: str | None = None,
) -> None:
    """Print the plans of `layer_moments` for a shape, with predicted times, and which one is taken.

    population: students; 1 is a network without a population axis.
    device: a name of the table in `fastspec.ops.gpu.devices`; None is the GPU that is here.
    Raises ValueError, naming the argument, for an unknown device or precision, sizes below 1, and no GPU to name.
    """
    names = [rates.name for rates in DEVICES[:-1]]
    if device is None and torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    elif device not in names:
        refuse("device", "no GPU here" if device is None else repr(device), " or ".join(names))
    rates = device_rates(device)
    many_students = population > 1
    taken = plans.choose(
        samples, inputs, teacher_nodes, student_nodes, precision, blocks=many_students, device=rates
    ).name
    shape = f"{samples:,} samples, {inputs} inputs, {teacher_nodes} x {student_nodes} nodes"
    many = "" if population == 1 else f", {population} students"
    table = Table("plan", "predicted", "why", title=f"{shape}{many}, {precision}, on {device}")
    for plan in plans.candidates(
        samples, inputs, teacher_nodes, student_nodes, precision, population=population, device=rates
    ):
        name = f"{plan.name} (taken)" if plan.name == taken else plan.name
        table.add_row(name, f"{plan.seconds * 1e3:.3g} ms", plan.why)
    console = Console()
    console.print(table)
    if many_students:
        console.print("The plan is chosen for a full block of students, so that results do not depend on their number.")
    console.print("Times are of a cost model whose shares of the device's rates are estimates.", style="dim")

"""The shapes that the GPU kernels are measured in."""

from __future__ import annotations

from benchmarks.gpu.deep import DEEP, DeepProblem
from benchmarks.gpu.layers import LayerProblem
from benchmarks.gpu.networks import NetworkProblem
from benchmarks.gpu.populations import POPULATIONS, PopulationProblem
from benchmarks.gpu.snapshots import SNAPSHOTS, SnapshotProblem

Problem = LayerProblem | NetworkProblem | PopulationProblem | SnapshotProblem | DeepProblem

PROBLEMS: tuple[Problem, ...] = (
    LayerProblem("d20", 2**20, 20, 50, 500),
    LayerProblem("d100", 2**20, 100, 20, 200),
    LayerProblem("d100-wide-student", 2**20, 100, 100, 1000),
    LayerProblem("population", 2**17, 100, 20, 200, students=256),
    NetworkProblem("network", 2**20, (20, 50, 75, 100, 125, 100), 10),
    LayerProblem("d784", 2**20, 784, 256, 2560, narrow=False),
    LayerProblem("d1024", 2**20, 1024, 1024, 8192, narrow=False),
    LayerProblem("d4096", 2**17, 4096, 4096, 32_768, narrow=False),
    *POPULATIONS,
    *SNAPSHOTS,
    *DEEP,
)

"""The jobs: how each scales, how much it has to do, and when it comes (card, "Data").

`nas` is tuned so that the differences between jobs are visible; `nas-off` has curves that the JPA's fit cannot
represent; `imagenet` are the seven measured curves of the authors' tables; `hpo` is one curve for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from .errors import MalletrainError
from .options import WorkloadName

__all__ = ["IMAGENET", "WORKLOADS", "Workload", "workload"]

Floats = NDArray[np.float64]

WORKLOADS: tuple[WorkloadName, ...] = get_args(WorkloadName)

SIZES = (1, 2, 4, 8, 16, 32, 64)
IMAGENET = {
    "AlexNet": (7115.3, 13071.7, 21066.1, 40484.9, 74002.9, 130762.0, 202135.4),
    "VGG16": (1193.3, 2389.2, 4691.7, 9257.9, 18348.9, 36208.5, 70151.7),
    "ResNet18": (5218.8, 10582.5, 20436.0, 39584.0, 78023.8, 144762.5, 262723.0),
    "DenseNet": (989.9, 1952.5, 3849.8, 7608.1, 14993.2, 28812.2, 57773.9),
    "MnasNet": (3245.7, 6001.9, 11489.3, 23075.6, 43899.7, 83474.2, 160493.6),
    "ShuffleNet": (2831.0, 5259.0, 9988.0, 20379.2, 38895.3, 74125.1, 145081.5),
    "MobileNet": (3039.9, 5893.0, 11386.0, 22024.8, 42488.4, 82268.3, 155213.8),
}
"""Samples/s on 1, 2, 4, ..., 64 nodes of Summit (authors' tables)."""
MOST = 64
ARRIVALS_S = 10 * 3600.0
"""`imagenet` and `hpo`: the jobs come over ten hours (card, correction 5)."""


@dataclass(frozen=True)
class Workload:
    """M jobs in the order of their arrival.

    Attributes:
        rates: true samples/s of each job on 0..nmax nodes [M, nmax + 1].
        work: samples to do [M].
        arrival: seconds from the start [M], rising.
        up, down: seconds that it stands still when it grows and when it shrinks [M].
        nmin, nmax: of every job.
    """

    name: str
    rates: Floats
    work: Floats
    arrival: Floats
    up: Floats
    down: Floats
    nmin: int = 1
    nmax: int = MOST

    def __len__(self) -> int:
        return len(self.work)


def workload(name: str, jobs: int, seed: int) -> Workload:
    """A seeded list of jobs.

    Args:
        name: one of `WORKLOADS`.
        jobs: M.
        seed: of everything drawn.

    Raises:
        MalletrainError: unknown, or a number of jobs below 0.
    """
    if name not in WORKLOADS:
        raise MalletrainError(f"workload = {name!r}: choose one of {', '.join(WORKLOADS)}.")
    if jobs < 0:
        raise MalletrainError(f"jobs = {jobs}: give a number of at least 0.")
    rng = np.random.default_rng([seed, 2, WORKLOADS.index(name)])

    def log_uniform(low: float, high: float) -> Floats:
        return np.exp(rng.uniform(np.log(low), np.log(high), jobs))[:, None]

    size = np.arange(1, MOST + 1, dtype=np.float64)
    arrival, up, down = np.zeros(jobs), rng.uniform(17, 19, jobs), rng.uniform(11, 13, jobs)
    if name in ("imagenet", "hpo"):
        models = list(IMAGENET) if name == "imagenet" else ["ShuffleNet"]
        table = np.array([np.interp(size, SIZES, IMAGENET[model]) for model in models])
        rates, work = table[np.arange(jobs) % len(models)], np.full(jobs, 1.3e8)
        arrival = np.sort(rng.uniform(0, ARRIVALS_S, jobs))
        arrival[:1] = 0.0
        if name == "hpo":
            up, down = np.full(jobs, 18.0), np.full(jobs, 12.0)
    else:
        single = log_uniform(300, 3000)
        if name == "nas-off":
            a, knee = rng.uniform(0.35, 1, jobs)[:, None], log_uniform(3, 64)
            shape = size**a / (1 + (size / knee) ** 3) ** (a / 3)
            drop = np.where(rng.random(jobs) < 0.5, rng.choice([4, 6, 8, 16, 18], jobs), MOST)
            shape = np.where(size > drop[:, None], 0.75 * shape, shape)
            shape = shape / shape[:, :1]
        else:
            rho = log_uniform(0.02, 1.0) if name == "nas-mild" else log_uniform(0.05, 2.0)
            gamma = log_uniform(1e-4, 0.03) if name == "nas-mild" else log_uniform(3e-4, 0.1)
            shape = size / (1 + rho * 2 * (size - 1) / size + gamma * (size - 1))
        hours = 20.0 if name == "nas-mild" else 10.0
        rates, work = single * shape, single[:, 0] * 3600 * hours * rng.lognormal(0.0, 0.4, jobs)
    return Workload(name, np.concatenate((np.zeros((jobs, 1)), rates), axis=1), work, arrival, up, down)

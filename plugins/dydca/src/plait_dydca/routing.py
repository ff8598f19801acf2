"""Which path a patch takes: by the plan, by its shape, or guessed from the frame. Card, sections 2 and 3."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .clips import Clip
from .degradation import Array, Frame
from .errors import DydcaError
from .network import require_halo
from .options import DydcaOptions
from .quadtree import PatchPlan, cluster_plan, controlled, cut_by_scores, edges, score_clip

__all__ = ["Gate", "Routing", "by_shape", "plan_clip"]


def by_shape(plan: PatchPlan) -> Array:
    """Paths [N] as the released code routes: by a patch's height alone, against the middle between two sizes."""
    fine = plan.size[0] // plan.grid[1]
    sides = [fine * 2**depth for depth in range(plan.paths)]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(sides)]
    return np.searchsorted(np.array(middles), plan.patches[:, 3], side="right").astype(np.int64)


@dataclass(frozen=True)
class Gate:
    """A logistic regression on the gradient energy of a square of the low-resolution frame, for two paths.

    Attributes:
        weight, bias: a square is split where weight * energy + bias > 0.
    """

    weight: float
    bias: float

    @classmethod
    def fitted(cls, frames: Frame, plan: PatchPlan) -> Gate:
        """Fit it to the bits of a plan by Newton's method, with a penalty of 1e-3 on the weight."""
        energy = gradient_energy(frames, plan.grid).reshape(-1)
        centre, spread = energy.mean(), energy.std() or 1.0
        x = np.stack([(energy - centre) / spread, np.ones_like(energy)], 1)
        label, w = plan.code.astype(np.float64), np.zeros(2)
        for _ in range(50):
            p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
            slope = x.T @ (p - label) + np.array([1e-3, 1e-9]) * w
            curve = (x * (p * (1 - p))[:, None]).T @ x + np.diag([1e-3, 1e-6])
            step = np.linalg.solve(curve, slope)
            w = w - np.clip(step, -2, 2)
            if np.abs(step).max() < 1e-10:
                break
        return cls(float(w[0] / spread), float(w[1] - w[0] * centre / spread))

    def plan(self, frames: Frame, grid: tuple[int, int]) -> PatchPlan:
        """The plan that a player makes who has only this gate and the frames."""
        code = (self.weight * gradient_energy(frames, grid) + self.bias > 0).reshape(-1).astype(np.uint8)
        return PatchPlan("quadtree", len(frames), (frames.shape[1], frames.shape[2]), grid, 2, code)


def gradient_energy(frames: Frame, grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Mean absolute difference of neighbouring grey levels in each square of 2x2 cells, [T, rows, columns]."""
    height, width = frames.shape[1:3]
    top, left = edges((height, width), grid, 2)
    energies = np.empty((len(frames), len(top) - 1, len(left) - 1))
    area = np.diff(top)[:, None] * np.diff(left)
    for number, frame in enumerate(frames):
        grey = frame.astype(np.int64).sum(2)
        change = np.zeros_like(grey)
        change[1:] += np.abs(np.diff(grey, axis=0))
        change[:, 1:] += np.abs(np.diff(grey, axis=1))
        energies[number] = np.add.reduceat(np.add.reduceat(change, top[:-1], 0), left[:-1], 1) / area
    return energies


@dataclass(frozen=True)
class Routing:
    """How a clip is cut, and how its player learns of it.

    Attributes:
        plan: the patches as the player has them.
        tau: dB at which the squares of each level were split.
        halo: around the patches of ``plan``, whole frames too: they are played as the crops were that trained them.
        gate: where the player guesses the plan.
        agreement: of the gate's bits with the true ones, %.
        patches: of the plan, with the paths that they take.
    """

    plan: PatchPlan
    tau: tuple[float, ...]
    halo: int
    gate: Gate | None
    agreement: float
    patches: Array

    @property
    def side_bytes(self) -> int:
        """Bytes that the player needs for it: the packed plan, or two numbers."""
        return 8 if self.gate is not None else len(self.plan.packed())

    @property
    def used(self) -> list[int]:
        """Paths that some patch takes."""
        return sorted(set(self.patches[:, 5].tolist()))


def plan_clip(clip: Clip, options: DydcaOptions, seed: int = 0) -> Routing:
    """Cut a clip as the options say.

    Args:
        clip: both resolutions.
        options: of the method.
        seed: of ``labels = "random"``.

    Raises:
        DydcaError: cells that are too small, a halo that is larger than a patch, more parts than frames.
    """
    size, paths = (clip.lr.shape[1], clip.lr.shape[2]), len(options.blocks)
    tau: tuple[float, ...] = ()
    gate, agreement = None, 100.0
    levels = paths if options.split == "quadtree" else 1
    scores = score_clip(clip, options.grid, levels)
    if options.split == "clusters":
        plan = cluster_plan(scores, size, options.grid, paths)
    elif options.split == "quadtree":
        scores = controlled(scores, options.labels, seed)
        plan, tau = cut_by_scores(scores, size, options.grid, options.thresholds, options.quantile)
        if options.gate == "lr":
            gate, truth = Gate.fitted(clip.lr, plan), plan.code
            plan = gate.plan(clip.lr, options.grid)
            agreement = 100 * float((plan.code == truth).mean())
    elif paths > len(clip):
        raise DydcaError(f"{paths} parts of the time for {len(clip)} frames: give fewer blocks.")
    else:
        plan = PatchPlan(options.split, len(clip), size, options.grid, paths, np.zeros(0, np.uint8))
    patches = plan.patches.copy()
    if options.route == "shape":
        patches[:, 5] = by_shape(plan)
    require_halo(options.halo, patches)
    return Routing(plan, tau, options.halo, gate, agreement, patches)

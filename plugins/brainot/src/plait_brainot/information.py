"""Redundancy and synergy in bits, for regions whose codes are discrete: the twin of the masking analysis (card, 2.10).

What two codes A and B tell about a variable Z is divided as Williams and Beer do: redundant (either tells it), unique
to one, synergistic (only both together). Estimated by counts; of few samples the values are too large, so the interval
of a bootstrap stands beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BrainotError
from .masking import Contrast, interval

__all__ = ["Decomposition", "codes", "decompose", "mutual_information", "with_interval"]

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decomposition:
    """I(Z; A, B) in parts, in bits."""

    redundant: float
    unique_a: float
    unique_b: float
    synergistic: float


def codes(voxels: npt.NDArray[Any]) -> Codes:
    """A region's code of each sample, 0 or 1 [n]: the sign of the first principal component of its voxels [n, V]."""
    centred = voxels - voxels.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(centred @ axes[0] > 0, dtype=np.int64)


def _joint(*variables: Codes) -> npt.NDArray[np.float64]:
    """The joint distribution of discrete variables, one axis each."""
    places = [np.unique(v, return_inverse=True)[1] for v in variables]
    table = np.zeros([int(p.max()) + 1 for p in places])
    np.add.at(table, tuple(places), 1.0)
    result: npt.NDArray[np.float64] = table / table.sum()
    return result


def mutual_information(x: Codes, y: Codes) -> float:
    """I(X; Y) in bits, of the samples' own frequencies.

    Raises:
        BrainotError: variables of different length.
    """
    if len(x) != len(y):
        raise BrainotError(f"two variables of {len(x)} and {len(y)} samples: give one value of each for every sample")
    joint = _joint(x, y)
    both = joint > 0
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint[both] * np.log2(joint[both] / apart[both])).sum())


def _specific(z: Codes, x: Codes) -> npt.NDArray[np.float64]:
    """What X tells about each outcome of Z, in bits: sum over x of p(x|z) log p(z|x)/p(z)."""
    joint = _joint(z, x)
    pz, px = joint.sum(1), joint.sum(0)
    joint_or_1 = np.where(joint > 0, joint, 1.0)
    told: npt.NDArray[np.float64] = (joint / pz[:, None] * np.log2(joint_or_1 / px / pz[:, None])).sum(1)
    return told


def decompose(z: Codes, a: Codes, b: Codes) -> Decomposition:
    """The parts of I(Z; A, B), of a variable [n] and the codes of two regions [n] each."""
    pz = _joint(z)
    redundant = float((pz * np.minimum(_specific(z, a), _specific(z, b))).sum())
    of_a, of_b = mutual_information(z, a), mutual_information(z, b)
    together = mutual_information(z, a * (int(b.max()) + 1) + b)
    return Decomposition(redundant, of_a - redundant, of_b - redundant, together - of_a - of_b + redundant)


def with_interval(z: Codes, a: Codes, b: Codes, resamples: int = 1000) -> dict[str, Contrast]:
    """Every part with its 95 % interval by resampling the samples."""
    whole = np.stack([z, a, b], 1).astype(np.float64)

    def part(name: str) -> Contrast:
        return interval(whole, lambda rows: float(getattr(decompose(*rows.astype(np.int64).T), name)), resamples)

    return {name: part(name) for name in Decomposition.__dataclass_fields__}

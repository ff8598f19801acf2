"""What a verification found, as plain values: for the terminal, the pages and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from plait_experiments import statistics
from plait_experiments.choice import exceeds
from plait_experiments.experiment import Tried
from plait_experiments.schema import Claim, MetricTable
from plait_experiments.verdicts import Judgement, Verdict


@dataclass(frozen=True)
class ArmResult:
    """One arm of a claim.

    Attributes:
        name, about: what it is.
        values: metric -> seed -> value (None where undefined).
        failures: seed -> why it gave nothing.
        problem: why the arm did not run at all.
        tuning: grid points with their validation scores; empty without a grid.
        chosen_by: the validation metric that chose.
        higher: whether a higher score is better.
    """

    name: str
    about: str
    values: Mapping[str, Mapping[int, float | None]]
    failures: Mapping[int, str] = field(default_factory=dict)
    problem: str = ""
    tuning: tuple[Tried, ...] = ()
    chosen_by: str = ""
    higher: bool = True

    @property
    def tie(self) -> Tried | None:
        """The best point where it is not better than the default by more than the standard error; else None."""
        best = max(
            (t for t in self.tuning if t.score is not None),
            key=lambda t: (t.score or 0.0) if self.higher else -(t.score or 0.0),
            default=None,
        )
        return best if best and best.gain is not None and not exceeds(best.gain, self.higher) else None

    @property
    def point(self) -> dict[str, Any]:
        """The grid point that was chosen."""
        return next((t.point for t in self.tuning if t.chosen), {})

    def summary(self, metric: str) -> statistics.Summary:
        """Mean and standard error of a metric over the seeds."""
        return statistics.summary(list(self.values.get(metric, {}).values()))

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "about": self.about,
            "metrics": {
                metric: {**self.summary(metric).as_dict(), "by_seed": {str(s): v for s, v in values.items()}}
                for metric, values in self.values.items()
            },
            "failures": {str(seed): text for seed, text in self.failures.items()},
            "problem": self.problem,
            "chosen": self.point,
            "chosen_by": self.chosen_by,
            "higher": self.higher,
            "tie": self.tie is not None,
            "tuning": [
                {
                    "point": t.point,
                    "score": t.score,
                    "by_seed": {str(s): v for s, v in t.scores.items()},
                    "default": t.default,
                    "gain": t.gain.as_dict() if t.gain else None,
                }
                for t in self.tuning
            ],
        }


@dataclass(frozen=True)
class Drift:
    """How far one arm's figures moved under a change that should not matter.

    Attributes:
        arm: which.
        change: what was changed, in words.
        where: the CPU and torch version of the changed runs.
        seeds: how many were run again.
        moves: metric -> largest absolute difference over them, in the metric's unit.
    """

    arm: str
    change: str
    where: str
    seeds: int
    moves: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**asdict(self), "moves": dict(self.moves)}


@dataclass(frozen=True)
class ClaimResult:
    """One claim with its verdict.

    Attributes:
        claim: what was claimed.
        verdict: of all expectations and guards together.
        judgements: each of them.
        arms: the figures.
        metrics: short name -> what it is, those of the expectations first.
        seeds: that were planned.
        reason: why it did not run.
        drifts: of one arm, where they were measured.
        place: machine and torch of an earlier verification that a scoreboard keeps; empty: those of the verification.
    """

    claim: Claim
    verdict: Verdict
    judgements: tuple[Judgement, ...] = ()
    arms: tuple[ArmResult, ...] = ()
    metrics: Mapping[str, MetricTable] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    reason: str = ""
    drifts: tuple[Drift, ...] = ()
    place: str = ""

    @property
    def undecidable(self) -> bool:
        """Whether some expectation is undecided and would need more seeds than anybody runs."""
        return self.verdict is Verdict.UNDECIDED and any(j.undecidable for j in self.judgements)

    def paper(self, arm: str, metric: str) -> float | None:
        """The paper's own figure."""
        return self.claim.paper.get(f"{arm}.{metric}")

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        claim = self.claim
        return {
            "id": claim.id,
            "verdict": self.verdict.value,
            "undecidable": self.undecidable,
            "sentence": claim.sentence,
            "source": claim.source,
            "ours": claim.ours,
            "reconstruction": claim.reconstruction,
            "gate": claim.gate,
            "notes": claim.notes,
            "reason": self.reason,
            "seeds": list(self.seeds),
            "expectations": [j.as_dict() for j in self.judgements],
            "arms": {arm.name: arm.as_dict() for arm in self.arms},
            "metrics": {name: metric.model_dump() for name, metric in self.metrics.items()},
            "required": dict(claim.required),
            "paper": dict(claim.paper),
            "paper_setting": claim.paper_setting,
            "drift": [drift.as_dict() for drift in self.drifts],
            "place": self.place,
        }


@dataclass(frozen=True)
class Verification:
    """Every claim that was asked for.

    Attributes:
        plugin, paper, version: whose claims.
        scale, about, machine: at which size, in words, and on what.
        claims: in the order of the file.
        settings: what the user changed; such a result speaks of another experiment than the claim.
        notes: what a reader should know (results of other sources, few seeds).
        ran, cached: how many cells were run now, and taken from the cache.
        seconds: of this verification; ``work`` of all its cells together.
        environment: device, commit and versions of one of the runs.
    """

    plugin: str
    paper: str
    version: str
    scale: str
    about: str
    claims: tuple[ClaimResult, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ran: int = 0
    cached: int = 0
    seconds: float = 0.0
    work: float = 0.0
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every claim that gates holds."""
        return all(result.verdict is Verdict.HOLDS for result in self.claims if result.claim.gate)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "plugin": self.plugin,
            "paper": self.paper,
            "version": self.version,
            "scale": self.scale,
            "about": self.about,
            "holds": self.holds,
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "cells": {"ran": self.ran, "cached": self.cached},
            "seconds": round(self.seconds, 1),
            "work_seconds": round(self.work, 1),
            "environment": dict(self.environment),
            "claims": [result.as_dict() for result in self.claims],
        }

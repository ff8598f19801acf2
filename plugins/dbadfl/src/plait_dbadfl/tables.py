"""The tables of a run's report."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from plait.declare.results import Table
from plait_dbadfl.clustering import adjusted_rand, cluster_attackers
from plait_dbadfl.names import BUDGETS

if TYPE_CHECKING:
    from plait_dbadfl.stages import Stages

TAUS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, math.inf)
"""Thresholds of the sweep in the report, in hops."""


def floor(stages: Stages) -> float:
    """Attack success of the run without attack; not a number before it has been."""
    for item, result in zip(stages.runs, stages.results, strict=False):
        if item.arm == "none" and item.defence is None:
            return result.final.asr
    return math.nan


def thresholds(stages: Stages) -> Table:
    """Clusters by threshold tau, predicted against true distances."""
    assert stages.detection is not None
    rows: list[list[Any]] = []
    for tau in TAUS:
        predicted = cluster_attackers(stages.detection.hops, tau=tau)
        true = cluster_attackers(stages.federation.attacker_hops, tau=tau)
        sizes = torch.bincount(predicted).tolist()
        rows.append(["inf" if math.isinf(tau) else tau, len(sizes), max(sizes), adjusted_rand(predicted, true)])
    return Table("Clusters by threshold", ["tau hops", "clusters", "largest", "ARI with true distances"], rows)


def tables(stages: Stages) -> dict[str, Table]:
    """Name -> table of the finished run."""
    items = stages.runs
    by_key = {replace(i, text=""): r for i, r in zip(items, stages.results, strict=True)}
    rows: list[list[Any]] = []
    for item, result in zip(items, stages.results, strict=True):
        undefended = by_key.get(replace(item, defence=None, text=""))
        options = stages.federations[item].options
        delta: list[float | None] = [None, None]
        if item.defence is not None and undefended is not None:
            delta = [100 * (result.final.asr - undefended.final.asr), 100 * (result.final.ma - undefended.final.ma)]
        refused: list[float | None] = [None, None] if result.rejection is None else [100 * r for r in result.rejection]
        final = result.final
        rows.append(
            [
                item.attack,
                item.defence or "mean by W",
                options.placement,
                options.budget if item.arm != "none" else None,
                *(100 * v for v in (final.ma, final.ma_worst, final.ma_std)),
                *(100 * v for v in (final.asr, final.asr_p10, final.asr_min)),
                100 * floor(stages),
                *delta,
                *refused,
                result.ari,
            ]
        )
    columns = ["arm", "aggregation", "placement", "equal", "MA %", "worst %", "std", "ASR %", "p10 %", "min %"]
    columns += ["floor %", "ASR - undefended", "MA - undefended", "refused attackers %", "refused benign %", "ARI"]
    shown = {"runs": Table("Every run of this evaluation, over benign nodes", columns, rows)}
    shown["budgets"] = _budgets(stages)
    if stages.results[-1].final.asr_by_part:
        shown["parts"] = _parts(stages)
    shown["attackers"] = _attackers(stages)
    return shown


def _budgets(stages: Stages) -> Table:
    """Both protocols for every arm: who stamps how much, and who stays short."""
    rows: list[list[Any]] = []
    seen = set()
    for item, result in zip(stages.runs, stages.results, strict=True):
        if item.arm == "none" or (item.attack, item.placement) in seen:
            continue
        seen.add((item.attack, item.placement))
        for protocol in BUDGETS:
            federation = stages.federations[item].changed(budget=protocol)
            budget = federation.plan(stages.detection).budget(0)
            acting = budget.ratio > 0
            rows.append(
                [
                    item.text.partition("+")[0] or item.arm,
                    protocol,
                    int(acting.sum()),
                    float(result.parts.sum(1)[acting].double().mean()) if bool(acting.any()) else 0.0,
                    100 * float(budget.ratio.mean()),
                    float(budget.pixels.sum()),
                    int(budget.short.sum()),
                ]
            )
    columns = ["arm", "equal", "attackers", "pixels of a part", "mean ratio %", "pixels of all", "short of budget"]
    return Table("Budgets: expected stamped pixels per training sample", columns, rows)


def _parts(stages: Stages) -> Table:
    """What each local part alone does at the benign nodes; the whole trigger above it."""
    main = stages.results[-1]
    rows: list[list[Any]] = [["whole trigger", main.parts.shape[1], 100 * main.final.asr]]
    distinct = torch.unique(main.parts, dim=0)
    distinct = distinct[distinct.any(1)]
    for number, (part, success) in enumerate(zip(distinct, main.final.asr_by_part, strict=True)):
        rows.append(
            [
                f"part {number + 1}: pixels {', '.join(str(p) for p in part.nonzero().flatten().tolist())}",
                int(part.sum()),
                100 * success,
            ]
        )
    return Table("Success of each local part alone, main run", ["stamped", "pixels", "ASR %"], rows)


def _attackers(stages: Stages) -> Table:
    federation, main = stages.federation, stages.results[-1]
    clusters = [None] * len(federation.attackers) if main.clusters is None else main.clusters.tolist()
    degrees = federation.topology.degrees[federation.attackers].tolist()
    rows = [
        [node, degree, cluster, int(pixels), 100 * part]
        for node, degree, cluster, pixels, part in zip(
            federation.attackers.tolist(),
            degrees,
            clusters,
            main.parts.sum(1).tolist(),
            stages.federations[stages.main].plan(stages.detection).budget(0).ratio.tolist(),
            strict=True,
        )
    ]
    return Table(
        f"Attackers, placed {federation.options.placement}",
        ["node", "neighbours", "cluster", "pixels", "poisoned %"],
        rows,
    )

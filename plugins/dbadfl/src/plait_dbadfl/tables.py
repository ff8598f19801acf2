"""The tables of a run's report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from plait.declare.results import Table
from plait_dbadfl.clustering import adjusted_rand, cluster_attackers
from plait_dbadfl.names import BUDGETS, SCANNING

if TYPE_CHECKING:
    from plait_dbadfl.weave import Weave

TAUS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, math.inf)
"""Thresholds of the sweep in the report, in hops."""


def floor(weave: Weave) -> float:
    """Attack success of the run without attack; not a number before it has been."""
    items = [stage.item for stage in weave.stages if stage.item]
    for item, result in zip(items, weave.results, strict=False):
        if item.arm == "none" and item.defence is None:
            return result.final.asr
    return math.nan


def thresholds(weave: Weave) -> Table:
    """Clusters by threshold tau, predicted against true distances."""
    assert weave.detection is not None
    rows: list[list[Any]] = []
    for tau in TAUS:
        found = cluster_attackers(weave.detection.hops, tau=tau)
        true = cluster_attackers(weave.federation.attacker_hops, tau=tau)
        sizes = torch.bincount(found).tolist()
        rows.append(["inf" if math.isinf(tau) else tau, len(sizes), max(sizes), adjusted_rand(found, true)])
    return Table("Clusters by threshold", ["tau hops", "clusters", "largest", "ARI with true distances"], rows)


def tables(weave: Weave) -> dict[str, Table]:
    """Name -> table of the finished run."""
    items = [stage.item for stage in weave.stages if stage.item]
    by_key = {(i.arm, i.defence, i.placement, i.budget): r for i, r in zip(items, weave.results, strict=True)}
    rows: list[list[Any]] = []
    for item, result in zip(items, weave.results, strict=True):
        undefended = by_key.get((item.arm, None, item.placement, item.budget))
        attack = weave.federations[item].config.attack
        delta: list[float | None] = [None, None]
        if item.defence is not None and undefended is not None:
            delta = [100 * (result.final.asr - undefended.final.asr), 100 * (result.final.ma - undefended.final.ma)]
        refused: list[float | None] = [None, None] if result.rejection is None else [100 * r for r in result.rejection]
        final = result.final
        rows.append(
            [
                item.arm,
                item.defence or "mean by W",
                attack.placement,
                attack.budget if item.arm != "none" else None,
                *(100 * v for v in (final.ma, final.ma_worst, final.ma_std)),
                *(100 * v for v in (final.asr, final.asr_p10, final.asr_min)),
                100 * floor(weave),
                *delta,
                *refused,
                result.ari,
            ]
        )
    columns = ["arm", "aggregation", "placement", "equal", "MA %", "worst %", "std", "ASR %", "p10 %", "min %"]
    columns += ["floor %", "ASR - undefended", "MA - undefended", "refused attackers %", "refused benign %", "ARI"]
    found = {"runs": Table("Every run of this evaluation, over benign nodes", columns, rows)}
    found["budgets"] = _budgets(weave)
    if weave.results[-1].final.asr_by_part:
        found["parts"] = _parts(weave)
    found["attackers"] = _attackers(weave)
    return found


def _budgets(weave: Weave) -> Table:
    """Both protocols for every arm: who stamps how much, and who stays short."""
    rows: list[list[Any]] = []
    seen = set()
    for item, result in zip([s.item for s in weave.stages if s.item], weave.results, strict=True):
        if item.arm == "none" or (item.arm, item.placement) in seen:
            continue
        seen.add((item.arm, item.placement))
        for protocol in BUDGETS:
            federation = weave.federations[item].with_attack(budget=protocol)
            detection = weave.detection if item.arm in SCANNING else None
            budget = federation.plan(detection).budget(0)
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


def _parts(weave: Weave) -> Table:
    """What each local part alone does at the benign nodes; the whole trigger above it."""
    main = weave.results[-1]
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


def _attackers(weave: Weave) -> Table:
    federation, main = weave.federation, weave.results[-1]
    clusters = [None] * len(federation.attackers) if main.clusters is None else main.clusters.tolist()
    degrees = federation.topology.degrees[federation.attackers].tolist()
    rows = [
        [node, degree, cluster, int(pixels), 100 * part]
        for node, degree, cluster, pixels, part in zip(
            federation.attackers.tolist(),
            degrees,
            clusters,
            main.parts.sum(1).tolist(),
            weave.federations[weave.main].plan(weave.detection).budget(0).ratio.tolist(),
            strict=True,
        )
    ]
    return Table(
        f"Attackers, placed {federation.config.attack.placement}",
        ["node", "neighbours", "cluster", "pixels", "poisoned %"],
        rows,
    )

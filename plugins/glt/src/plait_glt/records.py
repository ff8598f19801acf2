"""What is measured of a ticket, and the figures, table and curves made of it. Card, "Metrics"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait.declare.results import Metric, Plot, Table
from plait.training.evaluation import predict, split_figures
from plait_glt.graphs import isolated_nodes
from plait_glt.macs import inference_macs
from plait_glt.sparsity import area_under_curve, extreme_sparsity, is_winning, sparsity

if TYPE_CHECKING:
    from plait.training.trainer import Trainer
    from plait_glt.masked import MaskedGNN
    from plait_glt.phases import Phase

SPARSE = 0.7
"""Graph sparsity from which on the card's claim is about (acceptance 1)."""
TITLES = {"accuracy": "accuracy", "auc": "ROC-AUC", "hits_at_50": "Hits@50"}
"""How the figures that tickets are judged by are written."""


def record(
    trainer: Trainer, gnn: MaskedGNN, hard: Mapping[str, Tensor], phase: Phase, share: float | None
) -> dict[str, Any]:
    """What the ticket that was just retrained is worth, at its best epoch on validation.

    ``figure`` names what it is judged by, the first figure of its data: ``accuracy``, ``auc`` or ``hits_at_50``.
    """
    judged = split_figures(trainer.data, *predict(trainer.forward, trainer.model, trainer.data.test))
    figure = next(iter(judged))
    edges = hard["edge_mask"] != 0
    kept = [hard[f"network.{name}"] for name in gnn.names]
    kept_entries = gnn.edge_index[:, edges[gnn.edge_id]]
    x = trainer.data.test.__getitems__([0])["graph"].x
    best = trainer.best
    return {
        "round": phase.round,
        "graph_sparsity": sparsity(edges),
        "weight_sparsity": sparsity(kept),
        "kept_edges": int(edges.sum()),
        "kept_weights": sum(int(mask.count_nonzero()) for mask in kept),
        "figure": figure,
        f"test_{figure}": judged[figure].value,
        f"validation_{figure}": float(best["score"]) if best is not None else float("nan"),
        "best_epoch": best["step"] - phase.start if best is not None else phase.end - phase.start,
        "gradient_share": share,
        "isolated_nodes": len(isolated_nodes(kept_entries.cpu(), gnn.num_nodes)),
        "macs": _macs(gnn.effective(dict(zip(gnn.names, kept, strict=True))), int(kept_entries.shape[1]), gnn, x),
    }


def _macs(kept: Sequence[Tensor], entries: int, gnn: MaskedGNN, x: Tensor) -> int:
    sparse = x.layout != torch.strided or float((x == 0).double().mean()) > 0.5
    return inference_macs([mask.cpu() for mask in kept], entries, gnn.num_nodes, x.cpu() if sparse else None)


def figures(
    rounds: Sequence[Mapping[str, Any]], tolerance: float, seconds: Mapping[int, float] | None = None
) -> dict[str, Metric | Table | Plot]:
    """Metrics of the last ticket, of the whole curve and of every round, the table and the plots.

    Args:
        rounds: of `record`.
        tolerance: points below the dense figure that still win.
        seconds: round -> how long it took; nan, or absent, where it was interrupted.
    """
    if not rounds:
        return {}
    last = rounds[-1]
    name = last["figure"]
    results: dict[str, Metric | Table | Plot] = {
        name: Metric(last[f"test_{name}"], "%", "higher"),
        f"validation_{name}": Metric(last[f"validation_{name}"], "%", "higher"),
        "graph_sparsity": Metric(last["graph_sparsity"], "", "higher"),
        "weight_sparsity": Metric(last["weight_sparsity"], "", "higher"),
        "kept_edges": Metric(last["kept_edges"], "edges", "lower"),
        "kept_weights": Metric(last["kept_weights"], "weights", "lower"),
        "isolated_nodes": Metric(last["isolated_nodes"], "nodes", "lower"),
        "macs": Metric(last["macs"], "MACs", "lower"),
    }
    shares = [ended["gradient_share"] for ended in rounds if ended["gradient_share"] is not None]
    if shares:
        results["gradient_share"] = Metric(
            shares[0], "", "higher", "edges whose mask has a gradient, in the first round"
        )
    tickets = [ticket for ticket in rounds if ticket["round"]]
    for ticket in tickets:
        results[f"{name}_round_{ticket['round']}"] = Metric(ticket[f"test_{name}"], "%", "higher")
    sparse = [ticket[f"test_{name}"] for ticket in tickets if ticket["graph_sparsity"] >= SPARSE]
    if sparse:
        note = f"mean over the rounds with a graph sparsity of at least {SPARSE}"
        results[f"{name}_sparse"] = Metric(sum(sparse) / len(sparse), "%", "higher", note)
    taken = {ticket["round"]: (seconds or {}).get(ticket["round"], math.nan) for ticket in rounds}
    if tickets:
        mean = sum(ticket[f"validation_{name}"] for ticket in tickets) / len(tickets)
        results["validation_mean"] = Metric(mean, "%", "higher", "over the rounds; to choose options by")
        whole = [taken[ticket["round"]] for ticket in tickets if not math.isnan(taken[ticket["round"]])]
        mean = sum(whole) / len(whole) if whole else math.nan
        results["seconds"] = Metric(mean, "s", "lower", "of a round, the mean over those that nothing interrupted")
    if rounds[0]["round"] == 0 and tickets:
        results |= _against_dense(rounds[0], tickets, tolerance)
    return results | _shown(rounds, tolerance, taken)


def _against_dense(
    dense: Mapping[str, Any], tickets: Sequence[Mapping[str, Any]], tolerance: float
) -> dict[str, Metric | Table | Plot]:
    name = dense["figure"]
    reference, last = dense[f"test_{name}"], tickets[-1][f"test_{name}"]
    curve = [ticket["graph_sparsity"] for ticket in tickets], [ticket[f"test_{name}"] for ticket in tickets]
    results: dict[str, Metric | Table | Plot] = {
        f"dense_{name}": Metric(reference, "%", "higher", "the whole graph, all weights"),
        "gap": Metric(last - reference, "points", "higher", "last ticket less dense"),
        "mac_ratio": Metric(tickets[-1]["macs"] / dense["macs"], "", "lower"),
    }
    won = is_winning(last, reference, tolerance)
    results["winning"] = Metric(float(won), "", "higher", f"1: the last ticket is within {tolerance:g} points of dense")
    extreme = extreme_sparsity(*curve, reference, tolerance)
    results["extreme_sparsity"] = Metric(extreme or 0.0, "", "higher", "largest graph sparsity of a winning ticket")
    if len({0.0, *curve[0]}) > 1:
        area = area_under_curve([0.0, *curve[0]], [reference, *curve[1]])
        title = TITLES.get(name, name)
        results["area"] = Metric(area, "points", "higher", f"under {title} against graph sparsity, from 0 on")
    return results


def _shown(
    rounds: Sequence[Mapping[str, Any]], tolerance: float, seconds: Mapping[int, float]
) -> dict[str, Metric | Table | Plot]:
    name = rounds[0]["figure"]
    title = TITLES.get(name, name)
    columns = {
        "round": "round",
        "kept_edges": "kept edges",
        "graph_sparsity": "graph sparsity",
        "weight_sparsity": "weight sparsity",
        f"test_{name}": f"test {title} %",
        f"validation_{name}": f"validation {title} %",
        "best_epoch": "best epoch",
        "gradient_share": "edges with gradient",
        "isolated_nodes": "isolated nodes",
        "macs": "MACs",
    }
    rows = [[*(_rounded(ticket[key]) for key in columns), _seconds(seconds[ticket["round"]])] for ticket in rounds]
    names = [*columns.values(), "seconds"]
    if rounds[0]["round"] == 0:
        names.append("winning")
        reference = rounds[0][f"test_{name}"]
        for row, ticket in zip(rows, rounds, strict=True):
            won = is_winning(ticket[f"test_{name}"], reference, tolerance)
            row.append(None if ticket["round"] == 0 else "yes" if won else "no")
    judged = [ticket[f"test_{name}"] for ticket in rounds]
    capital = title[0].upper() + title[1:]
    return {
        "rounds": Table("Tickets, round by round (round 0: the dense network)", names, rows),
        "graph_curve": Plot(
            f"{capital} against graph sparsity",
            "graph sparsity",
            f"test {title} %",
            {"ticket": ([ticket["graph_sparsity"] for ticket in rounds], judged)},
        ),
        "weight_curve": Plot(
            f"{capital} against weight sparsity",
            "weight sparsity",
            f"test {title} %",
            {"ticket": ([ticket["weight_sparsity"] for ticket in rounds], judged)},
        ),
    }


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _seconds(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 2)

"""What is measured of a ticket, and the figures, table and curves made of it. Card, "Metrics"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait.evaluation import Metric, Plot, Table, predict
from plait_glt.graphs import isolated_nodes
from plait_glt.macs import inference_macs
from plait_glt.sparsity import area_under_curve, extreme_sparsity, is_winning, sparsity

if TYPE_CHECKING:
    from plait.trainer import Trainer
    from plait_glt.masked import MaskedGNN
    from plait_glt.phases import Phase

SPARSE = 0.7
"""Graph sparsity from which on the card's claim is about (acceptance 1)."""


def record(
    trainer: Trainer, gnn: MaskedGNN, hard: Mapping[str, Tensor], phase: Phase, share: float | None
) -> dict[str, Any]:
    """The figures of the ticket that was just retrained, at its best epoch on validation."""
    outputs, fields = predict(trainer, trainer.model, trainer.data.test)
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
        "test_accuracy": 100 * float((outputs.argmax(1) == fields["label"]).double().mean()),
        "validation_accuracy": float(best["score"]) if best is not None else float("nan"),
        "best_epoch": best["step"] - phase.start if best is not None else phase.end - phase.start,
        "gradient_share": share,
        "isolated_nodes": len(isolated_nodes(kept_entries.cpu(), gnn.num_nodes)),
        "macs": _macs(kept, int(kept_entries.shape[1]), gnn, x),
    }


def _macs(kept: Sequence[Tensor], entries: int, gnn: MaskedGNN, x: Tensor) -> int:
    sparse = x.layout != torch.strided or float((x == 0).double().mean()) > 0.5
    return inference_macs([mask.cpu() for mask in kept], entries, gnn.num_nodes, x.cpu() if sparse else None)


def figures(rounds: Sequence[Mapping[str, Any]], tolerance: float) -> dict[str, Metric | Table | Plot]:
    """Metrics of the last ticket, of the whole curve and of every round, the table and the plots."""
    if not rounds:
        return {}
    last = rounds[-1]
    found: dict[str, Metric | Table | Plot] = {
        "accuracy": Metric(last["test_accuracy"], "%", "higher"),
        "validation_accuracy": Metric(last["validation_accuracy"], "%", "higher"),
        "graph_sparsity": Metric(last["graph_sparsity"], "", "higher"),
        "weight_sparsity": Metric(last["weight_sparsity"], "", "higher"),
        "kept_edges": Metric(last["kept_edges"], "edges", "lower"),
        "kept_weights": Metric(last["kept_weights"], "weights", "lower"),
        "isolated_nodes": Metric(last["isolated_nodes"], "nodes", "lower"),
        "macs": Metric(last["macs"], "MACs", "lower"),
    }
    shares = [found_["gradient_share"] for found_ in rounds if found_["gradient_share"] is not None]
    if shares:
        found["gradient_share"] = Metric(shares[0], "", "higher", "edges whose mask has a gradient, in the first round")
    tickets = [one for one in rounds if one["round"]]
    for one in tickets:
        found[f"accuracy_round_{one['round']}"] = Metric(one["test_accuracy"], "%", "higher")
    sparse = [one["test_accuracy"] for one in tickets if one["graph_sparsity"] >= SPARSE]
    if sparse:
        note = f"mean over the rounds with a graph sparsity of at least {SPARSE}"
        found["accuracy_sparse"] = Metric(sum(sparse) / len(sparse), "%", "higher", note)
    if tickets:
        mean = sum(one["validation_accuracy"] for one in tickets) / len(tickets)
        found["validation_mean"] = Metric(mean, "%", "higher", "over the rounds; to choose options by")
    if rounds[0]["round"] == 0 and tickets:
        found |= _against_dense(rounds[0], tickets, tolerance)
    return found | _shown(rounds, tolerance)


def _against_dense(
    dense: Mapping[str, Any], tickets: Sequence[Mapping[str, Any]], tolerance: float
) -> dict[str, Metric | Table | Plot]:
    reference = dense["test_accuracy"]
    curve = [one["graph_sparsity"] for one in tickets], [one["test_accuracy"] for one in tickets]
    found: dict[str, Metric | Table | Plot] = {
        "dense_accuracy": Metric(reference, "%", "higher", "the whole graph, all weights"),
        "gap": Metric(tickets[-1]["test_accuracy"] - reference, "points", "higher", "last ticket less dense"),
        "mac_ratio": Metric(tickets[-1]["macs"] / dense["macs"], "", "lower"),
    }
    won = is_winning(tickets[-1]["test_accuracy"], reference, tolerance)
    found["winning"] = Metric(float(won), "", "higher", f"1: the last ticket is within {tolerance:g} points of dense")
    extreme = extreme_sparsity(*curve, reference, tolerance)
    found["extreme_sparsity"] = Metric(extreme or 0.0, "", "higher", "largest graph sparsity of a winning ticket")
    if len({0.0, *curve[0]}) > 1:
        area = area_under_curve([0.0, *curve[0]], [reference, *curve[1]])
        found["area"] = Metric(area, "points", "higher", "under accuracy against graph sparsity, from 0 on")
    return found


def _shown(rounds: Sequence[Mapping[str, Any]], tolerance: float) -> dict[str, Metric | Table | Plot]:
    columns = {
        "round": "round",
        "kept_edges": "kept edges",
        "graph_sparsity": "graph sparsity",
        "weight_sparsity": "weight sparsity",
        "test_accuracy": "test accuracy %",
        "validation_accuracy": "validation accuracy %",
        "best_epoch": "best epoch",
        "gradient_share": "edges with gradient",
        "isolated_nodes": "isolated nodes",
        "macs": "MACs",
    }
    rows = [[_rounded(one[name]) for name in columns] for one in rounds]
    names = list(columns.values())
    if rounds[0]["round"] == 0:
        names.append("winning")
        reference = rounds[0]["test_accuracy"]
        for row, one in zip(rows, rounds, strict=True):
            won = is_winning(one["test_accuracy"], reference, tolerance)
            row.append(None if one["round"] == 0 else "yes" if won else "no")
    accuracy = [one["test_accuracy"] for one in rounds]
    return {
        "rounds": Table("Tickets, round by round (round 0: the dense network)", names, rows),
        "graph_curve": Plot(
            "Accuracy against graph sparsity",
            "graph sparsity",
            "test accuracy %",
            {"ticket": ([one["graph_sparsity"] for one in rounds], accuracy)},
        ),
        "weight_curve": Plot(
            "Accuracy against weight sparsity",
            "weight sparsity",
            "test accuracy %",
            {"ticket": ([one["weight_sparsity"] for one in rounds], accuracy)},
        ),
    }


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value

"""Arms of the claims that take more than one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plait
from plait.declare.recipe import Recipe


def transferred(recipe: Recipe, folder: Path, *, source: dict[str, Any], weights: str = "ticket") -> dict[str, float]:
    """Find a ticket on a source graph, train it on the recipe's graph.

    Args:
        recipe: of both runs; its data is the target's.
        folder: for both.
        source: options of the data that differ on the source, e.g. ``{"graph": "cora"}``.
        weights: ``ticket``, or ``random`` for as many weights of each matrix by chance.

    Returns:
        Metrics of the second run.
    """
    on_source = recipe.merged({f"data.{key}": value for key, value in source.items()})
    finding = plait.run(on_source, out=folder / "find", go_on=True)
    ticket = str(finding.export / "ticket.safetensors")
    moved = recipe.merged({"glt.ticket": ticket, "glt.ticket_weights": weights})
    return dict(plait.run(moved, out=folder / "train", go_on=True).metrics)

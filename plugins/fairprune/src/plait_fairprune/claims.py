"""What `claims.toml` measures beside the metrics of a run: iterations as the paper counts them, and barriers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import isnan
from pathlib import Path

import plait
from plait.declare.recipe import Recipe
from plait.loading import load_data

from .barrier import interpolate
from .commands import mean_test_loss
from .options import FairpruneOptions

__all__ = ["barriers", "iterations"]


def iterations(run: plait.Run) -> Mapping[str, float]:
    """Weight steps until the validation gap is, and stays, within a point of the dense network's.

    Args:
        run: of the paper's protocol, with ``train.steps`` and measurements while pruning.

    Returns:
        ``iterations`` from the start of pruning (all that there are, where the gap never came so near), ``whole`` with
        the dense steps before them, and ``reached``, 1 or 0.
    """
    steps, total = run.metrics["fairprune/steps_to_dense_gap"], run.recipe.train.steps
    assert total is not None
    start = round(FairpruneOptions(**run.recipe.plugins["fairprune"]).dense_share * total)
    taken = total - start if isnan(steps) else steps
    return {"iterations": taken, "whole": start + taken, "reached": float(not isnan(steps))}


def barriers(recipe: Recipe, folder: Path) -> Mapping[str, float]:
    """The barrier of the test loss, in nats, between BiFP and its ablations w/o m and w/o w.

    Args:
        recipe: of BiFP.
        folder: for the three runs.
    """
    runs = {
        name: plait.run(recipe.merged({"fairprune.baseline": name}), out=folder / name, go_on=True)
        for name in ("bifp", "without-mask", "without-weights")
    }
    loss = partial(mean_test_loss, load_data(recipe.data, recipe.seed))
    return {
        name.replace("-", "_"): interpolate(runs["bifp"].model, runs[name].model, loss).barrier
        for name in ("without-mask", "without-weights")
    }

"""The plugin's command: `plait fairprune barrier`."""

from __future__ import annotations

import json as documents
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import plait
from plait.data import Data
from plait.data.streams import in_order
from plait.distributed.world import World
from plait.errors import BadInput
from plait.loading import load_data
from plait.training.forward import Forward

from .barrier import interpolate
from .errors import FairpruneError


def barrier(first: Path, second: Path, points: int = 21, json: bool = False) -> None:
    """The test loss on the line between the exported networks of two runs, and the barrier between them.

    Args:
        first: a finished run.
        second: another one, of the same data, seed and model.
        points: places on the line.
        json: print one JSON document.
    """
    runs = [plait.load_run(path) for path in (first, second)]
    given = [(run.recipe.data.model_dump(), run.recipe.seed) for run in runs]
    if given[0] != given[1]:
        raise BadInput(f"{first} and {second} are runs of different data or seeds: their losses cannot be compared.")
    loss = partial(mean_test_loss, load_data(runs[0].recipe.data, runs[0].recipe.seed))
    try:
        line = interpolate(runs[0].model, runs[1].model, loss, points)
    except FairpruneError as error:
        raise BadInput(f"{error}.") from error
    if json:
        print(documents.dumps({"at": list(line.at), "loss": list(line.losses), "barrier": line.barrier}))
        return
    highest = max(line.losses)
    for t, value in zip(line.at, line.losses, strict=True):
        print(f"{t:5.2f}  {value:8.4f}  {'#' * round(50 * value / highest)}")
    print(f"barrier: {line.barrier:.4f} nats above the line between the two ends")


@torch.no_grad()
def mean_test_loss(data: Data, model: nn.Module) -> float:
    """Mean cross-entropy on the test split, nats."""
    forward = Forward(World(torch.device("cpu")), "fp32", data.prepare, data.forward, data.readout)
    total = 0.0
    for batch in in_order(data.test, 512):
        total += float(cross_entropy(forward(model, batch), batch["label"], reduction="sum"))
    return total / len(data.test)

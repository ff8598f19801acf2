"""plait: published machine-learning methods woven into one training run. Importing this imports no torch."""

import importlib
from typing import TYPE_CHECKING, Any

from plait._version import __version__
from plait.declare.options import Options, PresetOptions, later
from plait.declare.recipe import Recipe
from plait.declare.results import Metric, Plot, Table
from plait.declare.sources import DataSource, ModelSource
from plait.declare.words import Ownership
from plait.errors import BadInput, PlaitError, Refused, RunFailed
from plait.hooks import CONTRACT_VERSION, hookimpl
from plait.planning.plan import Plan, plan
from plait.plugin import Plugin
from plait.run import Run, load_run, resume, run

if TYPE_CHECKING:
    from plait.data import Batch, Data, DataInfo, TensorSplit
    from plait.training.evaluation import View
    from plait.woven import WovenStep, load_woven, weave

__all__ = [
    "CONTRACT_VERSION",
    "BadInput",
    "Batch",
    "Data",
    "DataInfo",
    "DataSource",
    "Metric",
    "ModelSource",
    "Options",
    "Ownership",
    "PlaitError",
    "Plan",
    "Plot",
    "Plugin",
    "PresetOptions",
    "Recipe",
    "Refused",
    "Run",
    "RunFailed",
    "Table",
    "TensorSplit",
    "View",
    "WovenStep",
    "__version__",
    "hookimpl",
    "later",
    "load_run",
    "load_woven",
    "plan",
    "resume",
    "run",
    "weave",
]


def __getattr__(name: str) -> Any:
    """The names that need torch, when they are asked for."""
    room = {"Batch": "data", "Data": "data", "DataInfo": "data", "TensorSplit": "data", "View": "training.evaluation"}
    room |= dict.fromkeys(("WovenStep", "load_woven", "weave"), "woven")
    if name not in room:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    return getattr(importlib.import_module(f"plait.{room[name]}"), name)

"""plait: published machine-learning methods woven into one training run. Importing this imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Plugin": "plait.plugin",
    "Options": "plait.plugin",
    "PresetOptions": "plait.plugin",
    "later": "plait.deferred",
    "Claim": "plait.vocabulary",
    "hookimpl": "plait.hooks",
    "CONTRACT_VERSION": "plait.hooks",
    "DataSource": "plait.components",
    "ModelSource": "plait.components",
    "Recipe": "plait.recipe",
    "Plan": "plait.composition",
    "plan": "plait.planning",
    "run": "plait.running",
    "resume": "plait.running",
    "load_run": "plait.running",
    "Run": "plait.running",
    "sweep": "plait.sweeps.sweeping",
    "Batch": "plait.data",
    "Data": "plait.data",
    "DataInfo": "plait.data",
    "TensorSplit": "plait.data",
    "Metric": "plait.evaluation",
    "Table": "plait.evaluation",
    "Plot": "plait.evaluation",
    "View": "plait.evaluation",
    "BadInput": "plait.errors",
    "PlaitError": "plait.errors",
    "Refused": "plait.errors",
    "RunFailed": "plait.errors",
}
__all__ = sorted([*_WHERE, "__version__"])

if TYPE_CHECKING:
    from plait.components import DataSource as DataSource
    from plait.components import ModelSource as ModelSource
    from plait.composition import Plan as Plan
    from plait.data import Batch as Batch
    from plait.data import Data as Data
    from plait.data import DataInfo as DataInfo
    from plait.data import TensorSplit as TensorSplit
    from plait.deferred import later as later
    from plait.errors import BadInput as BadInput
    from plait.errors import PlaitError as PlaitError
    from plait.errors import Refused as Refused
    from plait.errors import RunFailed as RunFailed
    from plait.evaluation import Metric as Metric
    from plait.evaluation import Plot as Plot
    from plait.evaluation import Table as Table
    from plait.evaluation import View as View
    from plait.hooks import CONTRACT_VERSION as CONTRACT_VERSION
    from plait.hooks import hookimpl as hookimpl
    from plait.planning import plan as plan
    from plait.plugin import Options as Options
    from plait.plugin import Plugin as Plugin
    from plait.plugin import PresetOptions as PresetOptions
    from plait.recipe import Recipe as Recipe
    from plait.running import Run as Run
    from plait.running import load_run as load_run
    from plait.running import resume as resume
    from plait.running import run as run
    from plait.sweeps.sweeping import sweep as sweep
    from plait.vocabulary import Claim as Claim


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'plait' has no attribute {name!r}")

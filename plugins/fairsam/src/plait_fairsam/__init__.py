"""FairSAM: fair classification on corrupted images through sharpness-aware minimization (arXiv 2503.22934).

A method library in plain PyTorch; names are imported on first use, so importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .baselines import GroupDRO, group_gap_penalty
    from .corruptions import CORRUPTIONS, DEFAULT_GRID, Corruption, corrupt
    from .errors import FairsamError, FairsamWarning
    from .gradients import BatchGradients, ModelGradients, frozen_statistics
    from .metrics import FairnessReport, cdd, collapse_warnings, fairness_report, group_accuracy
    from .perturbation import SavedWeights, asam_perturbation, global_norm, sam_perturbation
    from .presets import BASELINES
    from .sam import PERTURBATIONS, FairSAM, Gradients, Losses, StepLosses
    from .weights import WEIGHTS, AdaptiveWeights, TableWeights, cell_counts, weight_table

__version__ = "0.1.0"

_HOMES = {
    "baselines": ("GroupDRO", "group_gap_penalty"),
    "presets": ("BASELINES",),
    "corruptions": ("CORRUPTIONS", "DEFAULT_GRID", "Corruption", "corrupt"),
    "errors": ("FairsamError", "FairsamWarning"),
    "gradients": ("BatchGradients", "ModelGradients", "frozen_statistics"),
    "metrics": ("FairnessReport", "cdd", "collapse_warnings", "fairness_report", "group_accuracy"),
    "perturbation": ("SavedWeights", "asam_perturbation", "global_norm", "sam_perturbation"),
    "sam": ("PERTURBATIONS", "FairSAM", "Gradients", "Losses", "StepLosses"),
    "weights": ("WEIGHTS", "AdaptiveWeights", "TableWeights", "cell_counts", "weight_table"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BASELINES",
    "CORRUPTIONS",
    "DEFAULT_GRID",
    "PERTURBATIONS",
    "WEIGHTS",
    "AdaptiveWeights",
    "BatchGradients",
    "Corruption",
    "FairSAM",
    "FairnessReport",
    "FairsamError",
    "FairsamWarning",
    "Gradients",
    "GroupDRO",
    "Losses",
    "ModelGradients",
    "SavedWeights",
    "StepLosses",
    "TableWeights",
    "asam_perturbation",
    "cdd",
    "cell_counts",
    "collapse_warnings",
    "corrupt",
    "fairness_report",
    "frozen_statistics",
    "global_norm",
    "group_accuracy",
    "group_gap_penalty",
    "sam_perturbation",
    "weight_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

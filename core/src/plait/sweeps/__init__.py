"""Sweeps: one recipe over a grid of values and seeds, or over ranges that an optimiser searches.

``grid`` reads what to vary, ``sweeping`` runs it on the workers of `plait.claims`, ``searching`` is the optimiser
(Optuna), ``results`` the table, the files and the plot. No torch and no Optuna is imported here.
"""

from __future__ import annotations

from plait.sweeps.results import Sweep
from plait.sweeps.sweeping import sweep

__all__ = ["Sweep", "sweep"]

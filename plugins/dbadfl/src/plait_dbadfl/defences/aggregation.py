"""The defences by name, and a defence in the place of an engine's mean."""

from __future__ import annotations

from typing import Any

import torch

from plait_dbadfl.defences.base import Defence, Losses, Verdict, require_finite
from plait_dbadfl.defences.clipping import NormClipping, SelfCentredClipping
from plait_dbadfl.defences.coordinatewise import Mean, Median, TrimmedMean
from plait_dbadfl.defences.geometric import RFA, Krum, MultiKrum
from plait_dbadfl.defences.selection import Balance, Ubar
from plait_dbadfl.defences.similarity import Flame, FoolsGold
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.mixing import Mixing
from plait_dbadfl.phases import Parameters
from plait_dbadfl.stacking import flatten, unflatten_

__all__ = ["DEFENCES", "RobustAggregation", "make_defence"]

DEFENCES: dict[str, type[Defence]] = {
    rule.name: rule
    for rule in (
        Mean, Median, TrimmedMean, Krum, MultiKrum, RFA, NormClipping, FoolsGold, Flame, SelfCentredClipping,
        Balance, Ubar,
    )
}  # fmt: skip
"""Name -> class."""


def make_defence(name: str, **options: Any) -> Defence:
    """The rule of that name; ``options`` are its class's arguments.

    Raises:
        DbadflError: an unknown name or option, or a value out of range.
    """
    if name not in DEFENCES:
        raise DbadflError(f"defence {name!r} is not one of {', '.join(DEFENCES)}")
    try:
        return DEFENCES[name](**options)
    except TypeError as error:
        raise DbadflError(f"defence {name!r}: {error}") from error


class RobustAggregation:
    """A defence as an engine's ``aggregate``.

    Args:
        defence: the rule.
        rounds: rounds in all T (BALANCE's threshold shrinks over them).
        losses: for UBAR; called while the stacked model still holds the models as sent.

    Attributes:
        last: the last `Verdict`.
        mixing: whose ``edge_index`` its ``accept`` is aligned with.
    """

    def __init__(self, defence: Defence, *, rounds: int = 1, losses: Losses | None = None) -> None:
        self.defence, self.rounds, self.losses = defence, rounds, losses
        self.needs_start = defence.needs_start
        self.last: Verdict | None = None
        self.mixing: Mixing | None = None

    def __call__(self, parameters: Parameters, mixing: Mixing, start: Parameters | None, round: int) -> None:
        """Replace the models in ``parameters``, in place.

        Raises:
            DbadflError: models that are not finite (node and round are named), or what the rule refuses.
        """
        parts = [torch.view_as_real(p.detach()) if p.is_complex() else p for p in parameters]
        models = flatten(parts)
        require_finite(models, round)
        begun = None
        if start is not None and self.needs_start:
            begun = flatten([torch.view_as_real(s) if s.is_complex() else s for s in start])
        self.mixing = mixing
        self.last = self.defence(models, mixing, start=begun, round=round, rounds=self.rounds, losses=self.losses)
        unflatten_(parts, self.last.models)

    def state_dict(self) -> dict[str, Any]:
        """The rule's."""
        return self.defence.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The rule's."""
        self.defence.load_state_dict(state)

"""Lambda by dual ascent, with cooper's multiplier and Lagrangian: min loss subject to gap <= tolerance."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .errors import FairpruneError

__all__ = ["DualAscent"]


class DualAscent:
    """The multiplier of the constraint on the gap. The weights' own optimizer is the primal one.

    Args:
        start: lambda before the first step, 0 or more.
        rate: step of the dual optimizer, SGD.
        device: where the gap is.

    Raises:
        FairpruneError: cooper is not installed.
    """

    def __init__(self, start: float, rate: float, device: torch.device) -> None:
        try:
            self._cooper: Any = import_module("cooper")
        except ImportError as error:
            raise FairpruneError(
                f"dual_rate = {rate} (a Lagrangian) needs the package cooper-optim: pip install"
                " 'plait-fairprune[cooper]', or set dual_rate = 0"
            ) from error
        self.multiplier = self._cooper.multipliers.DenseMultiplier(init=torch.tensor([start]), device=device)
        self.optimizer = torch.optim.SGD(self.multiplier.parameters(), lr=rate, maximize=True)
        inequality = self._cooper.ConstraintType.INEQUALITY
        self._constraint = self._cooper.Constraint(inequality, multiplier=self.multiplier)
        self._state: Any = None

    @property
    def value(self) -> float:
        """Lambda."""
        return float(self.multiplier.weight.detach())

    def term(self, violation: Tensor) -> Tensor:
        """What the loss gets: lambda times the violation, which is below 0 where the constraint holds; a scalar."""
        observed = {self._constraint: self._cooper.ConstraintState(violation=violation.reshape(1))}
        self._state = self._cooper.CMPState(observed_constraints=observed)
        term: Tensor = self._state.compute_primal_lagrangian().lagrangian
        return term

    def step(self) -> None:
        """Lambda goes up by rate times the last violation, and not below 0; nothing since the last step: nothing."""
        if self._state is not None:
            self.optimizer.zero_grad()
            self._state.compute_dual_lagrangian().backward()
            self.optimizer.step()
            self.multiplier.post_step_()
            self._state = None

    def load(self, value: float) -> None:
        """Go on from that lambda."""
        with torch.no_grad():
            self.multiplier.weight.fill_(value)

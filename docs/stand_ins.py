"""Plugins that exist only on the page about composition: two strangers for every rule that can refuse.

They do as little as a plugin can. What matters is what they declare, for a plan is made from declarations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plait import Claim, Plugin, hookimpl

__all__ = ["Clip", "Margin", "Prune", "Scalar", "Sharp", "Smooth"]


class Prune(Plugin):
    """Another owner of weight masks; an option restricts it to some of them."""

    name = "prune"
    summary = "magnitude pruning of the convolutions"
    contract = 1

    def claims(self) -> tuple[Claim, ...]:
        """Every convolution's weight."""
        return (Claim("parameters", "conv*.weight"),)

    @hookimpl
    def update_masks(self) -> None:
        """Nothing."""


class Sharp(Plugin):
    """Another method with a step of its own."""

    name = "sharp"
    summary = "a step of two passes"
    contract = 1

    @hookimpl(inner=True)
    def optimizer_step(self, trainer: Any, batch: Any) -> Any:
        """The plain step."""
        report = trainer.gradients(batch)
        trainer.apply_gradients()
        return report


class Clip(Plugin):
    """A wrapper around whatever step there is; it wants to be the outermost."""

    name = "clip"
    summary = "watch the step from outside"
    contract = 1

    @hookimpl(before=("smooth",))
    def optimizer_step(self, proceed: Callable[[], Any]) -> Any:
        """Whatever is inside."""
        return proceed()


class Smooth(Plugin):
    """A second wrapper, which gives no order."""

    name = "smooth"
    summary = "average the weights after each step"
    contract = 1

    @hookimpl
    def optimizer_step(self, proceed: Callable[[], Any]) -> Any:
        """Whatever is inside."""
        return proceed()


class Margin(Plugin):
    """A loss of its own, per example."""

    name = "margin"
    summary = "a margin loss"
    contract = 1

    @hookimpl
    def objective(self, outputs: Any, batch: Any) -> Any:
        """[B]."""
        return (1 - outputs.gather(1, batch["label"][:, None]).squeeze(1)).clamp(min=0)


class Scalar(Plugin):
    """A loss of its own that is one number per batch."""

    name = "scalar"
    summary = "a loss over the whole batch at once"
    contract = 1

    def breaks(self) -> frozenset[str]:
        """Nobody can weight examples any more."""
        return frozenset({"loss:per-example"})

    @hookimpl
    def objective(self, outputs: Any) -> Any:
        """The same number for every example."""
        return outputs.var().expand(len(outputs))

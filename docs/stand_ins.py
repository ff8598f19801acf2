"""Plugins that exist only on the pages about composition and refusals: strangers for every rule, and their mistakes.

They do as little as a plugin can. What matters is what they declare, for a plan is made from declarations; and, from
``Forget`` on, the one thing that each of them gets wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plait import CONTRACT_VERSION, DataSource, Ownership, Plugin, hookimpl

MISSING = {"rusty": "plait_rusty.plugin:RustyPlugin"}
"""Installed in name only: name -> an import path that leads nowhere."""


class Prune(Plugin):
    """Another owner of weight masks; an option restricts it to some of them."""

    name = "prune"
    summary = "magnitude pruning of the convolutions"
    contract = 1

    def ownership(self) -> tuple[Ownership, ...]:
        """Every convolution's weight."""
        return (Ownership("parameters", "conv*.weight"),)

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


class First(Plugin):
    """It must go before the next one."""

    name = "first"
    summary = "a wrapper that must be outside of fore"
    contract = 1

    @hookimpl(before=("fore",))
    def optimizer_step(self, proceed: Callable[[], Any]) -> Any:
        """Whatever is inside."""
        return proceed()


class Fore(Plugin):
    """And it before that one."""

    name = "fore"
    summary = "a wrapper that must be outside of first"
    contract = 1

    @hookimpl(before=("first",))
    def optimizer_step(self, proceed: Callable[[], Any]) -> Any:
        """Whatever is inside."""
        return proceed()


class Trim(Plugin):
    """A mask owner that does not say what it owns."""

    name = "trim"
    summary = "masks without an owner"
    contract = 1

    @hookimpl
    def update_masks(self) -> None:
        """Nothing."""


class Shop(Plugin):
    """One of two that sell apples."""

    name = "shop"
    summary = "data"
    contract = 1

    @hookimpl
    def data_sources(self) -> dict[str, DataSource]:
        """Apples."""
        return {"apples": DataSource("shop:apples", "apples")}


class Mart(Shop):
    """The other."""

    name = "mart"


class Edges(Plugin):
    """It asks for what nobody has."""

    name = "edges"
    summary = "masks on the edges of a graph"
    contract = 1

    def needs(self) -> frozenset[str]:
        """Weights on edges."""
        return frozenset({"model:edge-weights"})


class Hasty(Plugin):
    """Its declaration fails."""

    name = "hasty"
    summary = "a declaration that raises"
    contract = 1

    def needs(self) -> frozenset[str]:
        """A mistake."""
        return frozenset({"task:classification", {}["field"]})


class Modern(Plugin):
    """Written for the next contract."""

    name = "modern"
    summary = "from the future"
    contract = CONTRACT_VERSION + 1


class Silent(Plugin):
    """It does not say which contract it was written for."""

    name = "silent"
    summary = "no contract"


class Olden(Plugin):
    """It declares what it owns by the name of before."""

    name = "olden"
    summary = "a mask owner of before the second edition"
    contract = 1

    def claims(self) -> tuple[Any, ...]:
        """It is called ownership now."""
        return ()


class Typo(Plugin):
    """It implements a hook that does not exist."""

    name = "typo"
    summary = "a hook under a wrong name"
    contract = 1

    @hookimpl
    def loss_term(self, outputs: Any) -> dict[str, Any]:
        """The hook is called loss_terms."""
        return {"penalty": outputs.square().mean()}


class Curious(Plugin):
    """It asks for an argument that the hook does not have."""

    name = "curious"
    summary = "a hook with an argument of its own"
    contract = 1

    @hookimpl
    def example_weights(self, batch: Any, epoch: int) -> Any:
        """There is no epoch here."""
        return 1 + 0 * batch["label"] * epoch


class Forget(Plugin):
    """A link of a chain that returns nothing."""

    name = "forget"
    summary = "transform_model without a result"
    contract = 1

    @hookimpl
    def transform_model(self, model: Any) -> None:
        """It should return the model."""
        model.requires_grad_(True)


class Lump(Plugin):
    """A loss of the batch, where each example's is asked."""

    name = "lump"
    summary = "a mean instead of losses"
    contract = 1

    @hookimpl
    def objective(self, outputs: Any) -> Any:
        """One number."""
        return outputs.square().mean()


class Short(Plugin):
    """Too few weights."""

    name = "short"
    summary = "weights of a wrong shape"
    contract = 1

    @hookimpl
    def example_weights(self, batch: Any) -> Any:
        """Three of them."""
        return batch["label"][:3].float()


class Endless(Plugin):
    """A term that is not finite."""

    name = "endless"
    summary = "a loss term that overflows"
    contract = 1

    @hookimpl
    def loss_terms(self, outputs: Any) -> dict[str, Any]:
        """Infinity."""
        return {"penalty": outputs.square().mean() / 0}


class Mute(Plugin):
    """A wrapper that keeps the report to itself."""

    name = "mute"
    summary = "a step without a report"
    contract = 1

    @hookimpl
    def optimizer_step(self, proceed: Callable[[], Any]) -> None:
        """It should return what proceed returns."""
        proceed()


class Ghost(Plugin):
    """It owns what is not there."""

    name = "ghost"
    summary = "a mask for a layer that the model does not have"
    contract = 1

    def ownership(self) -> tuple[Ownership, ...]:
        """A ninth convolution."""
        return (Ownership("parameters", "conv9.weight"),)

    def setup(self, trainer: Any) -> None:
        """Ask for it."""
        trainer.masks.own("ghost", ["conv9.weight"])

    @hookimpl
    def update_masks(self) -> None:
        """Nothing."""


class Bare(Plugin):
    """A figure without unit and direction."""

    name = "bare"
    summary = "a number instead of a metric"
    contract = 1

    @hookimpl
    def evaluate(self) -> dict[str, Any]:
        """It should be a plait.Metric."""
        return {"score": 1.0}


class Dusk(Plugin):
    """One of two with a view of one name."""

    name = "dusk"
    summary = "darker test images"
    contract = 1

    @hookimpl
    def views(self) -> dict[str, Any]:
        """The images as they are will do."""
        from plait import View

        return {"dim": View("darker")}


class Dawn(Dusk):
    """The other."""

    name = "dawn"


__all__ = [name for name, thing in list(globals().items()) if isinstance(thing, type) and issubclass(thing, Plugin)]
__all__.remove("Plugin")

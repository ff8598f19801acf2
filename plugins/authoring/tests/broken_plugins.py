"""Plugins that break one rule of the conformance suite each, and a part of the message that their author reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from good_plugin import Good, GoodOptions
from pydantic import BaseModel, ConfigDict, Field

import plait
from plait import Ownership, DataSource, ModelSource, Options, Plugin, hookimpl


@dataclass(frozen=True)
class Case:
    """A plugin, the one rule that it breaks, what the message says, and arguments of the suite."""

    rule: str
    plugin: type[Plugin]
    says: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.rule}-{self.plugin.__name__}"


CASES: list[Case] = []


def breaks(rule: str, says: str, **arguments: Any) -> Any:
    """Add a class to the cases."""

    def add(plugin: type[Plugin]) -> type[Plugin]:
        if plugin.__doc__ is None:
            plugin.__doc__ = "Broken."
        CASES.append(Case(rule, plugin, says, arguments))
        return plugin

    return add


# ---- package -----------------------------------------------------------------------------------------------------
@breaks("discovered", "lower-case letters")
class BadName(Good):
    name = "Good Name"


@breaks("contract_version", "adapt the plugin to contract 1")
class OldContract(Good):
    contract = 99


@breaks("contract_version", "write `contract = 1`")
class NoContract(Good):
    contract = 0


@breaks("described", "`summary` is empty")
class NoSummary(Good):
    summary = ""


# ---- options -----------------------------------------------------------------------------------------------------
class NoDescription(GoodOptions):
    """One lacks it."""

    power: int = Field(1, ge=0)


@breaks("options_documented", "option 'power' has no description")
class Undocumented(Good):
    Options = NoDescription


class InnerUndescribed(Options):
    """One lacks it."""

    power: int = Field(1, ge=0)


class OuterOptions(GoodOptions):
    """A table."""

    table: InnerUndescribed = Field(InnerUndescribed(), description="a table")


@breaks("options_documented", "option 'table', 'power' has no description")
class UndocumentedInside(Good):
    Options = OuterOptions


class Boundless(GoodOptions):
    """No bound."""

    power: float = Field(1.0, description="any")


@breaks("options_bounded", "option 'power' takes any number")
class Unbounded(Good):
    Options = Boundless


class BoundlessList(GoodOptions):
    """No bound inside a tuple."""

    powers: tuple[int, ...] | None = Field(None, description="any", max_length=3)


@breaks("options_bounded", "option 'powers' takes any number")
class UnboundedList(Good):
    Options = BoundlessList


class Nan(GoodOptions):
    """NaN is within bounds that nobody compares."""

    power: float = Field(1.0, allow_inf_nan=True, description="any", json_schema_extra={"unbounded": "it has no bound"})


@breaks("options_bounded", "'power' takes NaN")
class TakesNan(Good):
    Options = Nan


@breaks("options_bounded", "data source 'wide', option 'width' takes any number")
class UnboundedSource(Good):
    @hookimpl
    def data_sources(self) -> Any:
        class Wide(Options):
            width: int = Field(1, description="any")

        return {"wide": DataSource("good_plugin:load", "wide", frozenset(), Wide)}


class Tolerant(BaseModel):
    """Takes every key."""

    model_config = ConfigDict(allow_inf_nan=False)
    every: int = Field(4, ge=1, description="steps")
    strength: float = Field(0.1, ge=0, description="factor")


@breaks("options_checked", "a misspelt option does nothing")
class UnknownTaken(Good):
    Options = Tolerant


class BadDefault(GoodOptions):
    """A default out of its bounds."""

    power: int = Field(7, ge=0, le=3, description="small")


@breaks("options_checked", "'power': the default is refused")
class DefaultRefused(Good):
    Options = BadDefault


class NoneIsLost(GoodOptions):
    """None is not the default."""

    limit: float | None = Field(3.0, gt=0, description="largest penalty, or none")


@breaks("options_round_trip", "'limit': None comes back from recipe.toml as 3.0", options={"limit": None})
class LosesNone(Good):
    Options = NoneIsLost


@breaks("options_round_trip", "model 'odd', option 'name' collides")
class NameCollides(Good):
    @hookimpl
    def models(self) -> Any:
        class Odd(Options):
            name: str = Field("x", description="a name")

        return {"odd": ModelSource("good_plugin:build", "odd", frozenset(), frozenset(), Odd)}


# ---- hooks -------------------------------------------------------------------------------------------------------
@breaks("hook_signatures", r"Unmarked\.evaluate is not marked with @hookimpl")
class Unmarked(Good):
    def evaluate(self, predictions: Any) -> Any:
        return {}


@breaks("hook_signatures", r"there is no hook 'evalute'\. Did you mean 'evaluate'")
class UnknownHook(Good):
    @hookimpl
    def evalute(self, predictions: Any) -> Any:
        return {}


@breaks("hook_signatures", r"takes 'prediction', .* Did you mean 'predictions'")
class UnknownArgument(Good):
    @hookimpl
    def evaluate(self, prediction: Any) -> Any:
        return {}


@breaks("hook_signatures", "'trainer' has a default, so it is never given")
class NeverGiven(Good):
    @hookimpl
    def evaluate(self, trainer: Any = None) -> Any:
        return {}


@breaks("hook_signatures", r"call proceed\(\)")
class Generator(Good):
    @hookimpl
    def optimizer_step(self, proceed: Any) -> Any:
        yield proceed()


@breaks("hook_order", r"write before=\('clip',\)")
class Letters(Good):
    @hookimpl(before="clip")  # type: ignore[arg-type]
    def example_weights(self, batch: Any) -> Any:
        return torch.ones(batch.size)


@breaks("hook_order", "inner=True belongs to optimizer_step")
class InnerElsewhere(Good):
    @hookimpl(inner=True)
    def example_weights(self, batch: Any) -> Any:
        return torch.ones(batch.size)


@breaks("hook_order", "takes no proceed")
class NoProceed(Good):
    @hookimpl
    def optimizer_step(self, trainer: Any, batch: Any) -> Any:
        report = trainer.gradients(batch)
        trainer.apply_gradients()
        return report


@breaks("registered", "module good_plugin has no 'nothing'")
class NoFactory(Good):
    @hookimpl
    def models(self) -> Any:
        return {"odd": ModelSource("good_plugin:nothing", "odd")}


@breaks("registered", r"it is called with \(options, seed\)")
class WrongFactory(Good):
    @hookimpl
    def data_sources(self) -> Any:
        return {"odd": DataSource("good_plugin:flipped_once", "odd")}


# ---- declarations ------------------------------------------------------------------------------------------------
@breaks("declared_words", "provides.* has 'score'; a word is written kind:name")
class NoKind(Good):
    def provides(self) -> Any:
        return frozenset({"score"})


@breaks("declared_words", "the kind is written 'field': field:label")
class WrongKind(Good):
    def needs(self) -> Any:
        return super().needs() | {"fields:label"}


@breaks("declared_words", "must be a frozenset of words")
class AString(Good):
    def needs(self) -> Any:
        return "field:label"


@breaks("needs_refused", "Without field:score the plan is not refused")
class NeedsItself(Good):
    def needs(self) -> Any:
        return super().needs() | {"field:score"}


@breaks("needs_complete", 'reads the field .group.*add the word "field:NAME" to needs')
class ReadsMore(Good):
    def needs(self) -> Any:
        return super().needs() - {"field:group"}


@breaks("needs_complete", "setup reads the field 'group'")
class ReadsAColumn(Good):
    def needs(self) -> Any:
        return super().needs() - {"field:group"}

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        self.groups = int(plait.data.streams.column(trainer.data.train, "group").max())

    @hookimpl
    def example_weights(self, batch: Any) -> Any:
        return torch.ones(batch.size)


@breaks("needs_complete", "evaluate reads the field 'label'")
class ReadsPredictions(Good):
    def needs(self) -> Any:
        return super().needs() - {"field:label"}


@breaks("provides_kept", r"promises field:nowhere, which the tiny run did not have")
class ProvidesNothing(Good):
    def provides(self) -> Any:
        return super().provides() | {"field:nowhere"}


@breaks("provides_kept", "data_sources 'good-images' promises field:age", data="good-images")
class SourceProvidesNothing(Good):
    @hookimpl
    def data_sources(self) -> Any:
        source = super().data_sources()["good-images"]
        return {"good-images": DataSource(source.factory, "generated", source.provides | {"field:age"}, source.options)}


@breaks("suggestions", "unknown key 'train.epoch'.*Did you mean 'epochs'")
class SuggestsUnknown(Good):
    suggests: ClassVar[Any] = {"train.epoch": 3}


@breaks("suggestions", r"suggests_model is 'tiny-cnn'; it must be a tuple")
class SuggestsAString(Good):
    suggests_model = "tiny-cnn"  # type: ignore[assignment]


@breaks("suggestions", "tiny: unknown option 'evry'. Did you mean 'every'")
class TinyUnknown(Good):
    tiny: ClassVar[Any] = {"evry": 2}


@breaks("claims_kept", r"claims\(\) is empty")
class UndeclaredOwner(Good):
    def claims(self) -> Any:
        return ()


@breaks("claims_kept", r"takes the mask of 'conv1.weight'; claims\(\) declares parameters:conv2")
class TakesMore(Good):
    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        trainer.masks.claim(self.name, ["conv1.weight"])


@breaks("claims_kept", "in the name of 'chase'")
class TakesForAnother(Good):
    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        trainer.masks.claim("chase", ["conv1.weight"])


@breaks("claims_kept", r"claims\(\) declares parameters:head\.\*, and setup took no mask that it names")
class ClaimsMore(Good):
    def claims(self) -> Any:
        return (*super().claims(), Claim("parameters", "head.*"))


@breaks("masks_own", "changes the weights of 'head.weight', whose mask nobody owns")
class PrunesAnother(Good):
    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        with torch.no_grad():
            trainer.model.head.weight.mul_(0.99)


@breaks("masks_own", "changes the mask of 'conv1.weight', which 'conformance-other-owner' owns")
class MasksAll(Good):
    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        for mask in trainer.masks.mask.values():
            mask.fill_(1)
        trainer.masks.changed()


@breaks("masks_own", r"does not call trainer\.masks\.changed\(\)")
class SilentChange(Good):
    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        if trainer.step == trainer.total_steps:
            self.mask[0] = 0


@breaks("masks_own", "values other than 0 and 1")
class SoftMask(Good):
    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        self.mask.fill_(0.5 if trainer.step == 2 else 1.0)
        trainer.masks.changed()

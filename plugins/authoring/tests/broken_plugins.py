"""Plugins that fail one check of the conformance suite each, and a part of the message that their author reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from good_plugin import Good, GoodOptions
from pydantic import BaseModel, ConfigDict, Field

from plait import DataSource, ModelSource, Options, Ownership, Plugin, hookimpl
from plait.data.streams import column


@dataclass(frozen=True)
class Case:
    """A plugin, the one check that it fails, what the message says, and arguments of the suite."""

    check: str
    plugin: type[Plugin]
    says: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.check}-{self.plugin.__name__}"


CASES: list[Case] = []


def fails(check: str, says: str, **arguments: Any) -> Any:
    """Add a class to the cases."""

    def add(plugin: type[Plugin]) -> type[Plugin]:
        if plugin.__doc__ is None:
            plugin.__doc__ = "Broken."
        CASES.append(Case(check, plugin, says, arguments))
        return plugin

    return add


# ---- package -----------------------------------------------------------------------------------------------------
@fails("discovered", "lower-case letters")
class BadName(Good):
    name = "Good Name"


@fails("contract_version", "adapt the plugin to contract 1")
class OldContract(Good):
    contract = 99


@fails("contract_version", "write `contract = 1`")
class NoContract(Good):
    contract = 0


@fails("described", "`summary` is empty")
class NoSummary(Good):
    summary = ""


# ---- options -----------------------------------------------------------------------------------------------------
class NoDescription(GoodOptions):
    """One lacks it."""

    power: int = Field(1, ge=0)


@fails("options_documented", "option 'power' has no description")
class Undocumented(Good):
    Options = NoDescription


class InnerUndescribed(Options):
    """One lacks it."""

    power: int = Field(1, ge=0)


class OuterOptions(GoodOptions):
    """A table."""

    table: InnerUndescribed = Field(InnerUndescribed(), description="a table")


@fails("options_documented", "option 'table', 'power' has no description")
class UndocumentedInside(Good):
    Options = OuterOptions


class Boundless(GoodOptions):
    """No bound."""

    power: float = Field(1.0, description="any")


@fails("options_bounded", "option 'power' takes any number")
class Unbounded(Good):
    Options = Boundless


class BoundlessList(GoodOptions):
    """No bound inside a tuple."""

    powers: tuple[int, ...] | None = Field(None, description="any", max_length=3)


@fails("options_bounded", "option 'powers' takes any number")
class UnboundedList(Good):
    Options = BoundlessList


class Nan(GoodOptions):
    """NaN is within bounds that nobody compares."""

    power: float = Field(1.0, allow_inf_nan=True, description="any", json_schema_extra={"unbounded": "it has no bound"})


@fails("options_bounded", "'power' takes NaN")
class TakesNan(Good):
    Options = Nan


@fails("options_bounded", "data source 'wide', option 'width' takes any number")
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


@fails("options_checked", "a misspelt option does nothing")
class UnknownTaken(Good):
    Options = Tolerant


class BadDefault(GoodOptions):
    """A default out of its bounds."""

    power: int = Field(7, ge=0, le=3, description="small")


@fails("options_checked", "'power': the default is refused")
class DefaultRefused(Good):
    Options = BadDefault


class NoneIsLost(GoodOptions):
    """None is not the default."""

    limit: float | None = Field(3.0, gt=0, description="largest penalty, or none")


@fails("options_round_trip", "'limit': None comes back from recipe.toml as 3.0", options={"limit": None})
class LosesNone(Good):
    Options = NoneIsLost


@fails("options_round_trip", "model 'odd', option 'name' collides")
class NameCollides(Good):
    @hookimpl
    def models(self) -> Any:
        class Odd(Options):
            name: str = Field("x", description="a name")

        return {"odd": ModelSource("good_plugin:build", "odd", frozenset(), frozenset(), Odd)}


# ---- hooks -------------------------------------------------------------------------------------------------------
@fails("hook_signatures", r"Unmarked\.evaluate is not marked with @hookimpl")
class Unmarked(Good):
    def evaluate(self, predictions: Any) -> Any:
        return {}


@fails("hook_signatures", r"there is no hook 'evalute'\. Did you mean 'evaluate'")
class UnknownHook(Good):
    @hookimpl
    def evalute(self, predictions: Any) -> Any:
        return {}


@fails("hook_signatures", r"takes 'prediction', .* Did you mean 'predictions'")
class UnknownArgument(Good):
    @hookimpl
    def evaluate(self, prediction: Any) -> Any:
        return {}


@fails("hook_signatures", "'trainer' has a default, so it is never given")
class NeverGiven(Good):
    @hookimpl
    def evaluate(self, trainer: Any = None) -> Any:
        return {}


@fails("hook_signatures", r"call proceed\(\)")
class Generator(Good):
    @hookimpl
    def optimizer_step(self, proceed: Any) -> Any:
        yield proceed()


@fails("hook_order", r"write before=\('clip',\)")
class Letters(Good):
    @hookimpl(before="clip")  # type: ignore[arg-type]
    def example_weights(self, batch: Any) -> Any:
        return torch.ones(batch.size)


@fails("hook_order", "inner=True belongs to optimizer_step")
class InnerElsewhere(Good):
    @hookimpl(inner=True)
    def example_weights(self, batch: Any) -> Any:
        return torch.ones(batch.size)


@fails("hook_order", "takes no proceed")
class NoProceed(Good):
    @hookimpl
    def optimizer_step(self, trainer: Any, batch: Any) -> Any:
        report = trainer.gradients(batch)
        trainer.apply_gradients()
        return report


@fails("registered", "module good_plugin has no 'nothing'")
class NoFactory(Good):
    @hookimpl
    def models(self) -> Any:
        return {"odd": ModelSource("good_plugin:nothing", "odd")}


@fails("registered", r"it is called with \(options, seed\)")
class WrongFactory(Good):
    @hookimpl
    def data_sources(self) -> Any:
        return {"odd": DataSource("good_plugin:flipped_once", "odd")}


@fails("registered", r"artifact 'odd': good_plugin:flipped takes .*; it is called with \(run directory\)")
class WrongArtifact(Good):
    @hookimpl
    def artifacts(self) -> Any:
        return {"odd": "good_plugin:flipped"}


# ---- declarations ------------------------------------------------------------------------------------------------
@fails("declared_words", "provides.* has 'score'; a word is written kind:name")
class NoKind(Good):
    def provides(self) -> Any:
        return frozenset({"score"})


@fails("declared_words", "the kind is written 'field': field:label")
class WrongKind(Good):
    def needs(self) -> Any:
        return super().needs() | {"fields:label"}


@fails("declared_words", "must be a frozenset of words")
class AString(Good):
    def needs(self) -> Any:
        return "field:label"


@fails("needs_refused", "Without field:score the plan is not refused")
class NeedsItself(Good):
    def needs(self) -> Any:
        return super().needs() | {"field:score"}


@fails("needs_complete", 'reads the field .group.*add the word "field:NAME" to needs')
class ReadsMore(Good):
    def needs(self) -> Any:
        return super().needs() - {"field:group"}


@fails("needs_complete", "setup reads the field 'group'")
class ReadsAColumn(Good):
    def needs(self) -> Any:
        return super().needs() - {"field:group"}

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        self.groups = int(column(trainer.data.train, "group").max())

    @hookimpl
    def example_weights(self, batch: Any) -> Any:
        return torch.ones(batch.size)


@fails("needs_complete", "evaluate reads the field 'label'")
class ReadsPredictions(Good):
    def needs(self) -> Any:
        return super().needs() - {"field:label"}


@fails("provides_kept", r"promises field:nowhere, which the tiny run did not have")
class ProvidesNothing(Good):
    def provides(self) -> Any:
        return super().provides() | {"field:nowhere"}


@fails("provides_kept", "data_sources 'good-images' promises field:age", data="good-images")
class SourceProvidesNothing(Good):
    @hookimpl
    def data_sources(self) -> Any:
        source = super().data_sources()["good-images"]
        return {"good-images": DataSource(source.factory, "generated", source.provides | {"field:age"}, source.options)}


@fails("suggestions", "unknown key 'train.epoch'.*Did you mean 'epochs'")
class SuggestsUnknown(Good):
    suggests: ClassVar[Any] = {"train.epoch": 3}


@fails("suggestions", r"suggests_model is 'tiny-cnn'; it must be a tuple")
class SuggestsAString(Good):
    suggests_model = "tiny-cnn"  # type: ignore[assignment]


@fails("suggestions", "tiny: unknown option 'evry'. Did you mean 'every'")
class TinyUnknown(Good):
    tiny: ClassVar[Any] = {"evry": 2}


@fails("ownership_kept", r"ownership\(\) is empty")
class UndeclaredOwner(Good):
    def ownership(self) -> Any:
        return ()


@fails("ownership_kept", r"takes the mask of 'conv1.weight'; ownership\(\) declares parameters:conv2")
class TakesMore(Good):
    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        trainer.masks.own(self.name, ["conv1.weight"])


@fails("ownership_kept", "in the name of 'chase'")
class TakesForAnother(Good):
    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        trainer.masks.own("chase", ["conv1.weight"])


@fails("ownership_kept", r"ownership\(\) declares parameters:head\.\*, and setup took no mask that it names")
class OwnsMore(Good):
    def ownership(self) -> Any:
        return (*super().ownership(), Ownership("parameters", "head.*"))


@fails("masks_own", "changes the weights of 'head.weight', whose mask nobody owns")
class PrunesAnother(Good):
    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        with torch.no_grad():
            trainer.model.head.weight.mul_(0.99)


@fails("masks_own", "changes the mask of 'conv1.weight', which 'conformance-other-owner' owns")
class MasksAll(Good):
    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        for mask in trainer.masks.mask.values():
            mask.fill_(1)
        trainer.masks.changed()


@fails("masks_own", r"does not call trainer\.masks\.changed\(\)")
class SilentChange(Good):
    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        if trainer.step == trainer.total_steps:
            self.mask[0] = 0


@fails("masks_own", "values other than 0 and 1")
class SoftMask(Good):
    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        self.mask.fill_(0.5 if trainer.step == 2 else 1.0)
        trainer.masks.changed()

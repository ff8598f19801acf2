"""What a plugin is: a name, options, declarations, a life, and hooks. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from plait.declare.options import Options
from plait.declare.words import Ownership

if TYPE_CHECKING:
    from plait.training.trainer import Trainer


class Plugin:
    """Base class of plugins; a subclass is what the entry point in group ``plait`` names.

    Attributes:
        name: the name on the command line; the entry point has the same.
        summary: one line.
        paper: the paper, or an empty string.
        contract: the hook-contract version it was written for (`plait.hooks.CONTRACT_VERSION`).
        Options: the pydantic model of its options, best given by `plait.later`: commands that do not use the plugin
            then do not build it.
        suggests_data: data sources to use when the recipe names none, best first.
        suggests_model: models likewise.
        suggests: values for dotted keys of the recipe that it leaves open, e.g. ``{"train.epochs": 30}``.
        tiny: options with which a run of a dozen steps takes little time and reaches all the plugin does: intervals
            that fit into it, no timing, few views, and a value for every required option. Used by the composition
            matrix and by the conformance kit; a run of a user never takes them.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    contract: ClassVar[int] = 0
    Options: ClassVar[type[BaseModel]] = Options
    suggests_data: ClassVar[tuple[str, ...]] = ()
    suggests_model: ClassVar[tuple[str, ...]] = ()
    suggests: ClassVar[Mapping[str, Any]] = {}
    tiny: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, options: BaseModel) -> None:
        self.options = options

    @cached_property
    def options(self) -> Any:
        """The options of the run; the defaults in an instance that is only asked for what it registers."""
        return self.Options.model_construct()

    def needs(self) -> frozenset[str]:
        """Words (see `plait.declare.words`) that something else in the run must provide, given these options."""
        return frozenset()

    def provides(self) -> frozenset[str]:
        """Words that this plugin adds."""
        return frozenset()

    def breaks(self) -> frozenset[str]:
        """Words that are no longer true when this plugin is active."""
        return frozenset()

    def ownership(self) -> tuple[Ownership, ...]:
        """What a mask owner takes as its own; every plugin with ``update_masks`` declares something."""
        return ()

    def setup(self, trainer: Trainer) -> None:
        """Once, when model, optimizer and data stand and before the first step or the loading of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Everything kept between steps, as nested dicts and lists of tensors, numbers, strings, booleans and None."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def budget(self, steps: int, steps_per_epoch: int) -> int:
        """How many steps the run takes in all; asked of the plugin that implements ``fit``, before ``setup``.

        Args:
            steps: what the recipe says (``train.steps``, or ``train.epochs`` times the next).
            steps_per_epoch: batches of one pass over the training split.
        """
        return steps

    def selectable(self, trainer: Trainer) -> bool:
        """Whether the present state may be chosen as the best (a sparse method says no until it is sparse)."""
        return True

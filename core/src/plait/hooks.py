"""The hook contract: every point where a plugin can act, with the rule by which several plugins compose there.

A plugin implements any of these as methods marked ``@plait.hookimpl``; an implementation may leave out arguments it
does not need. The rule stands on the spec (``@_spec(Rule.CHAIN)``), so a set of plugins is judged from declarations
alone, whoever wrote them. How one training step runs::

    optimizer_step wrappers (outermost first)
        innermost step: default is trainer.gradients(batch), then trainer.apply_gradients()
            gradients:  masks -> forward -> objective x example_weights + loss_terms -> backward -> masked gradients
    update_masks        every owner, on its own schedule
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import pluggy

from plait.declare.rules import Rule

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plait.data import Batch, Data
    from plait.declare.results import Metric, Plot, Table
    from plait.declare.sources import DataSource, ModelSource
    from plait.training.evaluation import Predictions, View
    from plait.training.trainer import Trainer
    from plait.training.woven import LossReport

CONTRACT_VERSION = 1
"""The version of this contract; a plugin declares the one it was written for as ``contract = 1``."""

F = TypeVar("F", bound=Callable[..., Any])
_pluggy_spec = pluggy.HookspecMarker("plait")
_pluggy_impl = pluggy.HookimplMarker("plait")


def _spec(rule: Rule, family: str) -> Callable[[F], F]:
    """Declare a hook with its composition rule."""

    def mark(function: F) -> F:
        function.plait_rule = rule  # type: ignore[attr-defined]
        function.plait_family = family  # type: ignore[attr-defined]
        return _pluggy_spec(function)

    return mark


@overload
def hookimpl(function: F) -> F: ...
@overload
def hookimpl(*, inner: bool = False, before: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> Callable[[F], F]: ...
def hookimpl(
    function: Callable[..., Any] | None = None,
    *,
    inner: bool = False,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
) -> Any:
    """Mark a plugin's method as the implementation of the hook of the same name.

    Args:
        function: the method (when used without parentheses).
        inner: for ``optimizer_step`` only: this plugin owns the innermost step and does not call ``proceed``.
        before: plugin names, or words that plugins provide, that this implementation must precede in this hook.
        after: the same, that it must follow.
    """

    def mark(target: Callable[..., Any]) -> Callable[..., Any]:
        target.plait_order = {"inner": inner, "before": tuple(before), "after": tuple(after)}  # type: ignore[attr-defined]
        return _pluggy_impl(target)

    return mark if function is None else mark(function)


class HookSpecs(Protocol):
    """Every hook. Shapes: B examples in a batch, K classes, E evaluation examples."""

    @_spec(Rule.REGISTRY, "data")
    def data_sources(self) -> Mapping[str, DataSource]:
        """Named data sources (light declarations; the factory is imported when a run uses it)."""

    @_spec(Rule.CHAIN, "data")
    def transform_data(self, trainer: Trainer, data: Data) -> Data:
        """Change the data before training (subsample, poison, add fields, augment). Return the data."""

    @_spec(Rule.REGISTRY, "model")
    def models(self) -> Mapping[str, ModelSource]:
        """Named models (light declarations)."""

    @_spec(Rule.CHAIN, "model")
    def transform_model(self, trainer: Trainer, model: nn.Module, data: Data) -> nn.Module:
        """Surgery before training (initialise, wrap, stack replicas). Return the model, on the CPU."""

    @_spec(Rule.ONE, "loss")
    def objective(self, trainer: Trainer, outputs: Any, batch: Batch) -> Tensor:
        """Per-example loss, shape [B] (or [N, B] for N stacked replicas), unreduced. Default: by the data's task."""

    @_spec(Rule.PRODUCT, "loss")
    def example_weights(self, trainer: Trainer, batch: Batch) -> Tensor:
        """Weights, shape [B], multiplied with the other plugins' and with the objective; the loss divides by B.

        For N stacked replicas also [N, B], when every replica has a batch of its own.
        """

    @_spec(Rule.SUM, "loss")
    def loss_terms(
        self, trainer: Trainer, outputs: Any, batch: Batch, per_example: Tensor, weights: Tensor, raw: Any
    ) -> Mapping[str, Tensor]:
        """Named scalar terms, already scaled, added to the loss and reported as ``<plugin>/<name>``.

        ``per_example`` [B] (or [N, B]) is the objective of this pass, with its graph and without weights; ``weights``
        [B] is the product of the example weights in this pass, ones without any. The core weights no term. ``raw`` is
        all that the data's ``forward`` gave, of which ``outputs`` is the examples' part (all nodes of a graph, say).
        """

    @_spec(Rule.WRAP, "optimizer step")
    def optimizer_step(self, trainer: Trainer, batch: Batch, proceed: Callable[[], LossReport]) -> LossReport:
        """Around (or, with ``inner=True``, instead of) the default step; return the step's loss report.

        A wrapper calls ``proceed`` once, or not at all to skip the weight update of this step. The innermost step calls
        ``trainer.gradients`` as often as it likes and ``trainer.apply_gradients`` once.
        """

    @_spec(Rule.PARTITION, "mask update")
    def update_masks(self, trainer: Trainer) -> None:
        """Change own masks after the step ``trainer.step`` (counted from 1), on the owner's schedule.

        The plugin declares ``ownership()`` and has taken its tensors with ``trainer.masks.own`` in ``setup``.
        """

    @_spec(Rule.REGISTRY, "evaluation")
    def views(self, trainer: Trainer) -> Mapping[str, View]:
        """Named versions of the test data (corruptions, subgroups); asked of the active plugins only."""

    @_spec(Rule.MERGE, "evaluation")
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Mapping[str, Metric | Table | Plot]:
        """Metrics, tables and plots, published as ``<plugin>/<name>``, over the views that this plugin accepts."""

    @_spec(Rule.ONE, "strategy")
    def fit(self, trainer: Trainer) -> None:
        """Replace the epoch loop; built from ``trainer.train_until``, ``train_step``, ``begin_phase`` and snapshots.

        How many steps that takes says the plugin's ``budget()``.
        """

    @_spec(Rule.CHAIN, "afterwards")
    def export(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        """Turn a copy of the trained model into what is deployed (channels really removed). Return the model."""

    @_spec(Rule.REGISTRY, "afterwards")
    def artifacts(self) -> Mapping[str, str]:
        """What is made of a run when it has ended: name -> import path of ``function(run_directory) -> path``.

        ``run_directory`` and the answer are `pathlib.Path`. Every installed plugin is asked, also when it took no part
        in the run and when the run failed; a function that fails is said in one line and costs nothing else.
        """

    @_spec(Rule.REGISTRY, "cli")
    def commands(self) -> Mapping[str, str]:
        """Commands ``plait <plugin> <name>``: name -> import path ``package.module:function`` of a typed function.

        Those of a tool (a plugin with no hook but ``commands`` and ``artifacts``) are ``plait <name>``.
        """


def hook_names() -> list[str]:
    """Every hook, in the contract's order."""
    return [name for name, value in vars(HookSpecs).items() if hasattr(value, "plait_rule")]


def rule_of(hook: str) -> Rule:
    """The composition rule that a hook's spec declares."""
    rule: Rule = getattr(HookSpecs, hook).plait_rule
    return rule

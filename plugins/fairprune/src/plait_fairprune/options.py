"""Options of the library and of the plugin: bounds, units and a description each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from plait import PresetOptions

from .presets import BASELINES


class FairpruneOptions(PresetOptions):
    """What is pruned, how the mask is chosen, and where the fairness term acts."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = BASELINES

    sparsity: float = Field(
        0.95, ge=0, lt=1, description="share of the prunable weights (or channels) that is removed; 0 prunes nothing"
    )
    structure: Literal["unstructured", "channels"] = Field(
        "unstructured", description="single weights, or whole channels that the export removes physically"
    )
    scope: Literal["global", "layer"] = Field("global", description="one ranking over all layers, or one in each layer")
    include: tuple[str, ...] = Field(("*",), min_length=1, description="name patterns of what may be pruned")
    exclude: tuple[str, ...] = Field((), description="name patterns of what may not")
    layer_floor: float = Field(
        0.005,
        ge=0,
        le=1,
        description="smallest share of each layer that stays, at most half of the kept share; never less than a weight",
    )

    measure: Literal["accuracy", "degradation", "dp", "eo", "eodds"] = Field(
        "accuracy",
        description="the gap between groups that is kept small: of accuracy, of accuracy lost since the dense network, "
        "of positive predictions, of true positives, of true and of false positives",
    )
    surrogate: Literal["sigmoid", "hinge", "exponential", "logistic"] = Field(
        "sigmoid", description="what stands for the count of errors; all but sigmoid bound the gap from both sides"
    )
    temperature: float = Field(1.0, gt=0, le=100, description="T of the sigmoid, in logits")
    penalty: Literal["absolute", "signed", "hinge"] = Field(
        "absolute",
        description="on the relaxed gap: its size, the gap with its sign (the paper), or both sides summed",
    )
    tolerance: float = Field(0.0, ge=0, lt=1, description="gap that costs nothing, 0 to 1 (not with signed)")
    strength: float = Field(1.0, ge=0, le=1000, description="factor on the penalty (lambda) in both problems")
    mask_strength: float | None = Field(
        None, ge=0, le=1000, description="lambda of the mask's problem; default: strength"
    )
    weight_strength: float | None = Field(
        None, ge=0, le=1000, description="lambda of the weights' problem; default: strength"
    )
    dense_strength: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="lambda before pruning; default: weight_strength, 0 in the paper's protocol",
    )
    dual_rate: float = Field(
        0.0,
        ge=0,
        le=100,
        description="step of dual ascent on the weights' lambda, from weight_strength on, for gap <= tolerance "
        "(needs cooper-optim); 0: fixed",
    )

    scores: Literal["anchored", "magnitude", "random", "snip", "fpgm", "fairgrape"] = Field(
        "anchored",
        description="what ranks the weights: |w| now, |w| at the start, random numbers, or the score of a baseline",
    )
    learn_mask: bool = Field(True, description="add the hypergradient to the scores; without it the scores alone rank")
    hypergradient: Literal["first", "ig", "random"] = Field(
        "first", description="the direct term, with the implicit term too, or noise of the same size (a control)"
    )
    ridge: float = Field(1000.0, gt=0, le=1e9, description="gamma of the weights' problem, in the implicit term (ig)")
    mask_rate: float = Field(
        0.02, ge=0, le=100, description="step of the scores, in units of their mean size at the start of pruning"
    )
    mask_every: int = Field(4, ge=1, le=100_000, description="weight steps for each mask step")

    protocol: Literal["scratch", "paper"] = Field(
        "scratch",
        description="one run on the training data, or a dense phase and pruning on a part of the data of its own",
    )
    pruning_share: float = Field(
        0.5, gt=0, lt=1, description="share of the training rows kept for pruning and fine-tuning (protocol = paper)"
    )
    density: Literal["cubic", "constant", "once", "rounds"] = Field(
        "cubic", description="how the kept share falls: gradually, from the start, in one cut, or in rounds"
    )
    dense_share: float = Field(0.2, ge=0, lt=1, description="share of the steps before pruning begins")
    target_share: float = Field(
        0.5, gt=0, le=1, description="share of the steps after those at which a cubic density reaches the sparsity"
    )
    freeze_share: float = Field(
        0.5625, gt=0, le=1, description="share of the same steps after which the mask stays (cubic and constant)"
    )
    rounds: int = Field(4, ge=1, le=100, description="cuts of density = rounds")
    rewind: bool = Field(False, description="put the first weights back after each cut (Lottery)")
    importance_batches: int = Field(4, ge=1, le=10_000, description="batches for the scores snip and fairgrape")

    stratify: bool = Field(True, description="every batch of a run has each group and label in proportion")
    curve_points: int = Field(
        10, ge=0, le=1000, description="measurements on the validation split while pruning, for the plots; 0: none"
    )

    @model_validator(mode="after")
    def _check(self) -> FairpruneOptions:
        if self.density == "cubic" and self.target_share > self.freeze_share:
            raise ValueError(
                f"target_share = {self.target_share} must not lie above freeze_share = {self.freeze_share}: the mask"
                " would stay before it is as sparse as it should be"
            )
        if self.scores in ("snip", "fpgm", "fairgrape") and self.learn_mask:
            raise ValueError(f"scores = '{self.scores}' ranks by itself: set learn_mask = false")
        if self.scores == "fpgm" and self.structure != "channels":
            raise ValueError("scores = 'fpgm' ranks whole filters: set structure = 'channels'")
        if self.scores in ("snip", "fairgrape") and self.structure == "channels":
            raise ValueError(f"scores = '{self.scores}' ranks single weights: set structure = 'unstructured'")
        if self.rewind and self.density not in ("once", "rounds"):
            raise ValueError(f"rewind needs density = 'once' or 'rounds', not '{self.density}'")
        if self.penalty == "signed" and self.tolerance:
            raise ValueError(f"tolerance = {self.tolerance} has no meaning with penalty = 'signed'")
        if self.measure == "degradation" and self.protocol != "paper":
            raise ValueError("measure = 'degradation' compares with the dense network: set protocol = 'paper'")
        return self

    @property
    def of_mask(self) -> float:
        """Lambda of the mask's problem."""
        return self.strength if self.mask_strength is None else self.mask_strength

    @property
    def of_weights(self) -> float:
        """Lambda of the weights' problem."""
        return self.strength if self.weight_strength is None else self.weight_strength

    @property
    def of_dense(self) -> float:
        """Lambda before pruning."""
        if self.dense_strength is not None:
            return self.dense_strength
        return 0.0 if self.protocol == "paper" else self.of_weights

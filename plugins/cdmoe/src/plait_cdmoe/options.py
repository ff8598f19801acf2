"""Options of the library and of the plugin: bounds, units and a description each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from plait import PresetOptions

from .presets import BASELINES

Mode = Literal["SR", "S", "layer-drop", "layer-trimming", "block-trimming"]
Kind = Literal["js_hidden", "js_logits", "mse", "cosine"]
"""Of distance."""


class SearchOptions(PresetOptions):
    """What is condensed and how it is chosen; the defaults are the card's."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = BASELINES

    mode: Mode = Field(
        "SR",
        description="what a condensed layer keeps: shared and routed experts (SR), the shared one (S); or baselines: "
        "nothing, layers chosen by the same search or by cosine, or whole blocks removed",
    )
    layers: int = Field(3, ge=0, description="condensed layers (P), at most L; 0 leaves the model as it is")
    kept: int | None = Field(
        None, ge=0, description="routed experts that a layer keeps (k; SR); default: as many as a token is routed to"
    )
    experts: Literal["greedy", "random", "frequency", "weight"] = Field(
        "greedy", description="how they are chosen: the search, a random draw, how often, or with how large a gate"
    )
    draw: int = Field(0, ge=0, le=10**6, description="number of the random draw (experts = random)")
    weights: Literal["conditional", "unconditional"] = Field(
        "conditional", description="constant of a kept expert: its mean gate where it was selected, or over all tokens"
    )
    distance: Kind = Field(
        "js_hidden",
        description="between states: JS of softmax over hidden channels (the paper), of the next token, and so on",
    )
    texts: int = Field(100, ge=1, le=1_000_000, description="calibration texts, the first ones")
    text_tokens: int = Field(
        256, ge=1, le=1_000_000, description="tokens of each for the searches; the gate statistics take whole texts"
    )
    text_batch: int = Field(8, ge=1, le=4096, description="texts computed at once; the lists do not depend on it")
    beam: int = Field(1, ge=1, le=100, description="sets of layers that the layer search keeps at each step")
    replay: str | None = Field(
        None, description="folder with the authors' JSON files (gates, experts, layers) in the place of the search"
    )

    @property
    def condenses(self) -> bool:
        """Whether the mode is the method's: others remove layers or blocks whole."""
        return self.mode in ("SR", "S")


class CdmoeOptions(SearchOptions):
    """The search, and in a run also where the trained model comes from and how it is measured."""

    base_steps: int = Field(
        300,
        ge=0,
        le=10_000_000,
        description="train the given model so many steps first, once, and cache it; 0: it is trained already",
    )
    base_batch: int = Field(48, ge=1, le=65536, description="windows in a batch of that training")
    base_lr: float = Field(6e-3, gt=0, le=1, description="its peak learning rate; warm-up, then a cosine to 5 %")
    domain_shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.45, 0.45, 0.1),
        max_length=100,
        description="how often it draws each domain; by size where there are not as many domains",
    )
    windows: int = Field(
        200,
        ge=1,
        le=10_000_000,
        description="windows of each domain that validation and test are cut to, the first ones",
    )
    curve: bool = Field(False, description="measure every number of condensed layers up to P, before fine-tuning")
    questions: int = Field(500, ge=0, le=100_000, description="multiple-choice questions of each domain; 0: none")
    control: bool = Field(
        False, description="fine-tune the same tensors of the original model instead: what the training alone gives"
    )
    speed: bool = Field(True, description="measure prefill and decode of the original and of the condensed model")

"""Options of the graph networks, kept apart so that planning imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from plait.declare.options import Options


class GcnOptions(Options):
    """Options of ``gcn``."""

    hidden: int = Field(64, ge=1, le=16384, description="width of the hidden layers (512 in the paper's runs)")
    layers: int = Field(2, ge=1, le=64, description="number of graph convolutions")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout on every hidden layer")


class GinOptions(GcnOptions):
    """Options of ``gin``."""

    mlp_layers: int = Field(1, ge=1, le=4, description="linear layers of each convolution's MLP")
    batch_norm: bool = Field(False, description="batch norm after every hidden convolution")


class UgsGinOptions(Options):
    """Options of ``ugs-gin``, which has two layers."""

    hidden: int = Field(64, ge=1, le=16384, description="width of the first layer (512 in UGS's runs)")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout on both layers")


class GatOptions(GcnOptions):
    """Options of ``gat``."""

    hidden: int = Field(64, ge=1, le=16384, description="width of the hidden layers, all heads together")
    heads: int = Field(8, ge=1, le=64, description="attention heads of the hidden layers; must divide hidden")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the attention coefficients")
    attention_mask: Literal["after", "before"] = Field(
        "after", description="edge weights multiply the attention after the softmax, or enter it as log weights before"
    )


class ResGcnOptions(GcnOptions):
    """Options of ``resgcn``."""

    hidden: int = Field(128, ge=1, le=16384, description="width of all layers")
    layers: int = Field(28, ge=1, le=256, description="number of graph convolutions")
    recompute: bool = Field(False, description="compute blocks again in the backward pass: less memory, more time")

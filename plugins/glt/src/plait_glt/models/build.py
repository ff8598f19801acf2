"""Factories that plait calls with options and the facts of the data: C outputs, or ``hidden`` for pairs of nodes."""

from __future__ import annotations

from torch import nn

from plait.data import DataInfo
from plait.errors import BadInput
from plait_glt.errors import GLTError
from plait_glt.model_options import GatOptions, GcnOptions, GinOptions, ResGcnOptions, UgsGinOptions
from plait_glt.models.gat import GAT
from plait_glt.models.gcn import GCN
from plait_glt.models.gin import GIN
from plait_glt.models.resgcn import ResGCN
from plait_glt.models.ugs_gin import UGSGIN


def gcn(options: GcnOptions, info: DataInfo) -> nn.Module:
    """Build `GCN`."""
    return GCN(_features(info, "gcn"), _outputs(options, info), options.hidden, options.layers, options.dropout)


def gin(options: GinOptions, info: DataInfo) -> nn.Module:
    """Build `GIN`."""
    return GIN(
        _features(info, "gin"),
        _outputs(options, info),
        options.hidden,
        options.layers,
        options.mlp_layers,
        options.batch_norm,
        options.dropout,
    )


def ugs_gin(options: UgsGinOptions, info: DataInfo) -> nn.Module:
    """Build `UGSGIN`."""
    return UGSGIN(_features(info, "ugs-gin"), _outputs(options, info), options.hidden, options.dropout)


def gat(options: GatOptions, info: DataInfo) -> nn.Module:
    """Build `GAT`.

    Raises:
        BadInput: ``hidden`` is no multiple of ``heads``.
    """
    try:
        return GAT(
            _features(info, "gat"),
            _outputs(options, info),
            options.hidden,
            options.layers,
            options.heads,
            options.dropout,
            options.attention_dropout,
            options.attention_mask,
        )
    except GLTError as error:
        raise BadInput(f"model gat: {error}") from None


def resgcn(options: ResGcnOptions, info: DataInfo) -> nn.Module:
    """Build `ResGCN`."""
    return ResGCN(
        _features(info, "resgcn"),
        _outputs(options, info),
        options.hidden,
        options.layers,
        options.dropout,
        options.recompute,
    )


def _features(info: DataInfo, model: str) -> int:
    if "graph" not in info.fields or len(info.input_shape) != 1:
        raise BadInput(
            f"model {model}: needs a graph with a feature vector per node (data cora-like, say); "
            f"the data has inputs of shape {tuple(info.input_shape)} and no field 'graph'."
        )
    return info.input_shape[0]


def _outputs(options: GcnOptions | UgsGinOptions, info: DataInfo) -> int:
    # a pair of nodes is scored by their embeddings, as wide as the layers before
    return options.hidden if info.extra.get("pairs") else info.num_classes

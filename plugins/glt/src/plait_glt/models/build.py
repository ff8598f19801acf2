"""Factories that plait calls with options and the facts of the data."""

from __future__ import annotations

from torch import nn

from plait.data import DataInfo
from plait.errors import BadInput
from plait_glt.errors import GLTError
from plait_glt.model_options import GatOptions, GcnOptions, GinOptions, ResGcnOptions
from plait_glt.models.gat import GAT
from plait_glt.models.gcn import GCN
from plait_glt.models.gin import GIN
from plait_glt.models.resgcn import ResGCN


def gcn(options: GcnOptions, info: DataInfo) -> nn.Module:
    """Build `GCN`."""
    return GCN(_features(info, "gcn"), info.num_classes, options.hidden, options.layers, options.dropout)


def gin(options: GinOptions, info: DataInfo) -> nn.Module:
    """Build `GIN`."""
    return GIN(
        _features(info, "gin"),
        info.num_classes,
        options.hidden,
        options.layers,
        options.mlp_layers,
        options.batch_norm,
        options.dropout,
    )


def gat(options: GatOptions, info: DataInfo) -> nn.Module:
    """Build `GAT`.

    Raises:
        BadInput: ``hidden`` is no multiple of ``heads``.
    """
    try:
        return GAT(
            _features(info, "gat"),
            info.num_classes,
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
        info.num_classes,
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

"""Graph networks whose forward takes a weight per edge."""

from __future__ import annotations

from plait_glt.models.conv import GATConv, GCNConv, GINConv, gcn_norm, probe_edge_weight
from plait_glt.models.gat import GAT
from plait_glt.models.gcn import GCN
from plait_glt.models.gin import GIN
from plait_glt.models.propagation import neighbour_sum
from plait_glt.models.resgcn import ResGCN
from plait_glt.models.ugs_gin import UGSGIN
from plait_glt.models.weights import weight_names

__all__ = [
    "GAT",
    "GCN",
    "GIN",
    "UGSGIN",
    "GATConv",
    "GCNConv",
    "GINConv",
    "ResGCN",
    "gcn_norm",
    "neighbour_sum",
    "probe_edge_weight",
    "weight_names",
]

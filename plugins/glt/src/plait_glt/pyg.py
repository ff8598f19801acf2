"""What is used of PyG, imported once and quietly: it compiles some of its classes in a way that torch warns about."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r".*torch\.jit", FutureWarning)
    warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
    from torch_geometric.data import Data
    from torch_geometric.nn import DeepGCNLayer, GATConv, GCNConv, GINConv, MessagePassing
    from torch_geometric.nn.dense.linear import Linear

__all__ = ["Data", "DeepGCNLayer", "GATConv", "GCNConv", "GINConv", "Linear", "MessagePassing"]

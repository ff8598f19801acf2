"""The graph isomorphism network of UGS's public code, on which its published GIN curves were made."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait_glt.models.propagation import neighbour_sum, transform


class UGSGIN(nn.Module):
    """Two layers ``dropout(relu(W ((1 + eps) x_t + mean of weight * x_s)))``, logits ``(V h_0 + h_1) / 2`` [n, C].

    It differs from `plait_glt.models.GIN`: the mean over the in-edges in the place of the sum, a learnable eps for each
    layer that begins at 0, ReLU and dropout on the last layer as well, and logits from both layers [code-UGS].

    The mean divides by the in-degree of the whole graph: a masked edge adds nothing and still counts, as in UGS's code,
    where pruned entries stay in the graph with weight 0. A network that runs on the kept edges only must therefore have
    seen the whole graph (`see_graph`, which `MaskedGNN` calls); before that it counts the edges that it is given.

    Args:
        features: F.
        classes: C.
        hidden: width of the first layer.
        dropout: on both layers' outputs.
    """

    degree: Tensor

    def __init__(self, features: int, classes: int, hidden: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(features, hidden), nn.Linear(hidden, classes)])
        self.eps = nn.Parameter(torch.zeros(2))
        self.head = nn.Linear(hidden, classes, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("degree", torch.zeros(0), persistent=False)

    def see_graph(self, edge_index: Tensor, num_nodes: int) -> None:
        """Take the in-degrees of a whole graph int64 [2, E]."""
        self.degree = _in_degree(edge_index, num_nodes, self.eps)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Logits [n, C] of features [n, F] (dense or CSR), edges int64 [2, E] and their weights [E] (None: ones)."""
        n = x.shape[0]
        if edge_weight is None:
            edge_weight = torch.ones(edge_index.shape[1], dtype=self.eps.dtype, device=edge_index.device)
        degree = self.degree if len(self.degree) == n else _in_degree(edge_index, n, edge_weight)
        share = edge_weight / degree.clamp(min=1).index_select(0, edge_index[1])
        outputs: list[Tensor] = []
        for layer, eps in zip(self.layers, self.eps, strict=True):
            assert isinstance(layer, nn.Linear)
            h = transform(outputs[-1] if outputs else x, layer.weight)  # before the sum: the same by linearity
            h = (1 + eps) * h + neighbour_sum(h, edge_index, share) + layer.bias
            outputs.append(self.dropout(h.relu()))
        logits: Tensor = (self.head(outputs[0]) + outputs[1]) / 2
        return logits


def _in_degree(edge_index: Tensor, num_nodes: int, like: Tensor) -> Tensor:
    zeros = torch.zeros(num_nodes, dtype=like.dtype, device=like.device)
    target = edge_index[1].to(like.device)
    return zeros.index_add(0, target, torch.ones(len(target), dtype=like.dtype, device=like.device))

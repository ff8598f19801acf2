"""Graph convolutional network (Kipf and Welling 2017), with a weight per edge and no bias (card, section 1)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from plait_glt.models.conv import GCNConv, gcn_norm


class GCN(nn.Module):
    """``P relu(P X W_0) W_1`` for two layers: logits [n, C]; without edges it is an MLP.

    Args:
        features: F.
        classes: C.
        hidden: width of the hidden layers.
        layers: number of convolutions.
        dropout: on every hidden layer.
    """

    def __init__(self, features: int, classes: int, hidden: int = 64, layers: int = 2, dropout: float = 0.5) -> None:
        super().__init__()
        widths = [features, *[hidden] * (layers - 1), classes]
        self.convs = nn.ModuleList(GCNConv(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Logits [n, C] of features [n, F] (dense or CSR), edges int64 [2, E] and their weights [E] (None: ones)."""
        norm = gcn_norm(edge_index, edge_weight, x.shape[0], x.dtype)
        for number, conv in enumerate(self.convs):
            x = self.dropout(x.relu()) if number else x
            x = conv(x, edge_index, edge_weight, norm)
        return x

"""Graph attention network (Velickovic et al. 2018), with a weight per attention coefficient."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from plait_glt.errors import GLTError
from plait_glt.models.conv import GATConv


class GAT(nn.Module):
    """Multi-head attention layers with ELU between, one head at the end; logits [n, C].

    Args:
        features: F.
        classes: C.
        hidden: width of the hidden layers, all heads together.
        layers: number of convolutions.
        heads: of the hidden layers.
        dropout: on every hidden layer.
        attention_dropout: on the attention coefficients.
        attention_mask: where edge weights act, as in `GATConv`.

    Raises:
        GLTError: ``hidden`` is no multiple of ``heads``.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        hidden: int = 64,
        layers: int = 2,
        heads: int = 8,
        dropout: float = 0.5,
        attention_dropout: float = 0.0,
        attention_mask: Literal["after", "before"] = "after",
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise GLTError(f"hidden = {hidden} must be a multiple of heads = {heads}.")
        widths = [features, *[hidden] * (layers - 1)]
        self.convs = nn.ModuleList(
            GATConv(width, hidden // heads, heads, dropout=attention_dropout, mask=attention_mask)
            for width in widths[:-1]
        )
        last = GATConv(widths[-1], classes, 1, concat=False, dropout=attention_dropout, mask=attention_mask)
        self.convs.append(last)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Logits [n, C]; arguments as for `GCN.forward`."""
        for number, conv in enumerate(self.convs):
            x = self.dropout(nn.functional.elu(x)) if number else x
            x = conv(x, edge_index, edge_weight)
        return x

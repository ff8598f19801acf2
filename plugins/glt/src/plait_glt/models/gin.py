"""Graph isomorphism network (Xu et al. 2019), eps = 0, with a weight per message."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from plait_glt.models.conv import GINConv


class GIN(nn.Module):
    """GIN layers with ReLU between; logits [n, C].

    Args:
        features: F.
        classes: C.
        hidden: width of the hidden layers.
        layers: number of convolutions.
        mlp_layers: linear layers of each convolution's MLP.
        batch_norm: normalise every hidden layer.
        dropout: on every hidden layer.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        hidden: int = 64,
        layers: int = 2,
        mlp_layers: int = 1,
        batch_norm: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        widths = [features, *[hidden] * (layers - 1), classes]
        self.convs = nn.ModuleList(GINConv(_mlp(a, hidden, b, mlp_layers)) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) if batch_norm else nn.Identity() for _ in range(layers - 1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Logits [n, C]; arguments as for `GCN.forward`."""
        x = self.convs[0](x, edge_index, edge_weight)
        for norm, conv in zip(self.norms, self.convs[1:], strict=True):
            x = conv(self.dropout(norm(x).relu()), edge_index, edge_weight)
        return x


def _mlp(features: int, hidden: int, out: int, layers: int) -> nn.Sequential:
    widths = [features, *[hidden] * (layers - 1), out]
    modules: list[nn.Module] = []
    for a, b in pairwise(widths):
        modules += [nn.ReLU(), nn.Linear(a, b)] if modules else [nn.Linear(a, b)]
    return nn.Sequential(*modules)

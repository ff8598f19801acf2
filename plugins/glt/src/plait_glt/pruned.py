"""What a ticket becomes when it is deployed: the network on the graph that was left."""

from __future__ import annotations

from torch import Tensor, nn

from plait_glt.errors import GLTError


class PrunedGNN(nn.Module):
    """A graph network with the kept edges of its own graph; pruned weights are zeros.

    Args:
        network: ``forward(x, edge_index, edge_weight=None)`` -> logits [n, C].
        kept_edges: directed entries [2, E'].
        entries: directed entries E of the whole graph.
    """

    kept_edges: Tensor

    def __init__(self, network: nn.Module, kept_edges: Tensor, entries: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("kept_edges", kept_edges)
        self.entries = entries

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits [n, C] on the kept edges.

        Args:
            x: features [n, F].
            edge_index: the whole graph [2, E]; only its size is looked at.

        Raises:
            GLTError: a graph of another size.
        """
        if edge_index.shape[1] != self.entries:
            raise GLTError(
                f"this ticket belongs to a graph of {self.entries} directed entries, not of {edge_index.shape[1]}; "
                "use .network on another graph"
            )
        logits: Tensor = self.network(x, self.kept_edges)
        return logits

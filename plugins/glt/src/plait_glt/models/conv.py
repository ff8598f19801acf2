"""PyG's graph convolutions with a weight per edge: a weight of 0 takes the edge away, self-loops are not weighted."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from plait_glt import pyg
from plait_glt.models.propagation import neighbour_sum, transform

Norm = tuple[Tensor, Tensor]


def gcn_norm(edge_index: Tensor, edge_weight: Tensor | None, n: int, dtype: torch.dtype = torch.float32) -> Norm:
    """Coefficients of ``P = D^-1/2 (A' + I) D^-1/2`` with the masked A' (card, section 1) [code-UGS].

    The self-loop is added after masking with weight 1, and the degrees come from the masked values, so gradients flow
    through them. `torch_geometric.nn.conv.gcn_conv.gcn_norm` gives the same numbers; here the diagonal stays apart, so
    that no edge list is made anew in every step. A node whose masked degree is not positive, which takes weights below
    zero, gets coefficients 0.

    Args:
        edge_index: int64 [2, E] without self-loops.
        edge_weight: float [E]; None for ones.
        n: number of nodes.
        dtype: of the ones.

    Returns:
        Coefficients of the edges [E] and of the self-loops [n].
    """
    source, target = edge_index
    if edge_weight is None:
        edge_weight = torch.ones(edge_index.shape[1], dtype=dtype, device=edge_index.device)
    degree = torch.ones(n, dtype=edge_weight.dtype, device=edge_weight.device).index_add(0, target, edge_weight)
    scale = torch.where(degree > 0, degree, torch.inf).rsqrt()
    return scale.index_select(0, source) * edge_weight * scale.index_select(0, target), scale.square()


class GCNConv(pyg.GCNConv):  # type: ignore[misc]
    """`torch_geometric.nn.GCNConv` without bias, whose propagation is one sparse product: ``P x W^T``.

    Args:
        in_channels: F.
        out_channels: width of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, bias=False)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None, norm: Norm | None = None
    ) -> Tensor:
        """Outputs [n, out].

        Args:
            x: features [n, F], dense or CSR.
            edge_index: int64 [2, E] without self-loops.
            edge_weight: float [E]; None for ones.
            norm: what `gcn_norm` gives for them, where several layers share it.
        """
        h = transform(x, self.lin.weight)
        edges, loops = norm or gcn_norm(edge_index, edge_weight, h.shape[0], h.dtype)
        return neighbour_sum(h, edge_index, edges) + loops.unsqueeze(1) * h


class GINConv(pyg.GINConv):  # type: ignore[misc]
    """`torch_geometric.nn.GINConv` with weighted messages: ``MLP((1 + eps) x_t + sum of weight * x_s)``, eps = 0.

    PyG's layer ignores edge weights. The MLP's first linear map is applied before the sum, which is the same by
    linearity and spares sums over wide or sparse features.

    Args:
        mlp: `torch.nn.Sequential` that begins with a linear layer.
    """

    def __init__(self, mlp: nn.Sequential) -> None:
        super().__init__(mlp)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Outputs [n, out]; arguments as for `GCNConv.forward`."""
        first = self.nn[0]
        h = transform(x, first.weight)
        if edge_weight is None:
            edge_weight = torch.ones(edge_index.shape[1], dtype=h.dtype, device=h.device)
        h = (1 + self.eps) * h + neighbour_sum(h, edge_index, edge_weight)
        h = h if first.bias is None else h + first.bias
        out: Tensor = self.nn[1:](h)
        return out


class GATConv(pyg.GATConv):  # type: ignore[misc]
    """`torch_geometric.nn.GATConv` whose attention coefficients are multiplied by edge weights; self-loops have 1.

    The card (section 1) calls the two places "equivalent" for 0/1 masks; they are not. With ``after`` the rest of the
    attention keeps its size, so a masked edge still takes its share of the softmax. With ``before`` the rest is
    normalised anew, and a weight of 0 equals taking the edge out of the graph.

    Args:
        in_channels: F.
        out_channels: per head.
        heads: attention heads.
        concat: heads side by side, or their mean.
        dropout: of the attention coefficients.
        mask: ``after`` multiplies the coefficients after the softmax [code-UGS]; ``before`` adds ``log weight`` before
            it, computed without the logarithm so that a weight of 0 has a gradient.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        *,
        concat: bool = True,
        dropout: float = 0.0,
        mask: Literal["after", "before"] = "after",
    ) -> None:
        super().__init__(in_channels, out_channels, heads, concat=concat, dropout=dropout)
        self.mask = mask

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Outputs [n, heads * out] or [n, out]; arguments as for `GCNConv.forward`."""
        h = transform(x, self.lin.weight).view(-1, self.heads, self.out_channels)
        edges, loops = self.attention(h, edge_index, edge_weight)
        heads = [
            neighbour_sum(h[:, k], edge_index, edges[:, k]) + loops[:, k, None] * h[:, k] for k in range(self.heads)
        ]
        out = torch.cat(heads, 1) if self.concat else torch.stack(heads).mean(0)
        biased: Tensor = out if self.bias is None else out + self.bias
        return biased

    def attention(self, h: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Coefficients of the edges [E, heads] and of the self-loops [n, heads] for transformed nodes [n, heads, out].

        PyG's layer gives the same numbers; here no list with self-loops is made, and no [E, heads, out] messages.
        """
        source, target = edge_index
        sent, received = (h * self.att_src).sum(-1), (h * self.att_dst).sum(-1)
        slope = self.negative_slope
        edges = nn.functional.leaky_relu(sent.index_select(0, source) + received.index_select(0, target), slope)
        loops = nn.functional.leaky_relu(sent + received, slope)
        with torch.no_grad():  # a shift of the logits changes nothing but the rounding
            largest = loops.scatter_reduce(0, target.unsqueeze(1).expand_as(edges), edges, "amax")
        edges, loops = (edges - largest.index_select(0, target)).exp(), (loops - largest).exp()
        masked = edges if edge_weight is None else edges * edge_weight.unsqueeze(1)
        total = loops.index_add(0, target, masked if self.mask == "before" else edges)
        edges, loops = masked / total.index_select(0, target), loops / total
        drop, training = self.dropout, self.training
        return nn.functional.dropout(edges, drop, training), nn.functional.dropout(loops, drop, training)


def probe_edge_weight(model: Any, graph: Any, seed: int = 0) -> bool:
    """Whether the model honours edge weights in every layer; a model that does not cannot have its edges masked.

    Two checks in evaluation mode: the output has a gradient in some weight; and with all weights 0 a change of some
    nodes' features changes no other node, unless it would without edges too. The second finds one layer among many; it
    is left out for `GATConv` with ``mask="after"``, whose softmax sees masked edges by design.

    Args:
        model: module with ``forward(x, edge_index, edge_weight)``.
        graph: with ``x`` [n, F] and ``edge_index`` [2, E], at least one edge.
        seed: of the drawn weights and nodes.
    """
    generator = torch.Generator().manual_seed(seed)
    training = {module: module.training for module in model.modules()}
    by_design = any(isinstance(module, GATConv) and module.mask == "after" for module in training)
    model.eval()
    try:
        return _has_gradient(model, graph, generator) and (by_design or not _leaks(model, graph, generator))
    except TypeError:
        return False
    finally:
        for module, mode in training.items():
            module.training = mode


def _has_gradient(model: Any, graph: Any, generator: torch.Generator) -> bool:
    x, edges = graph.x, graph.edge_index
    weight = (0.5 + 0.5 * torch.rand(edges.shape[1], generator=generator)).to(x.device, x.dtype).requires_grad_()
    with torch.enable_grad():
        out = model(x, edges, weight)
        mix = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
        total = (out * mix).sum()
        if not total.requires_grad:
            return False
        (grad,) = torch.autograd.grad(total, weight, allow_unused=True)
    return grad is not None and bool((grad != 0).any())


def _leaks(model: Any, graph: Any, generator: torch.Generator) -> bool:
    x, edges = graph.x, graph.edge_index
    zero = torch.zeros(edges.shape[1], dtype=x.dtype, device=x.device)
    changed = (torch.rand(x.shape[0], generator=generator) < 0.5).to(x.device)
    with torch.no_grad():
        for rows in (changed, ~changed):
            scale = torch.where(rows, 3.0, 1.0).to(x.dtype)
            other = _scale_rows(x, scale)
            if _moved(model(x, edges, zero), model(other, edges, zero), ~rows):
                none = edges[:, :0]
                return not _moved(model(x, none, zero[:0]), model(other, none, zero[:0]), ~rows)
    return False


def _scale_rows(x: Tensor, scale: Tensor) -> Tensor:
    if x.layout != torch.sparse_csr:
        return x * scale.unsqueeze(1)
    crow = x.crow_indices()
    values = x.values() * scale.repeat_interleave(crow.diff())
    return torch.sparse_csr_tensor(crow, x.col_indices(), values, x.shape, check_invariants=False)


def _moved(before: Tensor, after: Tensor, rows: Tensor) -> bool:
    return bool(((before - after)[rows].abs() > 1e-5 * (1 + before[rows].abs())).any())

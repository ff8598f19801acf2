"""A graph network with a soft mask on every edge and every weight. Card sections 1 and 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from plait_glt.errors import GLTError
from plait_glt.graphs import check_edges, graph_hash, undirected_ids
from plait_glt.models.conv import probe_edge_weight
from plait_glt.models.weights import (
    COMPUTED,
    NOT_REACHED,
    PARAMETRIZED,
    computed_tensors,
    drop_effective,
    effective_names,
    left_alone,
    matrix_names,
    plain_network,
    seen_alone,
)

INITIAL_NOISE = 1e-5
"""Soft masks begin at ``kept * (1 + u)``, u uniform in +-1e-5 [code-UGS]."""


class MaskedGNN(nn.Module):
    """``f(A * m_g, X; Theta * m_theta)`` over a sparse edge list, memory O(E).

    Soft masks are parameters that begin at 1. The hard masks b_g and b_theta are kept by whoever trains: what is pruned
    has the value exactly 0, in the masks and in Theta. Self-loops are the network's own affair and are never pruned.
    A module of the network with a method ``see_graph(edge_index, num_nodes)`` is shown the whole graph, for what must
    not change with the masks (`plait_glt.models.UGSGIN`: degrees).

    Args:
        network: ``forward(x, edge_index, edge_weight=None)`` -> logits [n, C]; used as it is, not copied, but out of
            the wrappers of ``torch.compile`` and ``DataParallel``.
        edge_index: int64 [2, E], without self-loops and duplicates.
        num_nodes: n.
        tied: one mask entry per undirected edge (default), pruned in both directions together; needs both directions of
            every edge. False gives every directed entry its own, which is what UGS does.
        prunable: names of the weight matrices that get a mask, frozen ones if named; default all (`weight_names`) but
            those that `probe` finds to be no weights of the network.

    Attributes:
        names: of the weight matrices that have a mask.
        alone: name -> why it has none, of the other weight matrices.
        edge_mask: m_g [U]; U is E / 2 when tied, else E.
        weight_masks: m_theta by name, ``.`` written ``/``; `weight_mask` takes the plain name.
        edge_index, edge_id: the graph [2, E], and the mask entry of each directed entry [E].
        removed: bool [U] or None; edges switched off for the passes to come (the delta adversary, DropEdge).

    Raises:
        GLTError: edges out of range, self-loops, duplicates, a missing direction when tied, an unknown weight name, a
            parametrized one, a scripted network or one with a lazy layer.
    """

    edge_index: Tensor
    edge_id: Tensor
    kept_index: Tensor
    kept_id: Tensor

    def __init__(
        self,
        network: nn.Module,
        edge_index: Tensor,
        num_nodes: int,
        *,
        tied: bool = True,
        prunable: Iterable[str] | None = None,
    ) -> None:
        super().__init__()
        _check_graph(edge_index, num_nodes, tied)
        network = plain_network(network)
        parameters = dict(network.named_parameters())
        self.alone = left_alone(network)
        self.asked = prunable is not None
        wanted = [name for name in matrix_names(network) if name not in self.alone] if prunable is None else prunable
        self.names = list(wanted)
        for name in self.names:
            if name not in parameters:
                raise GLTError(f"prunable: the network has no parameter {name!r}.")
            if self.alone.pop(name, None) == PARAMETRIZED:
                raise GLTError(f"prunable: {name!r} is {PARAMETRIZED}.")
        if effective_names(network):
            network.register_state_dict_post_hook(drop_effective)  # type: ignore[no-untyped-call]
        self.network = network
        self.num_nodes, self.tied = num_nodes, tied
        edges = edge_index.detach().clone()
        if tied:
            edge_id, self.pairs = undirected_ids(edges, num_nodes)
        else:
            edge_id, self.pairs = torch.arange(edges.shape[1], device=edges.device), edges
        for name, tensor in (("edge_index", edges), ("edge_id", edge_id), ("kept_index", edges), ("kept_id", edge_id)):
            self.register_buffer(name, tensor, persistent=False)
        like = next(network.parameters())
        self.edge_mask = nn.Parameter(torch.ones(self.pairs.shape[1], device=edges.device, dtype=like.dtype))
        self.weight_masks = nn.ParameterDict(
            {_key(name): nn.Parameter(torch.ones_like(parameters[name].detach())) for name in self.names}
        )
        for module in network.modules():
            if callable(see_graph := getattr(module, "see_graph", None)):
                see_graph(edges, num_nodes)
        self.removed: Tensor | None = None
        self.compacted = False
        self.soft = True

    @property
    def hash(self) -> str:
        """SHA-256 of the graph that the masks belong to."""
        return graph_hash(self.edge_index, self.num_nodes)

    def weight_mask(self, name: str) -> nn.Parameter:
        """The mask of a weight matrix, by the matrix's name in the network."""
        mask = self.weight_masks[_key(name)]
        assert isinstance(mask, nn.Parameter)
        return mask

    def mask_names(self) -> list[str]:
        """Names of the weight masks among this module's parameters, in the order of ``names``."""
        return [f"weight_masks.{_key(name)}" for name in self.names]

    def weights(self) -> dict[str, nn.Parameter]:
        """The maskable weight matrices Theta by name."""
        parameters = dict(self.network.named_parameters())
        return {name: parameters[name] for name in self.names}

    def probe(self, x: Tensor, seed: int = 0) -> None:
        """Look at the network on its features [n, F]: before training, as masks may go.

        A network with a layer that ignores edge weights is refused. Matrices that the pass computes its weights from,
        or that its outputs do not depend on, are left alone; named as ``prunable``, the first kind is refused.

        Raises:
            GLTError: naming the network or the matrix.
        """
        graph = SimpleNamespace(x=x, edge_index=self.edge_index)
        try:
            listens = not self.edge_index.shape[1] or probe_edge_weight(self.network, graph, seed)
        except RuntimeError as error:
            if x.dtype == self.edge_mask.dtype:
                raise
            raise GLTError(
                f"the features are {x.dtype} and the network's weights {self.edge_mask.dtype}: convert the features "
                f"with x.to({self.edge_mask.dtype}), or the network with network.to({x.dtype})."
            ) from error
        if not listens:
            raise GLTError(
                f"{type(self.network).__name__} ignores edge weights in at least one layer, so its edges cannot be "
                "masked: every convolution must take edge_weight (plait_glt.models has GCN, GIN, GAT and ResGCN)."
            )
        for name, why in seen_alone(self.network, x, self.edge_index).items():
            if name not in self.names:
                continue
            if self.asked and why == COMPUTED:
                raise GLTError(f"prunable: {name!r} is no weight of the network: {why}.")
            if not self.asked:
                self.alone[name] = why
                self.names.remove(name)
                del self.weight_masks[_key(name)]

    def effective(self, kept: Mapping[str, Tensor]) -> list[Tensor]:
        """Masks of all the matrices that the network multiplies by, in order: ones for those left alone.

        Args:
            kept: b_theta by name.
        """
        left = set(matrix_names(self.network)) - set(kept)
        left -= {name for name, why in self.alone.items() if why in (PARAMETRIZED, NOT_REACHED)}
        masks = []
        for path, module in self.network.named_modules():
            for name, p in module.named_parameters(path, recurse=False):
                if name in kept or name in left:
                    masks.append(kept[name] if name in kept else torch.ones_like(p.detach()))
            masks += [torch.ones_like(w.detach()) for w in computed_tensors(module) if w.dim() == 2]
        return masks

    @property
    def remarks(self) -> list[str]:
        """A line for each reason why matrices have no mask."""
        lines = []
        for why in dict.fromkeys(self.alone.values()):
            names = [name for name, reason in self.alone.items() if reason == why]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"{names[0]!r}{more} left alone ({why})")
        return lines

    def require_trainable(self, prunes: bool) -> None:
        """Refuse a network without a trained parameter, and one without a maskable weight if weights are pruned.

        Raises:
            GLTError: why each is left alone.
        """
        if not any(parameter.requires_grad for parameter in self.network.parameters()):
            raise GLTError(f"all parameters of {type(self.network).__name__} are frozen: there is nothing to train.")
        if prunes and not self.names:
            why = "; ".join(self.remarks) or "it has no weight matrix"
            raise GLTError(
                f"{type(self.network).__name__} has no weight that can be pruned: {why}. With weight_ranking = 'keep' "
                "only edges are pruned."
            )

    def soft_masks(self, train: bool) -> None:
        """Whether the masks are learned.

        With False the weights are used as they are (pruned ones are 0 already) and kept edges have weight 1, so that a
        pass costs what it costs without masks.
        """
        self.soft = train
        for mask in (self.edge_mask, *self.weight_masks.values()):
            mask.requires_grad_(train)

    @torch.no_grad()
    def compact(self, kept: Tensor | None = None) -> None:
        """Run on the kept edges only, so that time falls with their number.

        Args:
            kept: b_g [U], bool; default where the edge mask is not 0. Give it while masks are soft: a clipped mask may
                be 0 without being pruned.
        """
        kept = self.edge_mask != 0 if kept is None else kept.bool()
        if kept.shape != self.edge_mask.shape:
            raise GLTError(
                f"compact: kept {tuple(kept.shape)} is not of the edge mask's {tuple(self.edge_mask.shape)}."
            )
        entries = kept[self.edge_id].nonzero().squeeze(1)
        self.kept_index, self.kept_id = self.edge_index[:, entries].contiguous(), self.edge_id[entries]
        self.compacted = True

    def expand(self) -> None:
        """Undo `compact`."""
        self.kept_index, self.kept_id, self.compacted = self.edge_index, self.edge_id, False

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Logits [n, C].

        Args:
            x: features [n, F].
            edge_index: the graph the masks were built for; another one only together with ``edge_weight``.
            edge_weight: [E'] of another graph, which then has no edge mask; weight masks apply.

        Raises:
            GLTError: another graph without weights.
        """
        if edge_weight is None:
            if edge_index.shape != self.edge_index.shape or x.shape[0] != self.num_nodes:
                raise GLTError(
                    f"the masks belong to a graph of {self.num_nodes} nodes and {self.edge_index.shape[1]} directed "
                    f"entries (hash {self.hash[:12]}), not to one of {x.shape[0]} and {edge_index.shape[1]}: build a "
                    "MaskedGNN for this graph, or pass edge_weight."
                )
            edge_index, edge_weight = self._edges()
        inputs = (x, edge_index) if edge_weight is None else (x, edge_index, edge_weight)
        out: Tensor
        if self.soft:
            masked = {name: weight * self.weight_mask(name) for name, weight in self.weights().items()}
            out = functional_call(self.network, masked, inputs)
        else:
            out = self.network(*inputs)
        return out

    def _edges(self) -> tuple[Tensor, Tensor | None]:
        mask: Tensor = self.edge_mask
        if self.soft:
            mask = mask if self.removed is None else mask.masked_fill(self.removed, 0)
            return self.kept_index, mask.index_select(0, self.kept_id)
        if self.removed is not None:
            present = ~self.removed[self.kept_id] & (mask[self.kept_id] != 0)
            return self.kept_index[:, present], None
        if self.compacted:
            return self.kept_index, None
        return self.edge_index, mask.detach().index_select(0, self.edge_id)

    @torch.no_grad()
    def export(self) -> tuple[nn.Module, Tensor]:
        """A copy of the network with the masks folded into its weights, and the kept edges [2, E'].

        Soft edge weights are not exported: kept edges count 1, as in the retrained network.
        """
        network = deepcopy(self.network)
        if self.soft:
            parameters = dict(network.named_parameters())
            for name in self.names:
                parameters[name].mul_(self.weight_mask(name))
        return network, self.edge_index[:, (self.edge_mask != 0)[self.edge_id]]


def _key(name: str) -> str:
    return name.replace(".", "/")


def _check_graph(edge_index: Tensor, n: int, tied: bool) -> None:
    check_edges(edge_index, n)
    source, target = edge_index
    loops = int((source == target).sum())
    if loops:
        raise GLTError(
            f"edge_index has {loops} self-loops; take them out (graphs.clean_edges), the network adds its own."
        )
    keys = source * n + target
    distinct = torch.unique(keys)
    if len(distinct) != len(keys):
        raise GLTError(
            f"edge_index has {len(keys) - len(distinct)} duplicate entries; take them out (graphs.clean_edges)."
        )
    if tied and not torch.equal(torch.unique(target * n + source), distinct):
        alone = int((~torch.isin(target * n + source, distinct)).sum())
        raise GLTError(
            f"{alone} of {len(keys)} directed entries have no opposite direction; symmetrise the graph "
            "(graphs.clean_edges) or use tied=False (directed masks)."
        )

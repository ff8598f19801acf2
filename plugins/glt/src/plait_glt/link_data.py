"""Link prediction as plait data: splits over pairs of nodes, on the graph of the training edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from plait.data import Data, DataInfo
from plait.declare.results import Metric
from plait.errors import BadInput
from plait_glt.data import FIELDS, GraphSplit, degree_group, forward, percent
from plait_glt.data_options import LinkOptions
from plait_glt.errors import GLTError
from plait_glt.graphs import Graph
from plait_glt.links import Absent, Links, divide_links, pair_logits, pair_numbers
from plait_glt.measures import hits_at, roc_auc

NAMES = {"label": ["no link", "link"], "group": ["a node of low degree", "both of high degree"]}
Figure = Literal["auc", "hits_at_50"]


class LinkSplit(GraphSplit):
    """Pairs of nodes as a plait split: edges first, then pairs without one. A batch has the whole graph once.

    A batch has ``node`` int64 [B, 2] (both ends), ``label`` [B] (1: an edge), ``group`` [B] (1: both nodes above the
    median degree of the graph), ``index`` [B] (row in the split) and ``graph``, the training graph, not copied.

    Args:
        graph: with ``x``, ``edge_index`` and ``num_nodes``; its edges are the training edges, in every split.
        positive, negative: int64 [2, P] and [2, N].
    """

    def __init__(self, graph: Graph, positive: Tensor, negative: Tensor) -> None:
        pair = torch.cat([positive, negative], 1).t().contiguous()
        label = (torch.arange(len(pair)) < positive.shape[1]).long()
        group = degree_group(graph)[pair].amin(1)
        fields = {"node": pair, "label": label, "group": group, "index": torch.arange(len(pair))}
        super().__init__(graph, fields)


class FreshNegatives:
    """``Data.augment`` for training batches: every pair without an edge is drawn anew, uniformly, for this batch.

    Args:
        graph: the training graph; what it does not have may be drawn, held-out edges too, which a training must not
            know.
    """

    def __init__(self, graph: Graph) -> None:
        self.absent = Absent(graph.edge_index, int(graph.num_nodes or 0))
        self.group = degree_group(graph)

    def __call__(self, batch: Any, generator: torch.Generator) -> Any:
        """The batch with other negatives; the labels stay."""
        negative = (batch["label"] == 0).nonzero().squeeze(1)
        drawn = self.absent.draw(len(negative), generator).t()
        batch["node"] = batch["node"].index_copy(0, negative, drawn)
        batch["group"] = batch["group"].index_copy(0, negative, self.group[drawn].amin(1))
        return batch


def readout(outputs: Any, batch: Any) -> Any:
    """Logits [B, 2] of the batch's pairs out of the embeddings of all nodes."""
    return pair_logits(outputs, batch["node"])


def link_figures(outputs: Tensor, fields: Mapping[str, Any]) -> dict[str, Metric]:
    """ROC-AUC of the pairs of a split, in %."""
    return {"auc": percent(lambda: float(roc_auc(outputs[:, 1] - outputs[:, 0], fields["label"])))}


def hits_figures(outputs: Tensor, fields: Mapping[str, Any]) -> dict[str, Metric]:
    """Hits@50 of a split, in %, then `link_figures`."""
    score, link = outputs[:, 1] - outputs[:, 0], fields["label"] == 1
    return {"hits_at_50": percent(lambda: hits_at(score[link], score[~link]))} | link_figures(outputs, fields)


def link_data(
    source: str,
    graph: Graph,
    links: Links,
    *,
    figure: Figure = "auc",
    notes: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> Data:
    """The plait data of a link prediction. Classes are "no link" and "link", examples are pairs of nodes.

    Args:
        source: name for messages.
        graph: ``x``, ``y`` and ``num_nodes``; its edges are replaced by the training edges.
        links: the division (`divide_links`).
        figure: what the best state is chosen by.
        notes: lines shown to the user.
        extra: more facts for ``info.extra``, beside ``pairs`` (true), ``nodes``, and ``edges`` and
            ``directed_entries`` of the training graph.

    Raises:
        BadInput: as `check_links`.
    """
    n = int(graph.num_nodes or 0)
    check_links(source, links, n)
    seen = Graph(x=graph.x, edge_index=links.edge_index, y=graph.y, num_nodes=n)
    parts = (
        LinkSplit(seen, links.train, links.train_negative),
        LinkSplit(seen, links.validation, links.validation_negative),
        LinkSplit(seen, links.test, links.test_negative),
    )
    entries = int(links.edge_index.shape[1])
    facts = {"pairs": True, "nodes": n, "edges": entries // 2, "directed_entries": entries}
    info = DataInfo(
        "classification", (int(graph.x.shape[1]),), 2, num_groups=2, fields=FIELDS, extra={**facts, **(extra or {})}
    )
    return Data(
        info,
        *parts,
        augment=FreshNegatives(seen),
        forward=forward,
        readout=readout,
        figures=link_figures if figure == "auc" else hits_figures,
        names=NAMES,
        notes=notes,
    )


def divided(source: str, graph: Graph, options: LinkOptions, seed: int, **facts: Any) -> Data:
    """`link_data` of a graph whose edges are divided as the options say.

    Raises:
        BadInput: shares that cannot be held out.
    """
    chosen = seed if options.split_seed is None else options.split_seed
    n = int(graph.num_nodes or 0)
    try:
        links = divide_links(
            graph.edge_index, n, validation=options.validation_share, test=options.test_share, seed=chosen
        )
    except GLTError as error:
        raise BadInput(f"data {source}: {error}") from None
    return link_data(source, graph, links, extra=facts)


def check_links(source: str, links: Links, n: int) -> None:
    """Refuse a division that would spoil a run.

    Raises:
        BadInput: an empty part, a node out of range, a pair of one node twice, a held-out edge in the graph, a negative
            of validation or test that is an edge of its part.
    """
    graph = pair_numbers(links.edge_index)
    for name in ("train", "validation", "test"):
        positive, negative = getattr(links, name), getattr(links, f"{name}_negative")
        for what, pairs in (("edges", positive), ("negative pairs", negative)):
            if not pairs.shape[1]:
                raise BadInput(f"data {source}: the {name} split has no {what}.")
            bad = ((pairs < 0) | (pairs >= n)).any(0) | (pairs[0] == pairs[1])
            if bool(bad.any()):
                first = pairs[:, int(bad.nonzero()[0])].tolist()
                raise BadInput(
                    f"data {source}: the {what} of the {name} split list the pair {first[0]}, {first[1]}; "
                    f"a pair is two different nodes of 0..{n - 1}."
                )
        numbers = pair_numbers(positive)
        if name != "train":
            known = torch.isin(numbers, graph)
            if bool(known.any()):
                first = positive[:, int(known.nonzero()[0])].tolist()
                raise BadInput(
                    f"data {source}: {int(known.sum())} edges of the {name} split are in the graph that the network "
                    f"sees (first: {first[0]}, {first[1]}); what is held out must not be."
                )
        wrong = torch.isin(pair_numbers(negative), numbers)
        if bool(wrong.any()):
            raise BadInput(f"data {source}: {int(wrong.sum())} negative pairs of the {name} split are edges of it.")

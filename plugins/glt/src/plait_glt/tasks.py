"""What a network is trained for and judged by: classes of nodes, many labels of nodes, or links between them.

A task has the graph, a loss on its training examples, a figure on the others (in %, higher is better), and the outputs
that the auxiliary loss compares.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from plait_glt.errors import GLTError
from plait_glt.graphs import check_features, check_labelled, node_ids, node_labels
from plait_glt.links import Absent, Links, pair_logits, pair_numbers
from plait_glt.measures import hits_at, mean_roc_auc, roc_auc

Part = Literal["validation", "test"]
Compared = tuple[Tensor, Tensor | None]
"""Outputs [m, d] for the auxiliary loss, and its classes [m, K] where they are not the predicted ones."""


class Task(Protocol):
    """What the phases need of a task.

    Attributes:
        x: features [n, F].
        edge_index: the graph [2, E].
    """

    x: Tensor
    edge_index: Tensor

    def renew(self, generator: torch.Generator) -> None:
        """Draw what every epoch has anew."""

    def loss(self, outputs: Tensor) -> Tensor:
        """The mean loss of the training examples (nats), of the outputs of all nodes [n, d]."""

    def compared(self, outputs: Tensor) -> Compared:
        """What the auxiliary loss compares."""

    def score(self, outputs: Tensor, part: Part) -> float:
        """The figure of a part, in %."""


def class_outputs(logits: Tensor) -> Compared:
    """The probabilities [m, C] of m examples; their classes are the predicted ones [paper]."""
    return logits.softmax(1), None


def label_outputs(logits: Tensor) -> Compared:
    """For many labels: sigmoid outputs [n, C], and for each label the nodes predicted positive [inferred].

    The outputs are scaled by sqrt(2 / C), so that distances are at most sqrt(2) as they are between classes, and the
    entropy means the same.
    """
    probability = logits.sigmoid()
    return probability * (2 / logits.shape[1]) ** 0.5, probability.detach() > 0.5


class NodeTask:
    """Node classification on one graph.

    Args:
        x, edge_index, y: features [n, F], directed entries [2, E], labels [n] or [n, 1]; -1 for nodes without one.
        train, validation, test: node ids, or bool masks [n].

    Raises:
        GLTError: features that are not finite, lengths that differ, splits that overlap or are empty or have a node
            without a label, labels that are no whole numbers, a class without a training label.
    """

    def __init__(
        self, x: Tensor, edge_index: Tensor, y: Tensor, train: Tensor, validation: Tensor, test: Tensor
    ) -> None:
        check_features(x)
        y = node_labels(y, x.shape[0])
        if y.dim() != 1:
            raise GLTError(f"the labels are of shape {tuple(y.shape)}; LabelTask takes many labels of a node.")
        self.x, self.edge_index, self.y = x, edge_index, y
        self.train, self.validation, self.test = _node_ids(y, train, validation, test)
        missing = set(y[y >= 0].tolist()) - set(y[self.train].tolist())
        if missing:
            raise GLTError(f"class {min(missing)} has no training label.")
        self.target = y[self.train]

    def renew(self, generator: torch.Generator) -> None:
        """Nothing is drawn."""

    def loss(self, outputs: Tensor) -> Tensor:
        """Cross-entropy of the training nodes (nats).

        Raises:
            GLTError: it is not finite.
        """
        return _finite(cross_entropy(outputs[self.train], self.target))

    def compared(self, outputs: Tensor) -> Compared:
        """The probabilities of all nodes."""
        return class_outputs(outputs)

    def accuracy(self, logits: Tensor, nodes: Tensor) -> float:
        """Share of correct nodes in %."""
        return 100 * float((logits[nodes].argmax(1) == self.y[nodes]).double().mean())

    def score(self, outputs: Tensor, part: Part) -> float:
        """Accuracy in %."""
        return self.accuracy(outputs, getattr(self, part))


class LabelTask:
    """Many labels of every node on one graph, as ogbn-proteins has them.

    Args:
        x, edge_index: features [n, F], directed entries [2, E].
        y: zeros and ones [n, C]; -1 at nodes of no split.
        train, validation, test: node ids, or bool masks [n].

    Raises:
        GLTError: features that are not finite, labels that are no zeros and ones, lengths that differ, splits that
            overlap or are empty or have a node without a label.
    """

    def __init__(
        self, x: Tensor, edge_index: Tensor, y: Tensor, train: Tensor, validation: Tensor, test: Tensor
    ) -> None:
        check_features(x)
        if y.ndim != 2 or not bool(((y == 0) | (y == 1) | (y == -1)).all()):
            nan = (
                " Some are nan: write -1 for the labels of nodes that are in no split." if bool(y.isnan().any()) else ""
            )
            raise GLTError(f"the labels {tuple(y.shape)} must be zeros and ones [nodes, labels].{nan}")
        if len(y) != x.shape[0]:
            raise GLTError(f"there are {x.shape[0]} rows of features but {len(y)} labels.")
        self.x, self.edge_index, self.y = x, edge_index, y
        self.train, self.validation, self.test = _node_ids(y, train, validation, test)
        self.target = y[self.train].to(x.dtype)

    def renew(self, generator: torch.Generator) -> None:
        """Nothing is drawn."""

    def loss(self, outputs: Tensor) -> Tensor:
        """Binary cross-entropy of the training nodes, the mean over the labels (nats).

        Raises:
            GLTError: it is not finite.
        """
        return _finite(binary_cross_entropy_with_logits(outputs[self.train], self.target))

    def compared(self, outputs: Tensor) -> Compared:
        """`label_outputs` of all nodes."""
        return label_outputs(outputs)

    def score(self, outputs: Tensor, part: Part) -> float:
        """Mean ROC-AUC over the labels in %."""
        nodes = getattr(self, part)
        return 100 * mean_roc_auc(outputs[nodes], self.y[nodes])


class LinkTask:
    """Link prediction on one graph: pairs are scored by the inner product of the network's outputs.

    Args:
        x: features [n, F].
        links: the division of the edges (`divide_links`); the graph is that of its training edges.
        hits: judge by Hits@K for this K instead of ROC-AUC; default None.

    Raises:
        GLTError: features that are not finite, or an edge of validation or test in the graph.
    """

    def __init__(self, x: Tensor, links: Links, *, hits: int | None = None) -> None:
        check_features(x)
        graph = pair_numbers(links.edge_index)
        if bool(torch.isin(pair_numbers(torch.cat([links.validation, links.test], 1)), graph).any()):
            raise GLTError("an edge that is held out is in the graph that the network sees.")
        self.x, self.edge_index, self.links, self.hits = x, links.edge_index, links, hits
        self.absent = Absent(links.edge_index, x.shape[0])
        self._take(links.train_negative)

    def _take(self, negative: Tensor) -> None:
        positive = self.links.train
        self.pairs = torch.cat([positive, negative.to(positive.device)], 1).t()
        self.target = (torch.arange(len(self.pairs), device=positive.device) < positive.shape[1]).long()

    def renew(self, generator: torch.Generator) -> None:
        """Other negatives, as many as there are training edges."""
        self._take(self.absent.draw(self.links.train.shape[1], generator))

    def loss(self, outputs: Tensor) -> Tensor:
        """Binary cross-entropy of the training edges and this epoch's negatives (nats).

        Raises:
            GLTError: it is not finite.
        """
        return _finite(cross_entropy(pair_logits(outputs, self.pairs), self.target))

    def compared(self, outputs: Tensor) -> Compared:
        """The probabilities of "no link" and "link" of all pairs that this epoch scores [inferred]."""
        return class_outputs(pair_logits(outputs, self.pairs))

    def score(self, outputs: Tensor, part: Part) -> float:
        """ROC-AUC, or Hits@K, in %."""
        positive, negative = getattr(self.links, part), getattr(self.links, f"{part}_negative")
        above, below = (pair_logits(outputs, pairs.t())[:, 1] for pairs in (positive, negative))
        if self.hits is not None:
            return 100 * hits_at(above, below, self.hits)
        label = torch.arange(len(above) + len(below), device=above.device) < len(above)
        return 100 * float(roc_auc(torch.cat([above, below]), label))


def _node_ids(y: Tensor, *splits: Tensor) -> tuple[Tensor, ...]:
    n = len(y)
    ids: list[Tensor] = []
    for name, nodes in zip(("train", "validation", "test"), splits, strict=True):
        ids.append(node_ids(name, nodes, n))
        if not len(ids[-1]) or int(ids[-1].min()) < 0 or int(ids[-1].max()) >= n:
            raise GLTError(f"split {name!r} is empty or names a node outside 0..{n - 1}.")
        check_labelled(name, ids[-1], y)
    times = torch.bincount(torch.cat(ids), minlength=n)
    if int(times.max()) > 1:
        raise GLTError(f"splits overlap: node {int(times.argmax())} is listed {int(times.max())} times.")
    return tuple(ids)


def _finite(loss: Tensor) -> Tensor:
    if not bool(loss.detach().isfinite()):
        raise GLTError(f"the training loss is {loss.item()}; lower the learning rate.")
    return loss


def compared_outputs(info: Any, raw: Tensor, outputs: Tensor) -> Compared:
    """What the auxiliary loss compares in a plait run.

    Args:
        info: `plait.data.DataInfo`: ``extra["pairs"]`` where the examples are pairs of nodes, ``task``.
        raw: outputs of all nodes [n, d].
        outputs: those of the batch's examples [B, C].
    """
    if info.extra.get("pairs"):
        return class_outputs(outputs.float())
    return label_outputs(raw.float()) if info.task == "multilabel" else class_outputs(raw.float())

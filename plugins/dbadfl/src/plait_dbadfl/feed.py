"""What a federation in a plait run takes in: data, batches of all nodes, forward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait.data import Batch, Data
from plait_dbadfl.course import AttackCourse, ScanCourse
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.federation import Federation
from plait_dbadfl.local import Training
from plait_dbadfl.nodes import NodesBatch, NodesSplit, NodeStream, collected
from plait_dbadfl.options import DbadflOptions
from plait_dbadfl.reference import ImageData
from plait_dbadfl.sampling import derive, draw_batch, generator
from plait_dbadfl.sharding import bounds
from plait_dbadfl.vote import votes

if TYPE_CHECKING:
    from plait.training.trainer import Trainer


@dataclass(frozen=True)
class Present:
    """What is trained now: the nodes, and what the attackers among them do."""

    training: Training
    course: AttackCourse | ScanCourse


class Feed:
    """The run's data as batches of nodes, poisoned as the present stage says.

    Args:
        options: the plugin's options.
        trainer: the run, before it is built.
        data: its data, images [ch, H, W] in [0, 1].

    Attributes:
        federation: set when the model is there.
        present: of the present stage; None between stages.

    Raises:
        DbadflError: data that brings a forward pass of its own.
    """

    federation: Federation

    def __init__(self, options: DbadflOptions, trainer: Trainer, data: Data) -> None:
        self.options, self.trainer, self.plain = options, trainer, data
        if data.forward is not None or data.readout is not None:
            raise DbadflError(
                "the data brings a forward pass of its own; a federation needs data whose input is images"
            )
        self.columns = {name: value.to(trainer.device) for name, value in collected(data.train).items()}
        self.test = collected(data.test)
        self.present: Present | None = None

    def data(self) -> Data:
        """The same data whose training batches are those of all nodes."""
        split = NodesSplit(
            {name: value.cpu() for name, value in self.columns.items()}, self.options.nodes, self.batch, self.share
        )
        prepare = None if self.plain.prepare is None else self._prepare_batch
        return replace(self.plain, train=split, prepare=prepare, forward=self._forward)

    def images(self) -> ImageData:
        """The images of the training and test split.

        Raises:
            DbadflError: inputs of another shape.
        """
        inputs = self.columns["input"]
        if inputs.ndim != 4:
            raise DbadflError(
                f"a federation needs images [ch, H, W]; the data's input has shape {tuple(inputs.shape[1:])}"
            )
        classes = self.plain.info.num_classes
        return ImageData(inputs, self.columns["label"], self.test["input"], self.test["label"], classes)

    def prepare(self, images: Tensor) -> Tensor:
        """The data's ``prepare`` on images [..., ch, H, W]; the images themselves if it has none."""
        if self.plain.prepare is None:
            return images
        flat = images.flatten(0, -4)
        prepared: Tensor = self.plain.prepare(Batch({"input": flat, "index": torch.arange(len(flat))}))["input"]
        return prepared.reshape(*images.shape[:-3], *prepared.shape[1:])

    def _prepare_batch(self, batch: Any) -> Any:
        assert self.plain.prepare is not None
        if not isinstance(batch, NodesBatch):
            return self.plain.prepare(batch)
        return NodesBatch.of({**batch, "input": self.prepare(batch["input"])}, batch.nodes)

    def _forward(self, model: Callable[..., Any], batch: Any) -> Tensor:
        """Logits [n, B, C] of a batch of nodes; for one batch of everybody, the benign nodes' joint vote [B, C]."""
        if isinstance(batch, NodesBatch):
            of_nodes: Tensor = model(batch["input"], batch.nodes)
            return of_nodes
        plain: Any = getattr(model, "module", model)
        if getattr(plain, "replicas", None) is None:
            logits: Tensor = model(batch["input"])
            return logits
        return votes(plain, batch["input"], self.federation.benign)

    # ---- batches ------------------------------------------------------------------------------------------------
    def batch(self, stream: NodeStream) -> NodesBatch:
        """The next batch of a stream; see `NodeStream`."""
        if stream.name != "train":
            seed = derive(self.federation.seed, "stream", stream.name)
            picked = draw_batch(self.federation.owned, stream.batch_size, seed, stream.drawn)
            return self._mine(NodesBatch.of(self._gathered(picked, stream, seed, stream.drawn), None), stream)
        assert self.present is not None
        training, attack = self.present.training, self.present.course.attack()
        nodes = training.active()
        fields = self._gathered(training.picked(nodes), stream, training.seed, training.draw)
        fields["input"], fields["label"] = training.poisoned(fields["input"], fields["label"], nodes, attack)
        return self._mine(NodesBatch.of(fields, nodes), stream)

    def _gathered(self, picked: Tensor, stream: NodeStream, seed: int, step: int) -> dict[str, Any]:
        picked = picked.to(self.trainer.device)
        fields = {name: value[picked] for name, value in self.columns.items()}
        if stream.augment is not None:
            flat = Batch({name: value.flatten(0, 1).cpu() for name, value in fields.items()})
            changed = stream.augment(flat, generator(seed, "augment", step))
            fields = {name: value.unflatten(0, picked.shape).to(picked.device) for name, value in changed.items()}
        return fields | {"index": picked}

    def _mine(self, batch: NodesBatch, stream: NodeStream) -> NodesBatch:
        if stream.world == 1:
            return batch
        start, stop = bounds(self.options.nodes, stream.rank, stream.world)
        nodes = torch.arange(self.options.nodes) if batch.nodes is None else batch.nodes
        mine = ((nodes >= start) & (nodes < stop)).nonzero().flatten()
        # a rank left without nodes repeats one with share 0: every rank must take part in the all-reduce
        return batch.of_nodes((mine if len(mine) else mine.new_zeros(1)).to(batch["index"].device))

    def share(self, stream: NodeStream) -> float:
        """The factor by which the mean of the ranks' gradients is the gradient of all nodes."""
        nodes = None if self.present is None else self.present.training.active()
        start, stop = bounds(self.options.nodes, stream.rank, stream.world)
        has_some = nodes is None or bool(((nodes >= start) & (nodes < stop)).any())
        return float(stream.world) if has_some else 0.0

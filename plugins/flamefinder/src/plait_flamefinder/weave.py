"""FlameFinder woven into a plait run: the engine's terms over the core's passes, and the detector that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.data import Batch, Data, Subset
from plait.data.streams import column
from plait.declare.results import Metric, Plot, Table
from plait.storage.checkpoints import digest
from plait.training.evaluation import Predictions, predict
from plait.training.forward import Forward
from plait.woven import BATCHES

from . import figures
from .attention import FeatureGate, seeded
from .augmentation import gained
from .balance import BalancedSplit
from .centres import class_means
from .encoder import FlameNet, Latent
from .errors import FlamefinderError
from .frames import save_row
from .options import FlamefinderOptions
from .reconstruction import Reconstruction
from .terms import MetricTerms

if TYPE_CHECKING:
    from plait.training.trainer import Trainer
    from plait.training.woven import LossReport

ROW = "flamefinder.row"
"""The field by which an example of a step's batch is known again in its later passes and parts."""
FEW = 64
"""Training rows of each class that give its mean before the first step, when figures are tried and thrown away."""


def prepared(options: FlamefinderOptions, trainer: Trainer, data: Data) -> Data:
    """The data with balanced batches and a random gain.

    Raises:
        FlamefinderError: a class without a training example.
    """
    if options.balanced and trainer.recipe.data.name != BATCHES and not hasattr(data.train, "stream"):
        data = replace(data, train=BalancedSplit(data.train, data.info.num_classes))
    if options.gain_aug:
        data = replace(data, augment=partial(_with_gain, options.gain_aug, data.augment))
    return data


def _with_gain(strength: float, before: Callable[[Any, Any], Any] | None, batch: Any, generator: Any) -> Any:
    turned = batch if before is None else before(batch, generator)
    return Batch({**turned, "input": gained(turned["input"], strength, generator)})


def attentive(options: FlamefinderOptions, model: nn.Module, num_classes: int, generator: torch.Generator) -> FlameNet:
    """A `FlameNet` whose attention is what the options say; a backbone of ``latent_dim`` gets a classifier.

    Raises:
        FlamefinderError: a model that does not say how long its latent vector is.
    """
    if not isinstance(model, FlameNet):
        latent = getattr(model, "latent_dim", None)
        if not isinstance(latent, int):
            raise FlamefinderError(
                f"the model {type(model).__name__} says that it has a latent vector and not how long it is: give it an "
                "attribute latent_dim, and let it return the vectors [B, latent_dim]."
            )
        with seeded(generator):
            model = FlameNet(model, latent, None, num_classes)
    gated = isinstance(model.attention, FeatureGate)
    if gated != (options.attention == "embed"):
        with seeded(generator):
            model.attention = nn.Identity() if gated else FeatureGate(model.latent_dim)
    return model


def watched(network: FlameNet) -> dict[str, Tensor]:
    """What the network's latest pass with gradients gave: ``x``, ``features``, ``p`` and ``z``, with their graphs.

    The hooks are plain functions, which a copy of the network shares; its passes are not this network's.
    """
    seen: dict[str, Tensor] = {}

    def keep(own: bool, **values: Tensor) -> None:
        if own and torch.is_grad_enabled():
            seen.update(values)

    network.register_forward_pre_hook(lambda module, inputs: keep(module is network, x=inputs[0]))
    network.embedding.register_forward_hook(
        lambda module, inputs, output: keep(module is network.embedding, features=inputs[0], p=output)
    )
    network.head.register_forward_pre_hook(lambda module, inputs: keep(module is network.head, z=inputs[0]))
    return seen


class Weave:
    """What the plugin keeps during a run, whose data are `prepared` and whose model is `attentive`.

    Raises:
        FlamefinderError: an RGB patch that is to be rebuilt and is not there.
    """

    def __init__(self, options: FlamefinderOptions, trainer: Trainer) -> None:
        self.options = options
        network, info = trainer.model, trainer.info
        assert isinstance(network, FlameNet)
        generator = trainer.generator("flamefinder")
        terms = MetricTerms(options, info.num_classes, network, generator)
        self.metric: MetricTerms | None = None
        if terms.factors:
            terms.to(trainer.device)
            trainer.add_module("flamefinder.terms", terms, terms.optimizer())
            self.metric = terms
        self.reconstruction: Reconstruction | None = None
        if options.l_rec:
            if options.rec_target == "rgb" and "rgb" not in info.fields:
                raise FlamefinderError(
                    "rec_target = 'rgb' rebuilds the RGB patch, and the training batches have no field 'rgb': set"
                    " data.rgb = true (flame-synth, flame2, flame3), or rec_target = 'thermal'"
                )
            channels, side = info.input_shape[0], info.input_shape[-1]
            channels = channels if options.rec_target == "thermal" else 3
            self.reconstruction = Reconstruction(network.latent_dim, channels, side, generator)
            trainer.add_module("flamefinder.decoder", self.reconstruction)
        self.seen = watched(network)
        self.shares: list[list[float]] = []
        points = options.share_points
        total = trainer.total_steps
        self.share_steps = frozenset(max(1, round(total * number / points)) for number in range(1, points + 1))
        self.first: tuple[Tensor, Tensor] | None = None  # of a step: vectors [B, d], and which are known
        self.judged: list[tuple[str, Any, tuple[Tensor, Tensor]]] = []

    # ---- training -----------------------------------------------------------------------------------------------
    def step(self, trainer: Trainer, batch: Any, proceed: Callable[[], LossReport]) -> LossReport:
        """One step; then, with ``delta``, the centres follow the vectors that each example had in its first pass."""
        if self.metric is None or self.options.center_update != "delta":
            return proceed()
        self._number(batch)
        centres, labels = self.metric.centres, batch["label"]
        z = centres.values.new_zeros(len(labels), centres.values.shape[1])
        self.first = (z, torch.zeros_like(labels, dtype=torch.bool))
        report = proceed()
        chosen = self.first[1] if trainer.share else torch.zeros_like(self.first[1])
        self.first = None
        sums, counts = centres.pulls(z[chosen], labels[chosen])
        centres.follow(trainer.sum_over_ranks(sums), trainer.sum_over_ranks(counts))
        return report

    def _number(self, batch: Any) -> None:
        """Give each example of the batch, and of the micro-batches that make it up, its number."""
        batch[ROW] = torch.arange(len(batch["label"]), device=batch["label"].device)
        place = 0
        for part in getattr(batch, "parts", ()):
            part[ROW] = batch[ROW][place : place + len(part["label"])]
            place += len(part["label"])

    def terms(self, trainer: Trainer, batch: Any, weights: Tensor) -> dict[str, Tensor]:
        """The weighted terms of this pass; each is a mean over its examples, by their weights."""
        seen = {name: value.float() for name, value in self.seen.items()}
        self.seen.clear()
        terms: dict[str, Tensor] = {}
        with torch.autocast(trainer.device.type, enabled=False):
            if self.metric is not None:
                latent, labels = Latent(seen["features"].flatten(1), seen["p"], seen["z"]), batch["label"]
                each = self.metric(latent, labels)
                self._remember(latent.z, batch)
                self._measure(trainer, latent, labels, each)
                means = self.metric.scales * (weights * each).mean(1)
                terms = dict(zip(self.metric.factors, means.unbind(), strict=True))
            if self.reconstruction is not None:
                target = seen["x"] if self.options.rec_target == "thermal" else batch["rgb"] * 2 - 1
                terms["rec"] = self.options.l_rec * (weights * self.reconstruction(seen["z"], target)).mean()
        return terms

    def _remember(self, z: Tensor, batch: Any) -> None:
        """Of each example the vector of its first pass in this step."""
        if self.first is not None:
            vectors, known = self.first
            new = ~known[batch[ROW]]
            rows = batch[ROW][new]
            vectors[rows], known[rows] = z.detach()[new], True

    def _measure(self, trainer: Trainer, latent: Latent, labels: Tensor, each: Tensor) -> None:
        """At some steps the gradient share and the plain value of each loss, in the step's first pass."""
        if trainer.step not in self.share_steps or (self.shares and self.shares[-1][0] == trainer.step):
            return
        assert self.metric is not None
        shares = self.metric.gradient_shares(latent, labels)
        self.shares.append([trainer.step, *shares.values()])
        trainer.log({f"flamefinder/gradient_share/{name}": share for name, share in shares.items()})
        means = zip(shares, each.detach().mean(1).tolist(), strict=True)
        trainer.log({f"flamefinder/value/{name}": mean for name, mean in means})

    # ---- afterwards ---------------------------------------------------------------------------------------------
    def export(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        """The trained network, which now decides by the rule that the options name."""
        assert isinstance(model, FlameNet)
        decision = self.options.decision
        centres = None if decision == "head" else self._centres(trainer, model)
        return model.decide_by(decision, centres)

    def _centres(self, trainer: Trainer, model: nn.Module) -> Tensor:
        """The centres that the options name; class means where none were trained."""
        if self.options.centers == "running" and self.metric is not None:
            return self.metric.centres.values
        means = self.means(trainer, model)
        if means is None:
            raise FlamefinderError(
                "the class means need training examples of every class: give them (in a loop weave(train=...)), or set "
                "decision = 'head'."
            )
        return means

    def means(self, trainer: Trainer, model: nn.Module) -> Tensor | None:
        """Mean latent vector of each class over the training split, [K, d]; None where a loop shows none."""
        train = trainer.data.train
        if trainer.recipe.data.name == BATCHES and "input" not in getattr(train, "fields", {}):
            return None
        if trainer.step == 0:
            classes = column(train, "label") == torch.arange(trainer.info.num_classes).unsqueeze(1)
            train = Subset(train, torch.cat([of.nonzero().flatten()[:FEW] for of in classes]))
        means = class_means(*self.judge(trainer, model, train), trainer.info.num_classes)
        return None if bool(means.isnan().any()) else means

    def judge(self, trainer: Trainer, model: nn.Module, split: Any) -> tuple[Tensor, Tensor]:
        """Latent vectors [n, d] and labels [n] of a split or a loop's batches, on the CPU, by the model in eval mode.

        They are remembered, as the trained and the exported network often have the same weights; not over several
        processes, where each pass is one of all of them, nor of a loop's batches, which may change.
        """

        def latent(network: Any, batch: Any) -> Any:
            return network.latent(batch["input"]).z

        weights = ""
        if trainer.world == 1 and trainer.recipe.data.name != BATCHES:
            weights = digest({name: value for name, value in model.state_dict().items() if name != "centres"})
            for of_weights, of_split, vectors in self.judged:
                if of_weights == weights and of_split is split:
                    return vectors
        way = trainer.forward
        z, fields = predict(Forward(way.world, way.precision, way.prepare, latent), model, split)
        if weights:  # of the test, training and validation split
            self.judged = [*self.judged[-2:], (weights, split, (z, fields["label"]))]
        return z, fields["label"]

    def evaluate(self, trainer: Trainer, predictions: Predictions) -> dict[str, Metric | Table | Plot]:
        """The card's metrics on the clean view, with every decision beside the others."""
        clean, model = predictions["clean"], predictions.model
        assert isinstance(model, FlameNet)
        split = clean.view.split if clean.view.split is not None else trainer.data.test
        z, label = self.judge(trainer, model, split)
        with torch.no_grad():
            logits = model.head(z.to(next(model.parameters()).device)).float().cpu()
        running = self.metric.centres.values.detach().cpu() if self.metric is not None else None
        centres, names = {"running": running, "mean": self.means(trainer, model)}, trainer.data.names
        tested = figures.Tested(
            z, logits, label, clean.fields, centres, names.get("bucket", ()), trainer.info.num_classes
        )
        given = figures.numbers(tested, self.options)
        if trainer.step > 0 and model is trainer.model and split is trainer.data.test:
            losses = tuple(self.metric.factors) if self.metric is not None else ()
            given |= figures.pictures(tested, self.options, self.shares, losses)
            if trainer.info.num_classes == 2 and trainer.recipe.data.name != BATCHES:
                given |= self._looked_at(trainer, tested)
        return given

    def _looked_at(self, trainer: Trainer, tested: figures.Tested) -> dict[str, Metric | Table | Plot]:
        """What needs the patches themselves: the brightness control, and pictures of the worst ones."""
        given = figures.brightness(tested, trainer.data.train, trainer.data.test)
        if not self.options.latent_points:
            return given
        rows, given["worst"] = figures.worst(tested)
        patches = trainer.data.test.__getitems__(torch.from_numpy(rows))["input"]
        if patches.ndim == 4:
            given["worst_patches"] = figures.mosaic(patches[:, 0].numpy())
            if trainer.writes:
                save_row(trainer.folder / "flamefinder-worst.png", patches[:, 0].numpy())
        return given

    # ---- state --------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """What was measured on the way."""
        return {"shares": [list(entry) for entry in self.shares]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.shares = [[float(value) for value in entry] for entry in state["shares"]]

"""The plugin: options and hooks. Importing it imports no torch; the work is in `plait_dydca.weave`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plait import DataSource, ModelSource, Plugin, hookimpl, later

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plait.data import Batch, Data
    from plait.declare.results import Metric, Plot, Table
    from plait.training.evaluation import Predictions
    from plait.training.trainer import Trainer
    from plait.training.woven import LossReport

    from .clips import Clip
    from .routing import Routing
    from .weave import Weave

_FRAMES = frozenset({"field:input", "field:target", "field:index", "task:regression", "field:frame"})


class DydcaPlugin(Plugin):
    """Dy-DCA in a plait run: frames cut by content, a path for each kind of patch, one network fitted to one video."""

    name = "dydca"
    summary = "one content-routed super-resolution network overfitted to one video, compiled for dynamic shapes"
    paper = "Dy-DCA: Data Overfitting for On-Device Super-Resolution, ECCV 2024, arXiv:2407.02813"
    contract = 1
    Options = later("plait_dydca.options:DydcaOptions")
    suggests_data = ("clip",)
    suggests_model = ("wdsr", "wdsr-plain")
    suggests: ClassVar[Mapping[str, Any]] = {
        "train.epochs": 8,
        "train.batch_size": 16,
        "optimizer.name": "adam",
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 0.0,
    }
    tiny: ClassVar[Mapping[str, Any]] = {"blocks": (2, 1), "frames": 2}

    _weave: Weave
    _cut: tuple[Routing, Clip]

    def needs(self) -> frozenset[str]:
        """Frames of a clip, and a network that can be built at several depths; to begin as bicubic, one with a skip."""
        words = _FRAMES - {"field:index"} | {"model:depth", "parameters:single", "steps:minibatch"}
        return words | {"model:skip"} if self.options.init == "bicubic" else words

    def provides(self) -> frozenset[str]:
        """What a batch of patches has; folding weight normalisation changes names in the export."""
        return frozenset({"export:structure", "field:path", "field:halo", "field:borders"})

    def setup(self, trainer: Trainer) -> None:
        """Count what each path is trained on."""
        from .weave import Weave

        self._weave = Weave(self.options, trainer, *self._cut)

    def state_dict(self) -> dict[str, Any]:
        """Steps and pixels of each path; the plan follows from the clip."""
        return self._weave.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._weave.load_state_dict(state)

    @hookimpl
    def data_sources(self) -> Mapping[str, DataSource]:
        """Short clips out of packages, and the user's own."""
        given = {
            "clip": "a short real clip out of a package, or a generated one",
            "video": "your own clip: video file, folder of images, VSD4K, UVG",
        }
        return {
            name: DataSource(
                f"plait_dydca.sources:load_{name}",
                summary,
                _FRAMES,
                later(f"plait_dydca.options:{name.capitalize()}Options"),
            )
            for name, summary in given.items()
        }

    @hookimpl
    def models(self) -> Mapping[str, ModelSource]:
        """Networks that compute at low resolution."""
        depth, frames = frozenset({"model:depth"}), frozenset({"field:frame"})
        skip = depth | {"model:skip"}
        given = {
            "wdsr": ("WDSR, the published body", skip, frames | {"parameters:computed"}),
            "wdsr-plain": ("WDSR of plain convolutions, whose channels can go", skip, frames),
            "edsr": ("EDSR", depth, frames),
            "espcn": ("ESPCN", depth, frames),
        }
        return {
            name: ModelSource(
                f"plait_dydca.bodies:build_{name.replace('-', '_')}",
                f"super-resolution: {summary}",
                provides,
                needs,
                later(f"plait_dydca.options:{name.partition('-')[0].capitalize()}Options"),
            )
            for name, (summary, provides, needs) in given.items()
        }

    @hookimpl
    def transform_data(self, trainer: Trainer, data: Data) -> Data:
        """Patches by content."""
        from .weave import cut

        patched, *self._cut = cut(self.options, trainer, data)  # type: ignore[assignment]
        return patched

    @hookimpl
    def transform_model(self, model: nn.Module) -> nn.Module:
        """Paths of several depths."""
        from .network import RoutedNetwork

        return RoutedNetwork.of(model, self.options.blocks, self.options.init)

    @hookimpl
    def objective(self, outputs: Tensor, batch: Batch) -> Tensor:
        """L1 of each patch."""
        losses: Tensor = (outputs - batch["target"]).abs().mean((1, 2, 3))
        return losses

    @hookimpl
    def optimizer_step(self, trainer: Trainer, batch: Batch, proceed: Callable[[], LossReport]) -> LossReport:
        """The step, counted for each path."""
        return self._weave.step(trainer, batch, proceed)

    @hookimpl
    def export(self, model: nn.Module) -> nn.Module:
        """Plain convolutions, and the plan."""
        from .weave import exported

        return exported(model, self._cut[0])

    @hookimpl
    def evaluate(self, trainer: Trainer, predictions: Predictions) -> Mapping[str, Metric | Table | Plot]:
        """Quality, bytes and work."""
        return self._weave.evaluate(trainer, predictions)

    @hookimpl
    def commands(self) -> Mapping[str, str]:
        """`plait dydca encode` and `play`."""
        return {"encode": "plait_dydca.commands:encode", "play": "plait_dydca.commands:play"}

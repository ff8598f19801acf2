"""The plugin. Importing it imports no torch; the work is in `plait_ema.average`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from plait import Plugin, hookimpl

from .options import EMAOptions

if TYPE_CHECKING:
    from torch import nn

    from plait.training.trainer import Trainer
    from plait.training.woven import LossReport


class EMAPlugin(Plugin):
    """Averaged weights in a plait run: updated after every step, exported instead of the last ones."""

    name = "ema"
    summary = "export an exponential moving average of the weights"
    paper = "Acceleration of Stochastic Approximation by Averaging, Polyak and Juditsky, SIAM J. Control Optim. 1992"
    contract = 1
    Options = EMAOptions

    def setup(self, trainer: Trainer) -> None:
        """Ask for a copy of the weights that follows masks, slices and checkpoints."""
        from .average import check_precision, ema

        check_precision(dict(trainer.model.named_parameters()))
        trainer.shadow("ema")
        self._update, self._steps = ema(self.options.decay, self.options.warmup), 0

    def state_dict(self) -> dict[str, Any]:
        """How many steps were averaged; the core keeps the averages."""
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._steps = state["steps"]

    @hookimpl
    def optimizer_step(self, trainer: Trainer, proceed: Callable[[], LossReport]) -> LossReport:
        """The step, then the average."""
        report = proceed()
        self._update([*trainer.shadow("ema").values()], [p.detach() for p in trainer.model.parameters()], self._steps)
        self._steps += 1
        return report

    @hookimpl(before=("export:structure", "export:values"))
    def export(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        """The averages in the place of the weights."""
        from .average import put

        return put(trainer.shadow("ema"), model, trainer.model)

"""What stops a run that has gone wrong, in words: non-finite weights, drifting ranks, a method's own refusal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from plait.errors import PlaitError, RunFailed

if TYPE_CHECKING:
    from plait.trainer import Trainer


@contextlib.contextmanager
def failing(trainer: Trainer, *plugins: str) -> Iterator[None]:
    """A method's ``ValueError`` in the middle of training ends the run, naming step and plugin."""
    try:
        yield
    except PlaitError:
        raise
    except ValueError as error:
        who = f"plugin {' or '.join(map(repr, plugins))}" if plugins else "the model"
        raise RunFailed(f"step {trainer.step}: {who}: {error}. The last checkpoint is kept.") from error


def require_equal_masks(trainer: Trainer) -> None:
    """Ranks whose masks drifted apart would train different networks: stop at once.

    Raises:
        RunFailed: the checksums differ.
    """
    mine = torch.tensor([trainer.masks.checksum()], dtype=torch.int64, device=trainer.device)
    total = int(trainer.sum_over_ranks(mine.clone()))
    if total != trainer.world * int(mine):
        raise RunFailed(f"step {trainer.step}: the masks differ between ranks; an owner chose by local randomness.")


def require_finite_weights(trainer: Trainer) -> None:
    """Refuse to save or deliver weights that are not finite.

    Raises:
        RunFailed: naming the step and the first such parameter.
    """
    for name, parameter in trainer.model.named_parameters():
        own: Any = parameter.detach()
        if not bool(torch.isfinite(own.to_local() if trainer.sharded else own).all()):
            raise RunFailed(
                f"step {trainer.step}: the weights {name!r} are not finite. Nothing was saved of this step; the last "
                "checkpoint is kept. Try a smaller learning rate (--set optimizer.lr=...)."
            )


def stop_requested(trainer: Trainer) -> bool:
    """Whether to stop at this step boundary; several ranks agree on it every ``log_every`` steps."""
    if trainer.world == 1:
        return trainer.recorder.stop_requested()
    if trainer.step % trainer.recipe.train.log_every:
        return False
    asked = torch.tensor([float(trainer.recorder.stop_requested())], device=trainer.device)
    return bool(trainer.sum_over_ranks(asked) > 0)

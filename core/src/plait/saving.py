"""What a checkpoint holds of a run, and how a run takes it back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plait import optimizers

if TYPE_CHECKING:
    from plait.trainer import Trainer


def state_dict(trainer: Trainer) -> dict[str, Any]:
    """Everything that a resumed run needs, between two steps."""
    assert not trainer.in_step, "a checkpoint inside a step would hold perturbed weights"
    state = {
        "step": trainer.step,
        "phase": list(trainer.phase),
        "model": trainer.model.state_dict(),
        "optimizer": optimizers.state_to_tree(trainer.optimizer),
        "extra": trainer.waiting["extra"]
        | {
            name: {"module": module.state_dict(), "optimizer": optimizers.state_to_tree(own) if own else None}
            for name, (module, own) in trainer.extra.items()
        },
        "masks": trainer.masks.state_dict(),
        "shadows": trainer.waiting["shadows"] | trainer.shadows.state_dict(),
        "plugins": {name: plugin.state_dict() for name, plugin in trainer.plugins.items()},
        "streams": trainer.waiting["streams"] | {name: stream.state_dict() for name, stream in trainer.streams.items()},
        "generators": trainer.waiting["generators"] | {name: g.get_state() for name, g in trainer.generators.items()},
        "random": optimizers.global_random_state(trainer.device),
        "best": trainer.best,
    }
    if trainer.sharded:
        from plait.scale import sharded

        state = sharded.whole(state)
    return state


def load_state_dict(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Go on from `state_dict`. Plugins first: one that shrank the network shrinks it again before weights load."""
    for name, plugin in trainer.plugins.items():
        plugin.load_state_dict(copy.copy(state["plugins"].get(name, {})))
    weights, momenta = state["model"], state["optimizer"]
    if trainer.sharded:
        from plait.scale import sharded

        weights = sharded.weights_like(trainer.model, weights)
        momenta = sharded.state_like(trainer.optimizer, momenta)
    optimizers.load_weights(trainer.model, weights)
    trainer.masks.load_state_dict(state["masks"])
    optimizers.tree_to_state(trainer.optimizer, momenta)
    # what a plugin makes later in the run finds its state when it is made
    trainer.waiting = {key: dict(state.get(key, {})) for key in ("streams", "generators", "extra", "shadows")}
    for name in trainer.shadows.sets:
        trainer.shadows.load(name, trainer.waiting["shadows"].pop(name))
    for name in trainer.extra:
        trainer.load_extra(name, trainer.waiting["extra"].pop(name))
    for name, stream in trainer.streams.items():
        stream.load_state_dict(trainer.waiting["streams"].pop(name))
    for name, generator in trainer.generators.items():
        generator.set_state(trainer.waiting["generators"].pop(name))
    trainer.step, trainer.phase, trainer.best = state["step"], tuple(state["phase"]), state["best"]
    optimizers.set_global_random_state(state["random"], trainer.device)

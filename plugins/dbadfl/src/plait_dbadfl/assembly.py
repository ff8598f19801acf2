"""The federation of a plait run, put together from the plugin's options, the recipe and the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from plait_dbadfl.defences import Defence, make_defence
from plait_dbadfl.federation import DefenceMaker, Federation
from plait_dbadfl.options import DbadflOptions, SGDOptions, checked
from plait_dbadfl.reference import ImageData
from plait_dbadfl.sampling import derive
from plait_dbadfl.topologies import make_topology
from plait_dbadfl.triggers import LAYOUTS, Trigger, preset_trigger

if TYPE_CHECKING:
    import torch

    from plait.declare.recipe import Recipe


def federation(
    options: DbadflOptions,
    recipe: Recipe,
    model: nn.Module,
    images: ImageData,
    *,
    device: torch.device | str = "cpu",
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> Federation:
    """N nodes with the weights of ``model``; a node's own step is the recipe's optimizer and batch size.

    Raises:
        DbadflError: what a federation refuses.
    """
    again: dict[str, Any] = {"k": options.topology_k, "p": options.topology_p}
    seed = derive(recipe.seed, "graph") % 2**31
    graph = make_topology(options.topology, options.nodes, seed=seed, path=options.topology_file, **again)
    optimizer, by_sgd = recipe.optimizer, recipe.optimizer.name == "sgd"
    sgd = checked(
        SGDOptions,
        batch=recipe.train.batch_size,
        lr=optimizer.lr,
        momentum=optimizer.momentum if by_sgd else 0.0,
        weight_decay=optimizer.weight_decay if by_sgd else 0.0,
    )
    return Federation(
        model,
        images,
        graph,
        options.changed(),
        _trigger(options, images.height, images.width),
        seed=recipe.seed,
        sgd=sgd,
        implementation=options.implementation,
        device=device,
        topology_options=again,
        prepare=prepare,
    )


def _trigger(options: DbadflOptions, height: int, width: int) -> Trigger:
    """Q: the listed parts, the named layout, or the one of the images' size (digits' in proportion, if none)."""
    if options.trigger_parts:
        return Trigger.from_parts(options.trigger_parts, height, width)
    name: str = options.trigger
    if name == "auto":
        name = next((n for n, layout in LAYOUTS.items() if layout.size == (height, width)), "digits")
    return preset_trigger(name, height, width)


def defence_maker(options: DbadflOptions, name: str | None) -> DefenceMaker | None:
    """Makes fresh rules of that name with the user's arguments; None is the plain mean.

    Raises:
        DbadflError: arguments that the rule does not have.
    """
    if name is None:
        return None
    arguments = options.defence_options.get(name, {})
    make_defence(name, **arguments)  # refused now, not in the middle of the run

    def fresh() -> Defence:
        return make_defence(name, **arguments)

    return fresh

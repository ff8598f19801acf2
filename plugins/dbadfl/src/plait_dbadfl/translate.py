"""The plugin's options as the library's configuration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import nn

from plait_dbadfl.config import (
    AttackConfig,
    FederationConfig,
    LocalConfig,
    PredictorConfig,
    ScanConfig,
    ShadowConfig,
    SplitConfig,
)
from plait_dbadfl.defences import Defence, make_defence
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.federation import DefenceMaker
from plait_dbadfl.grouped import GroupedPlan
from plait_dbadfl.options import DbadflOptions
from plait_dbadfl.poisoning import Schedule
from plait_dbadfl.sampling import derive
from plait_dbadfl.stacking import Implementation
from plait_dbadfl.topologies import Topology, make_topology
from plait_dbadfl.triggers import LAYOUTS, Trigger, preset_trigger

if TYPE_CHECKING:
    from plait.declare.recipe import Recipe

LARGE = 25_000
"""Pixels in one node's batch from which convolutions are faster one network after the other (measured, one core)."""


def topology(options: DbadflOptions, seed: int) -> tuple[Topology, dict[str, Any]]:
    """The graph, and the arguments with which graphs of its family are drawn again."""
    again: dict[str, Any] = {"k": options.topology_k, "p": options.topology_p}
    made = make_topology(
        options.topology,
        options.nodes,
        seed=derive(seed, "graph") % 2**31,
        path=options.topology_file,
        **again,
    )
    return made, again


def trigger(options: DbadflOptions, height: int, width: int) -> Trigger:
    """Q: the listed parts, the named layout, or the one of the images' size (digits' in proportion, if none)."""
    if options.trigger_parts:
        return Trigger.from_parts(options.trigger_parts, height, width)
    name: str = options.trigger
    if name == "auto":
        name = next((n for n, layout in LAYOUTS.items() if layout.size == (height, width)), "digits")
    return preset_trigger(name, height, width)


def engine_options(options: DbadflOptions) -> dict[str, Any]:
    """The engine's own arguments."""
    own: dict[str, dict[str, Any]] = {
        "dpsgd": {"order": options.order},
        "swarm": {"interactions": options.interactions, "steps": options.swarm_steps},
        "gossip": {"age": options.age},
        "fedavg": {"drawn": options.drawn, "server_step": options.server_step, "warmup": options.warmup_rounds},
    }
    return own.get(options.engine, {})


def configuration(options: DbadflOptions, recipe: Recipe) -> FederationConfig:
    """Everything but graph, data, model and trigger. Local training is the recipe's optimizer and batch size.

    Raises:
        DbadflError: what a part of the configuration refuses.
    """
    o, sgd = options, recipe.optimizer.name == "sgd"
    single = o.schedule == "single"
    if o.attack_rounds and not single:
        raise DbadflError("attack_rounds are given, but schedule='multi'; use schedule='single'")
    return FederationConfig(
        seed=recipe.seed,
        engine=o.engine,
        engine_options=engine_options(o),
        weights=o.weights,
        split=SplitConfig(kind=o.split, alpha=o.split_alpha, min_samples=o.min_samples),
        local=LocalConfig(
            steps=o.local_steps,
            batch=recipe.train.batch_size,
            lr=recipe.optimizer.lr,
            momentum=recipe.optimizer.momentum if sgd else 0.0,
            weight_decay=recipe.optimizer.weight_decay if sgd else 0.0,
            epochs=o.local_epochs,
            fresh_momentum=o.fresh_momentum,
            attacker_steps=o.attacker_steps,
            attacker_epochs=o.attacker_epochs,
            attacker_lr=o.attacker_lr,
            attacker_lr_milestones=o.attacker_lr_milestones,
            attacker_lr_decay=o.attacker_lr_decay,
            attacker_lr_at=o.attacker_lr_at,
        ),
        attack=AttackConfig(
            arm=o.arm,
            attackers=o.attackers,
            placement=o.placement,
            positions=o.positions,
            target=o.target,
            budget=o.budget,
            pixels=o.pixels,
            ratio=o.ratio,
            first=o.first,
            gamma=o.gamma,
            alpha=o.loss_alpha,
            schedule=Schedule(o.schedule, o.attack_start, o.attack_rounds),
            tau=math.inf if o.tau == "inf" else float(o.tau),
            n_clusters=o.n_clusters,
            rotate_every=o.rotate_every,
            redetect_every=o.redetect_every,
        ),
        scan=ScanConfig(
            rounds=o.scan_rounds,
            pixels=o.signature_pixels,
            ratio=o.scan_ratio,
            target=o.signature_target,
            probes=o.probes,
            hold_out=o.hold_out,
        ),
        shadow=ShadowConfig(networks=o.shadows, topology=o.shadow_topology, data=o.shadow_data, seed=o.shadow_seed),
        predictor=PredictorConfig(
            hidden=o.hidden,
            head=o.head,
            max_distance=o.max_distance,
            lr=o.predictor_lr,
            epochs=o.predictor_epochs,
            batch=o.predictor_batch,
        ),
    )


def defence_maker(options: DbadflOptions, name: str | None) -> DefenceMaker | None:
    """Makes fresh rules of that name with the user's arguments; None is the plain mean.

    Raises:
        DbadflError: arguments that the rule does not have.
    """
    if name is None:
        return None
    arguments = options.defence_options.get(name, {})
    make_defence(name, **arguments)  # refused now, not in the middle of the run

    def made() -> Defence:
        return make_defence(name, **arguments)

    return made


def usual_implementation(base: nn.Module, pixels: int) -> Implementation:
    """How N networks are computed, by a rule and not by the clock, so that a recipe gives the same bits every time.

    Grouped products where every layer has them, else ``vmap``; networks with convolutions over many pixels one after
    the other. The figures behind it are those of ``benchmarks/dbadfl.py``.

    Args:
        base: one network.
        pixels: B x H x W of one node's batch.
    """
    convolves = any(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in base.modules())
    if convolves and pixels > LARGE:
        return "loop"
    try:
        GroupedPlan(base)
    except DbadflError:
        return "vmap"
    return "grouped"

"""Shadow networks: simulated federations of known distances, from which the predictor learns. Card, section 4 step 5.

Many networks run as one stacked federation whose mixing matrix is block-diagonal, so that they cost one pass of
batched products, not one each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plait_dbadfl.detection import Scan
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.local import Prepare, Training
from plait_dbadfl.mixing import Mixing, make_mixing
from plait_dbadfl.options import FederationOptions, SGDOptions, ShadowOptions
from plait_dbadfl.phases import Engine
from plait_dbadfl.placement import place_attackers
from plait_dbadfl.reference import ImageData
from plait_dbadfl.sampling import NodeData, derive, join, split_probes
from plait_dbadfl.scan import Signatures, make_signatures, pair_sequences
from plait_dbadfl.splits import split
from plait_dbadfl.stacking import Implementation, Stacked
from plait_dbadfl.topologies import Topology, make_topology

__all__ = ["ShadowPairs", "simulate_shadows"]

FAMILIES = ("ring", "torus", "watts-strogatz", "erdos-renyi")
"""Families that attackers declare; those that the number of nodes does not admit are left out [inferred]."""

AT_ONCE = 2048
"""Most shadow nodes simulated in one stack, unless the caller says otherwise."""

EngineMaker = Callable[[Mixing, int, Tensor], Engine]
"""Mixing, seed, and images of each node int64 [N] -> a fresh engine."""


@dataclass(frozen=True)
class ShadowWorld:
    """What the attackers know, or are granted, when they simulate.

    Args:
        family: name of the evaluated topology; used by ``same-family`` and ``other-family`` alone.
        family_options: of `make_topology` for that family, e.g. ``{"k": 4, "p": 0.2}``.
        nodes: N of a shadow, taken equal to the evaluated network's [inferred].
        base: the model with its initial weights, which every node starts from.
        implementation: of `Stacked`.
        engine: makes engines.
        options, sgd: as in the evaluated run.
        data: the images. own: int64, positions of the attackers' own training images.
        node_images: mean number of images of a node.
        prepare: applied to images just before the networks.
    """

    family: str
    family_options: Mapping[str, Any]
    nodes: int
    base: nn.Module
    implementation: Implementation
    engine: EngineMaker
    options: FederationOptions
    sgd: SGDOptions
    data: ImageData
    own: Tensor
    node_images: float
    prepare: Prepare | None = None


@dataclass(frozen=True)
class ShadowPairs:
    """Training pairs of the predictor.

    Args:
        sequences: [P, T_s, 6]. distances: int64 [P], hops. network: int64 [P], the shadow each pair is of.
        families: family of each shadow.
    """

    sequences: Tensor
    distances: Tensor
    network: Tensor
    families: tuple[str, ...]


def shadow_families(options: ShadowOptions, family: str, nodes: int) -> tuple[str, ...]:
    """The families that shadows are drawn from, in turn.

    Raises:
        DbadflError: ``same-family`` of a graph from a file, or no family that N admits.
    """
    if options.shadow_topology == "same-family":
        if family not in (*FAMILIES, "exponential", "star", "complete"):
            raise DbadflError(f"shadow_topology='same-family' cannot redraw a graph of {family!r}; use 'mixture'")
        return (family,)
    wanted = [f for f in FAMILIES if options.shadow_topology == "mixture" or f != family]
    families = tuple(f for f in wanted if _admits(f, nodes))
    if not families:
        raise DbadflError(f"no shadow family of {', '.join(wanted)} has graphs of N={nodes} nodes")
    return families


def _admits(family: str, nodes: int) -> bool:
    try:
        make_topology(family, nodes, seed=0)
    except DbadflError:
        return False
    return True


def block_diagonal(mixings: list[Mixing]) -> Mixing:
    """W of several networks side by side: blocks on the diagonal, nothing between them."""
    offsets = torch.tensor([m.n for m in mixings]).cumsum(0) - torch.tensor([m.n for m in mixings])
    return Mixing(
        sum(m.n for m in mixings),
        torch.cat([m.receivers + o for m, o in zip(mixings, offsets, strict=True)]),
        torch.cat([m.senders + o for m, o in zip(mixings, offsets, strict=True)]),
        torch.cat([m.weights for m in mixings]),
        torch.cat([m.own for m in mixings]),
    )


@dataclass(frozen=True)
class _Network:
    topology: Topology
    attackers: Tensor
    data: NodeData
    probes: NodeData
    signatures: Signatures


def check_shadow_seed(seed: int | None, run_seed: int) -> None:
    """Raise `DbadflError` if the shadows' seed is the run's."""
    if seed == run_seed:
        raise DbadflError(f"shadow seed={seed} equals the seed of the run; shadows would share its graph and data")


def simulate_shadows(world: ShadowWorld, *, seed: int, run_seed: int, at_once: int = AT_ONCE) -> ShadowPairs:
    """Scan ``world.options.shadows`` shadow networks and collect all pairs of attackers with their true distances.

    Args:
        world: what attackers know; its options say how many, of which graphs, on whose images.
        seed: of the shadows' graphs, splits, placements, signatures and batches.
        run_seed: of the evaluated run.
        at_once: most shadow nodes simulated in one stack; bounds memory.

    Raises:
        DbadflError: ``seed`` equal to ``run_seed``, and whatever graphs and splits refuse.

    Source: card, section 4 step 5 [inferred].
    """
    check_shadow_seed(seed, run_seed)
    count = world.options.shadows
    families = shadow_families(world.options, world.family, world.nodes)
    chosen = [families[k % len(families)] for k in range(count)]
    per_stack = max(1, at_once // world.nodes)
    sequences, distances = [], []
    for start in range(0, count, per_stack):
        numbers = range(start, min(start + per_stack, count))
        networks = [_build(world, chosen[k], derive(seed, "shadow", k)) for k in numbers]
        features = _scan_together(world, networks, derive(seed, "shadows", start))
        for k, network in enumerate(networks):
            pairs, (i, j) = pair_sequences(features[:, k])
            sequences.append(pairs)
            distances.append(network.topology.hops(network.attackers)[i, network.attackers[j]])
    return ShadowPairs(
        torch.cat(sequences),
        torch.cat(distances),
        torch.arange(count).repeat_interleave(len(distances[0])),
        tuple(chosen),
    )


def _build(world: ShadowWorld, family: str, seed: int) -> _Network:
    options = world.options
    same = family == world.family and options.shadow_topology == "same-family"
    again = world.family_options if same else {}
    topology = make_topology(family, world.nodes, seed=derive(seed, "graph") % 2**31, **again)
    attackers = place_attackers(topology, options.attackers, seed=seed)
    pool = torch.arange(len(world.data.train)) if options.shadow_data == "all" else _oversampled(world)
    labels = world.data.train_labels.cpu()[pool]
    shares = split(
        labels,
        world.nodes,
        kind=options.split,
        alpha=options.split_alpha,
        seed=seed,
        min_samples=options.min_samples,
    )
    owned = NodeData(pool[shares.index], shares.lengths)
    probes, owned = split_probes(owned, attackers, seed=seed, limit=options.probes, hold_out=options.hold_out)
    signatures = make_signatures(
        options.attackers,
        world.data.height,
        world.data.width,
        world.data.classes,
        seed=seed,
        pixels=options.signature_pixels,
        target=options.signature_target,
        shared_target=options.target,
    )
    return _Network(topology, attackers, owned, probes, signatures)


def _oversampled(world: ShadowWorld) -> Tensor:
    """The attackers' own images, repeated until there are as many as in the evaluated network [inferred].

    Their few images would leave a shadow node two or three, and so teach distances of a network that learns less.
    """
    total = max(len(world.own), round(world.nodes * world.node_images))
    return world.own.repeat(-(-total // len(world.own)))[:total]


def _scan_together(world: ShadowWorld, networks: list[_Network], seed: int) -> Tensor:
    """[T_s, S, M, M, 3], the features of all attackers of S networks simulated in one stack."""
    mixing = block_diagonal([make_mixing(n.topology, world.options.weights) for n in networks])
    data = join([n.data for n in networks])
    stack = Stacked(world.base, mixing.n, implementation=world.implementation).to(world.data.train.device)
    training = Training(
        stack,
        world.engine(mixing, derive(seed, "engine"), data.lengths),
        world.data.train,
        world.data.train_labels,
        data,
        world.sgd,
        derive(seed, "training"),
        prepare=world.prepare,
    )
    attackers = torch.cat([n.attackers + k * world.nodes for k, n in enumerate(networks)])
    probes = join([n.probes for n in networks])
    signatures = Signatures.stacked([n.signatures for n in networks])
    return Scan(training, attackers, probes, signatures, world.options.scan_ratio).run(world.options.scan_rounds)

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

from plait_dbadfl.config import LocalConfig, ScanConfig, ShadowConfig, SplitConfig
from plait_dbadfl.detection import Scan
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.local import Prepare, Training
from plait_dbadfl.mixing import Mixing, Weights, make_mixing
from plait_dbadfl.phases import Engine
from plait_dbadfl.placement import place_attackers
from plait_dbadfl.reference import ImageData
from plait_dbadfl.sampling import NodeData, derive, join, split_probes
from plait_dbadfl.scan import Signatures, make_signatures, pair_sequences
from plait_dbadfl.splits import split
from plait_dbadfl.stacking import Implementation, Stacked
from plait_dbadfl.topologies import Topology, make_topology

FAMILIES = ("ring", "torus", "watts-strogatz", "erdos-renyi")
"""Families that attackers declare; those that the number of nodes does not admit are left out [inferred]."""

EngineMaker = Callable[[Mixing, int, Tensor], Engine]
"""Mixing, seed, and images of each node int64 [N] -> a fresh engine."""


@dataclass(frozen=True)
class ShadowWorld:
    """What the attackers know, or are granted, when they simulate.

    Args:
        family: name of the evaluated topology; used by ``same-family`` and ``other-family`` alone.
        family_options: of `make_topology` for that family, e.g. ``{"k": 4, "p": 0.2}``.
        nodes: N of a shadow, taken equal to the evaluated network's [inferred].
        attackers: M.
        base: the model with its initial weights, which every node starts from.
        implementation: of `Stacked`.
        engine: makes engines.
        weights: rule of the mixing matrix.
        data: the images. own: int64, positions of the attackers' own training images.
        node_images: mean number of images of a node.
        split, local, scan: as in the evaluated run.
        signature_target: c* for shared signatures.
        prepare: applied to images just before the networks.
    """

    family: str
    family_options: Mapping[str, Any]
    nodes: int
    attackers: int
    base: nn.Module
    implementation: Implementation
    engine: EngineMaker
    weights: Weights | None
    data: ImageData
    own: Tensor
    node_images: float
    split: SplitConfig
    local: LocalConfig
    scan: ScanConfig
    signature_target: int
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


def shadow_families(config: ShadowConfig, family: str, nodes: int) -> tuple[str, ...]:
    """The families that shadows are drawn from, in turn.

    Raises:
        DbadflError: ``same-family`` of a graph from a file, or no family that N admits.
    """
    if config.topology == "same-family":
        if family not in (*FAMILIES, "exponential", "star", "complete"):
            raise DbadflError(f"shadow_topology='same-family' cannot redraw a graph of {family!r}; use 'mixture'")
        return (family,)
    wanted = [f for f in FAMILIES if config.topology == "mixture" or f != family]
    found = tuple(f for f in wanted if _admits(f, nodes))
    if not found:
        raise DbadflError(f"no shadow family of {', '.join(wanted)} has graphs of N={nodes} nodes")
    return found


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


def simulate_shadows(world: ShadowWorld, config: ShadowConfig, *, seed: int, run_seed: int) -> ShadowPairs:
    """Scan ``config.networks`` shadow networks and collect all pairs of attackers with their true distances.

    Args:
        world: what attackers know.
        config: how many, of which graphs, on whose images.
        seed: of the shadows' graphs, splits, placements, signatures and batches.
        run_seed: of the evaluated run.

    Raises:
        DbadflError: ``seed`` equal to ``run_seed``, and whatever graphs and splits refuse.

    Source: card, section 4 step 5 [inferred].
    """
    if seed == run_seed:
        raise DbadflError(f"shadow seed={seed} equals the seed of the run; shadows would share its graph and data")
    families = shadow_families(config, world.family, world.nodes)
    chosen = [families[k % len(families)] for k in range(config.networks)]
    per_stack = max(1, config.at_once // world.nodes)
    sequences, distances = [], []
    for start in range(0, config.networks, per_stack):
        numbers = range(start, min(start + per_stack, config.networks))
        networks = [_build(world, config, chosen[k], derive(seed, "shadow", k)) for k in numbers]
        features = _scan_together(world, networks, derive(seed, "shadows", start))
        for k, network in enumerate(networks):
            found, (i, j) = pair_sequences(features[:, k])
            sequences.append(found)
            distances.append(network.topology.hops(network.attackers)[i, network.attackers[j]])
    return ShadowPairs(
        torch.cat(sequences),
        torch.cat(distances),
        torch.arange(config.networks).repeat_interleave(len(distances[0])),
        tuple(chosen),
    )


def _build(world: ShadowWorld, config: ShadowConfig, family: str, seed: int) -> _Network:
    options = world.family_options if family == world.family and config.topology == "same-family" else {}
    topology = make_topology(family, world.nodes, seed=derive(seed, "graph") % 2**31, **options)
    attackers = place_attackers(topology, world.attackers, seed=seed)
    pool = torch.arange(len(world.data.train)) if config.data == "all" else _oversampled(world)
    labels = world.data.train_labels.cpu()[pool]
    found = split(
        labels,
        world.nodes,
        kind=world.split.kind,
        alpha=world.split.alpha,
        seed=seed,
        min_samples=world.split.min_samples,
    )
    owned = NodeData(pool[found.index], found.lengths)
    probes, owned = split_probes(owned, attackers, seed=seed, limit=world.scan.probes, hold_out=world.scan.hold_out)
    signatures = make_signatures(
        world.attackers,
        world.data.height,
        world.data.width,
        world.data.classes,
        seed=seed,
        pixels=world.scan.pixels,
        target=world.scan.target,
        shared_target=world.signature_target,
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
    mixing = block_diagonal([make_mixing(n.topology, world.weights) for n in networks])
    data = join([n.data for n in networks])
    stack = Stacked(world.base, mixing.n, implementation=world.implementation).to(world.data.train.device)
    training = Training(
        stack,
        world.engine(mixing, derive(seed, "engine"), data.lengths),
        world.data.train,
        world.data.train_labels,
        data,
        world.local,
        derive(seed, "training"),
        prepare=world.prepare,
    )
    attackers = torch.cat([n.attackers + k * world.nodes for k, n in enumerate(networks)])
    probes = join([n.probes for n in networks])
    signatures = Signatures.stacked([n.signatures for n in networks])
    return Scan(training, attackers, probes, signatures, world.scan.ratio).run(world.scan.rounds)

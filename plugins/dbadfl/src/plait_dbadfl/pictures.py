"""The plots of the report: the network with its attackers, infection over hops and rounds, the signal of the scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from plait.declare.results import Metric, Plot, Table

if TYPE_CHECKING:
    from plait_dbadfl.stages import Stages
    from plait_dbadfl.topologies import Topology

DRAWN = 300
"""Most nodes of a network that is drawn; more would be a blot."""
LEVELS = ((0.0, "infected below 25 %"), (0.25, "25 to 75 %"), (0.75, "above 75 %"))
"""Lower bounds of attack success, and the names of the classes in the picture."""


def pictures(stages: Stages) -> dict[str, Metric | Table | Plot]:
    """All plots that this run has data for."""
    plots: dict[str, Metric | Table | Plot] = {"infection_by_hop": _by_hop(stages)}
    if len(stages.results[-1].history) > 1:
        plots["infection_by_round"] = _by_round(stages)
        plots["accuracy_by_round"] = _accuracy(stages)
    if stages.detection is not None:
        plots["signal"] = _signal(stages)
        plots["predicted"] = _predicted(stages)
    if stages.federation.topology.n <= DRAWN:
        plots["network"] = _network(stages)
    return plots


def _names(stages: Stages) -> list[str]:
    items = stages.runs
    return [*(item.text for item in items[:-1]), f"{items[-1].text} (main)"]


def _by_hop(stages: Stages) -> Plot:
    series = {}
    for name, result in zip(_names(stages), stages.results, strict=True):
        hops = sorted(result.final.asr_by_hop)
        series[name] = (hops, [100 * result.final.asr_by_hop[h] for h in hops])
    return Plot("Infection over hops to the nearest attacker", "hops", "ASR %", series)


def _by_round(stages: Stages) -> Plot:
    history = stages.results[-1].history
    hops = sorted(history[-1][1].asr_by_hop)
    series = {
        f"{h} hop{'s' if h > 1 else ''}": ([r for r, _ in history], [100 * s.asr_by_hop[h] for _, s in history])
        for h in hops
    }
    return Plot("Infection over rounds, main run", "round", "ASR %", series)


def _accuracy(stages: Stages) -> Plot:
    series = {
        name: ([r for r, _ in result.history], [100 * s.ma for _, s in result.history])
        for name, result in zip(_names(stages), stages.results, strict=True)
    }
    return Plot("Main accuracy over rounds", "round", "MA %", series)


def _signal(stages: Stages) -> Plot:
    assert stages.detection is not None
    signal = stages.detection.signal_by_hop()
    return Plot(
        "What the scan shows: signature minus control, last round",
        "hops between attackers",
        "likelihood",
        {"a - b": (list(signal), list(signal.values()))},
        "bar",
    )


def _predicted(stages: Stages) -> Plot:
    detection = stages.detection
    assert detection is not None
    i, j = torch.triu_indices(len(detection.hops), len(detection.hops), 1)
    true, guess = detection.true_hops[i, j], detection.hops[i, j]
    levels = torch.unique(true).tolist()
    mean = [float(guess[true == level].mean()) for level in levels]
    return Plot(
        "Predicted against true distance",
        "true hops",
        "predicted hops",
        {"mean prediction": (levels, mean), "truth": (levels, [float(level) for level in levels])},
    )


def _network(stages: Stages) -> Plot:
    """Nodes at their places, coloured by how far each is infected; attackers apart; edges between them."""
    topology, success = stages.federation.topology, stages.results[-1].scores.success
    places = _places(topology)
    benign = stages.federation.benign
    series: dict[str, tuple[list[float], list[float]]] = {}
    bounds = [low for low, _ in LEVELS] + [2.0]
    for (low, name), high in zip(LEVELS, bounds[1:], strict=True):
        chosen = (benign & (success >= low) & (success < high)).nonzero().flatten().tolist()
        series[name] = ([places[n][0] for n in chosen], [places[n][1] for n in chosen])
    attackers = stages.federation.attackers.tolist()
    series["attackers"] = ([places[n][0] for n in attackers], [places[n][1] for n in attackers])
    senders, receivers = topology.edge_index.tolist()
    pairs = {(min(a, b), max(a, b)) for a, b in zip(senders, receivers, strict=True)}
    links = [(*places[a], *places[b]) for a, b in sorted(pairs)]
    title = f"{topology.name}, {topology.n} nodes: who attacks, and who is infected by the end of the main run"
    return Plot(title, "", "", {k: v for k, v in series.items() if v[0]}, "graph", links=links)


def _places(topology: Topology) -> list[tuple[float, float]]:
    import networkx as nx

    graph = topology.to_networkx().to_undirected()
    if topology.name == "ring":
        order = [0]
        while len(order) < topology.n:
            order.append(next(n for n in graph[order[-1]] if n not in order[-2:]))
        graph = nx.relabel_nodes(graph, {})
        layout = nx.circular_layout(order)
    elif topology.name in ("complete", "exponential"):
        layout = nx.circular_layout(graph)
    else:
        layout = nx.spring_layout(graph, seed=0, iterations=200)
    return [(float(layout[n][0]), float(layout[n][1])) for n in range(topology.n)]

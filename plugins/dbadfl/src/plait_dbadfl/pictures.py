"""The plots of the report: the network with its attackers, infection over hops and rounds, the signal of the scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from plait.declare.results import Metric, Plot, Table

if TYPE_CHECKING:
    from plait_dbadfl.topologies import Topology
    from plait_dbadfl.weave import Weave

DRAWN = 300
"""Most nodes of a network that is drawn; more would be a blot."""
LEVELS = ((0.0, "infected below 25 %"), (0.25, "25 to 75 %"), (0.75, "above 75 %"))
"""Lower bounds of attack success, and the names of the classes in the picture."""


def pictures(weave: Weave) -> dict[str, Metric | Table | Plot]:
    """All plots that this run has data for."""
    found: dict[str, Metric | Table | Plot] = {"infection_by_hop": _by_hop(weave)}
    if len(weave.results[-1].history) > 1:
        found["infection_by_round"] = _by_round(weave)
        found["accuracy_by_round"] = _accuracy(weave)
    if weave.detection is not None:
        found["signal"] = _signal(weave)
        found["predicted"] = _predicted(weave)
    if weave.federation.topology.n <= DRAWN:
        found["network"] = _network(weave)
    return found


def _names(weave: Weave) -> list[str]:
    items = [stage.item for stage in weave.stages if stage.item]
    return [*(item.text for item in items[:-1]), f"{items[-1].text} (main)"]


def _by_hop(weave: Weave) -> Plot:
    series = {}
    for name, result in zip(_names(weave), weave.results, strict=True):
        hops = sorted(result.final.asr_by_hop)
        series[name] = (hops, [100 * result.final.asr_by_hop[h] for h in hops])
    return Plot("Infection over hops to the nearest attacker", "hops", "ASR %", series)


def _by_round(weave: Weave) -> Plot:
    history = weave.results[-1].history
    hops = sorted(history[-1][1].asr_by_hop)
    series = {
        f"{h} hop{'s' if h > 1 else ''}": ([r for r, _ in history], [100 * s.asr_by_hop[h] for _, s in history])
        for h in hops
    }
    return Plot("Infection over rounds, main run", "round", "ASR %", series)


def _accuracy(weave: Weave) -> Plot:
    series = {
        name: ([r for r, _ in result.history], [100 * s.ma for _, s in result.history])
        for name, result in zip(_names(weave), weave.results, strict=True)
    }
    return Plot("Main accuracy over rounds", "round", "MA %", series)


def _signal(weave: Weave) -> Plot:
    assert weave.detection is not None
    signal = weave.detection.signal_by_hop()
    return Plot(
        "What the scan shows: signature minus control, last round",
        "hops between attackers",
        "likelihood",
        {"a - b": (list(signal), list(signal.values()))},
        "bar",
    )


def _predicted(weave: Weave) -> Plot:
    found = weave.detection
    assert found is not None
    i, j = torch.triu_indices(len(found.hops), len(found.hops), 1)
    true, guess = found.true_hops[i, j], found.hops[i, j]
    levels = torch.unique(true).tolist()
    mean = [float(guess[true == level].mean()) for level in levels]
    return Plot(
        "Predicted against true distance",
        "true hops",
        "predicted hops",
        {"mean prediction": (levels, mean), "truth": (levels, [float(level) for level in levels])},
    )


def _network(weave: Weave) -> Plot:
    """Nodes at their places, coloured by how far each is infected; attackers apart; edges between them."""
    topology, success = weave.federation.topology, weave.results[-1].scores.success
    places = _places(topology)
    benign = weave.federation.benign
    series: dict[str, tuple[list[float], list[float]]] = {}
    bounds = [low for low, _ in LEVELS] + [2.0]
    for (low, name), high in zip(LEVELS, bounds[1:], strict=True):
        chosen = (benign & (success >= low) & (success < high)).nonzero().flatten().tolist()
        series[name] = ([places[n][0] for n in chosen], [places[n][1] for n in chosen])
    attackers = weave.federation.attackers.tolist()
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
        found = nx.circular_layout(order)
    elif topology.name in ("complete", "exponential"):
        found = nx.circular_layout(graph)
    else:
        found = nx.spring_layout(graph, seed=0, iterations=200)
    return [(float(found[n][0]), float(found[n][1])) for n in range(topology.n)]

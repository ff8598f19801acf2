"""Cost of glt's parts on a graph of Cora's size, hidden 512, measured side by side in one process.

The graph is Cora where PLAIT_PLANETOID names the folder of the published files, else the generated ``cora-like`` of
equal size. Sides take turns, CPU time of one thread; figures are medians over paired stretches.

* one training epoch with soft masks on edges and weights, over PyG's own GCN epoch (goal 1.3): PyG as it is commonly
  written (dense features, cached normalisation), and in its fastest form here (CSR features, CSR adjacency);
* the whole step of the method (Wasserstein loss and delta adversary) and of UGS, over the same, and over UGS's dense
  form: an n x n mask, normalised anew in every step;
* the sampled auxiliary loss with its backward pass, over an epoch of the network itself (goal 1.0), exact and blurred;
* inference of an exported ticket against the share of edges kept, and the limit: what is left without any edge;
* peak memory of a masked training step on a graph of PubMed's size, for growing numbers of edges.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from common import machine
from plait_glt.auxiliary import auxiliary_loss
from plait_glt.config import GLTConfig
from plait_glt.graphs import make_graph
from plait_glt.masked import MaskedGNN
from plait_glt.models import GCN
from plait_glt.pruned import PrunedGNN
from plait_glt.pyg import GCNConv
from plait_glt.tasks import NodeTask
from plait_glt.training import MaskStep

HIDDEN = 512
PUBMED = (19_717, 44_324, 500, 3)
"""Nodes, undirected edges, features, classes."""


class PygGCN(nn.Module):
    """Two of PyG's graph convolutions, without anything of ours."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first = GCNConv(features, HIDDEN, bias=False, cached=True)
        self.last = GCNConv(HIDDEN, classes, bias=False, cached=True)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits [n, C]."""
        out: Tensor = self.last(dropout(self.first(x, edges).relu(), 0.5, self.training), edges)
        return out


class DenseUGS(nn.Module):
    """UGS's form of a masked GCN: the adjacency and its mask are n x n."""

    def __init__(self, features: int, classes: int, adjacency: Tensor) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(features, HIDDEN) / 38, torch.randn(HIDDEN, classes) / 23])
        self.masks = nn.ParameterList([torch.ones_like(weight) for weight in self.weights])
        self.edge_mask = nn.Parameter(adjacency.clone())
        self.adjacency, self.loops = adjacency, torch.eye(len(adjacency))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits [n, C]."""
        masked = self.adjacency * self.edge_mask + self.loops
        scale = masked.sum(1).rsqrt()
        p = scale.unsqueeze(1) * masked * scale
        first, last = (weight * mask for weight, mask in zip(self.weights, self.masks, strict=True))
        out: Tensor = p @ (dropout((p @ (x @ first)).relu(), 0.5, self.training) @ last)
        return out


def load() -> tuple[str, Any, Tensor]:
    """Name, graph and training nodes."""
    from plait_glt.data_options import CoraLikeOptions, PlanetoidOptions

    if folder := os.environ.get("PLAIT_PLANETOID"):
        from plait_glt import planetoid

        data = planetoid.load(PlanetoidOptions(path=folder), 0)
        return "Cora", data.train.graph, data.train.fields["node"]  # type: ignore[attr-defined]
    from plait_glt import cora_like

    data = cora_like.load(CoraLikeOptions(), 0)
    return "cora-like", data.train.graph, data.train.fields["node"]  # type: ignore[attr-defined]


def epoch(model: nn.Module, x: Tensor, edges: Tensor, rows: Tensor, target: Tensor) -> Callable[[], None]:
    """One call is one training epoch: forward, backward, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.008)

    def once() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x, edges)[rows], target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return once


def step(variant: str, graph: Any, rows: Tensor) -> Callable[[], None]:
    """One call is one whole step of the mask phase of a method, after its warm-up."""
    config = GLTConfig.variant(variant)
    gnn = MaskedGNN(
        GCN(graph.x.shape[1], int(graph.y.max()) + 1, HIDDEN), graph.edge_index, graph.num_nodes, tied=False
    )
    others = torch.arange(graph.num_nodes)[~torch.isin(torch.arange(graph.num_nodes), rows)]
    task = NodeTask(graph.x, graph.edge_index, graph.y, rows, others[::2], others[1::2])
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in gnn.weights().items()}
    edges = torch.ones_like(gnn.edge_mask, dtype=torch.bool)
    phase = MaskStep(gnn, task, edges, kept, config, torch.Generator().manual_seed(0))
    return lambda: phase(with_aux=config.lam > 0)


def turns(sides: dict[str, Callable[[], None]], stretches: int, repeats: int = 3) -> dict[str, list[float]]:
    """Milliseconds of a call of each side, a value per stretch, in turns; the first stretch warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(stretches + 1):
        for name, side in sides.items() if turn % 2 else reversed(sides.items()):
            start = time.process_time()
            for _ in range(repeats):
                side()
            if turn:
                seconds[name].append((time.process_time() - start) / repeats * 1e3)
    return seconds


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    """Median of the paired ratios."""
    return round(statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True)), 3)


def training(stretches: int) -> dict[str, Any]:
    """Epochs and the auxiliary loss."""
    name, graph, rows = load()
    x, edges, n = graph.x, graph.edge_index, graph.num_nodes
    features, classes, target = x.shape[1], int(graph.y.max()) + 1, graph.y[rows]
    torch.manual_seed(0)
    masked = MaskedGNN(GCN(features, classes, HIDDEN), edges, n, tied=False)
    # PyG's fast path takes the transposed adjacency as CSR; the graph is undirected
    adjacency = torch.sparse_coo_tensor(edges, torch.ones(edges.shape[1]), (n, n)).to_sparse_csr()
    sides = {
        "masked": epoch(masked, x, edges, rows, target),
        "plain": epoch(GCN(features, classes, HIDDEN), x, edges, rows, target),
        "pyg": epoch(PygGCN(features, classes), x.to_dense(), edges, rows, target),
        "pyg_csr": epoch(PygGCN(features, classes), x, adjacency, rows, target),
        "ugs_dense": epoch(DenseUGS(features, classes, adjacency.to_dense()), x.to_dense(), edges, rows, target),
        "step": step("glt", graph, rows),
        "step_ugs": step("ugs", graph, rows),
    }
    for _ in range(30):  # outputs as in the middle of a mask phase, not the first ones, which are all alike
        sides["masked"]()
    with torch.no_grad():
        z = masked(x, edges).softmax(1)
    z.requires_grad_()
    generator = torch.Generator().manual_seed(0)

    def auxiliary(eps: float | None = None) -> None:
        auxiliary_loss(z, generator=generator, eps=eps).loss.backward()  # type: ignore[no-untyped-call]

    seconds = turns({**sides, "auxiliary": auxiliary, "auxiliary_blurred": lambda: auxiliary(0.05)}, stretches)
    return {
        "graph": name,
        "hidden": HIDDEN,
        "ms": {side: round(statistics.median(values), 2) for side, values in seconds.items()},
        "masked_over_pyg": ratio(seconds, "masked", "pyg"),
        "masked_over_pyg_csr": ratio(seconds, "masked", "pyg_csr"),
        "masked_over_plain": ratio(seconds, "masked", "plain"),
        "step_over_pyg": ratio(seconds, "step", "pyg"),
        "step_ugs_over_pyg": ratio(seconds, "step_ugs", "pyg"),
        "step_ugs_over_dense": ratio(seconds, "step_ugs", "ugs_dense"),
        "auxiliary_over_blurred": ratio(seconds, "auxiliary", "auxiliary_blurred"),
        "auxiliary_over_masked": ratio(seconds, "auxiliary", "masked"),
        "auxiliary_over_plain": ratio(seconds, "auxiliary", "plain"),
        "goals": {"masked_over_pyg": 1.3, "auxiliary_over_masked": 1.0},
    }


def inference(stretches: int) -> dict[str, Any]:
    """Speed of the exported ticket by the share of edges kept, with all weights."""
    name, graph, _ = load()
    n, edges = graph.num_nodes, graph.edge_index
    gnn = MaskedGNN(GCN(graph.x.shape[1], int(graph.y.max()) + 1, HIDDEN).eval(), edges, n)
    order = torch.randperm(gnn.edge_mask.numel(), generator=torch.Generator().manual_seed(0))
    sides: dict[str, Callable[[], None]] = {}
    for percent in (100, 75, 50, 25, 10, 0):
        kept = torch.zeros_like(gnn.edge_mask, dtype=torch.bool)
        kept[order[: round(percent / 100 * len(order))]] = True
        ticket = PrunedGNN(gnn.network, edges[:, kept[gnn.edge_id]].contiguous(), edges.shape[1]).eval()

        def once(ticket: PrunedGNN = ticket) -> None:
            with torch.no_grad():
                ticket(graph.x, edges)

        sides[f"{percent} %"] = once
    seconds = turns(sides, stretches, repeats=5)
    return {
        "graph": name,
        "ms_by_edges_kept": {side: round(statistics.median(values), 2) for side, values in seconds.items()},
        "speedup_by_edges_kept": {side: ratio(seconds, "100 %", side) for side in seconds},
        "limit": ratio(seconds, "100 %", "0 %"),
    }


def memory_of(times: int) -> float:
    """Peak MiB above the start for masked training steps with ``times`` PubMed's edges, in this process."""
    n, edges, features, classes = PUBMED
    masked_steps(300, 700, features, classes)()  # what is loaded at first use is not the step's
    steps = masked_steps(n, times * edges, features, classes)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what made the graph is kept, and used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, without what made the graph
    started = peak()
    steps()
    return peak() - started


def masked_steps(nodes: int, edges: int, features: int, classes: int) -> Callable[[], None]:
    """Three steps with masks and the auxiliary loss on a random graph."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(nodes, (2, edges), generator=generator)
    labels = torch.randint(classes, (nodes,), generator=generator)
    graph = make_graph(torch.rand(nodes, features, generator=generator), pairs, labels)
    rows = torch.arange(60)

    def steps() -> None:
        gnn = MaskedGNN(GCN(features, classes, 64), graph.edge_index, nodes)
        once = epoch(gnn, graph.x, graph.edge_index, rows, graph.y[rows])
        for _ in range(3):
            once()
            z = gnn(graph.x, graph.edge_index).softmax(1)
            auxiliary_loss(z, generator=generator).loss.backward()  # type: ignore[no-untyped-call]

    return steps


def peak() -> float:
    """Largest resident memory of this process so far, MiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def memory() -> dict[str, Any]:
    """Each size in a process of its own, as a peak never falls."""
    figures = {}
    for times in (1, 2, 4, 8):
        command = [sys.executable, __file__, "--memory-of", str(times)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures[times] = round(float(done.stdout), 1)
    n, edges, _, _ = PUBMED
    return {
        "nodes": n,
        "hidden": 64,
        "mib_by_edges": {times * edges: value for times, value in figures.items()},
        "bytes_per_further_edge": round((figures[8] - figures[1]) * 2**20 / (7 * edges)),
        "mib_of_one_dense_mask": round(n * n * 4 / 2**20),
    }


def main() -> None:
    """Print everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stretches", type=int, default=15)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.sparse.check_sparse_tensor_invariants.disable()
    if arguments.memory_of:
        print(memory_of(arguments.memory_of))
        return
    figures = {
        "training": training(arguments.stretches),
        "inference": inference(arguments.stretches),
        "memory": memory(),
    }
    print(json.dumps({"machine": machine(), "glt": figures}, indent=2))


if __name__ == "__main__":
    main()

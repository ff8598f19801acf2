"""POT's solvers against the one that plait had before, on glt's auxiliary loss: seconds, peak memory, and errors.

The graph is Cora where PLAIT_PLANETOID names the folder of the published files, else the generated ``cora-like`` of
equal size; the points are the outputs of a GCN after 40 epochs. One thread. A call is the loss with its backward pass.
Seconds are medians of CPU time, sides taking turns; the peak is that of a process of its own, above its start. Errors
are relative, against a solution to 1e-9 in float64. Every side has the tolerance 1e-3 and at most 50 sweeps.

``before`` is the core's old solver: all classes as one padded batch, sweeps on a stabilised kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ot
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from common import machine
from plait_glt import auxiliary
from plait_glt.models.gcn import GCN
from plait_glt.transport import Sinkhorn, distances

SWEEPS, TOLERANCE, EVERY = 50, 1e-3, 5
LARGE = 6_000
"""Nodes of the graph whose class is compared in blocks: 2,000 against 4,000."""


# ---- the solver before ----------------------------------------------------------------------------------------------
def lse_update(log_weight: Tensor, exponent: Tensor, dim: int) -> Tensor:
    """``log weight - LSE``, and -inf where the weight is 0."""
    return torch.where(log_weight.isinf(), log_weight, log_weight - exponent.logsumexp(dim))


def lse_sweep(scaled: Tensor, log_a: Tensor, log_b: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """One sweep by logsumexp."""
    f = lse_update(log_a, g.unsqueeze(-2) - scaled, -1)
    return f, lse_update(log_b, f.unsqueeze(-1) - scaled, -2)


@torch.no_grad()
def plan_before(
    cost: Tensor, a: Tensor, b: Tensor, eps: float, sweeps: int = SWEEPS, tolerance: float = TOLERANCE
) -> Tensor:
    """Plans [*, n, m] of a padded batch: scalings on a kernel that takes them up before they grow."""
    scaled, log_a, log_b = cost / eps, a.log(), b.log()
    off_a, off_b = (a == 0).to(a.dtype), (b == 0).to(b.dtype)

    def kernel_of(f: Tensor, g: Tensor) -> Tensor:
        return (f.unsqueeze(-1) + g.unsqueeze(-2)).sub_(scaled).exp_()

    f, g = lse_sweep(scaled, log_a, log_b, torch.where(b > 0, 0.0, log_b))
    kernel, u, v, done = kernel_of(f, g), 1 - off_a, 1 - off_b, 1
    error = (kernel.sum(-1) - a).abs().sum(-1)
    while done < sweeps and not bool((error <= tolerance).all()):
        count, new_u, new_v = min(EVERY, sweeps - done), u, v
        for _ in range(count):
            new_u = a / ((kernel @ new_v.unsqueeze(-1)).squeeze(-1) + off_a)
            new_v = b / ((new_u.unsqueeze(-2) @ kernel).squeeze(-2) + off_b)
        done += count
        log_u, log_v = new_u.log(), new_v.log()
        size = max(float(part.masked_fill(off > 0, 0).abs().amax()) for part, off in ((log_u, off_a), (log_v, off_b)))
        if size <= 20:
            u, v = new_u, new_v
        else:
            if size <= 40:
                f, g = f + log_u, g + log_v
            else:  # underflow: these sweeps again, by logsumexp
                f, g = f + u.log(), g + v.log()
                for _ in range(count):
                    f, g = lse_sweep(scaled, log_a, log_b, g)
            kernel, u, v = kernel_of(f, g), 1 - off_a, 1 - off_b
        error = (u * (kernel @ v.unsqueeze(-1)).squeeze(-1) - a).abs().sum(-1)
    return u.unsqueeze(-1) * kernel * v.unsqueeze(-2)


def blocked_before(x: Tensor, y: Tensor, eps: float, entries: int) -> Tensor:
    """Cost between uniform point sets, by logsumexp in blocks of rows."""
    log_a, log_b = (p.new_full((len(p),), 1 / len(p)).log() for p in (x, y))
    step = max(1, entries // len(y))
    rows = [slice(i, i + step) for i in range(0, len(x), step)]
    with torch.no_grad():
        f, g, done = torch.zeros_like(log_a), torch.zeros_like(log_b), 0
        while True:
            new_f, columns = torch.empty_like(f), torch.full_like(g, -torch.inf)
            for block in rows:
                scaled = distances(x[block], y) / -eps
                new_f[block] = log_a[block] - (scaled + g / eps).logsumexp(1)
                columns = torch.logaddexp(columns, (scaled + new_f[block].unsqueeze(1)).logsumexp(0))
            if done and (done % EVERY == 1 or done == SWEEPS):
                error = (log_a.exp() * (f / eps - new_f).expm1()).abs().sum()
                if bool(error <= TOLERANCE) or done == SWEEPS:
                    break
            f, g, done = eps * new_f, eps * (log_b - columns), done + 1

    def part(points: Tensor, potentials: Tensor) -> Tensor:
        cost = distances(points, y)
        with torch.no_grad():
            plan = ((potentials.unsqueeze(1) + g - cost) / eps).exp()
        return (plan * cost).sum()

    parts = [checkpoint(part, x[block], f[block], use_reentrant=False, preserve_rng_state=False) for block in rows]
    return torch.stack(parts).sum()


# ---- sides: points -> the loss --------------------------------------------------------------------------------------
Draw = tuple[Tensor, Tensor, Tensor, Tensor]
Side = Callable[[Tensor], Tensor]


def draw(z: Tensor, samples: int) -> Draw:
    """Rows of every class and of the others, with their weights."""
    member = z.argmax(1, keepdim=True) == torch.arange(z.shape[1])
    sizes = member.sum(0)
    kept = member[:, (sizes > 0) & (sizes < len(z))]
    inside, a, outside, b = auxiliary.draw_rows(kept, samples or len(z), torch.Generator().manual_seed(0))
    return inside, a.to(z), outside, b.to(z)


def before(rows: Draw, eps: float, each: bool, z: Tensor, **options: Any) -> Tensor:
    """The old solver, all classes as one problem or one after the other."""
    inside, a, outside, b = rows
    total = z.new_zeros(())
    for k in range(len(a)) if each else (slice(None),):
        left, right = (a[k] > 0, b[k] > 0) if each else (..., ...)
        cost = distances(z[inside[k][left]], z[outside[k][right]])
        total = total + (plan_before(cost.detach(), a[k][left], b[k][right], eps, **options) * cost).sum()
    return total


def batched(rows: Draw, eps: float, method: str, z: Tensor) -> Tensor:
    """`ot.solve_batch`."""
    inside, a, outside, b = rows
    options = {"max_iter": SWEEPS, "tol": TOLERANCE / a.shape[1] ** 0.5, "method": method, "grad": "envelope"}
    solution = ot.solve_batch(distances(z[inside], z[outside]), eps, a, b, **options)
    total: Tensor = solution.value_linear.sum()
    return total


def solve(rows: Draw, eps: float, z: Tensor) -> Tensor:
    """`ot.solve`, one class after the other."""
    inside, a, outside, b = rows
    total = z.new_zeros(())
    for k in range(len(a)):
        cost = distances(z[inside[k][a[k] > 0]], z[outside[k][b[k] > 0]])
        tolerance = TOLERANCE / cost.shape[1] ** 0.5
        plan = ot.solve(cost.detach(), reg=eps, max_iter=SWEEPS, tol=tolerance, grad="detach").plan
        total = total + (plan * cost).sum()
    return total


def glt(rows: Draw, eps: float, entries: int, z: Tensor) -> Tensor:
    """As glt does it: `ot.sinkhorn` on the kernel or by logsumexp, one class after the other, or POT's lazy form."""
    inside, a, outside, b = rows
    sinkhorn = Sinkhorn(eps, SWEEPS, TOLERANCE, entries)
    pairs = [(z[inside[k][a[k] > 0]], z[outside[k][b[k] > 0]]) for k in range(len(a))]
    return torch.stack([sinkhorn.between(x, y).cost for x, y in pairs]).sum()


def before_in_blocks(rows: Draw, eps: float, entries: int, z: Tensor) -> Tensor:
    """The old solver in blocks."""
    inside, a, outside, b = rows
    pairs = [(z[inside[k][a[k] > 0]], z[outside[k][b[k] > 0]]) for k in range(len(a))]
    return torch.stack([blocked_before(x, y, eps, entries) for x, y in pairs]).sum()


def cases(z: Tensor) -> dict[str, dict[str, Side]]:
    """case -> side -> what it does."""
    sampled, whole, dense = draw(z, 256), draw(z, 0), 1 << 24
    by_case: dict[str, dict[str, Side]] = {}
    for eps in (0.05, 0.01):
        by_case[f"7 classes of 256 against 256, eps {eps}"] = {
            "before": partial(before, sampled, eps, False),
            "glt, by POT": partial(glt, sampled, eps, dense),
            "ot.solve": partial(solve, sampled, eps),
            "ot.solve_batch log": partial(batched, sampled, eps, "log_sinkhorn"),
            **({"ot.solve_batch kernel": partial(batched, sampled, eps, "sinkhorn")} if eps > 0.02 else {}),
        }
    by_case["all nodes, eps 0.05"] = {
        "before": partial(before, whole, 0.05, True),
        "glt, by POT": partial(glt, whole, 0.05, dense),
        "ot.solve": partial(solve, whole, 0.05),
    }
    by_case["all nodes in blocks of 65,536, eps 0.05"] = {
        "before": partial(before_in_blocks, whole, 0.05, 1 << 16),
        "glt, by POT": partial(glt, whole, 0.05, 1 << 16),
    }
    return by_case


def large() -> tuple[Tensor, dict[str, Side]]:
    """Points of one class among `LARGE` nodes, in blocks of 2^20."""
    z = torch.randn(LARGE, 7, generator=torch.Generator().manual_seed(0)).mul(1.5).softmax(1)
    third = LARGE // 3
    rows = torch.arange(LARGE)
    ones = torch.full((1, third), 1 / third), torch.full((1, LARGE - third), 1 / (LARGE - third))
    draws = rows[None, :third], ones[0], rows[None, third:], ones[1]
    entries = 1 << 20
    return z, {
        "before": partial(before_in_blocks, draws, 0.05, entries),
        "glt, by POT": partial(glt, draws, 0.05, entries),
    }


# ---- measuring ------------------------------------------------------------------------------------------------------
def points() -> tuple[str, Tensor]:
    """The graph's name and the outputs [n, C] of a GCN after 40 epochs on it."""
    from plait_glt.data_options import CoraLikeOptions, PlanetoidOptions

    if folder := os.environ.get("PLAIT_PLANETOID"):
        from plait_glt import planetoid

        name, data = "Cora", planetoid.load(PlanetoidOptions(path=folder), 0)
    else:
        from plait_glt import cora_like

        name, data = "cora-like", cora_like.load(CoraLikeOptions(), 0)
    graph, nodes = data.train.graph, data.train.fields["node"]  # type: ignore[attr-defined]
    torch.manual_seed(0)
    network = GCN(graph.x.shape[1], int(graph.y.max()) + 1, 64)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(network(graph.x, graph.edge_index)[nodes], graph.y[nodes]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return name, network.eval()(graph.x, graph.edge_index).softmax(1)


def call(side: Side, z: Tensor) -> tuple[float, float, Tensor]:
    """CPU seconds, the loss and its gradient."""
    leaf = z.clone().requires_grad_()
    start = time.process_time()
    loss = side(leaf)
    loss.backward()  # type: ignore[no-untyped-call]
    taken = time.process_time() - start
    assert leaf.grad is not None
    return taken, float(loss.detach()), leaf.grad


def peak() -> float:
    """Largest resident memory of this process so far, MiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def alone(case: str, side: str, file: str) -> None:
    """Print seconds and peak MiB of one call in this process, which has done nothing else."""
    z, sides = large()
    if case != "large":
        z = torch.load(file, weights_only=True)
        sides = cases(z)[case]
    Path("/proc/self/clear_refs").write_text("5")
    start = peak()
    seconds = call(sides[side], z)[0]
    print(json.dumps({"seconds": seconds, "mib": peak() - start}))


def apart(case: str, side: str, file: str = "") -> dict[str, float]:
    """`alone` in a process of its own, as a peak never falls."""
    command = [sys.executable, __file__, "--alone", case, side, file]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def main() -> None:
    """Print the table, then the machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.alone:
        alone(*arguments.alone)
        return
    name, z = points()
    print(f"{name}, {len(z):,} nodes\n")
    print(f"{'':26}{'ms':>9}{'/ before':>10}{'peak MiB':>10}{'loss error':>12}{'gradient error':>16}")
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/points.pt"
        torch.save(z, file)
        for case, sides in cases(z).items():
            print(case)
            for side, row in in_turns(case, sides, z, arguments.turns).items():
                mib = apart(case, side, file)["mib"]
                line = f"{row['ms']:9.1f}{row['ratio']:10.2f}{mib:10.0f}{row['loss']:12.1e}{row['gradient']:16.1e}"
                print(f"  {side:24}{line}", flush=True)
    print(f"one class of {LARGE // 3:,} against {LARGE - LARGE // 3:,} in blocks of 2^20, eps 0.05")
    measured = {side: [apart("large", side) for _ in range(3)] for side in large()[1]}
    seconds = {side: statistics.median(row["seconds"] for row in rows) for side, rows in measured.items()}
    for side, rows in measured.items():
        ratio = seconds[side] / seconds["before"]
        print(f"  {side:24}{seconds[side] * 1e3:9.0f}{ratio:10.2f}{max(row['mib'] for row in rows):10.0f}")
    print(json.dumps({"machine": machine(), "POT": ot.__version__}, indent=2))


def in_turns(case: str, sides: dict[str, Side], z: Tensor, turns: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each side, its ratio to ``before``, and its errors."""
    rows = draw(z, 256 if "256" in case else 0)
    wide = (rows[0], rows[1].double(), rows[2], rows[3].double())
    eps = float(case.rpartition(" ")[2])
    _, loss, slope = call(partial(before, wide, eps, True, sweeps=20_000, tolerance=1e-9), z.double())
    times: dict[str, list[float]] = {side: [] for side in sides}
    ends: dict[str, dict[str, float]] = {}
    for turn in range(1 + (3 if "blocks" in case else turns)):  # the first one warms up
        for side, act in sides.items() if turn % 2 else reversed(sides.items()):
            taken, value, gradient = call(act, z)
            if turn:
                times[side].append(taken)
            off = (gradient - slope).norm() / slope.norm()
            ends[side] = {"loss": abs(value / loss - 1), "gradient": float(off)}
    return {
        side: {
            "ms": statistics.median(times[side]) * 1e3,
            "ratio": statistics.median(a / b for a, b in zip(times[side], times["before"], strict=True)),
            **ends[side],
        }
        for side in sides
    }


if __name__ == "__main__":
    main()

"""Cost of many participants at once: against a Python loop, against Flower's simulation, and as N grows.

``python benchmarks/dbadfl.py`` measures everything and prints JSON; parts can be named:
``loop kinds flower scale large``.

loop: one round (5 local steps of 16 on the digits perceptron, N = 100, one exchange by W) as N ordinary modules with N
optimizers in a Python loop, and as one stack; turns in one process, CPU time of one thread, median of paired ratios.
kinds: forward and backward of N networks as a loop, by vmap, by grouped products, and which one the rule takes.
flower: the same round as federated averaging in Flower's simulation (Ray) and in ours, wall time, ours before and after
Flower's in the same command. Flower lives in an environment of its own: set FLOWER_PYTHON to its interpreter, made with
``pip install "plait-dbadfl[benchmark]"``; without it this part is skipped, with the reason.
scale: seconds per round and peak memory of a process, N from 100 to 10,000 on rings and on small worlds of degree 4
and 16, each in a process of its own; ``--plot=FILE`` draws them.
large: whole runs of plait with N = 1,000 and N = 10,000 nodes.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from common import machine
from plait.data import Data, DataInfo, TensorSplit
from plait_dbadfl.federation import Federation
from plait_dbadfl.options import FederationOptions, SGDOptions
from plait_dbadfl.reference import ImageData, digits, digits_mlp
from plait_dbadfl.stacking import Stacked, usual_implementation
from plait_dbadfl.topologies import Topology, make_topology

HERE = Path(__file__).parent
NODES, STEPS, BATCH, LR = 100, 5, 16, 0.2
SIZES = (100, 300, 1000, 3000, 10_000)
GRAPHS = {"ring": ("ring", 2), "small world, degree 4": ("watts-strogatz", 4), "degree 16": ("watts-strogatz", 16)}
FLOWER_ROUNDS = 5


def many(images: int, seed: int = 0) -> ImageData:
    """Digits drawn again with a little noise until there are ``images`` to train; the 500 test digits stay."""
    plain = digits(0)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(plain.train), (images,), generator=generator)
    noise = 0.05 * torch.randn(images, 1, 8, 8, generator=generator)
    train = (plain.train[rows] + noise).clamp(0, 1)
    return ImageData(train, plain.train_labels[rows], plain.test, plain.test_labels, plain.classes)


def many_digits(images: int = 40_000, seed: int = 0) -> Data:
    """`many` for a run of plait; its import path is ``dbadfl:many_digits``."""
    data = many(images)
    train = TensorSplit({"input": data.train, "label": data.train_labels})
    nothing = TensorSplit({"input": data.test[:0], "label": data.test_labels[:0]})
    info = DataInfo("classification", (1, 8, 8), 10, 0, frozenset({"input", "label", "index"}))
    return Data(info, train, nothing, TensorSplit({"input": data.test, "label": data.test_labels}))


def federation(nodes: int, graph: str, degree: int, **options: Any) -> Federation:
    """N nodes with four images each or more, iid."""
    data = digits(0) if nodes <= NODES else many(4 * nodes)
    topology = make_topology(graph, nodes, seed=1, k=max(2, degree))
    return evenly(data, topology, **options)


def evenly(data: ImageData, topology: Topology, **options: Any) -> Federation:
    """A federation whose images are dealt out, unattacked unless said otherwise."""
    given = FederationOptions(**{"arm": "none", "split": "iid", "min_samples": 1, "local_steps": STEPS} | options)
    sgd = SGDOptions(batch=BATCH, lr=LR)
    return Federation(digits_mlp(0), data, topology, given, sgd=sgd, implementation="grouped")


# ---- against a Python loop ---------------------------------------------------------------------------------------
def python_loop(fed: Federation) -> Callable[[], None]:
    """One round as everybody writes it first: a list of modules, a list of optimizers, a loop over both."""
    nodes, rows = fed.topology.n, [fed.owned.index[i, :n] for i, n in enumerate(fed.owned.lengths.tolist())]
    networks = [digits_mlp(0) for _ in range(nodes)]
    optimizers = [torch.optim.SGD(network.parameters(), lr=LR) for network in networks]
    weights, generator = fed.mixing.dense().float(), torch.Generator().manual_seed(0)
    images, labels = fed.data.train, fed.data.train_labels
    neighbours = [[i, *fed.topology.neighbours(i).tolist()] for i in range(nodes)]

    def step_all() -> None:
        for mine, network, optimizer in zip(rows, networks, optimizers, strict=True):
            for _ in range(STEPS):
                picked = mine[torch.randint(len(mine), (BATCH,), generator=generator)]
                optimizer.zero_grad()
                functional.cross_entropy(network(images[picked]), labels[picked]).backward()
                optimizer.step()
        with torch.no_grad():
            before = [nn.utils.parameters_to_vector(network.parameters()) for network in networks]
            for i, network in enumerate(networks):
                mixed = sum((weights[i, j] * before[j] for j in neighbours[i]), torch.zeros_like(before[i]))
                nn.utils.vector_to_parameters(mixed, network.parameters())

    return step_all


def against_loop(turns: int = 9) -> dict[str, Any]:
    """CPU seconds of a round of each, and the median of paired ratios."""
    fed = federation(NODES, "ring", 2)
    training = fed.training()
    sides = {"loop": python_loop(fed), "stacked": training.run_round}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name in sides if turn % 2 else reversed(sides):
            start = time.process_time()
            sides[name]()
            if turn:  # the first turn warms up
                times[name].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(times["loop"], times["stacked"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "nodes": NODES,
        "loop_s": statistics.median(times["loop"]),
        "stacked_s": statistics.median(times["stacked"]),
        "ratio": statistics.median(ratios),
        "ratio_q1": quartiles[0],
        "ratio_q3": quartiles[2],
        "implementation": training.stack.implementation,
    }


# ---- the implementations -----------------------------------------------------------------------------------------
def small_cnn(size: int) -> nn.Module:
    """Two 5x5 (3x3 on small images) convolutions with pooling and a linear layer."""
    kernel = 3 if size < 16 else 5
    left = size // 4
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel, padding=kernel // 2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, kernel, padding=kernel // 2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * left * left, 10),
    )  # fmt: skip


def implementations(repeats: int = 7) -> list[dict[str, Any]]:
    """CPU seconds of one forward and backward pass of N networks, each implementation in turn; medians."""
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    kinds = (
        ("mlp 8x8", digits_mlp(0), 8), ("mlp 28x28", mlp, 28),
        ("cnn 8x8", small_cnn(8), 8), ("cnn 28x28", small_cnn(28), 28),
    )  # fmt: skip
    figures = []
    for name, base, size in kinds:
        for nodes, batch in ((20, 8), (100, 8), (20, 32)):
            images, labels = torch.rand(nodes, batch, 1, size, size), torch.randint(10, (nodes, batch))
            stacks = {how: Stacked(base, nodes, implementation=how) for how in ("loop", "vmap", "grouped")}
            times: dict[str, list[float]] = {how: [] for how in stacks}
            for turn in range(repeats + 1):
                for how, stack in stacks.items():
                    start = time.process_time()
                    functional.cross_entropy(stack(images).flatten(0, 1), labels.flatten()).backward()
                    if turn:
                        times[how].append(time.process_time() - start)
            seconds = {how: statistics.median(values) for how, values in times.items()}
            rule = usual_implementation(base, batch * size * size)
            figures.append({"network": name, "nodes": nodes, "batch": batch, **seconds, "rule": rule})
    return figures


# ---- against Flower ----------------------------------------------------------------------------------------------
FLOWER = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from torch.nn import functional

NODES, STEPS, BATCH, LR, ROUNDS, FILE = (json.loads(v) for v in sys.argv[1:7])
torch.set_num_threads(1)
LOADED = {}


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def arrays(net):
    return [p.detach().numpy().copy() for p in net.parameters()]


class Client(NumPyClient):
    def __init__(self, number):
        self.number = number

    def fit(self, parameters, config):
        torch.set_num_threads(1)
        if not LOADED:
            from sklearn.datasets import load_digits
            found = load_digits()
            LOADED["x"] = torch.from_numpy(found.images).float().div(16).unsqueeze(1)
            LOADED["y"] = torch.from_numpy(found.target).long()
        net = network()
        with torch.no_grad():
            for p, new in zip(net.parameters(), parameters):
                p.copy_(torch.from_numpy(new))
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        mine = torch.arange(self.number, 1297, NODES)
        for _ in range(STEPS):
            rows = mine[torch.randint(len(mine), (BATCH,))]
            optimizer.zero_grad()
            functional.cross_entropy(net(LOADED["x"][rows]), LOADED["y"][rows]).backward()
            optimizer.step()
        return arrays(net), 1, {}


class Timed(FedAvg):
    ends = []

    def aggregate_fit(self, *given):
        made = super().aggregate_fit(*given)
        self.ends.append(time.perf_counter())
        with open(FILE, "w") as file:
            json.dump(self.ends, file)
        return made


def client(context):
    return Client(int(context.node_config["partition-id"])).to_client()


def server(context):
    strategy = Timed(
        fraction_fit=1.0, fraction_evaluate=0.0, min_available_clients=NODES, min_fit_clients=NODES,
        initial_parameters=ndarrays_to_parameters(arrays(network())),
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=ROUNDS))


run_simulation(
    server_app=ServerApp(server_fn=server), client_app=ClientApp(client_fn=client), num_supernodes=NODES,
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
)
"""


def flower_python() -> str | None:
    """The interpreter that has Flower: FLOWER_PYTHON, or this one."""
    for candidate in (os.environ.get("FLOWER_PYTHON"), sys.executable):
        if candidate and subprocess.run([candidate, "-c", "import flwr, ray"], capture_output=True).returncode == 0:
            return candidate
    return None


def federated_rounds(rounds: int) -> list[float]:
    """Wall seconds of rounds of our federated averaging: complete graph, W = 1/N."""
    data, topology = digits(0), make_topology("complete", NODES)
    training = evenly(data, topology, engine="fedavg", weights="average").training()
    training.run_round()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        training.run_round()
        times.append(time.perf_counter() - start)
    return times


def against_flower() -> dict[str, Any]:
    """Wall seconds of a round of each; ours before and after Flower's."""
    python = flower_python()
    if python is None:
        return {"skipped": "Flower is not installed: set FLOWER_PYTHON to an environment with plait-dbadfl[benchmark]"}
    ours = federated_rounds(20)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ends.json"
        values = [json.dumps(v) for v in (NODES, STEPS, BATCH, LR, FLOWER_ROUNDS, str(file))]
        script = Path(folder) / "flower.py"
        script.write_text(FLOWER)
        done = subprocess.run([python, script, *values], capture_output=True, text=True, timeout=900, cwd=folder)
        if not file.exists():
            return {"skipped": f"Flower's simulation failed: {done.stderr.strip().splitlines()[-1:]}"}
        ends = json.loads(file.read_text())
    ours += federated_rounds(20)
    theirs = [b - a for a, b in pairwise(ends)]
    return {
        "nodes": NODES,
        "flower_s": statistics.median(theirs),
        "flower_rounds": theirs,
        "ours_s": statistics.median(ours),
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "load": os.getloadavg()[0],
    }


# ---- as N grows --------------------------------------------------------------------------------------------------
def one_size(nodes: int, graph: str, degree: int, rounds: int = 5) -> dict[str, Any]:
    """CPU seconds of a round and peak memory of this process."""
    fed = federation(nodes, graph, degree)
    training = fed.training()
    training.run_round()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        training.run_round()
        times.append(time.process_time() - start)
    edges = fed.topology.edge_index.shape[1] // 2
    mixing = []
    for _ in range(rounds):
        start = time.process_time()
        fed.mixing.mix_(training.parameters)
        mixing.append(time.process_time() - start)
    return {
        "nodes": nodes,
        "edges": edges,
        "round_s": statistics.median(times),
        "mix_s": statistics.median(mixing),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def scaling() -> dict[str, Any]:
    """`one_size` for every size and graph, each in a process of its own, and the growth from the smallest to the
    largest as an exponent of N."""
    figures: dict[str, Any] = {}
    for name, (graph, degree) in GRAPHS.items():
        rows = []
        for nodes in SIZES:
            call = [sys.executable, __file__, "one", str(nodes), graph, str(degree)]
            rows.append(json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout))
        large = [row for row in rows if row["nodes"] >= 1000]
        growth = large[-1]["nodes"] / large[0]["nodes"]
        figures[name] = {
            "rows": rows,
            "time_exponent": _exponent(large[-1]["round_s"] / large[0]["round_s"], growth),
            "memory_exponent": _exponent(large[-1]["peak_mib"] / large[0]["peak_mib"], growth),
        }
    return figures


def draw(figures: dict[str, Any], target: Path) -> None:
    """Seconds of a round and peak memory over N + edges, both axes logarithmic, with a line of slope 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("round_s", "peak_mib"), ("CPU seconds of a round", "peak memory, MiB"), strict=True
    ):
        for name, part in figures.items():
            sizes = [row["nodes"] + row["edges"] for row in part["rows"]]
            axes.loglog(sizes, [row[key] for row in part["rows"]], "o-", label=name)
        ends = axes.get_xlim()
        low = figures["ring"]["rows"][-1]
        slope = low[key] / (low["nodes"] + low["edges"])
        axes.loglog(ends, [slope * end for end in ends], ":", color="grey", label="slope 1")
        axes.set_xlabel("nodes + edges")
        axes.set_ylabel(label)
        axes.legend(fontsize=7)
    figure.savefig(target, metadata={"Date": None})


def _exponent(ratio: float, growth: float) -> float:
    from math import log

    return log(ratio) / log(growth)


# ---- whole runs --------------------------------------------------------------------------------------------------
def whole_run(nodes: int, attackers: int, rounds: int) -> dict[str, Any]:
    """A run of plait with its clean and its two defended companions; wall time and peak memory of this process."""
    import plait

    options = {
        "nodes": nodes, "attackers": attackers, "arm": "naive-4", "topology": "watts-strogatz", "rounds": rounds,
        "split": "iid", "min_samples": 1, "evaluate_every": 0,
    }  # fmt: skip
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trained = plait.run(
            plugins={"dbadfl": options},
            data="dbadfl:many_digits",
            model="small-mlp",
            settings={"checkpoint.every_steps": 10**6, "data.images": max(1297, 4 * nodes)},
            out=Path(folder) / "run",
        )
    wanted = ("ma", "asr", "asr_floor", "ma_none", "ma_median", "asr_median", "ma_clipping", "asr_clipping")
    return {
        "nodes": nodes,
        "edges": 2 * nodes,
        "attackers": attackers,
        "rounds": rounds,
        "runs": 4,
        "wall_s": time.perf_counter() - start,
        "seconds_per_round": trained.metrics["dbadfl/seconds_per_round"],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "figures": {name: trained.metrics[f"dbadfl/{name}"] for name in wanted},
    }


def large() -> list[dict[str, Any]]:
    """N = 1,000 over 60 rounds and N = 10,000 over 20, each in a process of its own."""
    figures = []
    for nodes, attackers, rounds in ((1000, 100, 60), (10_000, 1000, 20)):
        call = [sys.executable, __file__, "whole", str(nodes), str(attackers), str(rounds)]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        figures.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return figures


def main() -> None:
    """Print the figures."""
    torch.set_num_threads(1)
    arguments = sys.argv[1:]
    if arguments[:1] == ["one"]:
        print(json.dumps(one_size(int(arguments[1]), arguments[2], int(arguments[3]))))
        return
    if arguments[:1] == ["whole"]:
        sys.path.insert(0, str(HERE))
        print(json.dumps(whole_run(*map(int, arguments[1:4]))))
        return
    parts = {"loop": against_loop, "kinds": implementations, "flower": against_flower, "scale": scaling, "large": large}
    plot = [Path(a.removeprefix("--plot=")) for a in arguments if a.startswith("--plot=")]
    arguments = [a for a in arguments if not a.startswith("--plot=")]
    unknown = set(arguments) - set(parts)
    if unknown:
        raise SystemExit(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    results: dict[str, Any] = {"machine": machine()}
    for name, measure in parts.items():
        if not arguments or name in arguments:
            results[name] = measure()
    if plot and "scale" in results:
        draw(results["scale"], plot[0])
    print(json.dumps({"dbadfl": results}, indent=2))


if __name__ == "__main__":
    main()

"""What several processes, checkpoints and sweeps cost on this machine, and ResNet-50 where there is a GPU.

- ``traffic``: bytes through the loopback interface per step of two gloo processes, by set of plugins, beside the
  formula. Runs of two lengths are compared, so that starting and evaluating cancel out. The interface's counter is the
  machine's: other traffic on it counts too.
- ``scaling``: milliseconds per step on one and on two processes of one thread each, and the limit: two runs at once
  that have nothing to tell each other, which shows what the two cores share.
- ``checkpoints``: writing and reading, over writing and reading the same bytes plainly.
- ``sweep``: seconds per run beside the run itself.
- ``resnet50``: images a second and memory, plait over a hand-written loop at the same precision, on CUDA. Without
  it this part is skipped, unless ``--on-cpu`` asks for its small form: two steps of two images in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn import functional

import plait
from common import machine
from plait.storage import checkpoints
from plait_authoring.together import together

SETS: dict[str, dict[str, Any]] = {
    "dense": {},
    "chase": {"chase": {"density": 0.2, "exploration_interval": 10, "channel_sparsity": 0.0, "timing_repeats": 0}},
    "fairsam, each rank its own perturbation (m-SAM)": {"fairsam": {"severities": [3], "corruptions": ["shot_noise"]}},
    "fairsam, one perturbation": {
        "fairsam": {"severities": [3], "corruptions": ["shot_noise"], "sync_perturbation": True}
    },
    "fairsam, adaptive weights": {"fairsam": {"severities": [3], "corruptions": ["shot_noise"], "weights": "adaptive"}},
}
SYNCHRONISED = {"fairsam, one perturbation": 2}
"""Passes per step whose gradients are averaged over the ranks; one unless said."""


def recipe(plugins: dict[str, Any], steps: int, batch: int = 64, width: int = 32, size: int = 8) -> dict[str, Any]:
    """A small convolutional network on generated images."""
    return {
        "data": {"name": "tiny-images", "train": 2048, "size": size},
        "model": {"name": "tiny-cnn", "width": width},
        "train": {"steps": steps, "batch_size": batch, "log_every": 1, "evaluate_every": 10**6},
        "checkpoint": {"every_steps": 10**6},
        "device": "cpu",
        "plugins": plugins,
    }


def on_ranks(wanted: dict[str, Any], out: Path, world: int) -> None:
    """Run on forked processes of one thread each."""

    def act(rank: int) -> None:
        torch.set_num_threads(1)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - notes of the methods
        plait.run(wanted, out=out)

    ended = together(act, world, limit=600)
    if any(e.code for e in ended):
        raise RuntimeError(f"{out}: {ended}")


def loopback() -> int:
    """Bytes that have gone through the loopback interface."""
    return int(psutil.net_io_counters(pernic=True)["lo"].bytes_sent)


def traffic(folder: Path) -> dict[str, Any]:
    """Bytes per step of both ranks together."""
    from plait.planning.tiny import TinyCNN

    model = TinyCNN(1, 32, 4)
    weights = 4 * sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    figures: dict[str, Any] = {}
    for number, (name, plugins) in enumerate(SETS.items()):
        counts = {}
        for steps in (20, 120):
            before = loopback()
            on_ranks(recipe(plugins, steps), folder / f"traffic-{number}-{steps}", 2)
            counts[steps] = loopback() - before
        measured = (counts[120] - counts[20]) / 100
        passes = SYNCHRONISED.get(name, 1)
        figures[name] = {
            "measured_bytes_per_step": round(measured),
            "gradient_bytes": weights,
            "formula_bytes_per_step": 2 * passes * weights,
            "over_formula": measured / (2 * passes * weights),
        }
    return {"parameters_bytes": weights, "buffers_bytes": buffers, "sets": figures}


def milliseconds(path: Path, first: int, last: int) -> float:
    """Per step, between two logged steps."""
    events = plait.load_run(path).directory.events()
    times = {e["step"]: e["time"] for e in events if "train/loss" in e.get("values", {})}
    return float(1e3 * (times[last] - times[first]) / (last - first))


def side_by_side(wanted: dict[str, Any], folder: Path) -> float:
    """Milliseconds per step of two separate runs at once, the slower one."""

    def act(number: int) -> None:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)  # each is a run of its own
        torch.set_num_threads(1)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - notes of the methods
        plait.run(wanted, out=folder / str(number))

    ended = together(act, 2, limit=600)
    if any(e.code for e in ended):
        raise RuntimeError(f"{folder}: {ended}")
    return max(milliseconds(folder / str(number), 10, 40) for number in range(2))


def scaling(folder: Path, repeats: int) -> dict[str, Any]:
    """One process, two at the same global batch, two at twice the batch, and two that share nothing; in turns."""
    kinds = {"one, batch 128": (1, 128), "two, batch 128": (2, 128), "two, batch 256": (2, 256)}
    apart = {"two apart, batch 64 each": 64, "two apart, batch 128 each": 128}
    times: dict[str, list[float]] = {name: [] for name in (*kinds, *apart)}
    for turn in range(repeats):
        for name, (world, batch) in kinds.items():
            out = folder / f"scaling-{turn}-{world}-{batch}"
            on_ranks(recipe({}, 40, batch, width=32, size=16), out, world)
            times[name].append(milliseconds(out, 10, 40))
        for name, batch in apart.items():
            wanted = recipe({}, 40, batch, width=32, size=16)
            times[name].append(side_by_side(wanted, folder / f"apart-{turn}-{batch}"))
    best = {name: min(several) for name, several in times.items()}
    alone = best["one, batch 128"]
    strong, weak = alone / (2 * best["two, batch 128"]), alone / best["two, batch 256"]
    strong_limit, weak_limit = alone / (2 * best["two apart, batch 64 each"]), alone / best["two apart, batch 128 each"]
    return {
        "milliseconds_per_step": best,
        "strong_efficiency": strong,
        "strong_limit": strong_limit,
        "strong_over_limit": strong / strong_limit,
        "weak_efficiency": weak,
        "weak_limit": weak_limit,
        "weak_over_limit": weak / weak_limit,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }


def best_of(action: Callable[[], object], repeats: int) -> float:
    """The shortest time, seconds."""
    figures = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        figures.append(time.perf_counter() - start)
    return min(figures)


def writing(folder: Path, repeats: int) -> dict[str, Any]:
    """Checkpoints of three sizes against plain files of the same size."""
    figures = {}
    for megabytes in (1, 16, 128):
        tree = {"model": {"w": torch.randn(megabytes * 2**18)}}
        path, plain = folder / "c.safetensors", folder / "plain"
        content = tree["model"]["w"].numpy().tobytes()

        def put(content: bytes = content, plain: Path = plain) -> None:
            with open(plain, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        write = best_of(lambda path=path, tree=tree: checkpoints.save(path, tree), repeats)  # type: ignore[misc]
        raw = best_of(put, repeats)
        read = best_of(lambda path=path: checkpoints.load(path), repeats)  # type: ignore[misc]
        get = best_of(plain.read_bytes, repeats)
        figures[f"{megabytes} MiB"] = {
            "write_s": write,
            "write_MiB_per_s": megabytes / write,
            "plain_write_s": raw,
            "read_s": read,
            "read_MiB_per_s": megabytes / read,
            "plain_read_s": get,
        }
    return figures


def sweeping(folder: Path) -> dict[str, Any]:
    """What a sweep adds to each run, in this process, and what a run costs that is there already."""
    from plait_experiments.sweep import sweep

    over = {"seed": list(range(12))}
    wanted = recipe({}, 2, 32, width=4)
    sweep(wanted, {"seed": [99]}, workers=0, cache=folder / "cells")  # imports
    first = sweep(wanted, over, workers=0, cache=folder / "cells")
    again = sweep(wanted, over, workers=0, cache=folder / "cells")
    runs = sum(row.seconds for row in first.rows)
    return {
        "runs": len(first.rows),
        "seconds_per_run": runs / len(first.rows),
        "overhead_seconds_per_run": (first.seconds - runs) / len(first.rows),
        "kept_seconds_per_run": again.seconds / len(again.rows),
    }


# ---- a GPU -------------------------------------------------------------------------------------------------------
def resnet50(folder: Path, repeats: int, on_cpu: bool, batch: int = 128, steps: int = 30) -> dict[str, Any] | str:
    """Both loops on ResNet-50 at 224 x 224 with synthetic images, bf16, not compiled."""
    cuda = torch.cuda.is_available()
    if not cuda and not on_cpu:
        return "skipped: torch sees no CUDA device"
    from torchvision.models import resnet50 as make

    from loop import plait_loop_on
    from plait.data import Data, DataInfo, TensorSplit

    kind, precision = ("cuda", "bf16") if cuda else ("cpu", "fp32")
    if not cuda:
        batch, steps = 2, 2
    x, y = torch.randn(2 * batch, 3, 224, 224), torch.randint(1000, (2 * batch,))
    splits = [TensorSplit({"input": x, "label": y}) for _ in range(3)]
    data = Data(DataInfo("classification", (3, 224, 224), 1000), *splits)
    torch.backends.cudnn.deterministic = True
    model = make().to(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, foreach=True)

    def finish() -> None:
        if cuda:
            torch.cuda.synchronize()

    def by_hand() -> None:
        for number in range(steps):
            rows = torch.arange(batch) + batch * (number % 2)
            images, labels = x[rows].to(kind, non_blocking=True), y[rows].to(kind, non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(kind, torch.bfloat16, enabled=cuda):
                loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        finish()

    _, advance = plait_loop_on(kind, data, make(), batch, 10**6, folder / "resnet", precision=precision)

    def with_plait() -> None:
        advance(steps)
        finish()

    name = torch.cuda.get_device_name() if cuda else "CPU, one thread"
    figures: dict[str, Any] = {"device": name, "batch": batch, "precision": precision}
    times: dict[str, list[float]] = {"hand": [], "plait": []}
    for turn in range(repeats + 1):
        for name, action in (("hand", by_hand), ("plait", with_plait)):
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            action()
            if turn:
                times[name].append(time.perf_counter() - start)
            if cuda:
                figures[f"{name}_peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30
    for name, seconds in times.items():
        figures[f"{name}_images_per_s"] = batch * steps / statistics.median(seconds)
    figures["plait_over_hand"] = figures["plait_images_per_s"] / figures["hand_images_per_s"]
    return figures


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["traffic", "scaling", "checkpoints", "sweep", "resnet50"])
    parser.add_argument("--on-cpu", action="store_true", help="resnet50 without CUDA: tiny, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], Any]] = {
            "traffic": lambda: traffic(folder),
            "scaling": lambda: scaling(folder, arguments.repeats),
            "checkpoints": lambda: writing(folder, arguments.repeats),
            "sweep": lambda: sweeping(folder),
            "resnet50": lambda: resnet50(folder, arguments.repeats, arguments.on_cpu),
        }
        for part, measure in parts.items():
            if arguments.only in (None, part):
                print(f"{part} ...", file=sys.stderr, flush=True)
                results[part] = measure()
    print(json.dumps({"machine": {**machine(), "load": os.getloadavg()}, "scale": results}, indent=2))


if __name__ == "__main__":
    main()

"""Throughput of the network that chase shrank over the dense one, with the MAC ratio beside it.

A real run (BN-VGG on mnist5k, S_c = 0.5, 200 steps), then both networks timed in turns on one thread. The bound is the
inverse of the MAC ratio; memory-bound layers stay below it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

import plait
from common import machine
from plait.loading import build_model, load_data
from plait_chase.timing import compare_throughput


def main() -> None:
    """Print the figures as JSON."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        done = plait.run(
            plugins={"chase": {"timing_repeats": 0}},
            data="mnist5k",
            model="vgg-bn",
            steps=200,
            out=Path(folder) / "run",
        )
        data = load_data(done.recipe.data, done.recipe.seed)
        dense = build_model(done.recipe.model, data.info).eval()
        figures = {}
        for size in (1, 64):
            batch = data.test.__getitems__(torch.arange(size))
            inputs = (data.prepare(batch) if data.prepare else batch)["input"]
            result = compare_throughput(dense, done.model, inputs, repeats=40, warmups=5, threads=1)
            figures[f"batch {size}"] = {
                "speedup": result.speedup,
                "dense_ms": 1e3 * result.dense.median,
                "shrunk_ms": 1e3 * result.shrunk.median,
            }
        ratio = done.metrics["chase/mac_ratio@export"]
    results = {"mac_ratio": ratio, "bound": 1 / ratio, "channels": done.metrics["chase/channels"], **figures}
    print(json.dumps({"machine": machine(), "shrunk": results}, indent=2))


if __name__ == "__main__":
    main()

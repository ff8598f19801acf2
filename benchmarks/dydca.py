"""Cost of dydca on one thread, and the picture of its plan.

    python benchmarks/dydca.py

* a step of training and a frame of playing, with and without halo, beside one network on whole frames;
* CPU time of a frame within ONNX Runtime, by how shapes are handled (claim `shapes`);
* bytes of the memory plan, beside no reuse and beside what is live at most;
* benchmarks/dydca.png: a frame of bikes and its patches.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from common import machine
from plait.declare.recipe import assemble
from plait_dydca.bodies import WDSR
from plait_dydca.buckets import TrainingPatches
from plait_dydca.claims import handling
from plait_dydca.clips import embedded
from plait_dydca.memory import plan_memory
from plait_dydca.network import RoutedNetwork, reconstruct
from plait_dydca.options import DydcaOptions
from plait_dydca.routing import plan_clip
from plait_dydca.runtimes import available, build
from plait_dydca.symbolic import analyse

COLOURS = ("#e03030", "#30b050")


def median_ms(work: Callable[[], object], repeats: int = 15, warm: int = 3) -> float:
    """Median CPU milliseconds."""
    taken = []
    for _ in range(warm + repeats):
        started = time.process_time()
        work()
        taken.append(1000 * (time.process_time() - started))
    return statistics.median(taken[warm:])


def main() -> None:
    """Measure, print, draw."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(machine())
    clip = embedded("bikes", 2, frames=4)
    network = RoutedNetwork.of(WDSR(2), (4, 2), "bicubic")
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for halo in (4, 0):
        routing = plan_clip(clip, DydcaOptions(halo=halo))
        stream = TrainingPatches(clip, routing.patches, halo, 34 * 32).stream("train", 0, 16)

        def step(stream: object = stream) -> None:
            for batch in next(stream).parts:  # type: ignore[call-overload]
                loss = (network(batch["input"], batch["path"], batch["halo"]) - batch["target"]).abs().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        own = routing.patches[routing.patches[:, 0] == 0]
        print(f"halo {halo}: a step of 16 cells {median_ms(step):.0f} ms")
        for name in available():
            if name in ("inductor", "aoti"):
                continue
            engine = build(name, network)
            spent = median_ms(lambda engine=engine, own=own, halo=halo: reconstruct(clip.lr[0], own, engine, 2, halo))
            print(f"halo {halo}: a frame of 640x272 in {name} {spent:.0f} ms, {1000 / spent:.0f} frames a second")
    with tempfile.TemporaryDirectory() as folder:
        figures = handling(assemble({"seed": 0}), Path(folder))
    print("shapes, ONNX Runtime, ms a frame: " + ", ".join(f"{name} {value:.1f}" for name, value in figures.items()))
    for scale, width in ((2, 16), (4, 32)):
        for fused in (False, True):
            plan = plan_memory(analyse(WDSR(scale, 4, width)), fused=fused)
            print(
                f"memory x{scale} U={width} {'fused' if fused else 'unfused'}: arena {plan.arena}, live {plan.live}, "
                f"without reuse {plan.without_reuse} bytes a low-resolution pixel"
            )
    draw(Path(__file__).with_suffix(".png"))


def draw(file: Path) -> None:
    """A frame and its patches."""
    clip = embedded("bikes", 2)
    patches = plan_clip(clip, DydcaOptions()).patches
    area = patches[:, 3] * patches[:, 4]
    hard = np.bincount(patches[:, 0], area * (patches[:, 5] == 0)) / np.bincount(patches[:, 0], area)
    number = int(np.abs(hard - 0.5).argmin())
    image = Image.fromarray(np.asarray(clip.hr[number]))
    pen = ImageDraw.Draw(image)
    for _, y, x, height, width, path in patches[patches[:, 0] == number].tolist():
        pen.rectangle((2 * x, 2 * y, 2 * (x + width) - 1, 2 * (y + height) - 1), outline=COLOURS[path], width=2)
    image.save(file, optimize=True)


if __name__ == "__main__":
    main()

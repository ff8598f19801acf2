"""Cost of flamefinder on one thread, side by side in one process, medians over alternating stretches.

    python benchmarks/flamefinder.py                   measure
    python benchmarks/flamefinder.py RUN [FRAME]       draw benchmarks/flamefinder.png with the network of a run

* the three metric losses, their centres and the gate of z over a step of plain training (limit of the card: 2 %): the
  quickest tenth of many short stretches, since a processor that others use is slow for longer;
* frames per second of detection (256 x 256, 64 patches) beside ResNet-18 and VGG-11 of torchvision, each trained on
  flame-synth until it is as accurate on validation patches, and the accuracy that it then has;
* the memory that detecting in a 640 x 512 frame takes, in patches of 64 pixels.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.nn.functional import cross_entropy

from common import machine
from plait import Data, DataInfo, load_run
from plait_flamefinder.augmentation import to_network
from plait_flamefinder.balance import BalancedSplit
from plait_flamefinder.commands import exported, overlay
from plait_flamefinder.encoder import FlameNet, build_backbone, build_lfe
from plait_flamefinder.finder import FlameFinder
from plait_flamefinder.options import BackboneOptions, LfeOptions, SynthOptions
from plait_flamefinder.patches import cut
from plait_flamefinder.synthesis import synthesise
from plait_flamefinder.synthetic import load

ROUNDS = 15
TARGET, SECONDS = 88.0, 90.0
"""Accuracy in % on unobscured validation patches that each network is trained to, and the processor time it gets."""
FRAME = 2_000_007
"""A test frame of the data's default, for the picture."""
INFO = DataInfo("classification", (1, 32, 32), 2)


def network(attention: bool = False, backbone: str | None = None) -> FlameNet:
    """The default encoder, or a network of torchvision."""
    torch.manual_seed(0)
    plain = build_backbone(BackboneOptions(network=backbone), INFO) if backbone else build_lfe(LfeOptions(), INFO)
    return FlameNet(plain.features, plain.num_features, 32, 2, attention)


def timed(function: Callable[[], object]) -> float:
    """Seconds of processor time."""
    start = time.process_time()
    function()
    return time.process_time() - start


def trainings(patches: int, backbone: str | None = None) -> dict[str, Callable[[], object]]:
    """A step of so many patches: plain, with the losses, and with losses and attention."""
    thermal, labels = torch.randn(patches, 1, 32, 32), torch.arange(patches) % 2
    net = network(backbone=backbone)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, foreach=True)

    def plain() -> None:
        optimizer.zero_grad()
        cross_entropy(net(thermal), labels).backward()
        optimizer.step()

    def with_losses(attention: bool) -> Callable[[], object]:
        metric = network(attention, backbone)
        finder = FlameFinder(metric, torch.optim.Adam(metric.parameters(), 1e-3, foreach=True), attention="none")
        return lambda: finder.step(thermal, labels)

    return {"plain": plain, "losses": with_losses(False), "losses and attention": with_losses(True)}


def costs(patches: int, rounds: int, backbone: str | None = None) -> dict[str, float]:
    """Milliseconds of a plain step, and what is added to it in %; each the quickest tenth of its steps."""
    steps = rounds_of(trainings(patches, backbone), rounds)
    quick = {name: statistics.mean(sorted(times)[: max(1, rounds // 10)]) for name, times in steps.items()}
    added = {name: 100 * (quick[name] / quick["plain"] - 1) for name in ("losses", "losses and attention")}
    return {"plain_ms": 1e3 * quick["plain"], **added}


def detectors() -> dict[str, FlameNet]:
    """The default encoder and the two baselines."""
    nets = {"flame-lfe": network(True).decide_by("center_cos", torch.randn(2, 32))}
    for name in ("resnet18", "vgg11_bn"):
        nets[name] = build_backbone(BackboneOptions(network=f"torchvision:{name}"), INFO)
    return nets


def train(net: FlameNet, data: Data, lr: float) -> dict[str, float]:
    """Steps of 64 balanced patches until `TARGET` is reached, or `SECONDS` are over, and the accuracy."""
    optimizer = torch.optim.Adam(net.decide_by("head", None).train().parameters(), lr)
    stream = BalancedSplit(data.train, 2).stream("train", 0, 64, augment=data.augment)
    clear = (data.validation.fields["bucket"] == 0).nonzero().flatten()[::4]
    judged = to_network(data.validation.__getitems__(clear))
    start, accuracy, step = time.process_time(), 0.0, 0
    while accuracy < TARGET and (step == 0 or time.process_time() - start < SECONDS):
        step += 1
        batch = to_network(next(stream))
        optimizer.zero_grad()
        cross_entropy(net(batch["input"]), batch["label"]).backward()
        optimizer.step()
        if step % 10 == 0:
            said = torch.cat([net.eval().flame_probability(part) > 0.5 for part in judged["input"].split(128)])
            accuracy = 100 * float((said == (judged["label"] == 1)).double().mean())
            net.train()
    return {"steps": step, "accuracy_percent": accuracy}


def rounds_of(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function, in turns."""
    for function in functions.values():
        function()
    times = [[timed(function) for function in functions.values()] for _ in range(rounds)]
    return {name: [seconds[place] for seconds in times] for place, name in enumerate(functions)}


def picture(run: Path, seed: int) -> Path:
    """A frame behind smoke: RGB, thermal, and thermal with the patches that the network calls flame; 8-bit colours."""
    frame = synthesise(seed)
    network, size = exported(load_run(run))
    patches = torch.from_numpy(cut(frame.thermal, size).copy()).reshape(-1, 1, size, size).float() / 255 * 2 - 1
    side = len(frame.thermal) // size
    found = overlay(frame.thermal, network.flame_probability(patches).reshape(side, side).numpy(), size)
    edge = frame.flame ^ ndimage.binary_dilation(frame.flame)
    found[edge] = (255, 230, 0)  # the true outline
    panels = [frame.rgb, np.repeat(frame.thermal[..., None], 3, 2), found]
    gap = np.full((len(frame.rgb), 6, 3), 255, np.uint8)
    row = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], 1)
    file = Path(__file__).with_name("flamefinder.png")
    Image.fromarray(row).quantize(96).save(file, optimize=True)
    return file


def main() -> None:
    """Measure and print one JSON document."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    large = build_lfe(LfeOptions(), DataInfo("classification", (1, 64, 64), 2)).eval()
    large.flame_probability(torch.randn(80, 1, 64, 64))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    added = {
        "flame-lfe, 64 patches": costs(64, 300),
        "flame-lfe, 256 patches": costs(256, 80),
        "resnet18, 64 patches": costs(64, 60, "torchvision:resnet18"),
    }
    nets, data = detectors(), load(SynthOptions(), 0)
    reached = {name: train(net, data, 3e-4 if name == "vgg11_bn" else 1e-3) for name, net in nets.items()}
    patches = torch.randn(64, 1, 32, 32)
    times = rounds_of({name: partial(net.eval().flame_probability, patches) for name, net in nets.items()}, ROUNDS)
    frames = {name: 1 / statistics.median(seconds) for name, seconds in times.items()}
    result = {
        "added_percent": added,
        "frames_per_second": frames,
        "trained": reached,
        "memory_mib_640x512": memory,
        "process_mib_with_torch": before / 1024,
    }
    print(json.dumps({"machine": machine(), **result}, indent=1))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(picture(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else FRAME))
    else:
        main()

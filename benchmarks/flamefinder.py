"""Cost of flamefinder on one thread, side by side in one process, medians over alternating stretches.

* the three metric losses, their centres and the gate of z over a step of plain training (limit of the card: 2 %);
* frames per second of detection (256 x 256, 64 patches) beside ResNet-18 and VGG-11 of torchvision on the same patches;
* the memory that detecting in a 640 x 512 frame takes, in patches of 64 pixels.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from common import machine
from plait import DataInfo
from plait_flamefinder.encoder import FlameNet, build_backbone, build_lfe
from plait_flamefinder.finder import FlameFinder
from plait_flamefinder.options import BackboneOptions, LfeOptions

STEPS, ROUNDS = 12, 9
INFO = DataInfo("classification", (1, 32, 32), 2)


def network(attention: bool = False) -> FlameNet:
    """The default encoder."""
    torch.manual_seed(0)
    plain = build_lfe(LfeOptions(), INFO)
    return FlameNet(plain.features, plain.num_features, 32, 2, attention)


def timed(function: Callable[[], object]) -> float:
    """Seconds of processor time."""
    start = time.process_time()
    function()
    return time.process_time() - start


def trainings() -> dict[str, Callable[[], object]]:
    """A stretch of steps: plain, with the losses, and with losses and attention."""
    patches, labels = torch.randn(64, 1, 32, 32), torch.arange(64) % 2
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, foreach=True)

    def plain() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            cross_entropy(net(patches), labels).backward()
            optimizer.step()

    def with_losses(attention: bool) -> Callable[[], object]:
        found = network(attention)
        finder = FlameFinder(found, torch.optim.Adam(found.parameters(), 1e-3, foreach=True), attention="none")
        return lambda: [finder.step(patches, labels) for _ in range(STEPS)]

    return {"plain": plain, "losses": with_losses(False), "losses and attention": with_losses(True)}


def detections(patches: Tensor) -> dict[str, Callable[[], object]]:
    """A frame of patches through each network."""
    nets = {"flame-lfe": network(True).decide_by("center_cos", torch.randn(2, 32))}
    for name in ("resnet18", "vgg11_bn"):
        nets[name] = build_backbone(BackboneOptions(network=f"torchvision:{name}"), INFO)
    return {name: partial(net.eval().flame_probability, patches) for name, net in nets.items()}


def medians(functions: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Alternating stretches of each."""
    for function in functions.values():
        function()
    rounds = [[timed(function) for function in functions.values()] for _ in range(ROUNDS)]
    return {name: [times[place] for times in rounds] for place, name in enumerate(functions)}


def main() -> None:
    """Measure and print one JSON document."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    large = build_lfe(LfeOptions(), DataInfo("classification", (1, 64, 64), 2)).eval()
    large.flame_probability(torch.randn(80, 1, 64, 64))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    steps = medians(trainings())
    shares = {
        name: 100 * statistics.median(b / a - 1 for a, b in zip(steps["plain"], steps[name], strict=True))
        for name in ("losses", "losses and attention")
    }
    frames = {n: 1 / statistics.median(t) for n, t in medians(detections(torch.randn(64, 1, 32, 32))).items()}
    result = {
        "step_ms": 1e3 * statistics.median(steps["plain"]) / STEPS,
        "added_percent": shares,
        "frames_per_second": frames,
        "memory_mib_640x512": memory,
        "process_mib_with_torch": before / 1024,
    }
    print(json.dumps({"machine": machine(), **result}, indent=1))


if __name__ == "__main__":
    main()

"""What runs on another device than the CPU: small runs of every method, killed and resumed ones too, one line each.

``python benchmarks/device.py cuda`` (or ``mps``). Not a benchmark of speed: it says what works there and what does not.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import plait
from plait.planning.discovery import find_plugin
from plait.storage import checkpoints
from plait.training.frozen import frozen_buffers
from plait.training.masks import unpack

CHASE = {"density": 0.3, "exploration_interval": 4, "channel_interval": 8, "timing_repeats": 0}
FAIR = {"severities": [3]}
BOTH: dict[str, dict[str, Any]] = {"chase": CHASE, "fairsam": FAIR}
KILLED = """
import os, signal, plait
from plait.training.trainer import Trainer
whole = Trainer.train_step
def step(self, batch):
    report = whole(self, batch)
    if self.step == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return report
Trainer.train_step = step
plait.run(plugins={plugins!r}, data="tiny-images", model="tiny-cnn", device={device!r}, out={out!r}, steps=24,
          settings={{"checkpoint.every_steps": 5}})
"""


def different(left: Any, right: Any, place: str = "") -> list[str]:
    """Where two trees of tensors and values differ."""
    if isinstance(left, torch.Tensor):
        return [] if torch.equal(left, right) else [place]
    if isinstance(left, dict):
        return [name for key in left for name in different(left[key], right[key], f"{place}/{key}")]
    return [] if left == right else [place]


class Checks:
    """The checks, on one device, in one folder."""

    def __init__(self, device: str, folder: Path) -> None:
        self.device, self.folder = device, folder

    def run(self, name: str, plugins: dict[str, Any], device: str = "", **changes: Any) -> plait.Run:
        chosen = {"data": "tiny-images", "model": "tiny-cnn", "steps": 24, **changes}
        return plait.run(plugins=plugins, device=device or self.device, out=self.folder / name, **chosen)

    def state(self, name: str) -> dict[str, Any]:
        return checkpoints.load(sorted((self.folder / name / "checkpoints").glob("step-*"))[-1])

    def chase_and_fairsam(self) -> str:
        accuracy = self.run("both", BOTH).metrics["task/accuracy"]
        state = self.state("both")
        masks = {n: unpack(m["bits"], torch.Size(m["shape"])) for n, m in state["masks"].items()}
        zero = all(bool((state["model"][name][~mask] == 0).all()) for name, mask in masks.items())
        return f"accuracy {accuracy:.1f} %, masked weights exactly zero: {zero}"

    def the_same_run_twice(self) -> str:
        self.run("again", BOTH)
        return f"tensors that differ: {different(self.state('both')['model'], self.state('again')['model']) or 'none'}"

    def killed_and_resumed(self) -> str:
        out = str(self.folder / "killed")
        code = KILLED.format(plugins=BOTH, device=self.device, out=out)
        ended = subprocess.run([sys.executable, "-c", code], check=False).returncode
        plait.resume(out)
        unlike = different(self.state("both")["model"], self.state("killed")["model"])
        return f"ended with {ended}; tensors that differ from the unbroken run: {unlike or 'none'}"

    def bf16(self) -> str:
        return f"{self.run('bf16', {'fairsam': FAIR}, settings={'precision': 'bf16'}).metrics['task/accuracy']:.1f} %"

    def accumulation(self) -> str:
        return f"{self.run('parts', {'chase': CHASE}, settings={'train.accumulate': 4}).metrics['task/accuracy']:.1f} %"

    def compiled(self) -> str:
        return f"{self.run('compiled', {'fairsam': FAIR}, settings={'compile': True}).metrics['task/accuracy']:.1f} %"

    def against_the_cpu(self) -> str:
        losses = [self.run(f"on-{d}", {"fairsam": FAIR}, d).metrics["task/loss"] for d in ("cpu", self.device)]
        return f"loss {losses[0]:.6f} on the CPU, {losses[1]:.6f} here"

    def glt(self) -> str:
        tiny = {"glt": dict(find_plugin("glt").plugin.tiny)}  # type: ignore[union-attr]
        return f"{self.run('glt', tiny, data='cora-like', model='gcn', steps=None).metrics['task/accuracy']:.1f} %"

    def dbadfl(self) -> str:
        tiny = {"dbadfl": dict(find_plugin("dbadfl").plugin.tiny)}  # type: ignore[union-attr]
        return f"{self.run('dbadfl', tiny, steps=40).metrics['task/accuracy']:.1f} %"

    def frozen_pass(self) -> str:
        unchanged = []
        spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(6, 6, 3))
        for layer in (nn.BatchNorm2d(6), nn.InstanceNorm2d(6, track_running_stats=True), spectral):
            layer = layer.to(self.device)
            before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
            with frozen_buffers(layer):
                layer(torch.randn(4, 6, 8, 8, device=self.device, requires_grad=True)).sum().backward()
            unchanged.append(all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers()))
        return f"statistics unchanged: {all(unchanged)}"


def main() -> None:
    """Print a line for each check; exit code 1 when one fails."""
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(0) if device == 'cuda' else device}")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        checks = Checks(device, Path(folder))
        names = ["chase_and_fairsam", "the_same_run_twice", "killed_and_resumed", "bf16", "accumulation", "compiled"]
        for name in [*names, "against_the_cpu", "glt", "dbadfl", "frozen_pass"]:
            check: Callable[[], str] = getattr(checks, name)
            start = time.perf_counter()
            try:
                said = check()
            except Exception as error:
                failed, said = True, f"FAILED: {type(error).__name__}: {error}"
            print(f"{name.replace('_', ' '):22} {said} ({time.perf_counter() - start:.1f} s)", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()

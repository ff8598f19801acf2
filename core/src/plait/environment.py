"""What a run ran on: versions, device, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def versions(names: list[str]) -> dict[str, str]:
    """Installed distributions among ``names`` and their versions."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe(device: str, distributions: list[str], world: int = 1) -> dict[str, Any]:
    """The environment as written to ``environment.json``; imports torch."""
    import torch

    name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    elif (cpu := Path("/proc/cpuinfo")).exists():
        lines = [line for line in cpu.read_text(errors="replace").splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "device_name": name,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "world_size": world,
        "versions": versions(["torch", "torchvision", "accelerate", "numpy", "pydantic", "pluggy", *distributions]),
        "commit": commit(),
    }


def commit() -> str | None:
    """The git commit of the working directory, ``-dirty`` when changed; None outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None

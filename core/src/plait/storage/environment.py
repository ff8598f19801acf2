"""What a run ran on: versions, device, commit."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

KERNELS = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that hold torch's libraries to the instructions of an older CPU."""


def versions(names: list[str]) -> dict[str, str]:
    """Installed distributions among ``names`` and their versions."""
    installed = {}
    for name in names:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def sources_of(distributions: Iterable[str]) -> dict[str, str]:
    """A hash of the Python files of every distribution that is installed editable: same version, other code."""
    hashes = {}
    for name in distributions:
        try:
            url = json.loads(distribution(name).read_text("direct_url.json") or "{}")
        except (PackageNotFoundError, ValueError):
            continue
        root = Path(re.sub(r"^file://", "", str(url.get("url", ""))))
        if url.get("dir_info", {}).get("editable") and (root / "src").is_dir():
            digest = hashlib.sha256()
            for path in sorted((root / "src").rglob("*.py")):
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
            hashes[name] = digest.hexdigest()[:16]
    return hashes


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
        "kernels": {name: os.environ[name] for name in KERNELS if name in os.environ},
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "world_size": world,
        "versions": versions(["torch", "torchvision", "accelerate", "numpy", "pydantic", "pluggy", *distributions]),
        "commit": commit(),
    }


def commit() -> str | None:
    """The git commit of the working directory, ``-dirty`` when changed; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None

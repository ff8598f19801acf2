"""Import torch and torchvision in processes of their own: a damaged library may end the process that imports it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

TIMEOUT = 180.0
"""Seconds after which an import counts as stuck; a cold disk takes its time."""
MARK = "plait-doctor:"

TORCH = """
import json, os, warnings

def first_line(text):
    return next(iter(str(text).splitlines()), "")

found = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch

    def works(device, dtype):
        try:
            ones = torch.ones(64, 64, device=device, dtype=dtype)
            return "" if bool((ones @ ones == 64).all()) else "a product of two matrices of ones is wrong"
        except Exception as error:
            return f"{type(error).__name__}: {first_line(error)}"

    found |= {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    found |= {"threads": torch.get_num_threads(), "devices": []}
    found["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names += ["mps"]
    for name in names:
        device = {"device": name, "error": works(name, torch.float32), "bf16": works(name, torch.bfloat16)}
        if name.startswith("cuda") and not device["error"]:
            properties = torch.cuda.get_device_properties(name)
            free, total = torch.cuda.mem_get_info(name)
            device |= {"name": properties.name, "capability": f"{properties.major}.{properties.minor}"}
            device |= {"memory": total, "free": free}
        found["devices"].append(device)
found["warnings"] = [first_line(w.message) for w in caught]
"""
TORCHVISION = """
import torch, torchvision
from torchvision.ops import nms
kept = nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
found = {"version": torchvision.__version__, "torch": torch.__version__, "kept": kept.tolist()}
"""
SCRIPTS = {"torch": TORCH, "torchvision": TORCHVISION}


class Probe:
    """A script that runs beside the other checks.

    Args:
        name: a key of `SCRIPTS`.
        script: another script; it leaves a dictionary in ``found``.
    """

    def __init__(self, name: str, script: str | None = None) -> None:
        self.name = name
        self.script = SCRIPTS[name] if script is None else script
        self._process: subprocess.Popen[bytes] | None = None
        self._answer: dict[str, Any] | None = None

    def start(self) -> None:
        """Begin, if it has not begun."""
        if self._process is None and self._answer is None:
            code = f"{self.script}\nimport json\nprint({MARK!r} + json.dumps(found))"
            # -P: a torch.py that lies in the present folder is not what the command `plait` imports
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )

    def result(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        """What it found, or ``{"failed": why}``."""
        if self._answer is None:
            self.start()
            self._answer = self._wait(timeout)
        return self._answer

    def stop(self) -> None:
        """End it when nobody waits for it any more."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def _wait(self, timeout: float) -> dict[str, Any]:
        assert self._process is not None
        try:
            output, errors = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.stop()
            return {"failed": f"importing {self.name} was not done after {timeout:.0f} s"}
        code, lines = self._process.returncode, output.decode(errors="replace").splitlines()
        answers = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
        if code == 0 and answers:
            answer: dict[str, Any] = json.loads(answers[-1])
            return answer
        said = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
        last = said[-1].strip() if said else f"the process ended with code {code}"
        return {"failed": last if code >= 0 else f"the process was ended by signal {-code}: {last}"}

"""What a run passes through: the modules of plait-core between `plait.run` and the exported model, and the returns.

The recipe of the architecture's reading (chase and fairsam on toned digits) runs for one step in this process, without
artifacts, under ``sys.setprofile``. Calls into the core are followed; what a reader would follow once is counted once
(a function that is called again from the same place is not read again). Prints modules, stays (changes of the module)
and returns (stays in a module that was left before).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import plait

CORE = str(Path(plait.__file__).parent)


def followed(directory: Path) -> list[str]:
    """The core's modules in the order in which the run enters them, each call site once."""
    seen: set[tuple[Any, int, Any]] = set()
    path: list[str] = []

    def follow(frame: FrameType, event: str, argument: Any) -> None:
        caller = frame.f_back
        if event != "call" or caller is None or not frame.f_code.co_filename.startswith(CORE):
            return
        site = (caller.f_code, caller.f_lineno, frame.f_code)
        if site not in seen and frame.f_code.co_name not in ("<module>", "<genexpr>", "<lambda>", "<listcomp>"):
            seen.add(site)
            path.append(frame.f_code.co_filename.removeprefix(CORE))

    sys.setprofile(follow)
    try:
        plait.run(
            plugins={"chase": {"timing_repeats": 0}, "fairsam": {"severities": [3]}},
            data="toned-digits",
            model="cnn",
            steps=1,
            out=directory / "run",
        )
    finally:
        sys.setprofile(None)
    return path


def main() -> None:
    """Print the counts as JSON."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = followed(Path(folder))
    stays = [name for name, before in zip(path, [None, *path], strict=False) if name != before]
    figures = {
        "calls": len(path),
        "modules": len(set(path)),
        "stays": len(stays),
        "returns": len(stays) - len(set(stays)),
    }
    print(json.dumps({"path": figures}, indent=2))


if __name__ == "__main__":
    main()

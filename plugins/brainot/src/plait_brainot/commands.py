"""The plugin's commands: `plait brainot score` and `plait brainot bench-ot`."""

from __future__ import annotations

import json as documents
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from plait.errors import BadInput

from . import captions as measures
from .errors import BrainotError
from .transport import Plan, distances, entropic_plan, exact_plan, pot


def score(candidates: Path, references: Path, require_metric: str = "", json: bool = False) -> None:
    """Score captions against references, both JSON files by id, as BrainHub has them.

    Args:
        candidates: {"0": "caption", ...}, also of a run: brainot-captions.json.
        references: {"0": ["caption", ...], ...}.
        require_metric: metrics that must be there, by commas; else one that cannot be computed is null with the reason.
        json: print one JSON document.
    """
    said, wanted = measures.checked(_read(candidates), _read(references), str(candidates))
    figures = measures.score(said, wanted)
    for name in filter(None, require_metric.split(",")):
        if name not in figures:
            raise BadInput(f"--require-metric {name}: there are {', '.join(figures)}.")
        if figures[name][0] is None:
            raise BrainotError(f"--require-metric {name}: {figures[name][1]}")
    empty = sum(not text.strip() for text in said)
    if json:
        values = {name: value for name, (value, _) in figures.items()}
        reasons = {name: reason for name, (_, reason) in figures.items() if reason}
        about = {"samples": len(said), "empty": empty, "tokenizer": "simple", "null": reasons}
        print(documents.dumps({**values, **about}))
        return
    for name, (value, reason) in figures.items():
        print(f"{name:10} {'-' if value is None else f'{value:.2f}'}  {reason}".rstrip())
    print(f"{len(said)} captions, {empty} of them empty; tokenizer=simple")


def _read(file: Path) -> dict[str, Any]:
    try:
        given = documents.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BrainotError(f"{file}: no such file") from error
    except (ValueError, OSError) as error:
        raise BrainotError(f"{file}: no JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(given, dict) or not given:
        raise BrainotError(f"{file}: captions are an object {{id: caption}}, got {type(given).__name__}")
    return given


def bench_ot(tokens: str = "25,49,256", samples: int = 8, json: bool = False) -> None:
    """Time the plans of a batch on this machine: exact by a plain loop over POT, exact and entropic as here.

    Args:
        tokens: N, by commas.
        samples: B.
        json: print one JSON document.
    """
    rows = []
    for n in (int(part) for part in tokens.split(",")):
        for m in (0.5, 1.0):
            rows.append(timed(n, samples, round(m * n) / n))
    if json:
        print(documents.dumps(rows))
        return
    print("     N     m  POT loop  exact here  entropic  ms a sample (sweeps, entropic over exact cost)")
    for row in rows:
        print("{tokens:6d} {m:5.2f} {pot:9.2f} {exact:11.2f} {entropic:9.2f}  ({sweeps}, {ratio:.4f})".format(**row))


def timed(n: int, samples: int, m: float, device: str = "cpu", dim: int = 64) -> dict[str, Any]:
    """Milliseconds a sample of each way to a plan, of brain tokens that lie near the image tokens as after training."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(samples, n, dim, generator=generator)
    brain = image[:, torch.randperm(n, generator=generator)] + 0.5 * torch.randn(samples, n, dim, generator=generator)
    cost = distances(brain.to(device), image.to(device))
    a = torch.full((n,), 1 / n, dtype=torch.float64).numpy()

    def loop() -> None:
        for c in cost.cpu().double().numpy():
            if m == 1:
                pot().emd(a, a, c)
            else:
                pot().partial.partial_wasserstein(a, a, c, m=m)

    eps = 0.005 * float(cost.median())
    solved: list[Plan] = []
    took = milliseconds(lambda: solved.append(entropic_plan(cost, m, eps)), device, 1) / samples
    entropic = solved[0]
    ratio = float((cost * entropic.plan).sum() / (cost * exact_plan(cost, m).plan).sum())
    return {
        "tokens": n,
        "m": m,
        "pot": milliseconds(loop, device) / samples,
        "exact": milliseconds(lambda: exact_plan(cost, m), device) / samples,
        "entropic": took,
        "sweeps": entropic.sweeps,
        "ratio": ratio,
    }


def milliseconds(work: Callable[[], Any], device: str, repeats: int = 3) -> float:
    """Of the quickest call: the processor's time on the CPU, which other programs do not lengthen, else the clock's."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(repeats):
        began = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, clock() - began)
    return 1000 * best

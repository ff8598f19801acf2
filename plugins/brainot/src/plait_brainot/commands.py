"""The plugin's commands: `plait brainot score` and `plait brainot bench-ot`."""

from __future__ import annotations

import json as documents
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.errors import BadInput

from . import captions as measures
from .errors import BrainotError
from .transport import distances, entropic_plan, exact_plan, pot


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
    except FileNotFoundError:
        raise BrainotError(f"{file}: no such file") from None
    except (ValueError, OSError) as error:
        raise BrainotError(f"{file}: no JSON: {str(error).splitlines()[0]}") from None
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
    counts = [int(part) if part.strip().isdecimal() else 0 for part in tokens.split(",")]
    if min(*counts, samples, 4096) < 1:
        raise BadInput(f"--tokens {tokens} --samples {samples}: numbers of 1 and more, tokens by commas")
    rows = [timed(n, samples, max(round(m * n), 1) / n) for n in counts for m in (0.5, 1.0)]
    print(documents.dumps(rows) if json else "\n".join(map(line, rows)))


def line(row: Mapping[str, Any]) -> str:
    """A row of `timed` in words."""
    return (
        "N={tokens} m={m:.2f}, ms a sample: POT {pot:.2f}, exact here {exact:.2f}; before training {pot_before:.2f}, "
        "{exact_before:.2f}; entropic {entropic:.2f} ({sweeps} sweeps, {ratio:.4f} of the exact cost)"
    ).format(**row)


def timed(n: int, samples: int, m: float, device: str = "cpu", dim: int = 64) -> dict[str, Any]:
    """Milliseconds a sample of each way to a plan.

    Brain tokens lie near the image tokens, as after training; ``*_before``: near one point, as before it.
    """
    generator = torch.Generator().manual_seed(0)
    image, spread = torch.randn(2, samples, n, dim, generator=generator)
    after = image[:, torch.randperm(n, generator=generator)] + 0.5 * spread
    before = torch.randn(samples, 1, dim, generator=generator) + 0.05 * spread
    cost, early = (distances(brain.to(device), image.to(device)) for brain in (after, before))
    a = torch.full((n,), 1 / n, dtype=torch.float64).numpy()

    def loop(costs: Tensor) -> None:
        for c in costs.cpu().double().numpy():
            if m == 1:
                pot().emd(a, a, c)
            else:
                pot().partial.partial_wasserstein(a, a, c, m=m)

    eps = 0.005 * float(cost.median())
    entropic = entropic_plan(cost, m, eps)
    ways: dict[str, Callable[[], Any]] = {
        "pot": lambda: loop(cost),
        "exact": lambda: exact_plan(cost, m),
        "pot_before": lambda: loop(early),
        "exact_before": lambda: exact_plan(early, m),
        "entropic": lambda: entropic_plan(cost, m, eps),
    }
    repeats = {"entropic": 1}
    took = {name: milliseconds(way, device, repeats.get(name, 3)) / samples for name, way in ways.items()}
    ratio = float((cost * entropic.plan).sum() / (cost * exact_plan(cost, m).plan).sum())
    return {"tokens": n, "m": m, **took, "sweeps": entropic.sweeps, "ratio": ratio}


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

"""What `claims.toml` measures beside the metrics of a run: time, memory, programs, equality of compiled paths."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from plait.declare.recipe import Recipe

from .bodies import WDSR
from .clips import Clip, embedded
from .degradation import Array
from .memory import plan_memory
from .network import RoutedNetwork, as_input, reconstruct, windows
from .options import DydcaOptions
from .routing import plan_clip
from .runtimes import available, build, difference, inductor, onnx_session, random_shapes
from .symbolic import analyse

__all__ = ["equality", "handling", "memory", "programs"]

WARM, REPEATS = 2, 8


def the_case(seed: int) -> tuple[RoutedNetwork, Clip, Array]:
    """Paths (4, 2) of width 16 at x2, one frame of bikes, and its patches: half of the squares are hard, no halo."""
    torch.manual_seed(seed)
    clip = embedded("bikes", 2, frames=1)
    patches = plan_clip(clip, DydcaOptions(halo=0)).patches
    return RoutedNetwork([WDSR(2, 4), WDSR(2, 2)]), clip, patches


def handling(recipe: Recipe, folder: Path) -> Mapping[str, float]:
    """CPU milliseconds of a frame within ONNX Runtime, by how shapes that change are handled.

    Args:
        recipe: for its seed.
        folder: for the programs.

    Returns:
        ``grouped`` (patches of one shape in one batch), ``padded`` (every patch as large as the largest),
        ``reinitialised`` (patch by patch, the engine built anew when path or shape change), ``single`` (patch by
        patch), ``whole`` (one deep path on the whole frame).
    """
    network, clip, patches = the_case(recipe.seed)
    frame, largest = clip.lr[0], patches[:, 3:5].max(0)
    engine = build("onnxruntime", network, folder / "programs")

    def padded() -> None:
        for path in np.unique(patches[:, 5]):
            own = patches[patches[:, 5] == path].copy()
            own[:, 3:5] = largest
            engine(int(path), as_input(windows(frame[None], own, 0)))

    def single(anew: bool) -> None:
        last: tuple[int, ...] | None = None
        for patch in patches:
            key, path = tuple(patch[3:6]), int(patch[5])
            if anew and key != last:
                program, last = onnx_session(engine.artefacts[path]), key
            elif not anew:
                program = engine.programs[path]
            program(as_input(windows(frame[None], patch[None], 0)))

    whole = patches[:1].copy()
    whole[0] = (0, 0, 0, *frame.shape[:2], 0)
    return {
        "grouped": cpu_ms(lambda: reconstruct(frame, patches, engine, 2, 0)),
        "padded": cpu_ms(padded),
        "reinitialised": cpu_ms(lambda: single(True)),
        "single": cpu_ms(lambda: single(False)),
        "whole": cpu_ms(lambda: reconstruct(frame, whole, engine, 2, 0)),
    }


def cpu_ms(work: Callable[[], object]) -> float:
    """Median CPU time of 8 calls after 2 that are not counted."""
    taken = []
    for _ in range(WARM + REPEATS):
        started = time.process_time()
        work()
        taken.append(1000 * (time.process_time() - started))
    return statistics.median(taken[WARM:])


def programs(recipe: Recipe, folder: Path, shapes: int = 1000) -> Mapping[str, float]:
    """How many programs serve so many random shapes.

    Returns:
        ``paths`` of the network, ``compilations`` by torch.compile with dynamic shapes, ``artefacts`` of ONNX Runtime.
    """
    from torch._dynamo.testing import CompileCounter

    network, _, _ = the_case(recipe.seed)
    small = RoutedNetwork([WDSR(2, 2, 4), WDSR(2, 1, 4)]).folded()
    torch._dynamo.reset()
    counter = CompileCounter()
    for path in small.paths:
        compiled = inductor(path, folder, backend=counter)
        for batch, height, width in random_shapes(shapes, recipe.seed):
            compiled(torch.rand(batch + 1, 3, height, width))
    engine = build("onnxruntime", network, folder / "programs")
    return {"paths": len(small.paths), "compilations": counter.frame_count, "artefacts": len(engine.artefacts)}


def memory(recipe: Recipe, folder: Path) -> Mapping[str, float]:
    """Planned memory of a batch of 16 fine cells on the deep path.

    Returns:
        ``padded_over_planned`` (16 patches as large as the largest, over 16 as they are), ``arena_over_live`` (the plan
        over the highest sum of tensors that live at once: what an allocator that frees would need, without fusion) and
        ``unfused_over_fused``.
    """
    network, _, patches = the_case(recipe.seed)
    plan, unfused = (plan_memory(analyse(network.paths[0]), fused=fused) for fused in (True, False))
    fine, coarse = patches[:, 3:5].min(0), patches[:, 3:5].max(0)
    return {
        "padded_over_planned": plan.bytes(16, *map(int, coarse)) / plan.bytes(16, *map(int, fine)),
        "arena_over_live": unfused.arena / unfused.live,
        "unfused_over_fused": unfused.arena / plan.arena,
    }


def equality(recipe: Recipe, folder: Path, shapes: int = 9) -> Mapping[str, float]:
    """The largest difference from PyTorch over random shapes, of every runtime that is installed.

    Returns:
        ``largest`` of all, and ``runtimes``, how many were compared.
    """
    network, _, _ = the_case(recipe.seed)
    names = [name for name in available() if name != "eager"]
    drawn = random_shapes(shapes, recipe.seed)
    largest = [difference(build(name, network, folder / name), network, drawn) for name in names]
    return {"largest": max(largest), "runtimes": float(len(names))}

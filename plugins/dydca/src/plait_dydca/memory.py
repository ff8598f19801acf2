"""One memory plan for all shapes: each tensor of a path takes a constant number of bytes for each low-resolution
pixel, so offsets in that unit hold for any input. Card, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import DydcaError
from .symbolic import Analysis, operator_name

__all__ = ["MemoryPlan", "execute", "lifetimes", "plan_memory"]

ALIGNMENT = 64
"""Bytes: an offset in bytes for a pixel is a multiple of 4, and pixels are counted in sixteens."""


@dataclass(frozen=True)
class Lifetime:
    """A buffer: how many bytes a low-resolution pixel, and the first and last operator that needs it."""

    name: str
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """Where each buffer lies, in bytes for each low-resolution pixel.

    Attributes:
        arena: of the whole arena.
        offsets: buffer -> its place.
        buffers: their lifetimes.
        buffer_of: operator -> the buffer that it writes.
        live: the highest sum of buffers that are needed at once: no plan can be smaller.
        without_reuse: the sum of all buffers.
    """

    arena: int
    offsets: dict[str, int]
    buffers: tuple[Lifetime, ...]
    buffer_of: dict[str, str]
    live: int
    without_reuse: int

    def bytes(self, batch: int, height: int, width: int) -> int:
        """Of the arena for an input [batch, 3, height, width]."""
        return self.arena * _sixteens(batch * height * width)


def lifetimes(analysis: Analysis, *, fused: bool) -> tuple[tuple[Lifetime, ...], dict[str, str]]:
    """The buffers of a path in its fixed order, and which operator writes which.

    Args:
        analysis: of the path.
        fused: a ReLU, and a sum with what a convolution has just given, are computed in place.

    Raises:
        DydcaError: a tensor whose size is no constant times the pixels.
    """
    last = {name: position for position, node in enumerate(analysis.nodes) for name in node.reads}
    last[analysis.output] = len(analysis.nodes)
    operators = {node.name: node for node in analysis.nodes}
    buffers: dict[str, Lifetime] = {}
    buffer_of: dict[str, str] = {}
    for position, node in enumerate(analysis.nodes):
        size, place, first = node.bytes_per_pixel, node.name, position
        if size is None:
            raise DydcaError(f"{node.name} has the shape {' x '.join(node.shape)}: no constant size for each pixel.")
        if fused and node.operator in ("relu", "add"):
            for given in (operators[name] for name in node.reads if name in operators):
                computed = given.operator in ("conv2d", "pixel_shuffle")
                if computed and given.bytes_per_pixel == size and last[given.name] == position:
                    place = buffer_of[given.name]  # nobody else reads what stands there
                    first = buffers[place].first
        buffer_of[node.name] = place
        buffers[place] = Lifetime(place, size, first, last.get(node.name, position))
    return tuple(buffers.values()), buffer_of


def plan_memory(analysis: Analysis, *, fused: bool = True) -> MemoryPlan:
    """Offsets by best fit: buffers one after another, each in the smallest gap among those that live with it.

    They are taken by size, or by time; the smaller arena of the two is the plan.
    """
    buffers, buffer_of = lifetimes(analysis, fused=fused)
    by_size = _placed(sorted(buffers, key=lambda b: (-b.size, b.first)))
    placed = min(by_size, _placed(buffers), key=_end)
    steps = range(len(analysis.nodes) + 1)
    return MemoryPlan(
        arena=_end(placed),
        offsets={buffer.name: offset for offset, buffer in placed},
        buffers=buffers,
        buffer_of=buffer_of,
        live=max(sum(b.size for b in buffers if b.first <= step <= b.last) for step in steps),
        without_reuse=sum(b.size for b in buffers),
    )


def _placed(order: Sequence[Lifetime]) -> list[tuple[int, Lifetime]]:
    placed: list[tuple[int, Lifetime]] = []
    for buffer in order:
        rivals = sorted((o, o + b.size) for o, b in placed if b.first <= buffer.last and buffer.first <= b.last)
        placed.append((_best_gap(rivals, buffer.size), buffer))
    return placed


def _end(placed: Sequence[tuple[int, Lifetime]]) -> int:
    return max(offset + buffer.size for offset, buffer in placed)


def _best_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """The start of the smallest gap between taken stretches that has room, else the end."""
    gaps, end = [], 0
    for low, high in taken:
        if low - end >= size:
            gaps.append((low - end, end))
        end = max(end, high)
    return min(gaps)[1] if gaps else end


def _sixteens(pixels: int) -> int:
    return -(-pixels // 16) * 16


@torch.no_grad()
def execute(analysis: Analysis, plan: MemoryPlan, x: Tensor) -> Tensor:
    """Run a path operator by operator, every result inside one flat buffer at the place of the plan.

    Args:
        analysis: of the path.
        plan: of the same.
        x: [b, 3, h, w] float32, on the CPU.

    Returns:
        The path's output, a view into the buffer.

    Raises:
        DydcaError: an operator that this interpreter does not know.
    """
    batch, _, height, width = x.shape
    pixels = _sixteens(batch * height * width)
    arena = torch.full((plan.arena * pixels // 4,), torch.nan)
    weights = {**analysis.program.state_dict, **analysis.program.constants}
    names = analysis.program.graph_signature.inputs_to_parameters
    held: dict[str, Any] = {name: weights[target] for name, target in names.items()} | {analysis.input: x}
    sizes = {"b": batch, "h": height, "w": width}
    shapes = {node.name: [eval(size, {"__builtins__": {}}, sizes) for size in node.shape] for node in analysis.nodes}
    for node in analysis.program.graph.nodes:
        if node.op != "call_function":
            continue
        start = plan.offsets[plan.buffer_of[node.name]] * pixels // 4
        shape = shapes[node.name]
        out = arena[start : start + math.prod(shape)].view(shape)
        args = [held[arg.name] if isinstance(arg, torch.fx.Node) else arg for arg in node.args]
        held[node.name] = _into(operator_name(node.target), args, out)
    result: Tensor = held[analysis.output]
    return result


def _into(operator: str, args: list[Any], out: Tensor) -> Tensor:
    """One operator, its result written to ``out``."""
    aten = torch.ops.aten
    if operator in ("sub", "add"):
        getattr(torch, operator)(args[0], args[1], out=out)
    elif operator == "relu":
        torch.clamp(args[0], min=0, out=out)
    elif operator == "pixel_shuffle":
        aten.pixel_shuffle.out(args[0], args[1], out=out)
    elif operator == "conv2d":
        defaults: list[Any] = [[1, 1], [0, 0], [1, 1], 1]
        stride, padding, dilation, groups = [*args[3:], *defaults[len(args) - 3 :]]
        aten.convolution.out(*args[:3], stride, padding, dilation, False, [0, 0], groups, out=out)
    else:
        raise DydcaError(f"{operator} is no operator of the networks here: it cannot be run in a planned buffer.")
    return out

"""Shapes of a path for every input size, by torch.export: each operator, its class, its size. Card, section 6.

torch.export with symbolic dimensions is the data-flow analysis; nothing here infers a shape. The classes of operators
are those of SoD2 (arXiv 2403.00176), by what fixes an operator's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import nn

from plait.declare.results import Table

from .bodies import folded
from .errors import DydcaError

__all__ = ["Analysis", "Node", "analyse", "node_table", "operator_class"]

ISDO = frozenset(
    {"sym_size", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "empty", "arange", "eye"}
)
ISVDOS = frozenset(
    {
        "view", "reshape", "_unsafe_view", "expand", "slice", "repeat", "permute", "narrow", "select", "index_select",
        "interpolate", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d", "pad", "constant_pad_nd",
    }
)  # fmt: skip
EDO = frozenset({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output})
"""How torch marks operators whose output depends on values."""


@dataclass(frozen=True)
class Node:
    """One operator of a path.

    Attributes:
        name: in the graph.
        operator: e.g. ``conv2d``.
        kind: ``ISDO``, ``ISDOS``, ``ISVDOS`` or ``EDO``.
        shape: the output's, in b, h and w.
        bytes_per_pixel: of the output in float32, for each low-resolution pixel of the batch; None where its size is
            no constant times b h w.
        reads: names of the operators and inputs that it reads.
    """

    name: str
    operator: str
    kind: str
    shape: tuple[str, ...]
    bytes_per_pixel: int | None
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Analysis:
    """A path as torch.export sees it, for any batch, height and width.

    Attributes:
        program: the exported program; its one input is [b, 3, h, w].
        nodes: its operators in the fixed order.
        input: name of the input.
        output: name of the operator that gives the result.
    """

    program: torch.export.ExportedProgram
    nodes: tuple[Node, ...]
    input: str
    output: str


def operator_class(target: Any) -> str:
    """What fixes an operator's output: the shape of its input alone (its value, ISDO, or its shape, ISDOS), also an
    input's value (ISVDOS), or only the execution (EDO)."""
    name = operator_name(target)
    if name in ("cond", "while_loop") or EDO.intersection(getattr(target, "tags", ())):
        return "EDO"
    return "ISDO" if name in ISDO else "ISVDOS" if name in ISVDOS else "ISDOS"


def operator_name(target: Any) -> str:
    """``conv2d`` of ``aten.conv2d.default``."""
    packet = getattr(target, "overloadpacket", None)
    return packet.__name__ if packet is not None else str(getattr(target, "__name__", target))


def analyse(path: nn.Module, most: tuple[int, int, int] = (4096, 8192, 8192)) -> Analysis:
    """Export a path with symbolic batch, height and width, and read off every size.

    Args:
        path: from [b, 3, h, w]; weight normalisation is folded in a copy.
        most: the largest b, h and w.

    Raises:
        DydcaError: the path has an operator whose output only its execution fixes.
    """
    network = folded(path).eval()
    dims = [torch.export.Dim(name, min=low, max=high) for name, low, high in zip("bhw", (1, 2, 2), most, strict=True)]
    example = torch.rand(2, 3, 12, 14, device=next(network.parameters()).device)  # a batch of 1 would be specialised
    with torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=({0: dims[0], 2: dims[1], 3: dims[2]},))
    entry = str(program.graph_signature.user_inputs[0])
    b, _, h, w = next(node.meta["val"].shape for node in program.graph.nodes if node.name == entry)
    symbols = {size.node.expr: sympy.Symbol(name) for size, name in ((b, "b"), (h, "h"), (w, "w"))}
    pixels = sympy.prod(list(symbols))
    nodes = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        value = node.meta["val"]
        sized = isinstance(value, torch.Tensor)
        nodes.append(
            Node(
                node.name,
                operator_name(node.target),
                operator_class(node.target),
                tuple(_shown(size, symbols) for size in value.shape) if sized else (),
                _per_pixel(value, pixels) if sized else None,
                tuple(given.name for given in node.all_input_nodes),
            )
        )
    output = program.graph_signature.user_outputs[0]
    assert output is not None
    bad = [node for node in nodes if node.kind == "EDO"]
    if bad:
        raise DydcaError(
            f"the path decides by values: {bad[0].operator} ({bad[0].name}); routes belong outside of paths."
        )
    return Analysis(program, tuple(nodes), entry, str(output))


def node_table(analysis: Analysis) -> Table:
    """Every operator with its class, symbolic shape and size."""
    rows = [
        [node.name, node.operator, node.kind, " x ".join(node.shape), node.bytes_per_pixel] for node in analysis.nodes
    ]
    return Table("operators of a path", ["operator", "kind", "class", "shape", "bytes a LR pixel"], rows)


def _shown(size: Any, symbols: dict[Any, Any]) -> str:
    return str(size.node.expr.subs(symbols)) if isinstance(size, torch.SymInt) else str(size)


def _per_pixel(value: torch.Tensor, pixels: Any) -> int | None:
    count: Any = value.numel()
    ratio = (count.node.expr if isinstance(count, torch.SymInt) else count) / pixels
    return 4 * int(ratio) if ratio.is_Integer else None

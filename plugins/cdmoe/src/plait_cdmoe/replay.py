"""The authors' published searches: three JSON files, all indexed by mixture-of-experts layer from 0.

- gates ``{"l-e": [sum, count, mean]}``,
- experts ``{"l": [e1, ..., ek]}``,
- layers ``[l1, l2, ...]``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CdmoeError
from .gates import GateStats
from .layers import Beam
from .search import Search

__all__ = ["read_experts", "read_gates", "read_order", "replayed"]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CdmoeError(f"{path} cannot be read as JSON: {error}") from error


def read_gates(content: Any, layers: int, experts: int, where: str = "gates") -> GateStats:
    """Gate statistics; a pair that is missing was never selected.

    Raises:
        CdmoeError: an entry of another form, an index out of range, or a mean that is not sum / count.
    """
    sums = [[0.0] * experts for _ in range(layers)]
    counts = [[0] * experts for _ in range(layers)]
    for name, entry in _mapping(content, where).items():
        try:
            layer, expert = map(int, str(name).split("-"))
            total, count = float(entry[0]), int(entry[1])
        except (ValueError, TypeError, IndexError) as error:
            raise CdmoeError(f"{where}: the entry {name!r} must be 'layer-expert': [sum, count, mean]") from error
        if not (0 <= layer < layers and 0 <= expert < experts):
            raise CdmoeError(f"{where}: {name!r} is outside a model of {layers} layers with {experts} experts")
        if not math.isfinite(total) or (
            count and len(entry) > 2 and abs(total / count - entry[2]) > 1e-3 * abs(entry[2])
        ):
            raise CdmoeError(f"{where}: {name!r} is not finite, or its mean is not its sum over its count")
        sums[layer][expert], counts[layer][expert] = total, count
    return GateStats(sums, counts, max((sum(row) for row in counts), default=0))


def read_experts(content: Any, layers: int, where: str = "experts") -> list[list[int]]:
    """Keep lists of every layer.

    Raises:
        CdmoeError: a layer without one, or out of range.
    """
    lists = {int(name): [int(e) for e in kept] for name, kept in _mapping(content, where).items()}
    for layer in range(layers):
        if layer not in lists:
            raise CdmoeError(f"{where}: layer {layer} has no keep list")
    if extra := set(lists) - set(range(layers)):
        raise CdmoeError(f"{where}: layer {min(extra)} is out of range; the model has {layers}")
    return [lists[layer] for layer in range(layers)]


def read_order(content: Any, layers: int, where: str = "layers") -> list[int]:
    """The order of the layers.

    Raises:
        CdmoeError: not a list of layers, each at most once.
    """
    if not isinstance(content, list) or not all(isinstance(layer, int) for layer in content):
        raise CdmoeError(f"{where}: must be a list of layers")
    if len(set(content)) < len(content) or not all(0 <= layer < layers for layer in content):
        raise CdmoeError(f"{where}: {content} must name layers of 0 to {layers - 1}, each once")
    return list(content)


def _mapping(content: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise CdmoeError(f"{where}: must be a JSON object")
    return content


def replayed(search: Search, folder: Path) -> None:
    """Fill a search's state from ``gates.json``, ``experts.json`` (SR) and ``layers.json`` of a folder.

    Keep lists are cut to k and the order to P.

    Raises:
        CdmoeError: a file that is missing or does not fit the model.
    """
    sizes, state, wanted = search.geometry, search.state, search.options.layers
    gates, experts, layers = (folder / f"{name}.json" for name in ("gates", "experts", "layers"))
    state.gates = read_gates(_json(gates), sizes.layers, sizes.experts, str(gates))
    order = read_order(_json(layers), sizes.layers, str(layers))
    if len(order) < wanted:
        raise CdmoeError(f"{layers}: {len(order)} layers are in it, and {wanted} are wanted")
    lists: list[list[int]] = [[] for _ in range(sizes.layers)]
    if search.kept:
        lists = read_experts(_json(experts), sizes.layers, str(experts))
    for layer, kept in enumerate(lists):
        if len(kept) < search.kept:
            raise CdmoeError(f"layer {layer}: its keep list has {len(kept)} experts, and {search.kept} are wanted")
        for expert in kept[: search.kept]:
            if not (0 <= expert < sizes.experts and state.gates.counts[layer][expert]):
                raise CdmoeError(f"layer {layer}: expert {expert} of its keep list has no gate weight")
    state.keep = [kept[: search.kept] for kept in lists]
    state.traces = [[] for _ in lists]
    state.beams = [Beam(tuple(order[:wanted]), ())]

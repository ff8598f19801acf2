"""What a run reports of its numbers: figures, tables and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plait.declare.results import Metric, Plot, Table

from .measures import retained
from .search import Search

__all__ = ["Results", "accuracies", "curve", "excess", "layers", "perplexities", "sizes", "speedups", "traces"]

Results = dict[str, Metric | Table | Plot]
Perplexities = Mapping[str, float]
"""By domain; ``""`` is of all."""


def excess(original: Perplexities, condensed: Perplexities, tuned: Perplexities) -> Results:
    """How much worse than the original, nats a token, and how much of that fine-tuning took back."""
    if "" not in original:
        return {}
    last, first = math.log(tuned[""] / original[""]), math.log(condensed[""] / original[""])
    share = 100 * (1 - last / first) if first > 0 else math.nan
    note = "of the excess, by fine-tuning" if first > 0 else "undefined: there was no excess"
    return {
        "perplexity": Metric(tuned[""], "", "lower"),
        "perplexity_original": Metric(original[""], "", "lower"),
        "excess": Metric(last, "nats", "lower", "ln of perplexity over the original's"),
        "excess_before": Metric(first, "nats", "lower", "the same before fine-tuning"),
        "recovered": Metric(share, "%", "higher", note),
    }


def accuracies(now: Mapping[str, float], original: Mapping[str, float]) -> Results:
    """Of multiple choice, %, in each domain and in all (``""``), and over the original's."""
    figures: Results = {
        f"choice_accuracy{'_' + name if name else ''}": Metric(value, "%", "higher", "chance is 25 %")
        for name, value in now.items()
    }
    if "" in now and "" in original:
        share, above = retained(now[""], original[""]), retained(now[""], original[""], 25.0)
        note = "undefined: the original is at chance" if math.isnan(above) else "of what it has above chance"
        figures["choice_accuracy_original"] = Metric(original[""], "%", "higher")
        figures["retained"] = Metric(100 * share, "%", "higher", "of the original's multiple-choice accuracy")
        figures["retained_above_chance"] = Metric(100 * above, "%", "higher", note)
    return figures


def sizes(original: tuple[int, int], condensed: tuple[int, int]) -> Results:
    """Of bytes and numbers of parameters."""
    note = "parameters, tied ones once; buffers are not counted"
    return {
        "memory_ratio": Metric(condensed[0] / original[0], "", "lower", note),
        "bytes": Metric(condensed[0], "bytes", "lower"),
        "parameters": Metric(condensed[1], "parameters", "lower", f"of {original[1]}"),
    }


def speedups(speeds: Mapping[str, Sequence[Sequence[float]]]) -> Results:
    """Of tokens a second by experts implementation: of the original, then of the condensed model, by phase."""
    figures: Results = {}
    for implementation, pairs in speeds.items():
        note = f"against the original with experts {implementation}; before fine-tuning, process time on CPU"
        for phase, first, last in zip(("prefill", "decode", "layer"), pairs[0], pairs[-1], strict=False):
            if not math.isnan(last / first):
                figures[f"{phase}_speedup_{implementation}"] = Metric(last / first, "", "higher", note)
    return figures


def curve(points: Sequence[tuple[float, float]], original: Perplexities, mode: str) -> Results:
    """Excess and memory before fine-tuning, of points with perplexity and memory ratio after 1, 2, ... layers."""
    if not points:
        return {}
    figures: Results = {}
    excesses, ratios = [0.0], [1.0]
    for count, (value, memory) in enumerate(points, 1):
        excesses.append(math.log(value / original[""]))
        ratios.append(memory)
        figures[f"excess_p{count}"] = Metric(excesses[-1], "nats", "lower")
        figures[f"memory_ratio_p{count}"] = Metric(memory, "", "lower")
    title, lines = "Excess before fine-tuning against memory", {mode: (ratios, excesses)}
    return {**figures, "curve": Plot(title, "parameter bytes over the original's", "nats", lines)}


def perplexities(names: Sequence[str], models: Mapping[str, Perplexities]) -> Results:
    """Of every model by domain, as a table and as bars; the domains are those that the last model has figures of."""
    *_, last = models.values()
    domains = [name for name in ("", *names) if name in last]
    labels = [name or "all" for name in domains]
    rows = [[name or "all", *(figures.get(name) for figures in models.values())] for name in domains]
    bars = {label: (labels, [figures.get(name, math.nan) for name in domains]) for label, figures in models.items()}
    return {
        "perplexities": Table("Perplexity by domain", ["domain", *models], rows),
        "perplexity_by_domain": Plot("Perplexity", "domain", "perplexity", bars, "bar"),
    }


def layers(search: Search) -> Results:
    """The layers in the order in which they were chosen, with the experts that they keep."""
    state, options = search.state, search.options
    places = search.family.moe_layers() if options.mode != "block-trimming" else range(len(search.decoder))
    rows: list[list[Any]] = []
    for rank, layer in enumerate(state.order[: options.layers]):
        kept = state.keep[layer] if layer < len(state.keep) else []
        pairs = (
            ", ".join(f"{e} ({w:.3f})" for e, w in zip(kept, search.weights(layer), strict=True)) if kept else "none"
        )
        at = state.distances[rank] if rank < len(state.distances) else None
        rows.append([rank + 1, layer, places[layer], pairs, at])
    measure = "cosine" if options.mode.endswith("trimming") else options.distance
    columns = ["order", "layer", "decoder layer", "kept experts (weight)", measure]
    return {"layers": Table(f"Layers in the order in which they were chosen ({options.mode})", columns, rows)}


def traces(search: Search) -> Results:
    """The distance after every step of both searches."""
    state, kind = search.state, search.options.distance
    figures: Results = {}
    if state.distances and not search.options.mode.endswith("trimming"):
        lines = {"layers": (_numbered(state.distances), state.distances)}
        figures["layer_trace"] = Plot("Distance of the final states", "condensed layers", kind, lines)
    lines = {f"layer {layer}": (_numbered(trace), trace) for layer, trace in enumerate(state.traces) if trace}
    if lines:
        title = "Distance of a layer's output by kept experts"
        figures["expert_traces"] = Plot(title, "kept experts", kind, lines)
    return figures


def _numbered(trace: Sequence[float]) -> list[int]:
    return list(range(1, len(trace) + 1))

"""What is wrong with what a hook returned or left behind, as lines for people; empty when nothing is."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.data import Batch
from plait.data.batches import in_parts
from plait.declare.results import Metric, Plot, Table
from plait.training.evaluation import View

if TYPE_CHECKING:
    from plait.training.trainer import Trainer


# ---- the loss ----------------------------------------------------------------------------------------------------
def shape(value: Any) -> str:
    """A tensor's shape, or what stands in its place."""
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def objective_problems(result: Any, size: int) -> Iterator[str]:
    """[B], or [N, B] for N replicas, of finite numbers."""
    if not isinstance(result, Tensor) or result.ndim not in (1, 2) or result.shape[-1] != size:
        yield f"objective returned {shape(result)} for a batch of {size}; it must be each example's loss, [{size}]."
    elif not bool(torch.isfinite(result).all()):
        yield "objective returned values that are not finite, on ordinary data."


def weights_problems(result: Any, size: int, whole: tuple[int, ...] = ()) -> Iterator[str]:
    """[B] of finite numbers; or the shape ``whole`` of the batch, [N, B] where N replicas have a batch each."""
    if not isinstance(result, Tensor) or tuple(result.shape) not in ((size,), whole or (size,)):
        yield f"example_weights returned {shape(result)} for a batch of {size}; it must be one weight each, [{size}]."
    elif not bool(torch.isfinite(result).all()):
        yield "example_weights returned values that are not finite, on ordinary data."


def terms_problems(result: Any) -> Iterator[str]:
    """Name -> finite scalar tensor."""
    if not isinstance(result, Mapping):
        yield f"loss_terms returned {shape(result)}; it must be a mapping: name -> scalar tensor."
        return
    for name, term in result.items():
        if not isinstance(name, str):
            yield f"loss_terms has the name {name!r}; names are strings."
        elif not isinstance(term, Tensor) or term.ndim != 0:
            yield f"loss_terms[{name!r}] is {shape(term)}; it must be a scalar tensor (.mean() or .sum() it)."
        elif not bool(torch.isfinite(term)):
            yield f"loss_terms[{name!r}] is {term.item()}, on ordinary data."


# ---- evaluation --------------------------------------------------------------------------------------------------
def figures_problems(result: Any) -> Iterator[str]:
    """Metrics with unit, direction and a number; tables and plots whose columns and series fit."""
    if not isinstance(result, Mapping):
        yield f"evaluate returned {shape(result)}; it must be a mapping: name -> plait.Metric, Table or Plot."
        return
    for name, value in result.items():
        if not isinstance(name, str) or not name or "/" in name or "@" in name:
            yield f"evaluate has the name {name!r}; a name is a string without / and @ (the core adds them)."
        if isinstance(value, Metric):
            yield from _metric_problems(name, value)
        elif isinstance(value, Table):
            odd = [row for row in value.rows if len(row) != len(value.columns)]
            if odd:
                yield f"the table {name!r} has {len(value.columns)} columns and a row of {len(odd[0])} values."
        elif isinstance(value, Plot):
            for series, (xs, ys) in value.series.items():
                if len(xs) != len(ys):
                    yield f"the plot {name!r}: series {series!r} has {len(xs)} x values and {len(ys)} y values."
        else:
            yield f"evaluate gave {shape(value)} for {name!r}; wrap it in plait.Metric(value, unit, better)."


def _metric_problems(name: str, metric: Metric) -> Iterator[str]:
    if isinstance(metric.value, bool) or not isinstance(metric.value, (int, float)):
        yield f"the value of metric {name!r} is {shape(metric.value)}; it must be a float (tensor.item())."
    elif not math.isfinite(metric.value) and not metric.note:
        yield f"metric {name!r} is {metric.value} without a note; Metric(..., note=...) says when it is undefined."
    if not isinstance(metric.unit, str):
        yield f"the unit of metric {name!r} is {metric.unit!r}; it must be a string, '' for a pure number."
    if metric.better not in ("higher", "lower", "neither"):
        yield f"metric {name!r} has better={metric.better!r}; it must be 'higher', 'lower' or 'neither'."


def views_problems(result: Any) -> Iterator[str]:
    """Name -> View."""
    if not isinstance(result, Mapping):
        yield f"views returned {shape(result)}; it must be a mapping: name -> plait.View."
        return
    for name, view in result.items():
        if not isinstance(name, str) or not isinstance(view, View):
            yield f"views has {name!r} -> {shape(view)}; it must be a name and a plait.View."


def export_problems(trainer: Trainer, result: Any) -> Iterator[str]:
    """A module that gives what the trained one gives: the same type, shape and number type, and finite."""
    if not isinstance(result, nn.Module):
        yield f"export returned {shape(result)}; it must return the model, changed or not."
        return
    rows = trainer.data.test.__getitems__(torch.arange(min(2, len(trainer.data.test))))
    batch = in_parts(rows)[0].to(trainer.device)
    modes = {module: module.training for module in result.modules()}
    with torch.no_grad():
        want = trainer.call(copy.deepcopy(trainer.model).eval(), batch)
        try:
            got = trainer.call(result.eval(), batch)
        except Exception as error:
            yield f"the exported model cannot be called on a test batch: {type(error).__name__}: {error}"
            return
        finally:
            for module, training in modes.items():
                module.training = training
    if type(want) is not type(got):
        yield f"the exported model gives {shape(got)}, the trained one {shape(want)}."
    elif isinstance(want, Tensor):
        if want.shape != got.shape or want.dtype != got.dtype:
            yield f"the exported model gives {shape(got)} {got.dtype}, the trained one {shape(want)} {want.dtype}."
        elif not bool(torch.isfinite(got).all()):
            yield "the exported model gives values that are not finite."


# ---- state -------------------------------------------------------------------------------------------------------
def state_problems(value: Any, place: str = "") -> Iterator[str]:
    """Dicts with string keys, and lists, of tensors, numbers, strings, booleans and None."""
    if isinstance(value, Tensor) or value is None or isinstance(value, (bool, int, float, str)):
        return
    if isinstance(value, Mapping):
        for key, inside in value.items():
            if not isinstance(key, str):
                yield f"state_dict(){place} has the key {key!r}, a {type(key).__name__}; it comes back as a string."
            yield from state_problems(inside, f"{place}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for position, inside in enumerate(value):
            yield from state_problems(inside, f"{place}[{position}]")
    else:
        yield f"state_dict(){place} is a {type(value).__module__}.{type(value).__qualname__}."


# ---- the batch ---------------------------------------------------------------------------------------------------
def batch_size(batch: Any) -> int | None:
    """B of a plait batch, also of one whose fields are [N, B, ...]; None for a batch of another kind."""
    shape = batch_shape(batch)
    return shape[-1] if shape else None


def batch_shape(batch: Any) -> tuple[int, ...]:
    """[B], or [N, B] for N replicas with a batch each; empty for a batch of another kind."""
    return tuple(dict.__getitem__(batch, "index").shape) if isinstance(batch, Batch) else ()

"""From names and import paths to data and models."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from plait.data import Data, DataInfo
from plait.declare.options import load_object
from plait.declare.recipe import Component
from plait.declare.sources import DataSource, ModelSource
from plait.errors import BadInput, PlaitError, first_line
from plait.planning import discovery


def load_data(component: Component, seed: int) -> Data:
    """The data that a recipe names.

    A function given by import path is called with ``seed`` and the recipe's options, as far as it takes them.

    Raises:
        BadInput: it cannot be loaded, or is not a `plait.data.Data`.
    """
    name = str(component.name)
    data = _called("data", component, discovery.data_source(name), seed, {"seed": seed})
    if not isinstance(data, Data):
        raise BadInput(f"data {name}: expected a plait.data.Data, got {type(data).__name__}.")
    try:
        data.check(name)
    except PlaitError:
        raise
    except Exception as error:  # a stranger's split may raise anything
        raise BadInput(
            f"data {name}: reading its first rows failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    return data


def build_model(component: Component, info: DataInfo) -> nn.Module:
    """The model that a recipe names.

    A function or class given by import path is called with those of ``info``, ``num_classes``, ``input_shape`` and
    ``in_channels`` that it takes, and the recipe's options.

    Raises:
        BadInput: it cannot be built, is not a ``torch.nn.Module``, or is a scripted one.
    """
    name = str(component.name)
    offers = {"info": info, "num_classes": info.num_classes, "input_shape": info.input_shape}
    offers["in_channels"] = info.input_shape[0] if info.input_shape else 0
    model = _called("model", component, discovery.model_source(name), info, offers)
    if not isinstance(model, nn.Module):
        raise BadInput(f"model {name}: expected a torch.nn.Module, got {type(model).__name__}.")
    return plain(model, f"model {name}")


def plain(model: nn.Module, what: str) -> nn.Module:
    """A model without what torch wraps around it and its parts: DataParallel, DistributedDataParallel, torch.compile.

    Raises:
        BadInput: a scripted module, whose layers cannot be changed.
    """
    if isinstance(model, torch.jit.ScriptModule):
        mend = 'give the module that was scripted; export.formats = ["torchscript"] scripts what was trained'
        raise BadInput(f"{what} is scripted, and its layers cannot be changed or copied: {mend}.")
    parallel = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    inner = model._modules.get("module" if parallel else "_orig_mod")
    if inner is not None:
        return plain(inner, what)
    for name, part in model._modules.items():
        if part is not None:
            model._modules[name] = plain(part, f"{what}: {name}")
    return model


def _called(
    what: str, component: Component, source: DataSource | ModelSource | None, given: Any, offers: dict[str, Any]
) -> Any:
    """What a registered factory gives for ``given``, or a function by import path for those of the offers it takes."""
    path, options = str(component.name), component.options
    if source is not None:
        factory = load_object(source.factory, what)
        return factory(discovery.component_options(what, path, source, options), given)
    if os.getcwd() not in sys.path:
        # a console script does not look where the user stands; a `statistics.py` there must not hide Python's own
        sys.path.append(os.getcwd())
    try:
        function: Callable[..., Any] = load_object(path, what)
    except BadInput as error:
        own = f"{path.partition(':')[0].partition('.')[0]}.py"
        other = getattr(sys.modules.get(own.removesuffix(".py")), "__file__", None)
        if other and os.path.exists(own) and not os.path.samefile(other, own):
            raise BadInput(f"{error} {other} hides your own {own}: give that another name.") from error
        raise
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = {k: v for k, v in offers.items() if k in parameters or (takes_any and k == "num_classes")}
    unknown = [] if takes_any else [k for k in options if k not in parameters]
    if unknown:
        raise BadInput(f"{what} {path} takes no option {unknown[0]!r}; it takes {', '.join(parameters) or 'none'}.")
    try:
        return function(**taken, **options)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{what} {path} failed: {type(error).__name__}: {error}") from error

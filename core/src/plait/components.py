"""Light declarations of data sources and models: what they are and provide, without importing them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plait.deferred import OptionsField
from plait.errors import BadInput
from plait.plugin import Options


@dataclass(frozen=True)
class DataSource:
    """A named data set.

    Attributes:
        factory: import path ``package.module:function`` of ``function(options, seed) -> plait.data.Data``.
        summary: one line for tables.
        provides: words of `plait.vocabulary` (``field:group``, ``task:classification``).
        options: the pydantic model of its options (``--set data.NAME=VALUE``), best given by `plait.later`.
        places: files or folders on the user's disk, one of which it needs; empty for data that comes with the package
            or from a path among the options. ``plait doctor`` says whether one is there.
        obtain: how to get them, e.g. ``apt-get install ...``.
    """

    factory: str
    summary: str
    provides: frozenset[str] = frozenset()
    options: OptionsField = OptionsField(Options)  # noqa: RUF009 - a descriptor, one for all
    places: tuple[str, ...] = ()
    obtain: str = ""


@dataclass(frozen=True)
class ModelSource:
    """A named model.

    Attributes:
        factory: import path of ``function(options, info) -> torch.nn.Module`` with ``info`` a `plait.data.DataInfo`.
        summary: one line for tables.
        provides: words such as ``model:channel-groups``.
        needs: words that the data must provide.
        options: the pydantic model of its options (``--set model.NAME=VALUE``), best given by `plait.later`.
    """

    factory: str
    summary: str
    provides: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    options: OptionsField = OptionsField(Options)  # noqa: RUF009 - a descriptor, one for all


def load_object(path: str, what: str) -> Callable[..., Any]:
    """Import ``package.module:name``.

    Raises:
        BadInput: when the path is malformed, the module does not import or lacks the name.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise BadInput(f"{what} {path!r} is not an import path: write it as package.module:name.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise BadInput(
            f"{what} {path!r}: importing {module_name} failed with {type(error).__name__}: {error}."
        ) from error
    try:
        found: Callable[..., Any] = getattr(module, attribute)
    except AttributeError as error:
        raise BadInput(f"{what} {path!r}: module {module_name} has no {attribute!r}.") from error
    if not callable(found):
        raise BadInput(f"{what} {path!r} is a {type(found).__name__}, not a function or class.")
    return found

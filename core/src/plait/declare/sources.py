"""Light declarations of data sources and models: what they are and provide, without importing them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from plait.declare.options import Later, Options


class _Declaration:
    """What a data source and a model have in common."""

    needs: frozenset[str] = frozenset()

    def __init__(self, factory: str, summary: str, provides: frozenset[str], options: Any) -> None:
        self.factory, self.summary, self.provides = factory, summary, provides
        self._options: type[BaseModel] | Later = options

    @property
    def options(self) -> type[BaseModel]:
        """The pydantic model of its options; one that was given by `plait.later` is imported now."""
        return self._options.model if isinstance(self._options, Later) else self._options


class DataSource(_Declaration):
    """A named data set.

    Args:
        factory: import path ``package.module:function`` of ``function(options, seed) -> plait.data.Data``.
        summary: one line for tables.
        provides: words of `plait.declare.words` (``field:group``, ``task:classification``).
        options: the pydantic model of its options (``--set data.NAME=VALUE``), best given by `plait.later`.
        places: files or folders on the user's disk, one of which it needs; empty for data that comes with the package
            or from a path among the options. ``plait doctor`` says whether one is there.
        obtain: how to get them, e.g. ``apt-get install ...``.
    """

    def __init__(
        self,
        factory: str,
        summary: str,
        provides: frozenset[str] = frozenset(),
        options: Any = Options,
        places: tuple[str, ...] = (),
        obtain: str = "",
    ) -> None:
        super().__init__(factory, summary, provides, options)
        self.places, self.obtain = places, obtain


class ModelSource(_Declaration):
    """A named model.

    Args:
        factory: import path of ``function(options, info) -> torch.nn.Module`` with ``info`` a `plait.data.DataInfo`.
        summary: one line for tables.
        provides: words such as ``model:channel-groups``.
        needs: words that the data must provide.
        options: the pydantic model of its options (``--set model.NAME=VALUE``), best given by `plait.later`.
    """

    def __init__(
        self,
        factory: str,
        summary: str,
        provides: frozenset[str] = frozenset(),
        needs: frozenset[str] = frozenset(),
        options: Any = Options,
    ) -> None:
        super().__init__(factory, summary, provides, options)
        self.needs = needs

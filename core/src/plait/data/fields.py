"""Batches of the caller's own loop, read into plait's named fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plait.data.batches import Batch, Split, in_parts
from plait.data.conversion import mended
from plait.errors import BadInput

INT = torch.int64


class FieldReader:
    """From a batch as a loop has it to a `Batch`.

    A mapping keeps its names but for those that are known to mean ``input`` and ``label``; of a tuple the fields are
    named in order; a `Batch`, or another object with ``batch[name]`` (a PyG ``Data``), is taken as it is.

    Args:
        names: of a tuple's fields in order, or old name -> new name of a mapping's.
        target: what the second field of a tuple is, where ``names`` does not say: ``label`` or ``target``.
        main_input: the field of a mapping that is the model's first input (``pixel_values``).

    Attributes:
        integers: fields that hold class numbers.
        needed: field -> the plugin that needs it.
    """

    def __init__(
        self,
        names: Sequence[str] | Mapping[str, str] | None = None,
        target: str = "label",
        main_input: str | None = None,
    ) -> None:
        self.order = ("input", target) if names is None or isinstance(names, Mapping) else tuple(names)
        self.renamed: dict[str, str] = {"labels": target}
        if main_input is not None:
            self.renamed[main_input] = "input"
        if isinstance(names, Mapping):
            self.renamed |= names
        self.integers = ("label", "group") if target == "label" else ("group",)
        self.needed: dict[str, str] = {}
        self._indices: dict[int, Tensor] = {}

    def __call__(self, batch: Any) -> Any:
        """The batch in plait's form; ``index`` counts its rows where it has none.

        Raises:
            BadInput: no mapping and no tuple, a tuple of another length, or a field missing that a plugin needs.
        """
        if not isinstance(batch, Batch):
            batch = self._read(batch)
        for name, plugin in self.needed.items():
            if name not in in_parts(batch)[0]:
                raise BadInput(
                    f"the batch has no field {name!r}, which plugin {plugin!r} needs; it has {_listed(batch)}."
                )
        return batch

    def _read(self, batch: Any) -> Any:
        if isinstance(batch, (tuple, list)):
            if len(batch) != len(self.order):
                raise BadInput(
                    f"a batch of {len(batch)} values where {len(self.order)} are expected ({', '.join(self.order)}); "
                    "name them in order, weave(fields=('input', 'label', 'group')), or give a mapping."
                )
            fields = dict(zip(self.order, batch, strict=True))
        elif isinstance(batch, Mapping):
            fields = {self.renamed.get(str(name), str(name)): value for name, value in batch.items()}
        elif hasattr(batch, "to") and hasattr(batch, "__getitem__") and not isinstance(batch, Tensor):
            return batch
        else:
            raise BadInput(f"a batch is a mapping of tensors or a tuple (input, label), not a {type(batch).__name__}.")
        whole = Batch(fields if self._plain(fields) else mended(fields, self.integers))
        if "index" not in whole:
            for value in whole.values():
                if isinstance(value, Tensor) and value.ndim:
                    whole["index"] = self._numbers(value.shape[0])
                    return whole
            raise BadInput(f"a batch without a tensor: {_listed(fields)}.")
        return whole

    def _plain(self, fields: Mapping[str, Any]) -> bool:
        """Whether all fields are as plait takes them: tensors, and class numbers int64 [B]."""
        for name, value in fields.items():
            if type(value) is not Tensor or (name in self.integers and (value.dtype is not INT or value.ndim != 1)):
                return False
        return True

    def _numbers(self, rows: int) -> Tensor:
        """0 .. rows - 1, one tensor for all batches of a size; nobody writes to it."""
        if rows not in self._indices:
            self._indices[rows] = torch.arange(rows)
        return self._indices[rows]


class Sample:
    """All that plait knows of a data set in the caller's loop: one batch of it, and columns where they are given.

    Args:
        batch: the example batch.
        columns: name -> tensor [n] over the whole set.
    """

    in_memory = True

    def __init__(self, batch: Any, columns: Mapping[str, Tensor] | None = None) -> None:
        self.batch = batch
        self.fields: Mapping[str, Tensor] = Columns() if columns is None else columns
        self.size = len(next(iter(columns.values()))) if columns else batch.size

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Any:
        picked = torch.as_tensor(rows)
        if len(picked) and int(picked.max()) >= self.batch.size:
            raise _unseen("rows")
        return self.batch.take(picked)

    def stream(self, name: str, *_: Any, **__: Any) -> Any:
        """There is none: a plugin that draws batches of its own needs the data set."""
        raise _unseen(f"a stream of batches ({name!r})")


class Renamed:
    """A split of the caller's whose fields are named as the loop's batches are.

    Args:
        split: the split.
        read: how the loop's batches are read.
    """

    def __init__(self, split: Split, read: FieldReader) -> None:
        self.split, self.read = split, read
        self.in_memory = getattr(split, "in_memory", False)
        named = getattr(split, "fields", {})
        self.fields: dict[str, Tensor] = {read.renamed.get(name, name): value for name, value in named.items()}

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Any:
        batch = self.split.__getitems__(rows)
        return self.read(dict(batch)) if isinstance(batch, Batch) else batch


class Columns(Mapping[str, Tensor]):
    """The columns of a training set that the caller has not shown."""

    def __getitem__(self, name: str) -> Tensor:
        raise _unseen(f"the field {name!r}", f"{{{name!r}: tensor of all rows}} or ")

    def __contains__(self, name: object) -> bool:
        return False

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class Passes:
    """The batches of a loop, read anew for each pass over them; ``index`` counts on from batch to batch.

    Args:
        batches: iterated once a pass; an iterator that can be iterated only once is kept in memory.
        read: as `FieldReader`.
    """

    def __init__(self, batches: Iterable[Any], read: Callable[[Any], Any]) -> None:
        self.batches = list(batches) if isinstance(batches, Iterator) else batches
        self.read = read

    def __len__(self) -> int:
        return sum(batch.size for batch in self)

    def __iter__(self) -> Iterator[Any]:
        seen = 0
        for given in self.batches:
            batch = self.read(given)
            if isinstance(batch, Batch):
                batch = batch.numbered(torch.arange(seen, seen + batch.size))
                seen += batch.size
            yield batch


def _unseen(what: str, columns: str = "") -> BadInput:
    return BadInput(
        f"a plugin needs {what} of the whole training set, which is the caller's here: show it with weave(train=...), "
        f"{columns}the data set itself."
    )


def _listed(batch: Any) -> str:
    return ", ".join(map(str, batch.keys())) if hasattr(batch, "keys") else type(batch).__name__

"""Files in the layout of the Open Graph Benchmark: folders, columns, and its own reader; nothing is downloaded.

The raw files are read by the ``ogb`` package's own reader. Its dataset classes are not used: they ask to download,
write beside the raw files, and unpickle what they wrote.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plait.errors import BadInput

Ints = npt.NDArray[np.int64]
PARTS = ("train", "valid", "test")


class Layout(NamedTuple):
    """Where the files of one data set are, below its folder.

    Attributes:
        source: plait's name of the data source, for messages.
        name: the data set's, e.g. ``ogbn-arxiv``; its folder has ``_`` for ``-``.
        raw: files in ``raw``, without their ending ``.csv.gz``.
        split: files in ``split``, with their endings.
    """

    source: str
    name: str
    raw: tuple[str, ...]
    split: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Its folder's published name."""
        return self.name.replace("-", "_")

    @property
    def expected(self) -> str:
        """One sentence on what must be where."""
        return (
            f"Expected: ROOT/{self.folder}/raw/{{{','.join(self.raw)}}}.csv.gz and "
            f"ROOT/{self.folder}/split/{{{','.join(self.split)}}}, as https://ogb.stanford.edu has them."
        )

    def find(self, root: str) -> tuple[str, str]:
        """The folders ``raw`` and ``split``, with every file in its place.

        Args:
            root: the folder above, one above that with ``dataset`` in it, or the data set's own.

        Raises:
            BadInput: a folder or a file is missing; it is named.
        """
        home = os.path.expanduser(root)
        places = (os.path.join(home, self.folder), os.path.join(home, "dataset", self.folder), home)
        chosen = next((place for place in places if os.path.isdir(os.path.join(place, "raw"))), None)
        if chosen is None:
            raise BadInput(
                f"data {self.source}: there is no folder {self.folder}/raw in {root!r}; nothing is downloaded. "
                f"{self.expected}"
            )
        raw, split = os.path.join(chosen, "raw"), os.path.join(chosen, "split")
        needed = [os.path.join(raw, f"{name}.csv.gz") for name in self.raw]
        needed += [os.path.join(split, name) for name in self.split]
        for file in needed:
            if not os.path.isfile(file):
                raise BadInput(f"data {self.source}: {file} is missing. {self.expected}")
        return raw, split

    def read(self, raw: str, act: Callable[[ModuleType], Any]) -> Any:
        """What the package's reader makes of the raw files, quietly.

        Args:
            raw: the folder, for messages.
            act: calls functions of ``ogb.io.read_graph_raw``.

        Raises:
            BadInput: ``ogb`` is not installed, or a file is damaged.
        """
        module = _reader(self.source)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                return act(module)
        except Exception as error:  # the package's reader raises whatever pandas and numpy raise
            raise BadInput(f"data {self.source}: {raw}: cannot be read ({type(error).__name__}: {error}).") from None


def split_files(kind: str, ending: str = "csv.gz", inside: str = "") -> tuple[str, ...]:
    """Files of a published division, e.g. ``time/train.csv.gz``."""
    return tuple("/".join(filter(None, (kind, inside, f"{part}.{ending}"))) for part in PARTS)


def column(file: str) -> Ints:
    """Whole numbers, one a line.

    Raises:
        BadInput: anything else; the file is named.
    """
    values = _numbers(file, "one whole number per line")
    if values.shape[1:] != (1,) or not len(values) or (values != np.floor(values)).any():
        raise BadInput(f"{file}: must have one whole number per line.")
    whole: Ints = values[:, 0].astype(np.int64)
    return whole


def table(file: str) -> Ints:
    """Zeros and ones, separated by commas, as many in every line: int64 [n, K].

    Raises:
        BadInput: anything else; the file is named.
    """
    values = _numbers(file, "zeros and ones, as many in every line")
    if not values.size or not ((values == 0) | (values == 1)).all():
        raise BadInput(f"{file}: must have zeros and ones, as many in every line.")
    whole: Ints = values.astype(np.int64)
    return whole


def _numbers(file: str, wanted: str) -> npt.NDArray[np.float64]:
    try:
        with gzip.open(file, "rt", encoding="ascii") as opened:
            values: Any = np.loadtxt(_lines(opened), dtype=np.float64, ndmin=2, delimiter=",")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise BadInput(f"{file}: must have {wanted} ({error}).") from None
    numbers: npt.NDArray[np.float64] = values
    return numbers


def _lines(opened: Iterable[str]) -> Iterator[str]:
    empty = True
    for line in opened:
        empty = False
        yield line
    if empty:
        raise ValueError("it is empty")


def _reader(source: str) -> ModuleType:
    # on import, ogb starts a thread that asks the package index for a newer version; without `outdated` it does not
    hidden = "outdated" not in sys.modules
    if hidden:
        sys.modules["outdated"] = None  # type: ignore[assignment]
    try:
        from ogb.io import read_graph_raw
    except ImportError as error:
        raise BadInput(
            f"data {source}: the package ogb is not installed ({error}); pip install plait-glt[ogb]."
        ) from None
    finally:
        if hidden:
            del sys.modules["outdated"]
    module: ModuleType = read_graph_raw
    return module

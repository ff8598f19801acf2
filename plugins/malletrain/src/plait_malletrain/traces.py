"""Which nodes are idle when: traces of real machines and of the generator, as fragments (node, from, until).

Formats: job logs in the Standard Workload Format, the authors' Replayer pickles (only where the user allows it), and
tables of changes (CSV or Parquet: time, node, idle).
"""

from __future__ import annotations

import gzip
import pickle
import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from plait.storage.files import write_atomically

from .errors import MalletrainError

__all__ = ["Trace", "from_changes", "from_fragments", "read_trace", "static_trace"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trace:
    """Idle fragments of a machine's nodes within [0, duration].

    Attributes:
        nodes: size of the machine.
        duration: seconds.
        node, start, end: of each fragment [F]; times in seconds.
        name: where it comes from.
        notes: what the reader clipped, ignored or left out.
    """

    nodes: int
    duration: float
    node: Integers
    start: Floats
    end: Floats
    name: str = ""
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def events(self) -> tuple[Floats, Integers, Integers, NDArray[np.bool_]]:
        """Times of the changes [E]; where each begins in the next two [E + 1]; nodes; whether they join.

        At one time nodes leave before others join.
        """
        begins, ends = self.start < self.duration, self.end < self.duration
        time = np.concatenate((self.start[begins], self.end[ends]))
        node = np.concatenate((self.node[begins], self.node[ends]))
        joins = np.concatenate((np.ones(int(begins.sum()), bool), np.zeros(int(ends.sum()), bool)))
        order = np.lexsort((node, joins, time))
        time, node, joins = time[order], node[order], joins[order]
        times, first = np.unique(time, return_index=True)
        return times, np.append(first, len(time)).astype(np.int64), node, joins

    @property
    def node_seconds(self) -> float:
        """Resource integral: idle node-seconds."""
        return float((self.end - self.start).sum())

    @property
    def pool(self) -> tuple[Floats, Integers]:
        """Times of the changes, and the idle nodes from then on."""
        begins, ends = np.sort(self.start), np.sort(self.end)
        times = np.unique(np.concatenate((begins, ends)))
        idle = np.searchsorted(begins, times, side="right") - np.searchsorted(ends, times, side="right")
        return times, idle.astype(np.int64)

    def slice(self, start: float, seconds: float) -> Trace:
        """The part from ``start`` on, with times from 0.

        Raises:
            MalletrainError: beyond the end.
        """
        if start < 0 or seconds <= 0 or start >= self.duration:
            raise MalletrainError(
                f"from {start / 3600:g} h for {seconds / 3600:g} h: {self.name} has {self.duration / 3600:g} h."
            )
        end = min(self.duration, start + seconds)
        begin, stop = np.maximum(self.start, start) - start, np.minimum(self.end, end) - start
        kept = stop > begin
        return replace(self, duration=end - start, node=self.node[kept], start=begin[kept], end=stop[kept])

    def thinned(self, part: int) -> Trace:
        """Every ``part``-th node of the machine: a scarce pool of the same shape."""
        kept, nodes = self.node % part == 0, -(-self.nodes // part)
        name = f"{self.name}, every {part}th node" if part > 1 else self.name
        node, start, end = self.node[kept] // part, self.start[kept], self.end[kept]
        return replace(self, nodes=nodes, node=node, start=start, end=end, name=name)


def static_trace(nodes: int, duration: float) -> Trace:
    """So many dedicated nodes, for the whole time."""
    return from_fragments(nodes, duration, np.arange(nodes), np.zeros(nodes), np.full(nodes, duration), "dedicated")


def from_fragments(nodes: int, duration: float, node: Any, start: Any, end: Any, name: str, *notes: str) -> Trace:
    """A trace of fragments that do not overlap on any node, clipped to [0, duration]."""
    who = np.asarray(node, dtype=np.int64)
    begin = np.maximum(np.asarray(start, dtype=np.float64), 0.0)
    stop = np.minimum(np.asarray(end, dtype=np.float64), duration)
    kept = stop > begin
    return Trace(nodes, duration, who[kept], begin[kept], stop[kept], name, notes)


def from_changes(time: Any, node: Any, joins: Any, nodes: int, duration: float, name: str) -> Trace:
    """A trace of changes: at ``time`` a node becomes idle, or is taken away.

    The join of a node that is there and the leave of one that is not are ignored, with a note.

    Raises:
        MalletrainError: times that fall, or nodes that there are not.
    """
    at, who, inward = np.asarray(time, np.float64), np.asarray(node, np.int64), np.asarray(joins, bool)
    if not len(at):
        raise MalletrainError(f"{name}: the trace is empty.")
    if len(odd := np.flatnonzero(~np.isfinite(at))):
        raise MalletrainError(f"{name}: change {odd[0] + 1}: the time is no number.")
    if len(odd := np.flatnonzero(np.diff(at) < 0) + 1):
        raise MalletrainError(f"{name}: change {odd[0] + 1}: time = {at[odd[0]]:g} is before {at[odd[0] - 1]:g}.")
    if len(odd := np.flatnonzero((who < 0) | (who >= nodes))):
        raise MalletrainError(f"{name}: change {odd[0] + 1}: there is no node {who[odd[0]]}; it has {nodes}.")
    order = np.lexsort((np.arange(len(at)), who))
    at, who, inward = at[order], who[order], inward[order]
    first = np.concatenate(([True], who[1:] != who[:-1]))
    before = np.concatenate(([False], inward[:-1])) & ~first
    real = inward != before
    notes = []
    for wrong, text in ((inward & ~real, "joins of nodes already there"), (~inward & ~real, "leaves of absent nodes")):
        if wrong.any():
            notes.append(f"{int(wrong.sum())} {text} ignored (first: node {who[wrong][0]} at {at[wrong][0]:g} s)")
    at, who, inward = at[real], who[real], inward[real]
    end = np.where(np.append(who[1:] == who[:-1], False), np.append(at[1:], duration), duration)
    return from_fragments(nodes, duration, who[inward], at[inward], end[inward], name, *notes)


def read_trace(
    path: Path | str,
    kind: str,
    *,
    start: float = 0.0,
    seconds: float | None = None,
    skip_maintenance: bool = True,
    allow_pickle: bool = False,
) -> Trace:
    """A trace of a file.

    Args:
        path: the file; ``.gz`` is unpacked.
        kind: ``swf``, ``replayer`` or ``table``.
        start, seconds: the part that is wanted; default all.
        skip_maintenance: leave out times in which more than 60 % of the machine is idle (``swf``).
        allow_pickle: read pickles (``replayer``), by an unpickler that knows arrays and tables only.

    Raises:
        MalletrainError: what is wrong, with file and line.
    """
    file = Path(path)
    if not file.is_file():
        raise MalletrainError(f"{file}: no such file.")
    if kind == "swf":
        trace = without_maintenance(_swf(file)) if skip_maintenance else _swf(file)
    elif kind == "replayer":
        if not allow_pickle:
            raise MalletrainError(f"{file}: a pickle is read only with --allow-pickle.")
        trace = _replayer(file)
    elif kind == "table":
        trace = _table(file)
    else:
        raise MalletrainError(f"trace = {kind!r}: choose swf, replayer or table.")
    return trace if not start and seconds is None else trace.slice(start, seconds or trace.duration)


# ---- Standard Workload Format -------------------------------------------------------------------------------------
def _lines(file: Path) -> list[str]:
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        return content.decode("utf-8").splitlines()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise MalletrainError(f"{file}: cannot be read: {error}.") from None


def _swf(file: Path) -> Trace:
    machine, rows = 0, []
    for number, line in enumerate(_lines(file), 1):
        text = line.strip()
        if text.startswith(";"):
            key, _, value = text.lstrip("; ").partition(":")
            if key in ("MaxNodes", "MaxProcs") and value.strip().isdigit() and (key == "MaxNodes" or not machine):
                machine = int(value)
            continue
        if not text:
            continue
        fields = text.split()
        if len(fields) < 11:
            raise MalletrainError(f"{file}: line {number}: {len(fields)} fields; SWF has 18, at least 11 are needed.")
        try:
            submit, wait, run, used = (float(fields[i]) for i in (1, 2, 3, 4))
            wanted = float(fields[7])
        except ValueError:
            raise MalletrainError(f"{file}: line {number}: {text[:60]!r}: a field is no number.") from None
        rows.append((submit, max(wait, 0.0), run, used if used > 0 else wanted))
    if not rows:
        raise MalletrainError(f"{file}: the trace is empty.")
    table = np.array(rows)
    table = table[np.all(np.isfinite(table), axis=1) & (table[:, 2] > 0) & (table[:, 3] > 0)]
    if not len(table):
        raise MalletrainError(f"{file}: no job of it ran.")
    notes = []
    if (early := int((np.diff(table[:, 0]) < 0).sum())) > 0:
        notes.append(f"{early} submits before the one above them (local time?); starts are sorted")
    begin, count = table[:, 0] + table[:, 1], table[:, 3].astype(np.int64)
    end = begin + table[:, 2]
    machine = machine or int(count.max())
    node, start, stop, clipped = _first_fit(begin, end, count, machine)
    if clipped:
        notes.append(f"{clipped} of {len(table)} jobs clipped: the log uses more than its {machine} nodes")
    return from_fragments(machine, float(end.max() - begin.min()), node, start, stop, file.name, *notes)


def _first_fit(begin: Floats, end: Floats, count: Integers, machine: int) -> tuple[Integers, Floats, Floats, int]:
    """Give every job the lowest free nodes; (node, from, until) of idle fragments, and how many jobs got fewer.

    Times count from the first start.
    """
    zero, last = begin.min(), end.max()
    until = np.full(machine, zero)  # when a node was or will be free
    nodes, starts, stops, clipped = [], [], [], 0
    for job in np.lexsort((np.arange(len(begin)), begin)):  # each placement depends on those before it
        free = np.flatnonzero(until <= begin[job])[: count[job]]
        clipped += len(free) < count[job]
        rested = free[until[free] < begin[job]]
        nodes.append(rested)
        starts.append(until[rested] - zero)
        stops.append(np.full(len(rested), begin[job] - zero))
        until[free] = end[job]
    nodes.append(np.arange(machine))
    starts.append(until - zero)
    stops.append(np.full(machine, last - zero))
    return np.concatenate(nodes), np.concatenate(starts), np.concatenate(stops), clipped


def without_maintenance(trace: Trace, share: float = 0.6) -> Trace:
    """The trace without the times in which more than ``share`` of the machine is idle; what follows moves up."""
    times, idle = trace.pool
    edges = np.append(times, trace.duration)
    down = idle > share * trace.nodes
    if not down.any():
        return trace
    gone = np.append(0.0, np.cumsum(np.where(down, np.diff(edges), 0.0)))
    start, end = (at - np.interp(at, edges, gone) for at in (trace.start, trace.end))
    lost = float(gone[-1])
    note = f"{lost / 3600:.0f} of {trace.duration / 3600:.0f} h left out: more than {100 * share:.0f} % idle"
    return from_fragments(trace.nodes, trace.duration - lost, trace.node, start, end, trace.name, *trace.notes, note)


# ---- tables and pickles -------------------------------------------------------------------------------------------
def _pandas() -> Any:
    try:
        import pandas  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise MalletrainError('tables need pandas: pip install "plait-malletrain[tables]".') from None
    return pandas


def _table(file: Path) -> Trace:
    pandas = _pandas()
    try:
        frame = pandas.read_parquet(file) if file.suffix == ".parquet" else pandas.read_csv(file)
    except Exception as error:  # the readers raise many kinds
        raise MalletrainError(f"{file}: cannot be read: {type(error).__name__}: {str(error)[:100]}.") from None
    if missing := [name for name in ("time", "node", "idle") if name not in frame.columns]:
        raise MalletrainError(f"{file}: no column {missing[0]!r}; it needs time, node and idle.")
    if not len(frame):
        raise MalletrainError(f"{file}: the trace is empty.")
    names, codes = np.unique(frame["node"].to_numpy().astype(str), return_inverse=True)
    try:
        time, idle = frame["time"].to_numpy(np.float64), frame["idle"].to_numpy(np.int64)
    except (TypeError, ValueError):
        raise MalletrainError(f"{file}: time and idle must be numbers.") from None
    return from_changes(time, codes, idle != 0, len(names), float(time.max()), file.name)


def write_changes(trace: Trace, path: Path) -> None:
    """Write a trace as a table of changes, ``.csv`` or ``.parquet``; the last row says where it ends.

    Raises:
        MalletrainError: another ending, or a library that is missing.
        RunFailed: it could not be written.
    """
    pandas = _pandas()
    times, first, node, joins = trace.events
    time = np.append(np.repeat(times, np.diff(first)), trace.duration)
    last = int(node[0]) if len(node) else 0
    frame = pandas.DataFrame({"time": time, "node": np.append(node, last), "idle": np.append(joins, False).astype(int)})
    if path.suffix not in (".parquet", ".csv"):
        raise MalletrainError(f"{path}: write .csv or .parquet.")
    write = frame.to_parquet if path.suffix == ".parquet" else frame.to_csv
    try:
        write_atomically(path, lambda there: write(there, index=False))
    except ImportError as error:
        raise MalletrainError(f"{path}: {error}") from None


class _Frames(pickle.Unpickler):
    """Reads pickled pandas tables and numpy arrays; any other name in the file is refused, and nothing is called."""

    MODULES = ("numpy", "pandas")
    ARRAYS = frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer", "__pyx_unpickle_NDArrayBacked"})
    FRAMES = frozenset({"DataFrame", "BlockManager", "new_block", "_unpickle_block", "NumpyExtensionArray"})
    COLUMNS = frozenset({"_new_Index", "Index", "RangeIndex", "StringDtype", "StringArray"})
    TIMES = frozenset({"DatetimeIndex", "_new_DatetimeIndex", "DatetimeArray"})
    NAMES = ARRAYS | FRAMES | COLUMNS | TIMES
    OTHER = frozenset({("builtins", "slice"), ("__builtin__", "slice"), ("_codecs", "encode")})

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0] in self.MODULES and name in self.NAMES) or (module, name) in self.OTHER:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def unpickled(stream: IO[bytes], name: str) -> Any:
    """A pickled table or array; nothing else in the file is made or called.

    Raises:
        MalletrainError: it holds anything else, or is damaged.
    """
    _pandas()
    try:
        return _Frames(stream).load()
    except Exception as error:  # a damaged pickle raises anything
        raise MalletrainError(f"{name}: refused: {type(error).__name__}: {str(error)[:120]}.") from None


def _replayer(file: Path) -> Trace:
    """``ndstat-*.pkl``: rows are changes, columns are nodes, 1 is idle; every row counts."""
    with open(file, "rb") as stream:
        frame = unpickled(stream, str(file))
    if type(frame).__name__ != "DataFrame" or not len(frame) or not len(frame.columns):
        raise MalletrainError(f"{file}: not a table of nodes over time.")
    stamps = frame.index.to_numpy()
    passed = stamps - stamps[0]
    time = passed / np.timedelta64(1, "s") if passed.dtype.kind == "m" else passed.astype(np.float64)
    state = frame.to_numpy() != 0
    change = np.diff(state.astype(np.int8), axis=0, prepend=0)
    row, node = np.nonzero(change)
    return from_changes(time[row], node, change[row, node] > 0, state.shape[1], float(time[-1]), file.name)

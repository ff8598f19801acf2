"""``table``: rows and columns of a file, with one column to predict and one that makes the groups."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from plait.data import Data, DataInfo, TensorSplit
from plait.errors import BadInput
from plait_zoo.files import column as position
from plait_zoo.files import named
from plait_zoo.splits import stratified
from plait_zoo.table_options import TableOptions

Columns = dict[str, list[str]]
"""Column name -> its values as text, n of them; a missing value is an empty text."""
GAPS = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
"""What stands for a missing value, in lower case."""
MOST_GROUPS = 20
MOST_CATEGORIES = 1000


def load(options: TableOptions, seed: int) -> Data:
    """Rows of a CSV or Parquet file. Fields: ``input`` float32 [B, D], ``label``, ``group``, ``index`` int64.

    Numbers are standardised by the training rows; categories, of all rows but the test's, become one column each.

    Raises:
        BadInput: a file that cannot be read, a column that is not there, a value that cannot be used.
    """
    first = read(options.path)
    parts = [first]
    if options.test_path:
        second = read(options.test_path)
        for name in first:
            position(list(second), name, options.test_path)
        parts.append({name: second[name] for name in first})
    joined = {name: [value for part in parts for value in part[name]] for name in first}
    known = list(first)
    for option in ("label", "sensitive"):
        position(known, getattr(options, option), options.path, option)
    for option in ("features", "drop", "categorical"):
        for name in getattr(options, option):
            position(known, name, options.path, option)
    features = options.features or tuple(n for n in known if n not in (options.label, options.sensitive))
    sizes = [len(next(iter(part.values()))) for part in parts]
    return tabular(
        "table",
        joined,
        features=[name for name in features if name not in options.drop],
        label=joined[options.label],
        group=joined[options.sensitive],
        positive=options.positive,
        categorical=options.categorical,
        missing=options.missing,
        published_test=sizes[0] if options.test_path else None,
        shares=(options.validation_share, options.test_share),
        seed=seed,
    )


def read(path: str, header: Sequence[str] | None = None, delimiter: str = ",", skip: int = 0) -> Columns:
    """The columns of a file; of two with one name the first.

    Args:
        path: ``.parquet``, or text of separated values, perhaps gzipped.
        header: names of the columns, where the file has none.
        delimiter: of the text.
        skip: lines before the first.

    Raises:
        BadInput: no such file, no rows, rows of different length, or Parquet without pyarrow.
    """
    place = os.path.expanduser(path)
    if not os.path.isfile(place):
        raise BadInput(f"there is no table {path!r}.")
    if place.endswith((".parquet", ".pq")):
        return _parquet(place)
    try:
        with open(place, "rb") as raw:
            content = gzip.decompress(raw.read()) if place.endswith(".gz") else raw.read()
        lines = io.StringIO(content.decode("utf-8-sig"), newline="")
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True))[skip:]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: cannot be read as separated values: {error}.") from None
    numbered = [(number, row) for number, row in enumerate(rows, start=skip + 1) if row and row != [""]]
    if header is None and numbered:
        header = [name.strip() for name in numbered.pop(0)[1]]
    if not header or not numbered:
        raise BadInput(f"{path}: has no rows.")
    for number, row in numbered:
        if len(row) != len(header):
            raise BadInput(f"{path}: line {number} has {len(row)} values, the header has {len(header)}.")
    values = list(zip(*(row for _, row in numbered), strict=True))
    columns: Columns = {}
    for name, of_column in zip(header, values, strict=True):
        columns.setdefault(name, _texts(of_column))
    return columns


def _parquet(path: str) -> Columns:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError:
        raise BadInput(f"{path}: Parquet needs pyarrow (pip install pyarrow), or save the table as CSV.") from None
    try:
        table: Any = parquet.read_table(path)
    except Exception as error:  # pyarrow has errors of its own
        raise BadInput(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}.") from None
    if not table.num_rows:
        raise BadInput(f"{path}: has no rows.")
    return {
        name: _texts(["" if value is None else str(value) for value in table[name].to_pylist()])
        for name in table.column_names
    }


def _texts(values: Sequence[str]) -> list[str]:
    """Values without spaces around them, empty where they stand for a missing one."""
    seen = {value: value.strip() for value in set(values)}
    seen = {value: "" if text.lower() in GAPS else text for value, text in seen.items()}
    return [seen[value] for value in values]


def tabular(
    source: str,
    columns: Mapping[str, Sequence[str]],
    *,
    features: Sequence[str],
    label: Sequence[str],
    group: Sequence[str],
    positive: str = "",
    categorical: Sequence[str] = (),
    missing: str = "category",
    published_test: int | None = None,
    shares: tuple[float, float] = (0.15, 0.25),
    seed: int = 0,
) -> Data:
    """The data set of a table.

    Args:
        source: its name in messages.
        columns: name -> values, n of them.
        features: the columns to learn from.
        label, group: a value for each row.
        positive: the label's value of class 1; empty: a class for each value, in sorted order.
        categorical: features of numbers that are categories.
        missing: as of `TableOptions`.
        published_test: the first row of a published test part, or None.
        shares: of validation and (without a published test) test.
        seed: of the division.

    Raises:
        BadInput: naming column and value.
    """
    if not features:
        raise BadInput(f"data {source}: there is no column to learn from.")
    whole = torch.tensor([bool(a and b) for a, b in zip(label, group, strict=True)])
    if missing != "category":
        holes = {name: [row for row, value in enumerate(columns[name]) if not value] for name in features}
        if missing == "refuse":
            for name, rows in holes.items():
                if rows:
                    raise BadInput(f"data {source}: {name!r} has no value in row {rows[0] + 1} (missing = 'refuse').")
        for rows in holes.values():
            whole[rows] = False
    notes = []
    if not bool(whole.all()):
        notes.append(f"{source}: {int((~whole).sum())} of {len(whole)} rows without a value are left out.")
    kept = whole.nonzero().flatten()
    classes = _values(source, "the label", [label[row] for row in kept.tolist()])
    groups = _values(source, "the sensitive column", [group[row] for row in kept.tolist()])
    if positive and positive not in classes:
        raise BadInput(f"data {source}: the label has no value {positive!r}; it has {named(classes)}.")
    names = [f"not {positive}", positive] if positive else classes
    if positive and len(classes) == 2:
        names = [next(value for value in classes if value != positive), positive]
    code = {value: int(value == positive) if positive else number for number, value in enumerate(classes)}
    labels = torch.tensor([code.get(value, -1) for value in label])
    code = {value: number for number, value in enumerate(groups)}
    members = torch.tensor([code.get(value, -1) for value in group])
    train, validation, test = _parts(source, kept, labels, members, published_test, shares, seed)
    chosen = {name: columns[name] for name in features}
    inputs, unseen = encoded(source, chosen, categorical, train, torch.cat([train, validation]))
    notes += [f"{source}: {text}" for text in unseen]

    def split(rows: Tensor) -> TensorSplit:
        return TensorSplit({"input": inputs[rows], "label": labels[rows], "group": members[rows]})

    fields = frozenset({"input", "label", "group", "index"})
    info = DataInfo("classification", (inputs.shape[1],), len(names), len(groups), fields)
    human = {"group": groups, "label": names}
    return Data(info, split(train), split(validation), split(test), names=human, notes=notes)


def _values(source: str, what: str, values: Sequence[str]) -> list[str]:
    """The different values in order: numbers by size, texts by letter."""
    known = set(values)
    if not 2 <= len(known) <= MOST_GROUPS:
        few = "one value" if len(known) == 1 else f"{len(known)} values"
        raise BadInput(f"data {source}: {what} has {few}; it must have 2 to {MOST_GROUPS}.")
    numbers = {value: _number(value) for value in known}
    if all(number is not None for number in numbers.values()):
        return sorted(known, key=lambda value: (float(value), value))
    return sorted(known)


def _parts(
    source: str,
    kept: Tensor,
    labels: Tensor,
    members: Tensor,
    published_test: int | None,
    shares: tuple[float, float],
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of train, validation and test, each with every label and group in proportion."""
    cells = labels * (int(members.max()) + 1) + members
    before = kept if published_test is None else kept[kept < published_test]
    last = None if published_test is None else kept[kept >= published_test]
    counts = torch.bincount(cells[before])
    if len(before) and int(counts[counts > 0].min()) < 3:
        rare = int((counts == counts[counts > 0].min()).nonzero()[0])
        label, group = divmod(rare, int(members.max()) + 1)
        raise BadInput(
            f"data {source}: class {label} of group {group} has {int(counts[rare])} rows; three parts need at least 3."
        )
    if last is not None:
        if not len(before) or not len(last):
            raise BadInput(f"data {source}: the {'training' if not len(before) else 'test'} part has no row left.")
        # the third part of the division joins the first: the test is the published one
        first, middle, rest = stratified(cells[before], shares[0], shares[0], seed)
        return before[torch.cat([first, rest]).sort().values], before[middle], last
    first, middle, rest = stratified(cells[before], *shares, seed)
    return before[first], before[middle], before[rest]


def encoded(
    source: str, columns: Mapping[str, Sequence[str]], categorical: Sequence[str], train: Tensor, known_rows: Tensor
) -> tuple[Tensor, list[str]]:
    """Columns as numbers, float32 [n, D], and remarks.

    A number is standardised over the rows ``train``, with its median where it is missing and a column that says so; a
    text, or a number among ``categorical``, is one column for each value in ``known_rows`` (all but the test, so that a
    published table has as many columns whatever the seed), an empty one included.

    Raises:
        BadInput: a column of more than 1,000 texts (a name, say), or with no value that varies in the training rows.
    """
    parts, notes = [], []
    for name, values in columns.items():
        numbers = {value: _number(value) if value else math.nan for value in set(values)}
        if name not in categorical and None not in numbers.values():
            parts += _standardised(torch.tensor([numbers[value] for value in values], dtype=torch.float64), train)
            continue
        known = sorted({values[row] for row in known_rows.tolist()})
        if len(known) > MOST_CATEGORIES:
            raise BadInput(
                f"data {source}: {name!r} has {len(known)} different texts: leave it out (option drop), or group them."
            )
        code = {value: number for number, value in enumerate(known)}
        places = torch.tensor([code.get(value, -1) for value in values])
        if len(known) > 1:
            parts.append((places[:, None] == torch.arange(len(known))).float())
        if strange := int((places < 0).sum()):
            notes.append(
                f"{name!r} has values in {strange} rows that only the test has; they count as none of those known."
            )
    if not parts:
        raise BadInput(f"data {source}: no column varies over the training rows.")
    return torch.cat(parts, 1), notes


def _standardised(values: Tensor, train: Tensor) -> list[Tensor]:
    """A column of numbers [n, 1], and where some are missing one that says so; nothing if it does not vary."""
    lost = values.isnan()
    seen = values[train][~lost[train]]
    parts = []
    if len(seen):
        filled = torch.where(lost, seen.median(), values)
        spread = filled[train].std(unbiased=False)
        if spread > 0:
            parts.append(((filled - filled[train].mean()) / spread).float()[:, None])
    if bool(lost[train].any()) and not bool(lost[train].all()):
        parts.append(lost.float()[:, None])
    return parts


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None

"""``planetoid``: the citation graphs Cora, CiteSeer and PubMed (Yang et al. 2016) from their published raw files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plait.data import Data
from plait.errors import BadInput
from plait_glt import pickles
from plait_glt.data import node_data
from plait_glt.data_options import PlanetoidLinksOptions, PlanetoidOptions
from plait_glt.errors import GLTError
from plait_glt.graphs import Graph, Sparse, make_graph, normalise_rows
from plait_glt.link_data import divided

PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
FOLDERS = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
VALIDATION = 500
MOST_NODES = 10_000_000
Ints = npt.NDArray[np.int64]


class Planetoid(NamedTuple):
    """A citation graph and its published division: node ids int64."""

    graph: Graph
    train: Tensor
    validation: Tensor
    test: Tensor
    num_classes: int


def load(options: PlanetoidOptions, seed: int) -> Data:
    """The published graph and division; ``seed`` changes nothing.

    Raises:
        BadInput: as `read_planetoid`.
    """
    given = _given(options)
    parts = (given.train, given.validation, given.test)
    return node_data("planetoid", given.graph, *parts, num_classes=given.num_classes, extra={"name": options.graph})


def load_links(options: PlanetoidLinksOptions, seed: int) -> Data:
    """The published graph for link prediction; edges are held out by ``split_seed``, or by ``seed``.

    Raises:
        BadInput: as `read_planetoid`, and shares that cannot be held out.
    """
    return divided("planetoid-links", _given(options).graph, options, seed, name=options.graph)


def _given(options: PlanetoidOptions) -> Planetoid:
    return read_planetoid(
        options.path, options.graph, normalise=options.normalise_features, sparse=options.sparse_features
    )


def read_planetoid(path: str, name: str, *, normalise: bool = True, sparse: Sparse = "no") -> Planetoid:
    """Read ``ind.<name>.{x,tx,allx,y,ty,ally,graph,test.index}``.

    The rows of ``tx`` and ``ty`` belong at the positions of ``test.index``, which is not sorted; positions that it
    leaves out (CiteSeer's 15) get zero features and label 0. Self-loops and duplicate edges are removed, both
    directions of every edge are listed. Training nodes are the first ``len(y)``, validation the next 500 (fewer where
    there are fewer before the test nodes), test the ids of ``test.index``.

    Args:
        path: the folder of the files, or a folder above it as `torch_geometric.datasets.Planetoid` lays it out.
        name: ``cora``, ``citeseer`` or ``pubmed``.
        normalise: divide every row of features by its sum.
        sparse: as `graphs.make_graph`.

    Raises:
        BadInput: a missing, damaged or forbidden file, or files that do not fit together; the file is named.
    """
    folder = _folder(path, name)
    files = {part: os.path.join(folder, f"ind.{name}.{part}") for part in PARTS}
    for file in files.values():
        if not os.path.isfile(file):
            raise BadInput(f"data planetoid: {file} is missing. {_layout(name)}")
    x, tx, allx = (_matrix(files[part]) for part in ("x", "tx", "allx"))
    y, ty, ally = (_labels(files[part]) for part in ("y", "ty", "ally"))
    test = _test_index(files["test.index"])
    _check_lengths(files, x, tx, allx, y, ty, ally, test)
    start = allx.shape[0]
    n = max(start, int(test.max()) + 1)
    row = np.concatenate([allx.row, test[tx.row]])
    column = np.concatenate([allx.column, tx.column])
    value = np.concatenate([allx.value, tx.value]).astype(np.float32)
    indices = torch.from_numpy(np.stack([row, column]))
    features = torch.sparse_coo_tensor(
        indices, torch.from_numpy(value), (n, allx.shape[1]), check_invariants=False
    ).coalesce()
    label = np.zeros(n, np.int64)
    label[:start] = ally.argmax(1)
    label[test] = ty.argmax(1)
    edges = _edges(files["graph"])
    try:
        graph = make_graph(
            normalise_rows(features) if normalise else features, edges, torch.from_numpy(label), sparse=sparse
        )
    except GLTError as error:
        raise BadInput(f"data planetoid: {folder}, {name}: {error}") from None
    validation = torch.arange(len(y), min(len(y) + VALIDATION, start))
    return Planetoid(graph, torch.arange(len(y)), validation, torch.from_numpy(test), ally.shape[1])


def _folder(path: str, name: str) -> str:
    root = os.path.expanduser(path)
    published = FOLDERS.get(name, name)
    below = ("", "raw", os.path.join(published, "raw"), os.path.join(name, "raw"), published, name)
    for folder in (os.path.join(root, part) if part else root for part in below):
        if any(os.path.exists(os.path.join(folder, f"ind.{name}.{part}")) for part in PARTS):
            return folder
    what = "there is no folder" if not os.path.isdir(root) else f"no file ind.{name}.* in or under"
    raise BadInput(f"data planetoid: {what} {path!r}. {_layout(name)}")


def _layout(name: str) -> str:
    return (
        f"Expected: PATH/{FOLDERS.get(name, name)}/raw/ind.{name}.x, .tx, .allx, .y, .ty, .ally, .graph and "
        ".test.index. Get them from https://github.com/kimiyoung/planetoid (folder data)."
    )


def _read(file: str) -> Any:
    try:
        with open(file, "rb") as opened:
            return pickles.read(opened)
    except pickles.Refused as error:
        raise BadInput(f"{file}: refused, it asks for {error}; a Planetoid file needs no such thing.") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # what the pickle machine raises on damaged bytes is not a closed list
        raise BadInput(f"{file}: damaged or truncated ({type(error).__name__}: {error}).") from None


def _matrix(file: str) -> pickles.Entries:
    content = _read(file)
    if isinstance(content, np.ndarray) and content.ndim == 2 and content.dtype.kind in "fiub":
        row, column = np.nonzero(content)
        return pickles.Entries(row, column, content[row, column], (content.shape[0], content.shape[1]))
    if not isinstance(content, pickles.Entries):
        raise BadInput(f"{file}: holds no matrix of features.")
    return content


def _labels(file: str) -> npt.NDArray[Any]:
    content = _read(file)
    if not isinstance(content, np.ndarray) or content.ndim != 2 or not content.shape[1]:
        raise BadInput(f"{file}: holds no one-hot labels [rows, classes].")
    return content


def _test_index(file: str) -> Ints:
    try:
        with open(file, encoding="ascii") as opened:
            ids = np.array([int(line) for line in opened.read().split()], np.int64)
    except (OSError, ValueError, OverflowError) as error:
        raise BadInput(f"{file}: must have one node id per line: {error}.") from None
    if not len(ids) or ids.min() < 0 or ids.max() > MOST_NODES:
        raise BadInput(f"{file}: must list node ids from 0 to {MOST_NODES}.")
    if len(np.unique(ids)) < len(ids):
        raise BadInput(f"{file}: lists a node twice.")
    return ids


def _check_lengths(
    files: Mapping[str, str],
    x: pickles.Entries,
    tx: pickles.Entries,
    allx: pickles.Entries,
    y: npt.NDArray[Any],
    ty: npt.NDArray[Any],
    ally: npt.NDArray[Any],
    test: Ints,
) -> None:
    for (first, rows), (second, others) in (
        (("x", x.shape[0]), ("y", len(y))),
        (("tx", tx.shape[0]), ("ty", len(ty))),
        (("allx", allx.shape[0]), ("ally", len(ally))),
        (("tx", tx.shape[0]), ("test.index", len(test))),
    ):
        if rows != others:
            raise BadInput(f"{files[first]}: {rows} rows, but {files[second]} has {others}.")
    if not x.shape[1] == tx.shape[1] == allx.shape[1]:
        widths = f"{x.shape[1]}, {tx.shape[1]} and {allx.shape[1]}"
        raise BadInput(f"{files['x']}, .tx and .allx: {widths} features; they must agree.")
    if not y.shape[1] == ty.shape[1] == ally.shape[1]:
        widths = f"{y.shape[1]}, {ty.shape[1]} and {ally.shape[1]}"
        raise BadInput(f"{files['y']}, .ty and .ally: {widths} classes; they must agree.")
    if len(y) >= len(ally):
        raise BadInput(f"{files['y']}: {len(y)} rows leave none of the {len(ally)} of .ally for validation.")
    if int(test.min()) < len(ally):
        raise BadInput(
            f"{files['test.index']}: lists node {int(test.min())}, but the nodes before {len(ally)} are those of .allx."
        )


def _edges(file: str) -> Tensor:
    neighbours = _read(file)
    if not isinstance(neighbours, dict) or not all(isinstance(others, list) for others in neighbours.values()):
        raise BadInput(f"{file}: holds no dictionary from nodes to lists of neighbours.")
    lengths = np.fromiter(map(len, neighbours.values()), np.int64, len(neighbours))
    try:
        nodes = np.fromiter(neighbours, np.int64, len(neighbours))
        others = np.fromiter(chain.from_iterable(neighbours.values()), np.int64, int(lengths.sum()))
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{file}: holds a node that is no whole number.") from None
    return torch.from_numpy(np.stack([np.repeat(nodes, lengths), others]))

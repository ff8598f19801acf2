"""``ogb``: node property sets of the Open Graph Benchmark (Hu et al. 2020) from their folders; nothing is downloaded.

The raw files are read by the ``ogb`` package's own reader. Its dataset classes are not used: they ask to download,
write beside the raw files, and unpickle what they wrote. ogbn-mag (several kinds of nodes), ogbn-proteins and
ogbl-collab (no single label per node) do not fit a node classification on one graph and are left out.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import sys
import zlib
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from plait.data import Data
from plait.errors import BadInput
from plait_glt.data import node_data
from plait_glt.data_options import OgbOptions
from plait_glt.errors import GLTError
from plait_glt.graphs import make_graph, normalise_rows

SPLITS = {"ogbn-arxiv": "time", "ogbn-products": "sales_ranking"}
RAW = ("edge", "node-feat", "node-label", "num-node-list", "num-edge-list")
PARTS = ("train", "valid", "test")


def load(options: OgbOptions, seed: int) -> Data:
    """The graph, made undirected, with the published division; ``seed`` changes nothing.

    Raises:
        BadInput: ``ogb`` is not installed, a folder or file is missing (named) or damaged, or the parts do not fit.
    """
    folder = _folder(options.root, options.graph)
    raw, split = os.path.join(folder, "raw"), os.path.join(folder, "split", SPLITS[options.graph])
    needed = [os.path.join(raw, f"{name}.csv.gz") for name in RAW]
    needed += [os.path.join(split, f"{name}.csv.gz") for name in PARTS]
    for file in needed:
        if not os.path.isfile(file):
            raise BadInput(f"data ogb: {file} is missing. {_layout(options.graph)}")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            (found,) = _reader().read_csv_graph_raw(raw)
    except BadInput:
        raise
    except Exception as error:  # the package's reader raises whatever pandas and numpy raise
        raise BadInput(f"data ogb: {raw}: cannot be read ({type(error).__name__}: {error}).") from None
    label = _column(os.path.join(raw, "node-label.csv.gz"))
    x = torch.from_numpy(np.asarray(found["node_feat"], np.float32))
    try:
        graph = make_graph(
            normalise_rows(x) if options.normalise_features else x,
            torch.from_numpy(found["edge_index"]),
            torch.from_numpy(label),
            sparse=options.sparse_features,
        )
    except GLTError as error:
        raise BadInput(f"data ogb: {raw}: {error}") from None
    train, validation, test = (torch.from_numpy(_column(os.path.join(split, f"{n}.csv.gz"))) for n in PARTS)
    classes = int(label.max()) + 1
    return node_data("ogb", graph, train, validation, test, num_classes=classes, extra={"name": options.graph})


def _reader() -> ModuleType:
    # on import, ogb starts a thread that asks the package index for a newer version; without `outdated` it does not
    hidden = "outdated" not in sys.modules
    if hidden:
        sys.modules["outdated"] = None  # type: ignore[assignment]
    try:
        from ogb.io import read_graph_raw
    except ImportError as error:
        raise BadInput(f"data ogb: the package ogb is not installed ({error}); pip install plait-glt[ogb].") from None
    finally:
        if hidden:
            del sys.modules["outdated"]
    module: ModuleType = read_graph_raw
    return module


def _folder(root: str, name: str) -> str:
    home = os.path.expanduser(root)
    names = (name.replace("-", "_"), os.path.join("dataset", name.replace("-", "_")), "")
    for folder in (os.path.join(home, part) if part else home for part in names):
        if os.path.isdir(os.path.join(folder, "raw")):
            return folder
    raise BadInput(f"data ogb: there is no folder {names[0]}/raw in {root!r}; nothing is downloaded. {_layout(name)}")


def _layout(name: str) -> str:
    folder = name.replace("-", "_")
    return (
        f"Expected: ROOT/{folder}/raw/{{{','.join(RAW)}}}.csv.gz and "
        f"ROOT/{folder}/split/{SPLITS[name]}/{{{','.join(PARTS)}}}.csv.gz, as https://ogb.stanford.edu has them."
    )


def _column(file: str) -> npt.NDArray[np.int64]:
    try:
        with gzip.open(file, "rt", encoding="ascii") as opened:
            values: Any = np.loadtxt(opened, dtype=np.float64, ndmin=1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise BadInput(f"{file}: must have one whole number per line ({error}).") from None
    if values.ndim != 1 or not len(values) or (values != np.floor(values)).any():
        raise BadInput(f"{file}: must have one whole number per line.")
    whole: npt.NDArray[np.int64] = values.astype(np.int64)
    return whole

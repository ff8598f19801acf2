"""``ogb-links``: ogbl-collab, joint work of authors by year (Hu et al. 2020), from its folder.

The graph has the collaborations up to 2017, validation asks for those of 2018 and the test for those of 2019. Authors
who worked together before and again in a held-out year are in both: their earlier edge is left out of the graph, so
that nothing is asked for that can be seen.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data import Data
from plait.errors import BadInput
from plait_glt import pickles
from plait_glt.data_options import OgbLinksOptions
from plait_glt.errors import GLTError
from plait_glt.graphs import make_graph, normalise_rows, undirected_ids
from plait_glt.link_data import link_data
from plait_glt.links import Absent, Links, pair_numbers
from plait_glt.ogb_files import Layout, split_files
from plait_glt.torch_files import read_arrays

LAYOUT = Layout(
    "ogb-links",
    "ogbl-collab",
    ("edge", "edge_weight", "edge_year", "node-feat", "num-node-list", "num-edge-list"),
    split_files("time", "pt"),
)
FACTS = ("edge_weight", "edge_year")


def load(options: OgbLinksOptions, seed: int) -> Data:
    """The graph of the training years with the published division and negatives, judged by Hits@50.

    ``graph.edge_weight`` (joint papers, float [E]) and ``graph.edge_year`` (the latest, int64 [E]) lie beside the
    edges; the networks here do not use them, as the adjacency matrix is of zeros and ones (card, section 1). ``seed``
    draws the first negatives of training, which every epoch replaces.

    Raises:
        BadInput: ``ogb`` is not installed, a folder or file is missing (named) or damaged, or the parts do not fit.
    """
    raw, split = LAYOUT.find(options.root)
    (tables,) = LAYOUT.read(raw, lambda ogb: ogb.read_csv_graph_raw(raw, additional_edge_files=list(FACTS)))
    train, validation, test = (_pairs(os.path.join(split, file)) for file in LAYOUT.split)
    edges, n = torch.from_numpy(tables["edge_index"]), int(tables["num_nodes"])
    year, weight = (torch.from_numpy(tables[name]).reshape(-1) for name in ("edge_year", "edge_weight"))
    if not len(year) == len(weight) == edges.shape[1]:
        raise BadInput(
            f"data ogb-links: {raw}: {edges.shape[1]} edges, but {len(year)} years and {len(weight)} weights."
        )
    if not torch.equal(_sorted(edges), _sorted(train["edge"])):
        raise BadInput(f"data ogb-links: {raw} and the training part in {split} do not have the same edges.")
    held = torch.cat([pair_numbers(part["edge"]) for part in (validation, test)])
    recent = year >= options.from_year
    again = torch.isin(pair_numbers(edges), held)
    kept = recent & ~again & (edges[0] != edges[1])
    if not bool(kept.any()):
        raise BadInput(
            f"data ogb-links: no edge is left from the year {options.from_year} on (the last is {year.max()})."
        )
    notes = []
    repeated = len(torch.unique(pair_numbers(edges[:, recent & again])))
    if repeated:
        notes.append(
            f"ogbl-collab: {repeated} pairs of authors are asked for in validation or test and worked together before; "
            "their earlier edges are left out of the graph. Published figures keep them."
        )
    x = torch.from_numpy(np.asarray(tables["node_feat"], np.float32))
    x = normalise_rows(x) if options.normalise_features else x
    try:
        graph = make_graph(x, edges[:, kept], torch.zeros(n, dtype=torch.int64), sparse=options.sparse_features)
        links = _links(graph.edge_index, n, (validation, test), seed)
    except GLTError as error:
        raise BadInput(f"data ogb-links: {raw}: {error}") from None
    data = link_data("ogb-links", graph, links, figure="hits_at_50", notes=notes, extra={"name": "ogbl-collab"})
    _attach(data, edges[:, kept], weight[kept], year[kept], n)
    return data


def _links(seen: Tensor, n: int, parts: tuple[dict[str, Tensor], dict[str, Tensor]], seed: int) -> Links:
    train = seen[:, seen[0] < seen[1]]
    first = Absent(train, n).draw(train.shape[1], torch.Generator().manual_seed(seed))
    (validation, test), (no_validation, no_test) = ([part[name] for part in parts] for name in ("edge", "edge_neg"))
    return Links(seen, train, validation, test, first, no_validation, no_test)


def _attach(data: Data, edges: Tensor, weight: Tensor, year: Tensor, n: int) -> None:
    """Lay what is known of the training edges beside them, both directions, years of one pair together."""
    graph = data.train.__getitems__([0])["graph"]
    both, _ = undirected_ids(graph.edge_index, n)
    known, _ = undirected_ids(edges, n)  # the same pairs, so the same numbers
    pairs = int(known.max()) + 1
    total = torch.zeros(pairs).index_add_(0, known, weight.float())
    latest = torch.zeros(pairs, dtype=torch.int64).scatter_reduce_(0, known, year.long(), "amax")
    graph.edge_weight, graph.edge_year = total[both], latest[both]


def _sorted(pairs: Tensor) -> Tensor:
    numbers: Tensor = torch.unique(pair_numbers(pairs))
    return numbers


def _pairs(file: str) -> dict[str, Tensor]:
    """``edge`` and, where it is there, ``edge_neg`` as int64 [2, P]."""
    try:
        with open(file, "rb") as opened:
            arrays = read_arrays(opened)
    except pickles.Refused as error:
        raise BadInput(f"{file}: refused, it asks for {error}; a part of ogbl-collab needs no such thing.") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadInput(f"{file}: cannot be read ({type(error).__name__}: {error}).") from None
    except (pickle.UnpicklingError, zipfile.BadZipFile, MemoryError, OverflowError) as error:
        raise BadInput(f"{file}: cannot be read ({type(error).__name__}: {error}).") from None
    wanted = ("edge",) if os.path.basename(file).startswith("train") else ("edge", "edge_neg")
    return {name: _two_columns(file, name, arrays.get(name)) for name in wanted}


def _two_columns(file: str, name: str, array: Any) -> Tensor:
    if array is None or array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        shape = "nothing" if array is None else f"{array.dtype} {array.shape}"
        raise BadInput(f"{file}: {name!r} must be whole numbers [pairs, 2], found {shape}.")
    if len(array) and int(array.min()) < 0:
        raise BadInput(f"{file}: {name!r} lists node {int(array.min())}; nodes are numbered from 0.")
    return torch.from_numpy(array.astype(np.int64)).t().contiguous()

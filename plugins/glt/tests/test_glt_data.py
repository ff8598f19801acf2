"""Graph sources: the published Planetoid files against PyG, files in that layout, karate, bad input."""

from __future__ import annotations

import os
import pickle
import pickletools
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import plait.data
from plait.errors import BadInput
from plait_glt import data, planetoid, tiny_graphs
from plait_glt.data import NodeSplit, check_splits, node_data
from plait_glt.data_options import KarateOptions, PlanetoidOptions
from plait_glt.graphs import clean_edges, edge_homophily, isolated_nodes
from plait_glt.pickles import Refused, read
from plait_glt.planetoid import read_planetoid

REAL = Path(os.environ.get("PLAIT_PLANETOID") or Path(__file__).parents[4] / "shared/data/planetoid")
real = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"the published Planetoid files are not in {REAL}; set PLAIT_PLANETOID to their folder"
)


# ---- the published files --------------------------------------------------------------------------------------------
@real
@pytest.mark.parametrize(
    ("name", "nodes", "edges", "features", "homophily", "isolated"),
    [("Cora", 2708, 5278, 1433, 0.81, 0), ("CiteSeer", 3327, 4552, 3703, 0.74, 48)],
)
def test_published_graphs(
    tmp_path: Path, name: str, nodes: int, edges: int, features: int, homophily: float, isolated: int
) -> None:
    from torch_geometric.datasets import Planetoid

    if not (REAL / name / "raw").is_dir():
        pytest.skip(f"{REAL / name / 'raw'} is not there")
    shutil.copytree(REAL / name / "raw", tmp_path / name / "raw", copy_function=shutil.copyfile)
    (tmp_path / name).chmod(0o755)
    peer = Planetoid(str(tmp_path), name)[0]
    data = read_planetoid(str(tmp_path), name.lower(), normalise=False)
    graph = data.graph
    # the card's counts
    assert (graph.num_nodes, graph.edge_index.shape[1], graph.x.shape[1]) == (nodes, 2 * edges, features)
    assert edge_homophily(graph.edge_index, graph.y) == pytest.approx(homophily, abs=0.006)
    assert len(isolated_nodes(graph.edge_index, nodes)) == isolated
    # PyG's reading of the same files
    assert torch.equal(graph.x, peer.x) and torch.equal(graph.y, peer.y)
    assert torch.equal(graph.edge_index, clean_edges(peer.edge_index, nodes))
    for ids, mask in ((data.train, "train_mask"), (data.validation, "val_mask"), (data.test, "test_mask")):
        assert torch.equal(ids.sort()[0], peer[mask].nonzero()[:, 0])
    assert torch.bincount(graph.y[data.train]).tolist() == [20] * data.num_classes
    # the three ways to name the folder, and the source
    for path in (tmp_path / name, tmp_path / name / "raw"):
        same = read_planetoid(str(path), name.lower(), sparse="yes")
        torch.testing.assert_close(same.graph.x.to_dense().sum(1), (peer.x.sum(1) > 0).float())
    loaded = planetoid.load(PlanetoidOptions(graph=name.lower(), path=str(tmp_path)), 0)  # type: ignore[arg-type]
    assert loaded.info.input_shape == (features,) and loaded.info.extra["edges"] == edges
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (20 * data.num_classes, 500, 1000)


# ---- files made in the published layout -----------------------------------------------------------------------------
ALL, TEST, WORDS, CLASSES = 14, (17, 14, 19, 15), 6, 3
GRAPH = {0: [1, 2, 2], 1: [0, 1], 2: [0], 14: [3, 19], 19: [14], 17: [5], 15: []}


def write(folder: Path, name: str = "cora", protocol: int = 2, **changed: Any) -> dict[str, Any]:
    """Write the eight files: 14 nodes with rows in allx, 4 test nodes; 16 and 18 are missing, as in CiteSeer."""
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    dense = {"allx": rng.integers(0, 2, (ALL, WORDS)), "tx": rng.integers(0, 2, (len(TEST), WORDS))}
    dense["x"] = dense["allx"][:6]
    parts: dict[str, Any] = {part: csr_matrix(value.astype(np.float32)) for part, value in dense.items()}
    parts["ally"] = np.eye(CLASSES, dtype=np.int32)[np.arange(ALL) % CLASSES]
    parts["ty"] = np.eye(CLASSES, dtype=np.int32)[[2, 1, 0, 1]]
    parts["y"] = parts["ally"][:6]
    parts["graph"] = defaultdict(list, GRAPH)
    parts |= {part: value for part, value in changed.items() if part != "index"}
    folder.mkdir(parents=True, exist_ok=True)
    for part, value in parts.items():
        (folder / f"ind.{name}.{part}").write_bytes(pickle.dumps(value, protocol))
    index = changed.get("index", "".join(f"{node}\n" for node in TEST))
    (folder / f"ind.{name}.test.index").write_text(index)
    return parts


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_layout_with_unsorted_and_missing_test_nodes(tmp_path: Path, protocol: int) -> None:
    parts = write(tmp_path, protocol=protocol)
    data = read_planetoid(str(tmp_path), "cora", normalise=False)
    x = np.zeros((20, WORDS), np.float32)
    x[:ALL], x[list(TEST)] = parts["allx"].toarray(), parts["tx"].toarray()
    assert torch.equal(data.graph.x, torch.from_numpy(x))
    label = torch.zeros(20, dtype=torch.int64)
    label[:ALL] = torch.arange(ALL) % CLASSES
    label[list(TEST)] = torch.tensor([2, 1, 0, 1])
    assert torch.equal(data.graph.y, label)
    pairs = {(0, 1), (0, 2), (3, 14), (14, 19), (5, 17)}
    assert {tuple(pair) for pair in data.graph.edge_index.t().tolist()} == pairs | {(b, a) for a, b in pairs}
    assert data.train.tolist() == [*range(6)] and data.validation.tolist() == [*range(6, ALL)]
    assert data.test.tolist() == list(TEST) and data.num_classes == CLASSES


def test_dense_features_and_double_precision_are_read_too(tmp_path: Path) -> None:
    from scipy.sparse import csr_matrix

    write(tmp_path / "a")
    tenths = csr_matrix(np.full((len(TEST), WORDS), 0.1))
    write(tmp_path / "b", tx=tenths)
    assert torch.allclose(read_planetoid(str(tmp_path / "b"), "cora", normalise=False).graph.x[17], torch.tensor(0.1))
    data = read_planetoid(str(tmp_path / "a"), "cora", normalise=False)
    write(tmp_path / "c", allx=data.graph.x[:ALL].numpy(), tx=np.asfortranarray(data.graph.x[list(TEST)].numpy()))
    assert torch.equal(read_planetoid(str(tmp_path / "c"), "cora", normalise=False).graph.x, data.graph.x)


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/plait-glt-was-here",)


@pytest.mark.parametrize("place", ["allx", "graph", "inside"])
def test_a_forbidden_class_is_refused_by_name_and_nothing_runs(tmp_path: Path, place: str) -> None:
    changed = {"graph": {0: [Evil()]}} if place == "inside" else {place: Evil()}
    write(tmp_path, **changed)
    marker = Path("/tmp/plait-glt-was-here")
    marker.unlink(missing_ok=True)
    with pytest.raises(BadInput, match=r"refused, it asks for the name (posix|nt)\.system"):
        read_planetoid(str(tmp_path), "cora")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.core.multiarray.scalar", "scipy.sparse._csr.csr_array"])
def test_no_other_name_is_known(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    path = tmp_path / "p"
    path.write_bytes(f"c{module}\n{attribute}\n.".encode())
    with path.open("rb") as file, pytest.raises(Refused, match=name):
        read(file)


@pytest.mark.parametrize(
    "raw",
    [
        b"c__builtin__\nlist\n(tR.",  # a call of a known name
        b"ccopy_reg\n_reconstructor\n(c__builtin__\nlist\nc__builtin__\nobject\nNtR.",
        b"cnumpy\nndarray\n(tR.",  # an array without a state
        b"ccollections\ndefaultdict\n(tR(dS'a'\nI1\nsb.",  # a state for a dictionary
        b"]q\x00.",
    ],
)
def test_misused_names_are_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "p"
    path.write_bytes(raw)
    pickletools.dis(raw, out=open(os.devnull, "w"))  # noqa: SIM115 - the bytes are a pickle
    with path.open("rb") as file, pytest.raises(Refused):
        read(file)


@pytest.mark.parametrize("part", ["x", "allx", "graph", "ty"])
def test_a_truncated_or_damaged_file_is_named(tmp_path: Path, part: str) -> None:
    write(tmp_path)
    file = tmp_path / f"ind.cora.{part}"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x80\x02" + whole[:3], b"not a pickle"):
        file.write_bytes(damaged)
        with pytest.raises(BadInput, match=rf"ind\.cora\.{part}: (damaged or truncated|refused)"):
            read_planetoid(str(tmp_path), "cora")


@pytest.mark.parametrize("part", planetoid.PARTS)
def test_a_missing_file_is_named_with_the_layout(tmp_path: Path, part: str) -> None:
    write(tmp_path)
    (tmp_path / f"ind.cora.{part}").unlink()
    with pytest.raises(BadInput, match=rf"ind\.cora\.{part} is missing\. Expected: PATH/Cora/raw") as error:
        read_planetoid(str(tmp_path), "cora")
    assert "github.com/kimiyoung/planetoid" in str(error.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no folder .*nowhere.*Expected"):
        read_planetoid(str(tmp_path / "nowhere"), "cora")
    with pytest.raises(BadInput, match=r"no file ind\.pubmed\.\* in or under"):
        read_planetoid(str(tmp_path), "pubmed")
    with pytest.raises(ValidationError, match="cora"):
        PlanetoidOptions(graph="corra", path="x")  # type: ignore[arg-type]


def sparse(rows: int, columns: int = WORDS) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix(np.ones((rows, columns), np.float32))


def onehot(rows: int, classes: int = CLASSES) -> Any:
    return np.eye(classes, dtype=np.int32)[np.arange(rows) % classes]


def broken_columns() -> Any:
    matrix = sparse(ALL)
    matrix.indices[3] = WORDS
    return matrix


def broken_starts() -> Any:
    matrix = sparse(ALL)
    matrix.indptr[2] = 1
    return matrix


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"allx": sparse(13)}, "13 rows, but .*ally has 14"),
        ({"tx": sparse(5)}, "5 rows, but .*ty has 4"),
        ({"x": sparse(5)}, "5 rows, but .*y has 6"),
        ({"index": "14\n15\n"}, r"4 rows, but .*test\.index has 2"),
        ({"tx": sparse(4, 5)}, "6, 5 and 6 features"),
        ({"ty": onehot(4, 2)}, "3, 2 and 3 classes"),
        ({"x": sparse(14), "y": onehot(14)}, "leave none of the 14"),
        ({"index": "3\n14\n15\n17\n"}, "lists node 3, but the nodes before 14"),
        ({"index": "14\n14\n15\n17\n"}, "lists a node twice"),
        ({"index": "14\nx\n"}, "one node id per line"),
        ({"index": "14\n-2\n"}, "node ids from 0"),
        ({"graph": {0: [1], 25: [0]}}, r"joins 0 and 25|joins 25 and 0"),
        ({"graph": {0: [1], 1: "abc"}}, "dictionary from nodes to lists"),
        ({"graph": {0: [None]}}, "no whole number"),
        ({"graph": onehot(3)}, "dictionary from nodes to lists"),
        ({"allx": {0: [1]}}, "holds no matrix"),
        ({"ally": sparse(14)}, "no one-hot labels"),
        ({"y": onehot(6) * 0 + np.eye(3, dtype=np.int32)[0]}, None),
        ({"allx": broken_columns()}, "a column outside 0..5"),
        ({"allx": broken_starts()}, "row starts do not fit"),
        ({"ally": np.array([["a"]])}, "not little-endian numbers"),
        ({"ally": onehot(14).astype(">i4")}, "not little-endian numbers"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path: Path, changed: dict[str, Any], message: str | None) -> None:
    write(tmp_path, **changed)
    if message is None:  # the labels of y are those of ally; only its length counts
        assert read_planetoid(str(tmp_path), "cora").num_classes == CLASSES
        return
    with pytest.raises(BadInput, match=message):
        read_planetoid(str(tmp_path), "cora")


def test_a_class_without_a_training_label_is_refused(tmp_path: Path) -> None:
    write(tmp_path, x=sparse(2), y=onehot(2))
    with pytest.raises(BadInput, match="no training node has the label 2"):
        planetoid.load(PlanetoidOptions(path=str(tmp_path)), 0)


# ---- plait data -----------------------------------------------------------------------------------------------------
def test_batches_carry_the_graph_and_the_outputs_are_read_at_their_nodes() -> None:
    loaded = tiny_graphs.load(KarateOptions(), 0)
    loaded.check("karate")
    batch = loaded.train.__getitems__([3, 1])
    split = loaded.train
    assert isinstance(split, NodeSplit) and isinstance(split, plait.data.Split)
    assert batch["graph"] is split.graph and batch.size == 2
    assert batch["index"].tolist() == [3, 1]
    assert torch.equal(batch["node"], split.fields["node"][[3, 1]])
    assert torch.equal(batch["label"], split.graph.y[batch["node"]])

    def model(x: Tensor, edge_index: Tensor) -> Tensor:
        return x.cumsum(0)

    assert loaded.forward is not None
    raw = loaded.forward(model, batch)
    assert raw.shape == (34, 34)
    assert torch.equal(data.readout(raw, batch), raw[batch["node"]])
    part = batch.take(torch.tensor([1]))
    assert part["node"].tolist() == [int(batch["node"][1])] and part["graph"] is batch["graph"]
    nodes = torch.cat([each.fields["node"] for each in (loaded.train, loaded.validation, loaded.test)])  # type: ignore[attr-defined]
    assert sorted(nodes.tolist()) == [*range(34)]


def test_degree_groups_are_cut_at_the_median() -> None:
    graph = tiny_graphs.karate_graph()
    degree = torch.bincount(graph.edge_index[0])
    assert torch.equal(data.degree_group(graph), (degree > 3).long())  # the median of the club is 3
    assert data.degree_group(tiny_graphs.path_graph(6)).tolist() == [0] * 6  # nobody is above 2


def test_karate_by_seed_and_classes() -> None:
    first, again, other = (tiny_graphs.load(KarateOptions(classes=2), seed) for seed in (0, 0, 1))
    nodes = [each.train.fields["node"].tolist() for each in (first, again, other)]  # type: ignore[attr-defined]
    assert nodes[0] == nodes[1] != nodes[2]
    assert first.info.num_classes == 2 and len(first.train) == 4


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (([0, 3], [3, 1], [4]), "1 nodes are in the train split and in the validation split .first: node 3"),
        (([0, 3], [1], [2, 1]), "in the validation split and in the test split"),
        (([0, 0, 3], [1], [2]), "train split lists a node twice"),
        (([0, 3], [1], [6]), r"test split lists node 6, but nodes are 0\.\.5"),
        (([0, 3], [1], [-1]), "lists node -1"),
        (([0, 1], [3], [4]), "no training node has the label 1"),
        (([0, 3], [], [4]), "validation split has no node"),
    ],
)
def test_bad_splits_are_refused(splits: tuple[list[int], ...], message: str) -> None:
    parts = [torch.tensor(part, dtype=torch.int64) for part in splits]
    with pytest.raises(BadInput, match=message):
        node_data("path", tiny_graphs.path_graph(6), parts[0], parts[1], parts[2], num_classes=2)


def test_labels_out_of_range_are_refused() -> None:
    graph = tiny_graphs.path_graph(6)
    with pytest.raises(BadInput, match=r"labels 0\.\.1 lie outside 0\.\.0"):
        check_splits("path", graph, {"train": torch.tensor([0])}, 1)

"""ogbn-mag, ogbn-proteins and ogbl-collab in their published layout, small; bad files; and runs on them."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plait
from plait.errors import BadInput
from plait.run import execute
from plait.storage import places
from plait_glt.config import GLTConfig
from plait_glt.data_options import OgbLabelsOptions, OgbLinksOptions, OgbOptions
from plait_glt.measures import hits_at, mean_roc_auc
from plait_glt.models import GCN
from plait_glt.ogb_layout import load, load_labels, mean_of_edges
from plait_glt.ogb_links import load as load_collab
from plait_glt.rounds import GraphLotteryTickets
from plait_glt.tasks import LabelTask, label_outputs
from plait_glt.torch_files import read_arrays

pytest.importorskip("ogb", reason="the extra plait-glt[ogb] is not installed")


def write(root: Path, files: dict[str, str]) -> Path:
    for part, text in files.items():
        path = root / f"{part}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))
    return root


def rows(values: Any) -> str:
    return "".join(",".join(map(str, np.atleast_1d(row).tolist())) + "\n" for row in np.asarray(values))


def pairs(edge_index: torch.Tensor) -> set[tuple[int, int]]:
    return {(min(pair), max(pair)) for pair in edge_index.t().tolist()}


# ---- ogbn-mag -------------------------------------------------------------------------------------------------------
def mag(root: Path) -> Path:
    relations = {
        ("author", "affiliated_with", "institution"): "0,0\n",
        ("author", "writes", "paper"): "0,5\n1,0\n",
        ("paper", "cites", "paper"): "0,1\n1,2\n2,0\n3,4\n4,3\n",
        ("paper", "has_topic", "field_of_study"): "0,2\n",
    }
    files = {
        "raw/num-node-dict": "author,field_of_study,institution,paper\n2,3,1,6\n",
        "raw/triplet-type-list": "".join(",".join(triplet) + "\n" for triplet in relations),
        "raw/nodetype-has-label": "author,field_of_study,institution,paper\nFalse,False,False,True\n",
        "raw/nodetype-has-feat": "author,field_of_study,institution,paper\nFalse,False,False,True\n",
        "raw/node-feat/paper/node-feat": rows(np.arange(12).reshape(6, 2) / 4),
        "raw/node-label/paper/node-label": "0\n1\n2\n0\n1\n2\n",
        "split/time/nodetype-has-split": "author,field_of_study,institution,paper\nFalse,False,False,True\n",
        "split/time/paper/train": "0\n1\n2\n",
        "split/time/paper/valid": "3\n",
        "split/time/paper/test": "4\n5\n",
    }
    for triplet, edges in relations.items():
        folder = f"raw/relations/{'___'.join(triplet)}"
        files |= {f"{folder}/edge": edges, f"{folder}/num-edge-list": f"{edges.count(chr(10))}\n"}
    return write(root / "ogbn_mag", files)


def test_mag_is_the_papers_that_cite_papers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mag(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    data = load(OgbOptions(root=str(tmp_path), graph="ogbn-mag"), 0)
    assert sorted(tmp_path.rglob("*")) == before and capfd.readouterr().out == ""
    graph = data.train.__getitems__([0])["graph"]
    assert pairs(graph.edge_index) == {(0, 1), (1, 2), (0, 2), (3, 4)} and graph.edge_index.shape == (2, 8)
    assert graph.x[3].tolist() == [1.5, 1.75] and graph.y.tolist() == [0, 1, 2] * 2 and data.info.num_classes == 3
    splits = (data.train, data.validation, data.test)
    assert [split.fields["node"].tolist() for split in splits] == [[0, 1, 2], [3], [4, 5]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "raw/relations/paper___cites___paper/edge",
            None,
            r"paper___cites___paper/edge\.csv\.gz is missing\. Expected",
        ),
        ("split/time/paper/valid", None, r"paper/valid\.csv\.gz is missing"),
        ("raw/relations/author___writes___paper/edge", None, "cannot be read .RuntimeError: No necessary file"),
        ("raw/triplet-type-list", "author,writes,paper\n", "no papers with features that cite papers"),
        ("raw/node-label/paper/node-label", "0\n1\n", "6 rows of features but 2 labels"),
        ("raw/relations/paper___cites___paper/edge", "0,1\n1,2\n2,0\n3,4\n4,9\n", "joins 4 and 9|nodes are 0..5"),
    ],
)
def test_mag_bad_files(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    folder = mag(tmp_path)
    if text is None:
        (folder / f"{file}.csv.gz").unlink()
    else:
        write(folder, {file: text})
    with pytest.raises(BadInput, match=message):
        load(OgbOptions(root=str(tmp_path), graph="ogbn-mag"), 0)


# ---- ogbn-proteins --------------------------------------------------------------------------------------------------
def proteins(root: Path, nodes: int = 40, labels: int = 5, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    edges = np.array([(i, j) for i in range(nodes) for j in range(i + 1, nodes) if rng.random() < 0.15])
    features = rng.random((len(edges), 8)).round(3)
    label = (rng.random((nodes, labels)) < 0.4).astype(int)
    order = rng.permutation(nodes)
    files = {
        "raw/edge": rows(edges),
        "raw/edge-feat": rows(features),
        "raw/node-label": rows(label),
        "raw/num-node-list": f"{nodes}\n",
        "raw/num-edge-list": f"{len(edges)}\n",
        "split/species/train": rows(order[:20]),
        "split/species/valid": rows(order[20:30]),
        "split/species/test": rows(order[30:]),
    }
    return write(root / "ogbn_proteins", files)


def test_proteins_features_are_the_mean_of_their_edges(tmp_path: Path) -> None:
    folder = proteins(tmp_path)
    data = load_labels(OgbLabelsOptions(root=str(tmp_path)), 0)
    data.check("ogb-labels")
    assert data.info.task == "multilabel" and data.info.num_classes == 5 and data.info.input_shape == (8,)
    edges, features = (
        np.loadtxt(gzip.decompress((folder / f"raw/{name}.csv.gz").read_bytes()).decode().split(), delimiter=",")
        for name in ("edge", "edge-feat")
    )
    graph = data.train.__getitems__([0])["graph"]
    for node in range(40):
        mine = features[(edges == node).any(1)]
        torch.testing.assert_close(graph.x[node].double(), torch.from_numpy(mine.mean(0)), rtol=1e-5, atol=1e-6)
    assert data.train.__getitems__([0, 1])["label"].shape == (2, 5)


def test_a_node_without_edges_has_zeros() -> None:
    x = mean_of_edges(torch.tensor([[0, 0], [1, 2]]), torch.tensor([[1.0], [3.0]]), 4)
    assert x.squeeze(1).tolist() == [2.0, 1.0, 3.0, 0.0]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("raw/edge-feat", None, r"edge-feat\.csv\.gz is missing"),
        ("raw/edge-feat", "0.1,0.2\n", "edges but features of 1"),
        ("raw/node-label", "0,1\n1\n", "zeros and ones, as many in every line"),
        ("raw/node-label", "0,2\n" * 40, "must have zeros and ones"),
        ("raw/node-label", "", "it is empty"),
        ("raw/node-label", "0,1\n" * 39, "outside 0..38|39 labels"),
        ("split/species/test", "77\n", "lists node 77"),
    ],
)
def test_proteins_bad_files(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    folder = proteins(tmp_path)
    if text is None:
        (folder / f"{file}.csv.gz").unlink()
    else:
        write(folder, {file: text})
    with pytest.raises(BadInput, match=message):
        load_labels(OgbLabelsOptions(root=str(tmp_path)), 0)


SMALL = {"rounds": 2, "p_g": 0.3, "p_theta": 0.4, "mask_epochs": 6, "fix_epochs": 8, "warmup": 1, "wd_samples": 8}


@pytest.mark.parametrize("baseline", ["glt", "ascent", "ugs"])
def test_a_run_on_proteins(tmp_path: Path, baseline: str) -> None:
    proteins(tmp_path)
    plan = plait.plan(
        plugins={"glt": {**SMALL, "baseline": baseline}},
        data="ogb-labels",
        model="gcn",
        settings={"data.root": str(tmp_path), "model.hidden": 16, "optimizer.lr": 0.02},
    )
    trained = execute(plan, places.at(tmp_path / "run"), artifacts=False)
    m = trained.metrics
    assert m["glt/auc"] == m["task/auc"] and "glt/dense_auc" in m and "task/accuracy" not in m
    data = plait.loading.load_data(trained.recipe.data, trained.recipe.seed)
    batch = data.test.__getitems__(range(10))
    with torch.no_grad():
        logits = trained.model.network.eval()(batch["graph"].x, trained.model.kept_edges)[batch["node"]]
    sklearn = pytest.importorskip("sklearn.metrics")
    usable = [k for k in range(5) if 0 < int(batch["label"][:, k].sum()) < 10]
    by_hand = np.mean([sklearn.roc_auc_score(batch["label"][:, k], logits[:, k]) for k in usable])
    assert m["glt/auc"] == pytest.approx(100 * by_hand)


def test_labels_in_the_library_and_what_the_auxiliary_loss_compares(tmp_path: Path) -> None:
    proteins(tmp_path)
    data = load_labels(OgbLabelsOptions(root=str(tmp_path)), 0)
    graph = data.train.__getitems__([0])["graph"]
    parts = [split.fields["node"] for split in (data.train, data.validation, data.test)]  # type: ignore[attr-defined]
    task = LabelTask(graph.x, graph.edge_index, graph.y, *parts)
    torch.manual_seed(0)
    search = GraphLotteryTickets.on(GCN(8, 5, 16), task, GLTConfig(rounds=1, mask_epochs=5, fix_epochs=10, warmup=1))
    result = search.run()[-1]
    with torch.no_grad():
        logits = search.model.network.eval()(graph.x, search.ticket().edge_index)
    assert result.accuracy == pytest.approx(100 * mean_roc_auc(logits[parts[2]], graph.y[parts[2]]))
    z, member = label_outputs(logits)
    assert member is not None and torch.equal(member, logits > 0)
    ends, _ = label_outputs(torch.tensor([[-40.0] * 5, [40.0] * 5]))
    assert float(torch.dist(ends[0], ends[1])) == pytest.approx(2**0.5)  # as far apart as two classes
    torch.testing.assert_close(z, logits.sigmoid() * (2 / 5) ** 0.5)


# ---- ogbl-collab ----------------------------------------------------------------------------------------------------
NODES = 30


def collab(root: Path, legacy: bool = False, **changed: Any) -> Path:
    rng = np.random.default_rng(0)
    everything = np.array([(i, j) for i in range(NODES) for j in range(i + 1, NODES)])
    drawn = everything[rng.permutation(len(everything))]
    train, validation, test, negative = drawn[:80], drawn[80:90], drawn[90:104], drawn[104:264]
    train = np.concatenate([train, train[:5], validation[:2]])  # five pairs in two years, two that come again later
    year = np.concatenate([rng.integers(1970, 2018, 80), np.full(5, 2017), np.full(2, 2016)])
    weight = np.concatenate([np.ones(80, int), np.full(5, 3), np.ones(2, int)])
    flipped = rng.random(len(train)) < 0.5
    listed = np.where(flipped[:, None], train[:, ::-1], train)
    folder = root / "ogbl_collab"
    write(
        folder,
        {
            "raw/edge": rows(listed),
            "raw/edge_weight": rows(weight),
            "raw/edge_year": rows(year),
            "raw/node-feat": rows(rng.random((NODES, 4)).round(3)),
            "raw/num-node-list": f"{NODES}\n",
            "raw/num-edge-list": f"{len(listed)}\n",
        },
    )
    parts: dict[str, Any] = {
        "train": {"edge": listed, "weight": weight, "year": year},
        "valid": {"edge": validation, "edge_neg": negative[:80], "year": np.full(10, 2018), "weight": np.ones(10, int)},
        "test": {"edge": test, "edge_neg": negative[80:], "year": np.full(14, 2019), "weight": np.ones(14, int)},
    }
    for name, part in parts.items():
        path = folder / "split/time" / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**part, **changed.get(name, {})}, path, _use_new_zipfile_serialization=not legacy)
    return folder


@pytest.mark.parametrize("legacy", [False, True])
def test_collab(tmp_path: Path, legacy: bool) -> None:
    collab(tmp_path, legacy)
    before = sorted(tmp_path.rglob("*"))
    data = load_collab(OgbLinksOptions(root=str(tmp_path)), 0)
    data.check("ogb-links")
    assert sorted(tmp_path.rglob("*")) == before
    graph = data.train.__getitems__([0])["graph"]
    # 80 pairs; five of them listed twice; two more that are asked for later are left out, and said
    assert graph.edge_index.shape == (2, 160) and data.info.extra["edges"] == 80
    assert data.notes and "2 pairs of authors are asked for" in data.notes[0]
    assert [len(split) for split in (data.train, data.validation, data.test)] == [160, 10 + 80, 14 + 80]
    for split in (data.validation, data.test):
        batch = split.__getitems__(range(len(split)))
        assert not pairs(batch["node"][batch["label"] == 1].t()) & pairs(graph.edge_index)
    assert float(graph.edge_weight.sum()) == 2 * (80 + 5 * 3) and int((graph.edge_year == 2017).sum()) >= 10
    recent = load_collab(OgbLinksOptions(root=str(tmp_path), from_year=2000), 0)
    late = recent.train.__getitems__([0])["graph"]
    assert 0 < late.edge_index.shape[1] < 160 and int(late.edge_year.min()) >= 2000
    assert pairs(late.edge_index) < pairs(graph.edge_index)


def test_a_run_on_collab_by_hits_at_50(tmp_path: Path) -> None:
    collab(tmp_path)
    plan = plait.plan(
        plugins={"glt": SMALL},
        data="ogb-links",
        model="resgcn",
        settings={"data.root": str(tmp_path), "model.hidden": 16, "model.layers": 3, "optimizer.lr": 0.02},
    )
    trained = execute(plan, places.at(tmp_path / "run"), artifacts=False)
    m = trained.metrics
    assert m["glt/hits_at_50"] == m["task/hits_at_50"] == m["glt/hits_at_50_round_2"] and "task/auc" in m
    data = plait.loading.load_data(trained.recipe.data, trained.recipe.seed)
    batch = data.test.__getitems__(range(len(data.test)))
    with torch.no_grad():
        z = trained.model.network.eval()(batch["graph"].x, trained.model.kept_edges)
    score = (z[batch["node"][:, 0]] * z[batch["node"][:, 1]]).sum(1)
    positive, negative = score[batch["label"] == 1], score[batch["label"] == 0]
    assert m["glt/hits_at_50"] == pytest.approx(100 * hits_at(positive, negative, 50))


class Evil:
    """A pickle that would run something."""

    def __reduce__(self) -> Any:
        return (print, ("owned",))


@pytest.mark.parametrize("legacy", [False, True])
def test_the_parts_are_read_without_running_anything(
    tmp_path: Path, legacy: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    collab(tmp_path, legacy, valid={"edge": Evil()})
    with pytest.raises(BadInput, match=r"valid\.pt: refused, it asks for the name __builtin__\.print"):
        load_collab(OgbLinksOptions(root=str(tmp_path)), 0)
    assert "owned" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"valid": {"edge": np.zeros((3, 3), int)}}, r"'edge' must be whole numbers .pairs, 2., found int64 .3, 3."),
        ({"valid": {"edge": np.zeros((3, 2))}}, "found float64"),
        ({"test": {"edge_neg": np.array([[0, -1]])}}, "lists node -1"),
        ({"test": {"edge_neg": np.array([[0, 30]])}}, "list the pair 0, 30"),
        ({"valid": {"edge": torch.zeros(3, 2)}}, "valid.pt"),
        ({"valid": {"edge": [1, 2]}}, "a list under 'edge' instead of an array"),
        ({"train": {"edge": np.array([[0, 1]])}}, "do not have the same edges"),
    ],
)
def test_collab_parts_that_do_not_fit(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    collab(tmp_path, **changed)
    with pytest.raises(BadInput, match=message):
        load_collab(OgbLinksOptions(root=str(tmp_path)), 0)


def test_collab_missing_and_damaged(tmp_path: Path) -> None:
    folder = collab(tmp_path)
    with pytest.raises(BadInput, match=r"no edge is left from the year 2018 on .the last is 2017"):
        load_collab(OgbLinksOptions(root=str(tmp_path), from_year=2018), 0)
    part = folder / "split/time/valid.pt"
    whole = part.read_bytes()
    for damaged in (b"", b"zzz", whole[:100], pickle.dumps({"edge": 1}), pickle.dumps(5)):
        part.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"valid\.pt: (cannot be read|refused)"):
            load_collab(OgbLinksOptions(root=str(tmp_path)), 0)
    part.write_bytes(whole)
    write(folder, {"raw/edge_year": "2000\n"})
    with pytest.raises(BadInput, match="87 edges, but 1 years and 87 weights"):
        load_collab(OgbLinksOptions(root=str(tmp_path)), 0)
    (folder / "raw/edge_year.csv.gz").unlink()
    with pytest.raises(BadInput, match=r"edge_year\.csv\.gz is missing"):
        load_collab(OgbLinksOptions(root=str(tmp_path)), 0)
    part.unlink()
    with pytest.raises(BadInput, match=r"is missing"):
        load_collab(OgbLinksOptions(root=str(tmp_path)), 0)


@pytest.mark.parametrize("legacy", [False, True])
def test_arrays_of_torch_files_against_torch(tmp_path: Path, legacy: bool) -> None:
    wanted = {"a": np.arange(6).reshape(2, 3), "b": np.array([1.5, 2.5], np.float32), "c": np.zeros((0, 2), int)}
    torch.save(wanted, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with open(tmp_path / "x.pt", "rb") as file:
        arrays = read_arrays(file)
    assert arrays.keys() == wanted.keys()
    for name, value in wanted.items():
        assert arrays[name].dtype == value.dtype and np.array_equal(arrays[name], value)

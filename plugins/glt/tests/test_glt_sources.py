"""Graph sources from other packages: WordNet's nouns and the layout of OGB."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from plait.errors import BadInput
from plait_glt import ogb_layout, wordnet
from plait_glt.data_options import OgbOptions, WordnetOptions
from plait_glt.sources import WORDNET_PLACES


# ---- WordNet --------------------------------------------------------------------------------------------------------
def wordnet_file(path: Path, synsets: int = 700) -> Path:
    """A file in the format of data.noun: seven classes in a chain of trees, one gloss word per class."""
    rng = np.random.default_rng(0)
    lines = ["  1 This software and database is being provided to you, the LICENSEE, by"]
    for node in range(synsets):
        other = int(rng.integers(0, node)) if node else 0
        pointers = f"002 @ {other:08d} n 0000 + 00000005 v 0101" if node else "000"
        gloss = f"a word{chr(97 + node % 11)} thing of class{chr(97 + node % 7)}"
        lines.append(f"{node:08d} {4 + node % 7:02d} n 01 entity 0 {pointers} | {gloss}  ")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_wordnet_format_and_sample(tmp_path: Path) -> None:
    path = wordnet_file(tmp_path / "data.noun")
    nouns = wordnet.read_nouns(str(path))
    assert len(nouns.glosses) == 700 and nouns.pointers.shape == (2, 699)  # the pointer to a verb is left out
    assert nouns.lexicographer[:8].tolist() == [4, 5, 6, 7, 8, 9, 10, 4]
    loaded = wordnet.load(WordnetOptions(path=str(path), nodes=500, words=50, labels_per_class=5), 0)
    graph = loaded.train.graph  # type: ignore[attr-defined]
    assert loaded.names["label"] == ["act", "animal", "artifact", "attribute", "body", "cognition", "communication"]
    assert 71 <= graph.num_nodes <= 560
    reach = torch.eye(graph.num_nodes)[:1]
    dense = torch.zeros(graph.num_nodes, graph.num_nodes).index_put(tuple(graph.edge_index), torch.tensor(1.0))
    for _ in range(graph.num_nodes):
        reach = ((reach @ dense + reach) > 0).float()
    assert bool(reach.all())  # connected
    words = graph.x.to_dense()
    assert torch.equal(words.unique(), torch.tensor([0.0, 0.5]))  # two words each, "thing" is too common


def test_wordnet_bad_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="apt-get install wordnet-base"):
        wordnet.load(WordnetOptions(path=str(tmp_path / "none")), 0)
    bad = tmp_path / "bad"
    bad.write_text("  1 licence\n00000001 03 n 01 entity 0 000 | fine  \nhello\n")
    with pytest.raises(BadInput, match="line 3: is no noun synset"):
        wordnet.read_nouns(str(bad))
    bad.write_text("")
    with pytest.raises(BadInput, match="holds no synset"):
        wordnet.read_nouns(str(bad))


@pytest.mark.skipif(not Path(WORDNET_PLACES[0]).is_file(), reason="Debian's wordnet-base is not installed")
def test_the_packaged_wordnet() -> None:
    nouns = wordnet.read_nouns(WORDNET_PLACES[0])
    assert len(nouns.glosses) == 82115  # the card's count
    same = nouns.lexicographer[nouns.pointers[0]] == nouns.lexicographer[nouns.pointers[1]]
    assert same.mean() == pytest.approx(0.886, abs=0.001)
    loaded = wordnet.load(WordnetOptions(), 0)
    assert 2500 < loaded.info.extra["nodes"] <= 3100 and loaded.info.num_classes == 7


# ---- OGB ------------------------------------------------------------------------------------------------------------
def ogb_folder(root: Path, name: str = "ogbn_arxiv", split: str = "time") -> Path:
    files = {
        "raw/edge": "0,1\n1,2\n2,0\n3,4\n4,4\n1,0\n",
        "raw/node-feat": "".join(f"{node / 2},{-node / 4}\n" for node in range(6)),
        "raw/node-label": "0\n1\n0\n1\n0\n1\n",
        "raw/num-node-list": "6\n",
        "raw/num-edge-list": "6\n",
        f"split/{split}/train": "0\n1\n",
        f"split/{split}/valid": "2\n5\n",
        f"split/{split}/test": "3\n4\n",
    }
    for part, text in files.items():
        path = root / name / f"{part}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))
    return root / name


def test_ogb_layout_is_read_and_nothing_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ogb", reason="the extra plait-glt[ogb] is not installed")
    ogb_folder(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    loaded = ogb_layout.load(OgbOptions(root=str(tmp_path)), 0)
    assert sorted(tmp_path.rglob("*")) == before
    graph = loaded.train.graph  # type: ignore[attr-defined]
    pairs = {(0, 1), (1, 2), (0, 2), (3, 4)}
    assert {tuple(pair) for pair in graph.edge_index.t().tolist()} == pairs | {(b, a) for a, b in pairs}
    assert graph.x[3].tolist() == [1.5, -0.75] and graph.y.tolist() == [0, 1] * 3
    assert [each.fields["node"].tolist() for each in (loaded.train, loaded.validation, loaded.test)] == [  # type: ignore[attr-defined]
        [0, 1],
        [2, 5],
        [3, 4],
    ]
    assert capfd.readouterr().out == ""
    ogb_folder(tmp_path, "ogbn_products", "sales_ranking")
    assert ogb_layout.load(OgbOptions(root=str(tmp_path), graph="ogbn-products"), 0).info.num_classes == 2


def test_ogb_missing_and_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"no folder ogbn_arxiv/raw in .*nothing is downloaded\. Expected: ROOT/ogbn_ar"):
        ogb_layout.load(OgbOptions(root=str(tmp_path)), 0)
    folder = ogb_folder(tmp_path)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "ogb", None)
        patched.setitem(sys.modules, "ogb.io", None)
        with pytest.raises(BadInput, match=r"pip install plait-glt\[ogb\]"):
            ogb_layout.load(OgbOptions(root=str(tmp_path)), 0)
    pytest.importorskip("ogb", reason="the extra plait-glt[ogb] is not installed")
    label = folder / "raw/node-label.csv.gz"
    whole = label.read_bytes()
    for damaged, message in (
        (whole[:-9], "whole number per line"),
        (b"plain", "whole number per line"),
        (gzip.compress(b"0\n1.5\n"), "whole number per line"),
        (gzip.compress(b"0\n1\n"), "6 rows of features but 2 labels"),
    ):
        label.write_bytes(damaged)
        with pytest.raises(BadInput, match=message):
            ogb_layout.load(OgbOptions(root=str(tmp_path)), 0)
    label.write_bytes(whole)
    (folder / "raw/edge.csv.gz").write_bytes(b"zzz")
    with pytest.raises(BadInput, match="cannot be read"):
        ogb_layout.load(OgbOptions(root=str(tmp_path)), 0)
    (folder / "split/time/valid.csv.gz").unlink()
    with pytest.raises(BadInput, match=r"valid\.csv\.gz is missing"):
        ogb_layout.load(OgbOptions(root=str(tmp_path)), 0)

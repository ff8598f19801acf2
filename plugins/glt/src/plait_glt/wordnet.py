"""``wordnet``: a connected part of WordNet 3.0's nouns, a real graph with text features that Debian packages.

A node is a synset, an edge a pointer between two nouns, the class a lexicographer file, the features the words of the
gloss (card, Data).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from plait.data import Data
from plait.errors import BadInput
from plait_glt.data import node_data, split_by_class
from plait_glt.data_options import WordnetOptions
from plait_glt.graphs import clean_edges, make_graph, normalise_rows
from plait_glt.sources import WORDNET_PLACES

CLASSES = 7
COMMON = 0.2
"""Words in more than this share of the glosses are left out, as they tell nothing."""
NAMES = {
    3: "tops", 4: "act", 5: "animal", 6: "artifact", 7: "attribute", 8: "body", 9: "cognition", 10: "communication",
    11: "event", 12: "feeling", 13: "food", 14: "group", 15: "location", 16: "motive", 17: "object", 18: "person",
    19: "phenomenon", 20: "plant", 21: "possession", 22: "process", 23: "quantity", 24: "relation", 25: "shape",
    26: "state", 27: "substance", 28: "time",
}  # fmt: skip
"""Lexicographer files of the nouns (lexnames(5WN))."""

_POINTER = re.compile(r" [^ ]+ (\d{8}) n \d{4}")
_WORD = re.compile(r"[a-z]{3,}")
Ints = npt.NDArray[np.int64]


class Nouns(NamedTuple):
    """All synsets: lexicographer file [n], pointers between nouns [2, E], glosses."""

    lexicographer: Ints
    pointers: Ints
    glosses: list[str]


def load(options: WordnetOptions, seed: int) -> Data:
    """The part of the graph that a breadth-first search reaches; sample and division depend on ``seed``.

    Raises:
        BadInput: no such file, another format, or a sample too small for the division.
    """
    nouns = read_nouns(options.path or WORDNET_PLACES[0])
    chosen = sample(nouns, options.nodes, seed)
    lexicographer = nouns.lexicographer[chosen]
    kept, label = np.unique(lexicographer, return_inverse=True)
    place = np.full(len(nouns.glosses), -1)
    place[chosen] = np.arange(len(chosen))
    edges = place[nouns.pointers]
    x = _features([nouns.glosses[node] for node in chosen], options.words)
    graph = make_graph(
        normalise_rows(x) if options.normalise_features else x,
        torch.from_numpy(edges[:, (edges >= 0).all(0)]),
        torch.from_numpy(label.astype(np.int64)),
        sparse=options.sparse_features,
    )
    rest = len(chosen) - len(kept) * options.labels_per_class
    parts = split_by_class(graph.y, options.labels_per_class, rest // 4, rest // 2, seed)
    names = [NAMES.get(int(file), str(file)) for file in kept]
    return node_data("wordnet", graph, *parts, num_classes=len(kept), class_names=names)


def read_nouns(path: str) -> Nouns:
    """Parse ``data.noun`` (wndb(5WN)).

    Raises:
        BadInput: it cannot be read, or a line is not of that format (its number is named).
    """
    try:
        with open(os.path.expanduser(path), encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise BadInput(
            f"data wordnet: {path} cannot be read ({error.strerror or error}); "
            "apt-get install wordnet-base (Debian), or give the path of a data.noun of WordNet 3.0."
        ) from None
    places: dict[str, int] = {}
    lexicographer: list[int] = []
    targets: list[str] = []
    counts: list[int] = []
    glosses: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("  ") or not line:  # the licence at the top is indented
            continue
        head, bar, gloss = line.partition(" | ")
        if not bar or not re.match(r"\d{8} \d\d n ", head):
            raise BadInput(f"{path}, line {number}: is no noun synset of WordNet 3.0.")
        others = _POINTER.findall(head)
        places[head[:8]] = len(glosses)
        lexicographer.append(int(head[9:11]))
        targets += others
        counts.append(len(others))
        glosses.append(gloss)
    if not glosses:
        raise BadInput(f"{path}: holds no synset.")
    ends = np.array([places.get(target, -1) for target in targets], np.int64)
    pointers = np.stack([np.repeat(np.arange(len(glosses)), counts), ends])
    return Nouns(np.array(lexicographer), pointers[:, ends >= 0], glosses)


def sample(nouns: Nouns, nodes: int, seed: int) -> Ints:
    """About ``nodes`` synsets of the seven largest lexicographer files that hang together, ascending ids.

    One breadth-first search per class begins at a synset of it, drawn by the seed, and takes an equal share of the
    nodes, of any class. Then the shortest ways between the beginnings are added, so the result is connected.

    Raises:
        BadInput: a class hangs together with no other.
    """
    sizes = np.bincount(nouns.lexicographer)
    largest = np.sort(np.argsort(sizes, kind="stable")[::-1][:CLASSES])
    largest = largest[sizes[largest] > 0]
    inside = np.isin(nouns.lexicographer, largest)
    edges = nouns.pointers[:, inside[nouns.pointers].all(0)]
    source, target = clean_edges(torch.from_numpy(edges), len(inside)).numpy()
    starts = np.searchsorted(source, np.arange(len(inside) + 1))
    component = _reach(starts, target, int(np.argmax(np.diff(starts))))[0]
    rng = np.random.default_rng(seed)
    reached = np.zeros(len(inside), bool)
    roots: list[int] = []
    for file in largest:
        members = np.flatnonzero(component & (nouns.lexicographer == file))
        if not len(members):
            raise BadInput(f"data wordnet: no synset of {NAMES.get(int(file), file)} hangs together with the others.")
        roots.append(int(rng.choice(members)))
        reached[_reach(starts, target, roots[-1])[1][: nodes // len(largest)]] = True
    parent = _reach(starts, target, roots[0])[2]
    for root in roots:
        while root >= 0:
            reached[root] = True
            root = int(parent[root])
    return np.flatnonzero(reached)


def _reach(starts: Ints, target: Ints, root: int) -> tuple[npt.NDArray[np.bool_], Ints, Ints]:
    """Breadth-first search, a whole ring at a time: reached [n], nodes in their order, parent of each node or -1."""
    reached = np.zeros(len(starts) - 1, bool)
    parent = np.full(len(reached), -1, np.int64)
    reached[root] = True
    ring = np.array([root])
    rings = [ring]
    while len(ring):
        lengths = starts[ring + 1] - starts[ring]
        offset = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        next_ = target[np.repeat(starts[ring], lengths) + offset]
        by = np.repeat(ring, lengths)
        new = ~reached[next_]
        ring, first = np.unique(next_[new], return_index=True)
        parent[ring] = by[new][first]
        reached[ring] = True
        rings.append(ring)
    return reached, np.concatenate(rings), parent


def _features(glosses: list[str], words: int) -> torch.Tensor:
    """Which of the most frequent words each gloss has: COO float32 [n, words] of zeros and ones."""
    used = [sorted(set(_WORD.findall(gloss.lower()))) for gloss in glosses]
    counts = Counter(word for each in used for word in each)
    usual = sorted((-count, word) for word, count in counts.items() if 2 <= count <= COMMON * len(glosses))
    column = {word: at for at, (_, word) in enumerate(usual[:words])}
    pairs = [(row, column[word]) for row, each in enumerate(used) for word in each if word in column]
    indices = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()
    shape = (len(glosses), max(1, len(column)))
    return torch.sparse_coo_tensor(indices, torch.ones(len(pairs)), shape, check_invariants=False).coalesce()

"""The graphs and networks that the plugin registers, as light declarations. Imports no torch."""

from __future__ import annotations

from typing import Any

from plait import DataSource, ModelSource, later

WORDNET_PLACES = ("/usr/share/wordnet/data.noun",)
"""Where the Debian package wordnet-base puts its file."""
GRAPH = frozenset(
    {
        "field:graph",
        "field:node",
        "field:label",
        "field:group",
        "field:index",
        "task:classification",
    }
)
"""What every graph source provides; ``node`` [B], or the two nodes of a pair [B, 2]; groups of low and high degree."""
LABELS = GRAPH - {"task:classification"} | {"task:multilabel"}
"""The same with many labels of each node."""
NEEDS = frozenset({"field:graph"})
OGB = "pip install 'plait-glt[ogb]', and its files from ogb.stanford.edu; --set data.root=FOLDER"
EDGES = frozenset({"model:edge-weights"})
"""The networks take a weight for every edge and listen to it."""


def data_sources() -> dict[str, DataSource]:
    """Graphs: generated, from published files, and a small one."""
    return {
        "cora-like": DataSource(
            "plait_glt.cora_like:load", "generated graph that looks like Cora", GRAPH, _data("CoraLikeOptions")
        ),
        "planetoid": DataSource(
            "plait_glt.planetoid:load",
            "Cora, CiteSeer or PubMed from the published files",
            GRAPH,
            _data("PlanetoidOptions"),
            obtain="github.com/kimiyoung/planetoid, folder data; --set data.path=FOLDER",
        ),
        "wordnet": DataSource(
            "plait_glt.wordnet:load",
            "WordNet's nouns and their pointers",
            GRAPH,
            _data("WordnetOptions"),
            places=WORDNET_PLACES,
            obtain="apt-get install wordnet-base",
        ),
        "ogb": DataSource(
            "plait_glt.ogb_layout:load",
            "ogbn-arxiv, ogbn-products or ogbn-mag from its folder",
            GRAPH,
            _data("OgbOptions"),
            obtain=OGB,
        ),
        "ogb-labels": DataSource(
            "plait_glt.ogb_layout:load_labels",
            "ogbn-proteins from its folder, 112 labels a node",
            LABELS,
            _data("OgbLabelsOptions"),
            obtain=OGB,
        ),
        "ogb-links": DataSource(
            "plait_glt.ogb_links:load", "ogbl-collab from its folder", GRAPH, _data("OgbLinksOptions"), obtain=OGB
        ),
        "karate": DataSource(
            "plait_glt.tiny_graphs:load", "Zachary's karate club, 34 nodes", GRAPH, _data("KarateOptions")
        ),
        **_links(),
    }


def _links() -> dict[str, DataSource]:
    return {
        "cora-like-links": DataSource(
            "plait_glt.cora_like:load_links", "links of the generated graph", GRAPH, _data("CoraLikeLinksOptions")
        ),
        "planetoid-links": DataSource(
            "plait_glt.planetoid:load_links",
            "links of Cora, CiteSeer or PubMed",
            GRAPH,
            _data("PlanetoidLinksOptions"),
            obtain="github.com/kimiyoung/planetoid, folder data; --set data.path=FOLDER",
        ),
        "karate-links": DataSource(
            "plait_glt.tiny_graphs:load_links", "links of the karate club", GRAPH, _data("KarateLinksOptions")
        ),
    }


def models() -> dict[str, ModelSource]:
    """Graph networks that take edge weights."""
    return {
        "gcn": ModelSource(
            "plait_glt.models.build:gcn", "graph convolutions (GCN)", EDGES, NEEDS, _model("GcnOptions")
        ),
        "gin": ModelSource(
            "plait_glt.models.build:gin", "graph isomorphism network", EDGES, NEEDS, _model("GinOptions")
        ),
        "ugs-gin": ModelSource(
            "plait_glt.models.build:ugs_gin", "UGS's own isomorphism network", EDGES, NEEDS, _model("UgsGinOptions")
        ),
        "gat": ModelSource("plait_glt.models.build:gat", "graph attention network", EDGES, NEEDS, _model("GatOptions")),
        "resgcn": ModelSource(
            "plait_glt.models.build:resgcn", "deep residual GCN (res+ blocks)", EDGES, NEEDS, _model("ResGcnOptions")
        ),
    }


def _data(name: str) -> Any:
    return later(f"plait_glt.data_options:{name}")


def _model(name: str) -> Any:
    return later(f"plait_glt.model_options:{name}")

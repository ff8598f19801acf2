"""The graphs and networks that the plugin registers, as light declarations. Imports no torch."""

from __future__ import annotations

from plait import DataSource, ModelSource
from plait_glt import data_options as data
from plait_glt import model_options as model

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
NEEDS = frozenset({"field:graph"})
EDGES = frozenset({"model:edge-weights"})
"""The networks take a weight for every edge and listen to it."""


def data_sources() -> dict[str, DataSource]:
    """Graphs: generated, from published files, and a small one."""
    return {
        "cora-like": DataSource(
            "plait_glt.cora_like:load", "generated graph that looks like Cora", GRAPH, data.CoraLikeOptions
        ),
        "planetoid": DataSource(
            "plait_glt.planetoid:load",
            "Cora, CiteSeer or PubMed from the published files",
            GRAPH,
            data.PlanetoidOptions,
            obtain="github.com/kimiyoung/planetoid, folder data; --set data.path=FOLDER",
        ),
        "wordnet": DataSource(
            "plait_glt.wordnet:load",
            "WordNet's nouns and their pointers",
            GRAPH,
            data.WordnetOptions,
            places=data.WORDNET_PLACES,
            obtain="apt-get install wordnet-base",
        ),
        "ogb": DataSource(
            "plait_glt.ogb_layout:load",
            "an OGB node property graph from its folder",
            GRAPH,
            data.OgbOptions,
            obtain="pip install 'plait-glt[ogb]', and its files from ogb.stanford.edu; --set data.root=FOLDER",
        ),
        "karate": DataSource(
            "plait_glt.tiny_graphs:load", "Zachary's karate club, 34 nodes", GRAPH, data.KarateOptions
        ),
        **_links(),
    }


def _links() -> dict[str, DataSource]:
    return {
        "cora-like-links": DataSource(
            "plait_glt.cora_like:load_links", "links of the generated graph", GRAPH, data.CoraLikeLinksOptions
        ),
        "planetoid-links": DataSource(
            "plait_glt.planetoid:load_links",
            "links of Cora, CiteSeer or PubMed",
            GRAPH,
            data.PlanetoidLinksOptions,
            obtain="github.com/kimiyoung/planetoid, folder data; --set data.path=FOLDER",
        ),
        "karate-links": DataSource(
            "plait_glt.tiny_graphs:load_links", "links of the karate club", GRAPH, data.KarateLinksOptions
        ),
    }


def models() -> dict[str, ModelSource]:
    """Graph networks that take edge weights."""
    return {
        "gcn": ModelSource("plait_glt.models.build:gcn", "graph convolutions (GCN)", EDGES, NEEDS, model.GcnOptions),
        "gin": ModelSource("plait_glt.models.build:gin", "graph isomorphism network", EDGES, NEEDS, model.GinOptions),
        "gat": ModelSource("plait_glt.models.build:gat", "graph attention network", EDGES, NEEDS, model.GatOptions),
        "resgcn": ModelSource(
            "plait_glt.models.build:resgcn", "deep residual GCN (res+ blocks)", EDGES, NEEDS, model.ResGcnOptions
        ),
    }

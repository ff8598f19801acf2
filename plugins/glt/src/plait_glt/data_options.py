"""Options of the graph data sources, kept apart so that planning imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from plait.plugin import Options

WORDNET_PLACES = ("/usr/share/wordnet/data.noun",)
"""Where ``wordnet`` looks when it is given no path (Debian package wordnet-base)."""


class GraphOptions(Options):
    """What every graph source takes."""

    normalise_features: bool = Field(True, description="divide each node's features by their sum")
    sparse_features: Literal["auto", "yes", "no"] = Field(
        "auto", description="keep the features as a CSR matrix; auto: under 5 % non-zero entries"
    )


class PlanetoidOptions(GraphOptions):
    """Options of ``planetoid``."""

    graph: Literal["cora", "citeseer", "pubmed"] = Field("cora", description="which of the three citation graphs")
    path: str = Field(
        min_length=1, max_length=4096, description="folder with ind.NAME.x and so on, or above it (NAME/raw as in PyG)"
    )


class CoraLikeOptions(GraphOptions):
    """Options of ``cora-like``."""

    graph_seed: int | None = Field(
        None, ge=0, lt=2**63, description="seed of the graph and its division; default the run's seed"
    )
    hard_share: float = Field(0.35, ge=0, le=1, description="share of the nodes whose edges seldom stay in their class")
    topic_share: float = Field(0.26, ge=0, le=1, description="share of a node's words that come from its class topic")


class WordnetOptions(GraphOptions):
    """Options of ``wordnet``."""

    path: str = Field("", max_length=4096, description="the file data.noun; empty: Debian's wordnet-base")
    nodes: int = Field(3000, ge=500, le=80_000, description="nodes of the connected sample")
    words: int = Field(1500, ge=50, le=20_000, description="most frequent gloss words that become features")
    labels_per_class: int = Field(20, ge=1, le=1000, description="training labels per class")


class OgbOptions(GraphOptions):
    """Options of ``ogb``."""

    graph: Literal["ogbn-arxiv", "ogbn-products"] = Field("ogbn-arxiv", description="which node property data set")
    root: str = Field(min_length=1, max_length=4096, description="folder that holds ogbn_arxiv/raw and so on")
    normalise_features: bool = Field(False, description="divide each node's features by their sum")


class KarateOptions(Options):
    """Options of ``karate``."""

    classes: Literal[2, 4] = Field(4, description="the two sides of the break-up, or four modularity clusters")
    labels_per_class: int = Field(2, ge=1, le=3, description="training labels per class")

"""Options of the graph data sources, kept apart so that planning imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from plait.declare.options import Options


class GraphOptions(Options):
    """What every graph source takes."""

    normalise_features: bool = Field(True, description="divide each node's features by their sum")
    sparse_features: Literal["auto", "yes", "no"] = Field(
        "auto", description="keep the features as a CSR matrix; auto: under 5 % non-zero entries"
    )


class LinkOptions(Options):
    """What every source takes that holds out edges and asks for them again."""

    validation_share: float = Field(0.05, gt=0, lt=1, description="share of the edges held out for validation")
    test_share: float = Field(0.1, gt=0, lt=1, description="share of the edges held out for the test")
    split_seed: int | None = Field(
        None, ge=0, lt=2**63, description="seed of the division and of the fixed negatives; default the run's seed"
    )

    @model_validator(mode="after")
    def _something_left(self) -> LinkOptions:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share + test_share = {self.validation_share + self.test_share:g} leave no training edge"
            )
        return self


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


class PlanetoidLinksOptions(PlanetoidOptions, LinkOptions):
    """Options of ``planetoid-links``."""


class CoraLikeLinksOptions(CoraLikeOptions, LinkOptions):
    """Options of ``cora-like-links``."""


class WordnetOptions(GraphOptions):
    """Options of ``wordnet``."""

    path: str = Field("", max_length=4096, description="the file data.noun; empty: Debian's wordnet-base")
    nodes: int = Field(3000, ge=500, le=80_000, description="nodes of the connected sample")
    words: int = Field(1500, ge=50, le=20_000, description="most frequent gloss words that become features")
    labels_per_class: int = Field(20, ge=1, le=1000, description="training labels per class")


class OgbOptions(GraphOptions):
    """Options of ``ogb``."""

    graph: Literal["ogbn-arxiv", "ogbn-products", "ogbn-mag"] = Field(
        "ogbn-arxiv", description="which node property data set; of ogbn-mag the papers that cite papers"
    )
    root: str = Field(min_length=1, max_length=4096, description="folder that holds ogbn_arxiv/raw and so on")
    normalise_features: bool = Field(False, description="divide each node's features by their sum")


class OgbLabelsOptions(GraphOptions):
    """Options of ``ogb-labels``."""

    root: str = Field(min_length=1, max_length=4096, description="folder that holds ogbn_proteins/raw and so on")
    normalise_features: bool = Field(False, description="divide each node's features by their sum")


class OgbLinksOptions(GraphOptions):
    """Options of ``ogb-links``."""

    root: str = Field(min_length=1, max_length=4096, description="folder that holds ogbl_collab/raw and so on")
    from_year: int = Field(0, ge=0, le=9999, description="collaborations from this year on; 0: all training years")
    normalise_features: bool = Field(False, description="divide each node's features by their sum")


class KarateOptions(Options):
    """Options of ``karate``."""

    classes: Literal[2, 4] = Field(4, description="the two sides of the break-up, or four modularity clusters")
    labels_per_class: int = Field(2, ge=1, le=3, description="training labels per class")


class KarateLinksOptions(LinkOptions):
    """Options of ``karate-links``."""

    validation_share: float = Field(0.1, gt=0, lt=1, description="share of the edges held out for validation")
    test_share: float = Field(0.2, gt=0, lt=1, description="share of the edges held out for the test")

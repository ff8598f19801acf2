"""Graph lottery tickets that survive high graph sparsity: prune edges and weights of a graph network together.

Hui et al., "Rethinking Graph Lottery Tickets: Graph Sparsity Matters", ICLR 2023, arXiv:2305.02190.

Names are resolved on first use, so ``import plait_glt`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait_glt.adversary import ascend as ascend
    from plait_glt.adversary import delta_removed as delta_removed
    from plait_glt.adversary import implicit_term as implicit_term
    from plait_glt.auxiliary import AuxiliaryLoss as AuxiliaryLoss
    from plait_glt.auxiliary import auxiliary_loss as auxiliary_loss
    from plait_glt.baselines import degree_scores as degree_scores
    from plait_glt.baselines import drop_edges as drop_edges
    from plait_glt.baselines import magnitude_scores as magnitude_scores
    from plait_glt.baselines import random_scores as random_scores
    from plait_glt.config import VARIANTS as VARIANTS
    from plait_glt.config import GLTConfig as GLTConfig
    from plait_glt.cora_like import CoraLike as CoraLike
    from plait_glt.cora_like import generate as generate
    from plait_glt.errors import GLTError as GLTError
    from plait_glt.graphs import clean_edges as clean_edges
    from plait_glt.graphs import edge_homophily as edge_homophily
    from plait_glt.graphs import graph_hash as graph_hash
    from plait_glt.graphs import isolated_nodes as isolated_nodes
    from plait_glt.graphs import make_graph as make_graph
    from plait_glt.graphs import undirected_ids as undirected_ids
    from plait_glt.links import Links as Links
    from plait_glt.links import divide_links as divide_links
    from plait_glt.links import pair_logits as pair_logits
    from plait_glt.macs import Propagation as Propagation
    from plait_glt.macs import inference_macs as inference_macs
    from plait_glt.macs import propagations as propagations
    from plait_glt.macs import saving as saving
    from plait_glt.masked import MaskedGNN as MaskedGNN
    from plait_glt.measures import hits_at as hits_at
    from plait_glt.measures import mean_roc_auc as mean_roc_auc
    from plait_glt.measures import roc_auc as roc_auc
    from plait_glt.models.conv import GATConv as GATConv
    from plait_glt.models.conv import GCNConv as GCNConv
    from plait_glt.models.conv import GINConv as GINConv
    from plait_glt.models.conv import probe_edge_weight as probe_edge_weight
    from plait_glt.models.conv import weight_names as weight_names
    from plait_glt.models.gat import GAT as GAT
    from plait_glt.models.gcn import GCN as GCN
    from plait_glt.models.gin import GIN as GIN
    from plait_glt.models.propagation import neighbour_sum as neighbour_sum
    from plait_glt.models.resgcn import ResGCN as ResGCN
    from plait_glt.pruned import PrunedGNN as PrunedGNN
    from plait_glt.pruning import prune_count as prune_count
    from plait_glt.pruning import prune_smallest as prune_smallest
    from plait_glt.rounds import GraphLotteryTickets as GraphLotteryTickets
    from plait_glt.rounds import RoundResult as RoundResult
    from plait_glt.rounds import TicketSearch as TicketSearch
    from plait_glt.rounds import find_ticket as find_ticket
    from plait_glt.sparsity import area_under_curve as area_under_curve
    from plait_glt.sparsity import extreme_sparsity as extreme_sparsity
    from plait_glt.sparsity import gradient_share as gradient_share
    from plait_glt.sparsity import is_winning as is_winning
    from plait_glt.sparsity import sparsity as sparsity
    from plait_glt.tasks import LabelTask as LabelTask
    from plait_glt.tasks import LinkTask as LinkTask
    from plait_glt.tasks import NodeTask as NodeTask
    from plait_glt.tasks import Task as Task
    from plait_glt.tickets import Ticket as Ticket
    from plait_glt.tickets import Transfer as Transfer
    from plait_glt.tickets import transfer as transfer
    from plait_glt.training import MaskStep as MaskStep
    from plait_glt.training import Retrained as Retrained
    from plait_glt.training import Trained as Trained
    from plait_glt.training import retrain as retrain
    from plait_glt.training import train_masks as train_masks

__version__ = "0.1.0"

_HOME = {
    "AuxiliaryLoss": "auxiliary",
    "CoraLike": "cora_like",
    "GAT": "models.gat",
    "GATConv": "models.conv",
    "GCN": "models.gcn",
    "GCNConv": "models.conv",
    "GIN": "models.gin",
    "GINConv": "models.conv",
    "GLTConfig": "config",
    "GLTError": "errors",
    "GraphLotteryTickets": "rounds",
    "LabelTask": "tasks",
    "LinkTask": "tasks",
    "Links": "links",
    "MaskStep": "training",
    "MaskedGNN": "masked",
    "NodeTask": "tasks",
    "Propagation": "macs",
    "PrunedGNN": "pruned",
    "ResGCN": "models.resgcn",
    "Retrained": "training",
    "RoundResult": "rounds",
    "Task": "tasks",
    "Ticket": "tickets",
    "TicketSearch": "rounds",
    "Trained": "training",
    "Transfer": "tickets",
    "VARIANTS": "config",
    "area_under_curve": "sparsity",
    "ascend": "adversary",
    "auxiliary_loss": "auxiliary",
    "clean_edges": "graphs",
    "degree_scores": "baselines",
    "delta_removed": "adversary",
    "divide_links": "links",
    "drop_edges": "baselines",
    "edge_homophily": "graphs",
    "extreme_sparsity": "sparsity",
    "find_ticket": "rounds",
    "generate": "cora_like",
    "gradient_share": "sparsity",
    "graph_hash": "graphs",
    "hits_at": "measures",
    "implicit_term": "adversary",
    "inference_macs": "macs",
    "is_winning": "sparsity",
    "isolated_nodes": "graphs",
    "magnitude_scores": "baselines",
    "make_graph": "graphs",
    "mean_roc_auc": "measures",
    "neighbour_sum": "models.propagation",
    "pair_logits": "links",
    "probe_edge_weight": "models.conv",
    "propagations": "macs",
    "prune_count": "pruning",
    "prune_smallest": "pruning",
    "random_scores": "baselines",
    "retrain": "training",
    "roc_auc": "measures",
    "saving": "macs",
    "sparsity": "sparsity",
    "train_masks": "training",
    "transfer": "tickets",
    "undirected_ids": "graphs",
    "weight_names": "models.conv",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    """Import the module that defines ``name`` the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

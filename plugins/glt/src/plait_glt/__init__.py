"""Graph lottery tickets that survive high graph sparsity: prune edges and weights of a graph network together.

Hui et al., "Rethinking Graph Lottery Tickets: Graph Sparsity Matters", ICLR 2023, arXiv:2305.02190.

Names are imported from their modules, so that importing the package, or its plugin, imports no torch:

* `plait_glt.rounds`: `GraphLotteryTickets` and `find_ticket`, the whole search; `plait_glt.config`: its options.
* `plait_glt.models`: graph networks and convolutions that take edge weights.
* `plait_glt.graphs`, `plait_glt.cora_like`: graphs as the search takes them; `plait_glt.tasks`, `plait_glt.links`.
* `plait_glt.masked`, `plait_glt.pruning`, `plait_glt.training`, `plait_glt.auxiliary`, `plait_glt.adversary`,
  `plait_glt.baselines`: the parts of a round.
* `plait_glt.tickets`, `plait_glt.pruned`: what is left; `plait_glt.sparsity`, `plait_glt.macs`,
  `plait_glt.measures`: how good it is.
"""

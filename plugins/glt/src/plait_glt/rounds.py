"""The whole search in plain PyTorch: rounds of mask training, pruning, rewinding and retraining. Card section 5."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plait_glt.baselines import degree_scores, random_scores
from plait_glt.config import GLTConfig
from plait_glt.errors import GLTError
from plait_glt.graphs import isolated_nodes
from plait_glt.macs import inference_macs, propagations
from plait_glt.masked import MaskedGNN
from plait_glt.pruning import check_target, prune_count, prune_smallest
from plait_glt.sparsity import area_under_curve, extreme_sparsity, is_winning, sparsity
from plait_glt.tasks import NodeTask, Task
from plait_glt.tickets import Ticket
from plait_glt.training import Trained, retrain, train_masks


@dataclass(frozen=True)
class RoundResult:
    """What one round ended with, of the retrained ticket at its best validation epoch.

    Args:
        round: 1..R; 0 is the dense network on the full graph.
        edges: kept mask entries (undirected edges when tied).
        graph_sparsity, weight_sparsity: shares pruned so far.
        gradient_share: share of the kept edges that got a gradient in the mask phase; None without one.
        isolated: nodes without an edge.
        accuracy, validation_accuracy: on test and validation in %; the task's figure where that is another.
        best_epoch: of the retraining, from 1.
        mask_epoch: whose masks were ranked, from 1; None without a mask phase.
        macs: of one inference pass; None for convolutions that `propagations` does not know.
        seconds: of the round.
    """

    round: int
    edges: int
    graph_sparsity: float
    weight_sparsity: float
    gradient_share: float | None
    isolated: int
    accuracy: float
    validation_accuracy: float
    best_epoch: int
    mask_epoch: int | None
    macs: int | None
    seconds: float


class GraphLotteryTickets:
    """Hui et al., ICLR 2023, with its ablations and baselines (`GLTConfig`).

    Weights that are frozen, parametrized, computed in the forward pass, or without effect are left alone
    (``model.remarks``).

    Random numbers come from ``seed`` only, apart for each round and phase; the global generator is left as it was.

    Args:
        network: at its initial weights Theta_0; trained in place.
        graph: with ``x`` [n, F], ``edge_index`` [2, E], ``y`` [n] (`plait_glt.graphs.make_graph`).
        train, validation, test: node ids, or bool masks [n].
        config: options; default `GLTConfig()`.
        seed: of everything random.

    Raises:
        GLTError: splits that overlap, a class without a training label, a network that ignores edge weights or
            has no weight to prune, targets that the rounds do not reach, and what `MaskedGNN` refuses.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: Any,
        train: Tensor,
        validation: Tensor,
        test: Tensor,
        config: GLTConfig | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self._prepare(network, NodeTask(graph.x, graph.edge_index, graph.y, train, validation, test), config, seed)

    @classmethod
    def on(
        cls, network: nn.Module, task: Task, config: GLTConfig | None = None, *, seed: int = 0
    ) -> GraphLotteryTickets:
        """The same for another task, such as `LinkTask` or `LabelTask`."""
        search = cls.__new__(cls)
        search._prepare(network, task, config, seed)
        return search

    def _prepare(self, network: nn.Module, task: Task, config: GLTConfig | None, seed: int) -> None:
        self.config = config or GLTConfig()
        self.seed, self.task = seed, task
        self.model = MaskedGNN(network, task.edge_index, task.x.shape[0], tied=self.config.tied)
        self.model.probe(task.x, seed)
        self.model.require_trainable(self.config.weight_ranking != "keep")
        network = self.model.network
        self.initial = {name: value.detach().clone() for name, value in network.state_dict().items()}
        self.edge_kept = torch.ones_like(self.model.edge_mask, dtype=torch.bool)
        self.weight_kept = {name: torch.ones_like(w, dtype=torch.bool) for name, w in self.model.weights().items()}
        self.results: list[RoundResult] = []
        total = sum(kept.numel() for kept in self.weight_kept.values())
        c = self.config
        check_target("graph", self.edge_kept.numel(), c.p_g * (c.edge_ranking != "keep"), c.rounds, c.graph_target)
        check_target("weight", total, c.p_theta * (c.weight_ranking != "keep"), c.rounds, c.weight_target)

    @property
    def finished(self) -> bool:
        """All rounds are done, or every target that was given is reached."""
        done = [result.round for result in self.results if result.round]
        if len(done) == self.config.rounds:
            return True
        if not done:
            return False
        last = self.results[-1]
        targets = (
            (self.config.graph_target, last.graph_sparsity),
            (self.config.weight_target, last.weight_sparsity),
        )
        wanted = [reached >= target for target, reached in targets if target is not None]
        return bool(wanted) and all(wanted)

    def run(self, on_round: Callable[[RoundResult], object] | None = None) -> list[RoundResult]:
        """All rounds that are left.

        Args:
            on_round: called after each one; `ticket` then gives that round's.
        """
        while not self.finished:
            result = self.step()
            if on_round is not None:
                on_round(result)
        return self.results

    def step(self) -> RoundResult:
        """One round, or the dense network where that is still to come."""
        began = time.perf_counter()
        number = len(self.results) + (0 if self.config.dense else 1)
        trained: Trained | None = None
        if number:
            trained = self._prune(number)
        self.rewind()
        with self._seeded(number, "retrain") as generator:
            final = retrain(self.model, self.task, self.edge_kept, self.weight_kept, self.config, generator)
        kept_index = self.model.kept_index
        known = propagations(self.model.network)
        macs: int | None = None
        if known is not None:
            masks = self.model.effective(self.weight_kept)
            macs = inference_macs(masks, kept_index.shape[1], self.model.num_nodes, self.task.x, propagated=known)
        result = RoundResult(
            round=number,
            edges=int(self.edge_kept.sum()),
            graph_sparsity=sparsity(self.edge_kept),
            weight_sparsity=sparsity(self.weight_kept.values()),
            gradient_share=trained.gradient_share if trained else None,
            isolated=len(isolated_nodes(kept_index, self.model.num_nodes)),
            accuracy=final.accuracy,
            validation_accuracy=final.validation_accuracy,
            best_epoch=final.epoch,
            mask_epoch=trained.epoch if trained else None,
            macs=macs,
            seconds=time.perf_counter() - began,
        )
        self.results.append(result)
        return result

    @torch.no_grad()
    def rewind(self) -> None:
        """Theta and buffers back to their initial values, the pruned weights at 0."""
        self.model.network.load_state_dict(self.initial)
        for name, weight in self.model.weights().items():
            weight.mul_(self.weight_kept[name])

    def ticket(self, **notes: Any) -> Ticket:
        """The ticket of the last round; ``notes`` go into its file."""
        return Ticket(
            edge_kept=self.edge_kept.clone(),
            pairs=self.model.pairs.clone(),
            weight_kept={name: kept.clone() for name, kept in self.weight_kept.items()},
            initial={name: value.clone() for name, value in self.initial.items()},
            num_nodes=self.model.num_nodes,
            graph_hash=self.model.hash,
            tied=self.model.tied,
            notes={"seed": self.seed, **notes},
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the rounds to come depend on, between two rounds: tensors and JSON values."""
        return {
            "graph_hash": self.model.hash,
            "seed": self.seed,
            "config": asdict(self.config),
            "edge_kept": self.edge_kept.clone(),
            "weight_kept": {name: kept.clone() for name, kept in self.weight_kept.items()},
            "initial": {name: value.clone() for name, value in self.initial.items()},
            "results": [asdict(result) for result in self.results],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume between two rounds.

        Raises:
            GLTError: the state is of another graph, seed or configuration.
        """
        for what, ours in (("graph_hash", self.model.hash), ("seed", self.seed), ("config", asdict(self.config))):
            if state[what] != ours:
                raise GLTError(f"resume: the state has another {what} than this search ({state[what]}, here {ours}).")
        self.edge_kept.copy_(state["edge_kept"])
        for name, kept in self.weight_kept.items():
            kept.copy_(state["weight_kept"][name])
        self.initial = {name: value.clone() for name, value in state["initial"].items()}
        self.results = [RoundResult(**result) for result in state["results"]]

    # ---- a round's pruning ----------------------------------------------------------------------------------------
    def _prune(self, number: int) -> Trained | None:
        config, trained = self.config, None
        if config.trains_masks:
            self.rewind()
            with self._seeded(number, "masks") as generator:
                trained = train_masks(self.model, self.task, self.edge_kept, self.weight_kept, config, generator)
        with self._seeded(number, "prune") as generator:
            if config.edge_ranking != "keep":
                count = prune_count(int(self.edge_kept.sum()), config.p_g)
                (self.edge_kept,) = prune_smallest(
                    [self._edge_scores(trained, generator)], [self.edge_kept], count, generator
                )
            if config.weight_ranking != "keep":
                masks = list(self.weight_kept.values())
                count = prune_count(sum(int(kept.sum()) for kept in masks), config.p_theta)
                pruned = prune_smallest(self._weight_scores(trained, generator), masks, count, generator)
                self.weight_kept = dict(zip(self.weight_kept, pruned, strict=True))
        return trained

    def _edge_scores(self, trained: Trained | None, generator: torch.Generator) -> Tensor:
        if self.config.edge_ranking == "random":
            return random_scores([self.edge_kept], generator)[0]
        if self.config.edge_ranking == "degree":
            return degree_scores(self.model.pairs, self.model.num_nodes)
        assert trained is not None
        return trained.edge_scores

    def _weight_scores(self, trained: Trained | None, generator: torch.Generator) -> list[Tensor]:
        if self.config.weight_ranking == "random":
            return random_scores(list(self.weight_kept.values()), generator)
        assert trained is not None
        return [trained.weight_scores[name] for name in self.weight_kept]

    @contextmanager
    def _seeded(self, number: int, phase: str) -> Iterator[torch.Generator]:
        seed = phase_seed(self.seed, number, phase)
        device = self.model.edge_mask.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)  # dropout inside the network knows no other generator
            yield torch.Generator().manual_seed(seed)


def phase_seed(seed: int, number: int, phase: str) -> int:
    """Seed of one phase (``"masks"``, ``"prune"`` or ``"retrain"``) of one round."""
    digest = hashlib.sha256(f"{seed} {number} {phase}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True)
class TicketSearch:
    """Result of `find_ticket`.

    Args:
        results: of every round, the dense network first.
        ticket: of the last round.
        area: under accuracy against graph sparsity, from 0; None without a dense network or without pruned edges.
        winning: whether the last ticket is as accurate as the dense network, within the tolerance; None without one.
        extreme: largest graph sparsity of a winning ticket; None without one.
        remarks: which weight matrices were left alone, and why.
    """

    results: list[RoundResult]
    ticket: Ticket
    area: float | None
    winning: bool | None
    extreme: float | None
    remarks: tuple[str, ...] = ()


def find_ticket(
    network: nn.Module,
    graph: Any,
    train: Tensor,
    validation: Tensor,
    test: Tensor,
    config: GLTConfig | None = None,
    *,
    seed: int = 0,
    tolerance: float = 0.0,
    on_round: Callable[[RoundResult], object] | None = None,
) -> TicketSearch:
    """Run all rounds of `GraphLotteryTickets`; arguments and errors as there.

    Args:
        tolerance: accuracy points by which a winning ticket may stay below the dense network; default 0.
        on_round: called with each round's result.
    """
    search = GraphLotteryTickets(network, graph, train, validation, test, config, seed=seed)
    results = search.run(on_round)
    dense = results[0].accuracy if results[0].round == 0 else None
    sparsities, accuracies = [r.graph_sparsity for r in results], [r.accuracy for r in results]
    curve = dense is not None and len(set(sparsities)) > 1
    return TicketSearch(
        results,
        search.ticket(),
        area_under_curve(sparsities, accuracies) if curve else None,
        None if dense is None else is_winning(accuracies[-1], dense, tolerance),
        None if dense is None else extreme_sparsity(sparsities[1:], accuracies[1:], dense, tolerance),
        tuple(search.model.remarks),
    )

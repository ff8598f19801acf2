"""Graph lottery tickets woven into a plait run: rounds of the core's own steps, hard masks in the core's keeping."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from plait.data.seeds import seed_of
from plait.errors import BadCheckpoint
from plait.storage.directory import RunDirectory
from plait_glt.adversary import ascend, delta_removed, implicit_term, unclipped
from plait_glt.auxiliary import auxiliary_loss
from plait_glt.baselines import degree_scores, drop_edges, magnitude_scores, random_scores
from plait_glt.clock import Clock
from plait_glt.masked import INITIAL_NOISE, MaskedGNN
from plait_glt.phases import Phase, phases
from plait_glt.pruned import PrunedGNN
from plait_glt.pruning import prune_count, prune_smallest
from plait_glt.records import figures, record
from plait_glt.sparsity import gradient_share
from plait_glt.tasks import compared_outputs
from plait_glt.tickets import Ticket, Transfer, transfer

if TYPE_CHECKING:
    from plait.data import Data
    from plait.declare.results import Metric, Plot, Table
    from plait.training.trainer import Trainer
    from plait.training.woven import LossReport
    from plait_glt.options import GltOptions


def masked(options: GltOptions, model: nn.Module, data: Data) -> MaskedGNN:
    """The model with a soft mask for every edge of the data's graph and for every weight.

    Raises:
        GLTError: a network with a layer that ignores edge weights, or without a weight that can be pruned.
    """
    graph = data.train.__getitems__([0])["graph"]
    gnn = MaskedGNN(model, graph.edge_index, int(graph.num_nodes), tied=not options.directed_masks)
    gnn.probe(graph.x)
    gnn.require_trainable(options.weight_ranking != "keep" and options.ticket is None)
    return gnn


class Weave:
    """What the plugin keeps during a run.

    Args:
        options: the plugin's options.
        trainer: the run; its model is the `MaskedGNN`.
    """

    def __init__(self, options: GltOptions, trainer: Trainer) -> None:
        assert isinstance(trainer.model, MaskedGNN)
        self.options, self.gnn = options, trainer.model
        for remark in self.gnn.remarks:
            trainer.note(f"glt: {remark}")
        names = [f"network.{name}" for name in self.gnn.names]
        soft = self.gnn.mask_names()
        self.hard = trainer.masks.own("glt", ["edge_mask", *names, *soft])
        self.hard_weights = [(self.hard[w], self.hard[s]) for w, s in zip(names, soft, strict=True)]
        decay = trainer.recipe.optimizer.weight_decay if options.decay_masks else 0.0
        ascent = options.adversary == "ascent"  # its masks move by their own projected step
        trainer.group_parameters(["edge_mask"], lr=0.0 if ascent else options.eta1, weight_decay=decay)
        trainer.group_parameters(soft, lr=options.eta2, weight_decay=decay)
        train = trainer.recipe.train
        per_epoch = trainer.train_stream.batches_per_epoch
        length = train.steps if train.steps is not None else per_epoch * (train.epochs or 0)
        self.phases = phases(options.planned, *options.lengths(length, per_epoch), dense=options.dense)
        self.position, self.begun, self.clock = 0, False, Clock()
        self.rounds: list[dict[str, Any]] = []
        self.reached = torch.zeros_like(self.gnn.edge_mask, dtype=torch.bool)
        self.share: float | None = None
        self.initial = _copy(self.gnn.network)
        self.planted = self.initial
        self.moved: Transfer | None = None
        if options.ticket is not None:
            self.planted = self._plant(trainer, Ticket.load(Path(options.ticket)))
        self.learns_edges = options.edge_ranking == "mask"
        self.silent: frozenset[str] = frozenset()
        self.implicit: tuple[Tensor, Tensor, Tensor] | None = None

    # ---- phases -------------------------------------------------------------------------------------------------
    @property
    def phase(self) -> Phase | None:
        """The present one; None before the first and after the last."""
        return self.phases[self.position] if self.begun and self.position < len(self.phases) else None

    def fit(self, trainer: Trainer) -> None:
        """Go through the phases; a resumed run goes on in the one it was in."""
        if self.position:
            self.clock.recall(self.phases[: self.position], RunDirectory(trainer.folder).events())
        if self.begun:
            self._arrange(trainer, self.phases[self.position])
        while self.position < len(self.phases):
            phase = self.phases[self.position]
            if not self.begun:
                self._begin(trainer, phase)
            trainer.train_until(phase.end)
            self._end(trainer, phase)

    def _begin(self, trainer: Trainer, phase: Phase) -> None:
        self.clock.begin(phase)
        learn = phase.kind == "masks"
        first = self.initial if phase.kind == "dense" else self.planted
        weights = {f"network.{name}": value for name, value in first.items()}
        generator = trainer.generator("glt.noise")
        for name, parameter in self.gnn.named_parameters():
            if not name.startswith("network."):
                drawn = torch.rand(parameter.shape, generator=generator).to(parameter.device) if learn else None
                noise = 0 if drawn is None else INITIAL_NOISE * (2 * drawn - 1)
                weights[name] = self.hard[name] * (1 + noise)
        self.begun = True
        self.reached.zero_()
        self._arrange(trainer, phase)
        trainer.begin_phase(phase.end - phase.start, fresh=True, weights=weights)

    def _arrange(self, trainer: Trainer, phase: Phase) -> None:
        """What is no tensor: which parameters are trained, and on which edges the network runs."""
        self.gnn.soft_masks(phase.kind == "masks")
        if phase.kind == "masks":  # a ranking by other means leaves its masks at 1
            self.gnn.edge_mask.requires_grad_(self.learns_edges)
            for mask in self.gnn.weight_masks.values():
                mask.requires_grad_(self.options.weight_ranking == "mask")
        for parameter in self.gnn.parameters():  # the optimizer would go on with what a phase left behind
            parameter.grad = None
        self.gnn.compact(self.hard["edge_mask"] != 0)
        trainer.refresh()

    def _end(self, trainer: Trainer, phase: Phase) -> None:
        trainer.end_phase()
        if phase.kind == "masks":
            learned = self.learns_edges and phase.end > phase.start
            self.share = gradient_share(self.reached, self.hard["edge_mask"]) if learned else None
            self._prune(trainer)
        else:
            ended = record(trainer, self.gnn, self.hard, phase, self.share)
            self.rounds.append(ended)
            self.share = None
            shown = ("graph_sparsity", f"validation_{ended['figure']}")  # the rest is in the table and the curves
            trainer.log({f"glt/{name}": ended[name] for name in shown} | self.clock.end(phase))
        self.position, self.begun = self.position + 1, False

    def selectable(self, trainer: Trainer) -> bool:
        """Whether the masks of this step may be chosen (card, traps 7 and 10)."""
        phase = self.phase
        if phase is None or phase.kind != "masks":
            return True
        return trainer.step > phase.start + min(self.options.warmup, phase.end - phase.start - 1)

    # ---- pruning ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _prune(self, trainer: Trainer) -> None:
        options, gnn, generator = self.options, self.gnn, trainer.generator("glt.ties")
        edges, weights = self.hard["edge_mask"], [w for w, _ in self.hard_weights]
        trainer.masks.changed()
        if self.moved is not None:
            if self.moved.edge_kept is not None:
                edges.copy_(self.moved.edge_kept)
            carried = self.moved.weight_kept  # of the weights that were not left alone where the ticket was found
            self._keep([carried.get(n, w) for n, w in zip(gnn.names, weights, strict=True)])
            return
        if options.edge_ranking != "keep":
            scores = [self._edge_scores(trainer)]
            count = prune_count(int(edges.count_nonzero()), options.p_g)
            edges.copy_(prune_smallest(scores, [edges != 0], count, generator)[0])
        if options.weight_ranking != "keep":
            scores = self._weight_scores(trainer)
            count = prune_count(sum(int(w.count_nonzero()) for w in weights), options.p_theta)
            self._keep(prune_smallest(scores, [w != 0 for w in weights], count, generator))

    def _edge_scores(self, trainer: Trainer) -> Tensor:
        if self.options.edge_ranking == "degree":
            return degree_scores(self.gnn.pairs, self.gnn.num_nodes)
        if self.options.edge_ranking == "random":
            return random_scores([self.hard["edge_mask"]], trainer.generator("glt.random"))[0]
        return self.gnn.edge_mask

    def _weight_scores(self, trainer: Trainer) -> list[Tensor]:
        if self.options.weight_ranking == "random":
            return random_scores([w for w, _ in self.hard_weights], trainer.generator("glt.random"))
        if self.options.weight_ranking == "magnitude":
            return list(magnitude_scores(self.gnn.weights()).values())
        return [self.gnn.weight_mask(name) for name in self.gnn.names]

    def _keep(self, weights: Sequence[Tensor]) -> None:
        for pair, mask in zip(self.hard_weights, weights, strict=True):
            for hard in pair:
                hard.copy_(mask)

    def _plant(self, trainer: Trainer, ticket: Ticket) -> dict[str, Tensor]:
        """Move a ticket found before to this network and graph; gives the first weights that go with it."""
        same = ticket.num_nodes == self.gnn.num_nodes and ticket.tied == self.gnn.tied
        self.moved = transfer(
            ticket,
            self.gnn.network,
            pairs=self.gnn.pairs if same else None,
            num_nodes=self.gnn.num_nodes if same else None,
            shuffle=trainer.generator("glt.random") if self.options.ticket_weights == "random" else None,
        )
        planted = _copy(self.gnn.network)
        self.gnn.network.load_state_dict(self.initial)
        return planted

    # ---- a step -------------------------------------------------------------------------------------------------
    def step(self, trainer: Trainer, batch: Any, proceed: Callable[[], LossReport]) -> LossReport:
        """The adversary before the descent, the clip after it."""
        phase, options, gnn = self.phase, self.options, self.gnn
        kept = self.hard["edge_mask"] != 0
        if phase is None or phase.kind != "masks":
            if options.dropedge and phase is not None and phase.kind == "retrain":
                with self._without(drop_edges(kept, options.dropedge, _generator(trainer, "dropedge"))):
                    return proceed()
            return proceed()
        if not self.learns_edges:
            return proceed()
        sign = gnn.edge_mask.detach().sign()
        if options.adversary == "delta" and options.rho:
            with self._silence("l1", "wasserstein"):
                gradient = self._edge_gradient(trainer, batch)
            with self._without(delta_removed(gradient, gnn.edge_mask, kept, options.rho)):
                report = proceed()
        elif options.adversary == "ascent":
            report = self._ascent(trainer, batch, kept, proceed)
        else:
            report = proceed()
        if gnn.edge_mask.grad is not None:  # the L1 term reaches every edge alike and does not count
            self.reached |= gnn.edge_mask.grad != options.l1_edges * sign * kept
        if options.clip:
            with torch.no_grad():
                gnn.edge_mask.clamp_(0, 1)
        return report

    def _ascent(self, trainer: Trainer, batch: Any, kept: Tensor, proceed: Callable[[], LossReport]) -> LossReport:
        mask, step = self.gnn.edge_mask, self.options.eta1
        gradient = self._edge_gradient(trainer, batch)
        before = mask.detach().clone()
        with torch.no_grad():
            mask.copy_(ascend(before, gradient, kept, step))
        if self.options.alpha:
            after = self._edge_gradient(trainer, batch)
            self.implicit = (before, after, unclipped(before, gradient, kept, step))
        try:
            return proceed()
        finally:
            self.implicit = None

    def _edge_gradient(self, trainer: Trainer, batch: Any) -> Tensor:
        """dL/ds [U] of the composed loss, by a probe that changes nothing."""
        gradients = trainer.gradients(batch, probe=True, freeze_statistics=True).gradients
        assert gradients is not None
        slopes = [g for p, g in zip(trainer.parameters, gradients, strict=True) if p is self.gnn.edge_mask]
        return torch.zeros_like(self.gnn.edge_mask) if slopes[0] is None else slopes[0]

    @contextlib.contextmanager
    def _without(self, removed: Tensor) -> Iterator[None]:
        self.gnn.removed = removed
        try:
            yield
        finally:
            self.gnn.removed = None

    @contextlib.contextmanager
    def _silence(self, *terms: str) -> Iterator[None]:
        self.silent = frozenset(terms)
        try:
            yield
        finally:
            self.silent = frozenset()

    # ---- the loss -----------------------------------------------------------------------------------------------
    def terms(self, trainer: Trainer, raw: Tensor, outputs: Tensor, batch: Any) -> dict[str, Tensor]:
        """``wasserstein``, ``l1`` and, for the ascent, ``implicit``."""
        phase, options = self.phase, self.options
        if phase is None or phase.kind != "masks":
            return {}
        terms = {}
        if "wasserstein" not in self.silent and self._compares(trainer, phase):
            terms["wasserstein"] = self._wasserstein(trainer, raw, outputs)
        if "l1" not in self.silent and (options.l1_edges or options.l1_weights):
            terms["l1"] = options.l1_edges * self.gnn.edge_mask.abs().sum()
            if self.gnn.names:
                weights = torch.stack([mask.abs().sum() for mask in self.gnn.weight_masks.values()]).sum()
                terms["l1"] = terms["l1"] + options.l1_weights * weights
        if self.implicit is not None:
            terms["implicit"] = self._implicit(trainer, batch)
        return terms

    def _compares(self, trainer: Trainer, phase: Phase) -> bool:
        warm = min(self.options.warmup, phase.end - phase.start - 1)
        return self.options.lam > 0 and trainer.step > phase.start + warm

    def _wasserstein(self, trainer: Trainer, raw: Tensor, outputs: Tensor) -> Tensor:
        options = self.options
        # by the number of the step: both passes of a sharpness-aware step compare the same nodes
        generator = _generator(trainer, "wasserstein") if options.wd_samples else None
        auxiliary = auxiliary_loss(
            *compared_outputs(trainer.info, raw, outputs),
            samples=options.wd_samples,
            generator=generator,
            eps=options.wd_eps,
            max_iterations=options.wd_iterations,
        )
        return options.lam * auxiliary.loss

    def _implicit(self, trainer: Trainer, batch: Any) -> Tensor:
        assert self.implicit is not None
        before, after, free = self.implicit
        mask = before.clone().requires_grad_()
        graph = batch["graph"]
        raw = functional_call(self.gnn, {"edge_mask": mask}, (graph.x, graph.edge_index))
        outputs = trainer.readout(raw, batch)
        loss = trainer.objective(outputs, batch).mean()
        phase = self.phase
        if phase is not None and self._compares(trainer, phase):
            loss = loss + self._wasserstein(trainer, raw, outputs)
        (gradient,) = torch.autograd.grad(loss, mask, create_graph=True)
        return implicit_term(gradient, after, free, alpha=self.options.alpha, step=self.options.eta1)

    # ---- afterwards ---------------------------------------------------------------------------------------------
    def ticket(self) -> Ticket:
        """The present ticket."""
        return Ticket(
            edge_kept=self.hard["edge_mask"].detach().cpu() != 0,
            pairs=self.gnn.pairs.cpu(),
            weight_kept={n: w.cpu() != 0 for n, (w, _) in zip(self.gnn.names, self.hard_weights, strict=True)},
            initial={name: value.cpu() for name, value in self.planted.items()},
            num_nodes=self.gnn.num_nodes,
            graph_hash=self.gnn.hash,
            tied=self.gnn.tied,
            notes=self.rounds[-1] if self.rounds else {},
        )

    def export(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        """The network on its kept edges; the ticket itself goes beside it as ``ticket.safetensors``."""
        assert isinstance(model, MaskedGNN)
        if trainer.writes:
            self.ticket().save(trainer.folder / "export" / "ticket.safetensors")
        network, kept = model.export()
        return PrunedGNN(network, kept, model.edge_index.shape[1])

    def evaluate(self, trainer: Trainer) -> dict[str, Metric | Table | Plot]:
        """Accuracy against sparsity, round by round."""
        return figures(self.rounds, self.options.tolerance, self.clock.seconds)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, the first weights, and what the rounds gave."""
        return {
            "position": self.position,
            "begun": self.begun,
            "rounds": [dict(ended) for ended in self.rounds],
            "reached": self.reached,
            "share": self.share,
            "graph": self.gnn.hash,
            "initial": self.initial,
            "planted": self.planted,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back.

        Raises:
            BadCheckpoint: of a run on another graph.
        """
        if state["graph"] != self.gnn.hash:
            raise BadCheckpoint(
                f"the checkpoint's edge masks belong to the graph {state['graph'][:12]}; this run's graph is "
                f"{self.gnn.hash[:12]}. Give the data that the run began with."
            )
        self.position, self.begun, self.share = state["position"], state["begun"], state["share"]
        self.reached.copy_(state["reached"])
        self.rounds = [dict(ended) for ended in state["rounds"]]
        self.initial, self.planted = dict(state["initial"]), dict(state["planted"])


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _generator(trainer: Trainer, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(trainer.recipe.seed, f"glt.{name}", trainer.step))

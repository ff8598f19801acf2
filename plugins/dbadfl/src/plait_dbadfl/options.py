"""Options, each stated once: what the library takes, and what the plugin adds. Imports no torch.

A class per idea (`SplitOptions`, `AttackOptions`, ...); `FederationOptions` is all of them, and `DbadflOptions` adds
the graph and what a plait run reports. So the plugin's options *are* the library's, under the same names.

The sections of the card are named; [inferred] options are reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from plait import Options, PresetOptions
from plait_dbadfl import names
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.items import Item, companions
from plait_dbadfl.presets import PRESETS

__all__ = [
    "AttackOptions", "DbadflOptions", "EngineOptions", "FederationOptions", "GraphOptions", "LocalOptions",
    "PredictorOptions", "SGDOptions", "ScanOptions", "ShadowOptions", "SplitOptions", "checked",
]  # fmt: skip

Kind = TypeVar("Kind", bound=Options)
Number = Annotated[int, Field(ge=0, le=10**6)]
Pixel = tuple[Number, Number]


def checked(model: type[Kind], **values: Any) -> Kind:
    """Options from values that are not the user's own words for them.

    Raises:
        DbadflError: one line; values that are out of bounds or do not belong together.
    """
    try:
        return model(**values)
    except ValidationError as error:
        problems = [(".".join(map(str, p["loc"])), p["input"], p["msg"]) for p in error.errors()]
        said = [f"{where}={value!r}: {what}" if where else what for where, value, what in problems]
        raise DbadflError("; ".join(said).replace("Value error, ", "")) from None


class GraphOptions(Options):
    """Who is there, and who talks to whom."""

    nodes: int = Field(32, ge=2, le=100_000, description="participants N")
    topology: names.Topologies = Field("ring", description="who talks to whom; file reads topology_file")
    topology_file: str | None = Field(None, description="CSV edge list 'u,v' with nodes from 0, for topology = file")
    topology_k: int = Field(4, ge=2, le=1000, description="watts-strogatz: neighbours before rewiring")
    topology_p: float | None = Field(
        None, ge=0, le=1, description="watts-strogatz: rewiring (default 0.2); erdos-renyi: edge (1.2 ln N / N)"
    )

    @model_validator(mode="after")
    def _check_file(self) -> GraphOptions:
        if self.topology == "file" and self.topology_file is None:
            raise ValueError("topology = 'file' needs topology_file, a CSV edge list 'u,v'")
        return self


class EngineOptions(Options):
    """When nodes exchange what (card, section 2)."""

    weights: names.Weights | None = Field(
        None, description="rule of the mixing matrix W; default metropolis, or the graph's own"
    )
    engine: names.Engines = Field("dfedavg", description="schedule of local steps and exchanges")
    order: names.Order = Field("mix-then-step", description="dpsgd: as published, or not")
    interactions: names.Interactions = Field("sequential", description="swarm: how edges are drawn")
    swarm_steps: names.SwarmSteps = Field("fixed", description="swarm: local steps of an interaction")
    age: bool = Field(False, description="gossip: weight the mean by the models' ages")
    drawn: int | None = Field(
        None, ge=1, le=100_000, description="fedavg: nodes drawn in every round, attackers in their own; default all"
    )
    server_step: float = Field(1.0, gt=0, le=1, description="fedavg with drawn: the server's step eta")
    warmup_rounds: int = Field(
        0, ge=0, le=10**6, description="fedavg with drawn: first rounds with a server step of 1, as training beforehand"
    )

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """The arguments of the engine's class that are its own."""
        own: dict[str, dict[str, Any]] = {
            "dpsgd": {"order": self.order},
            "swarm": {"interactions": self.interactions, "steps": self.swarm_steps},
            "gossip": {"age": self.age},
            "fedavg": {"drawn": self.drawn, "server_step": self.server_step, "warmup": self.warmup_rounds},
        }
        return own.get(self.engine, {})


class SplitOptions(Options):
    """Who owns which images (card, "Data")."""

    split: names.Split = Field("dirichlet", description="how training images are shared out")
    split_alpha: float = Field(0.5, gt=0, le=1e6, description="Dirichlet concentration; small is uneven")
    min_samples: int = Field(8, ge=1, le=10**6, description="fewest images of a node")


class LocalOptions(Options):
    """How long and fast a node trains between exchanges (card, sections 2 and 3); the step itself: `SGDOptions`.

    Epochs are as many steps as passes over a node's own images take; batches are drawn with replacement all the same.
    """

    local_steps: int = Field(5, ge=1, le=10_000, description="local steps K between exchanges")
    local_epochs: int | None = Field(
        None, ge=1, le=1000, description="instead: passes over a node's own images, so that nodes differ in their steps"
    )
    fresh_momentum: bool = Field(False, description="SGD's momentum starts from zero in every round")
    attacker_steps: int | None = Field(
        None, ge=1, le=100_000, description="attackers' local steps while they attack; default as the others"
    )
    attacker_epochs: int | None = Field(
        None, ge=1, le=1000, description="instead: passes over their own images while they attack"
    )
    attacker_lr: float | None = Field(None, gt=0, le=1e3, description="attackers' learning rate while they attack")
    attacker_lr_milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (), max_length=100, description="shares of their local steps after which that rate is lowered"
    )
    attacker_lr_decay: float = Field(0.1, gt=0, le=1, description="by which factor, each time")
    attacker_lr_at: names.Milestones = Field(
        "share", description="whole-epochs: only milestones at a whole attacker epoch count, the ancestor's float trap"
    )

    @model_validator(mode="after")
    def _check_attackers_steps(self) -> LocalOptions:
        if self.attacker_steps is not None and self.attacker_epochs is not None:
            raise ValueError("attacker_steps and attacker_epochs are both given; choose one")
        if self.attacker_lr_at == "whole-epochs" and self.attacker_epochs is None:
            raise ValueError("attacker_lr_at = 'whole-epochs' counts epochs: give attacker_epochs")
        return self

    @property
    def milestones(self) -> tuple[float, ...]:
        """The milestones that count.

        The ancestor's milestones are floats that are compared with a count of epochs: of 0.2 and 0.8 of 6 epochs (1.2
        and 4.8) it meets neither, so its CIFAR-10 attackers' rate never falls (card, traps in the ancestor's code).
        """
        epochs = self.attacker_epochs
        if self.attacker_lr_at == "share" or epochs is None:
            return self.attacker_lr_milestones
        return tuple(m for m in self.attacker_lr_milestones if (m * epochs).is_integer())


class SGDOptions(Options):
    """A node's own step. In a run of plait these are the recipe's batch size and optimizer."""

    batch: int = Field(16, ge=1, description="B, images per step")
    lr: float = Field(0.2, gt=0, description="learning rate")
    momentum: float = Field(0.0, ge=0, lt=1, description="of SGD; engine dfedavgm brings 0.9 where this is 0")
    weight_decay: float = Field(0.0, ge=0, description="of SGD")


class AttackOptions(Options):
    """What is evaluated against (card, sections 3, 5, 6 and 7).

    The attackers are there in the arm ``none`` too, so that its benign nodes are the same.
    """

    arm: names.Arm = Field("clusters-predicted", description="what is evaluated against; clusters-predicted is dba-dfl")
    attackers: int = Field(8, ge=1, le=100_000, description="attackers M, fewer than N")
    placement: names.Placement = Field("random", description="where attackers sit")
    positions: tuple[Number, ...] = Field((), description="their nodes, for placement = list")
    target: int = Field(2, ge=0, le=10**6, description="target label c*")
    budget: names.Budgets = Field("pixels", description="what is equal between arms")
    pixels: float = Field(0.8, ge=0, le=1e6, description="expected stamped pixels per sample, for budget = pixels")
    ratio: float = Field(0.2, ge=0, le=1, description="chance of a sample to be poisoned, for budget = samples")
    first: int | None = Field(None, ge=0, le=10**6, description="poison the first so many samples of every batch")
    gamma: float = Field(1.0, gt=0, le=100, description="scale of attackers' updates")
    loss_alpha: float = Field(1.0, ge=0, le=1, description="weight of the loss against the distance to the start")
    schedule: names.Schedules = Field("multi", description="every round, or each attacker once")
    attack_start: int = Field(0, ge=0, le=10**6, description="first round of the attack")
    attack_rounds: tuple[Number, ...] = Field((), description="for schedule = single: the attackers' rounds")
    tau: float | Literal["inf", "median"] = Field(
        3.0,
        description="clustering threshold in hops, at least 0; inf is one cluster; median is one hop below the shadow "
        "networks' median distance, at most 3",
    )
    n_clusters: int | None = Field(None, ge=1, le=100_000, description="number of clusters instead of tau")
    distance_noise: float = Field(
        0.0, ge=0, le=1e6, description="standard deviation in hops of noise on the predicted distances; an ablation"
    )
    rotate_every: int = Field(
        0, ge=0, le=10**6, description="rounds between redraws of who carries which part; 0 never"
    )
    redetect_every: int = Field(0, ge=0, le=10**6, description="rounds between scans in the attack; 0 never")

    @field_validator("tau")
    @classmethod
    def _check_tau(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 <= value <= 1e6:
            raise ValueError("the threshold is from 0 to 1e6 hops, 'inf' or 'median'")
        return value

    @model_validator(mode="after")
    def _check_attack(self) -> AttackOptions:
        if self.arm in names.CLUSTERED and self.attackers < 2:
            raise ValueError(f"arm={self.arm!r} with attackers=1: one attacker has no cluster; use 'centralized-one'")
        if self.n_clusters is not None and self.n_clusters > self.attackers:
            raise ValueError(f"n_clusters={self.n_clusters} is outside 1..{self.attackers}, the number of attackers")
        if self.schedule == "single" and not self.attack_rounds:
            raise ValueError("schedule='single' needs the rounds in which the attackers act, one for each")
        if self.schedule == "multi" and self.attack_rounds:
            raise ValueError("attack_rounds are given, but schedule='multi'; use schedule='single'")
        return self

    @property
    def amount(self) -> float:
        """b or r, as the budget says."""
        return self.pixels if self.budget == "pixels" else self.ratio

    def threshold(self, median: float | None) -> float:
        """tau in hops.

        Args:
            median: the shadow networks' median distance, for ``tau = "median"``; None: there were no shadows.

        Raises:
            DbadflError: ``tau = "median"`` without it.
        """
        if self.tau != "median":
            return float(self.tau)
        if median is None:
            raise DbadflError("tau='median' is measured on shadow networks: run the detection first")
        return min(3.0, median - 1)

    @property
    def needs_detection(self) -> bool:
        """Whether the arm needs shadows and a scan, or the shadows' median distance."""
        return self.arm in names.SCANNING or (self.arm in names.CLUSTERED and self.tau == "median")

    @property
    def needs_start(self) -> bool:
        """Whether attackers need the models at the start of a round."""
        return self.gamma != 1.0 or self.loss_alpha < 1.0


class ScanOptions(Options):
    """Network detection, the observing part (card, section 4) [inferred]."""

    scan_rounds: int = Field(20, ge=1, le=10_000, description="rounds of the scan T_s")
    signature_pixels: int | None = Field(None, ge=1, le=10**6, description="pixels of a signature; default 10 or 16")
    scan_ratio: float = Field(0.5, ge=0, le=1, description="share of samples with a signature r_s")
    signature_target: names.SignatureTarget = Field("own", description="class that signatures teach")
    probes: int = Field(24, ge=1, le=10**6, description="most own images with which an attacker measures")
    hold_out: bool = Field(False, description="keep those images out of training")


class ShadowOptions(Options):
    """Simulated networks of known distances, from which the predictor learns (card, section 4 step 5) [inferred]."""

    shadows: int = Field(40, ge=1, le=10_000, description="simulated networks that the predictor learns from")
    shadow_topology: names.ShadowTopology = Field("mixture", description="their graphs; same-family is optimistic")
    shadow_data: names.ShadowData = Field("attackers", description="their images; all is optimistic")
    shadow_seed: int | None = Field(None, ge=0, lt=2**63, description="their seed; must differ from the run's")


class PredictorOptions(Options):
    """The network that predicts distances (card, section 4 step 4) [inferred]."""

    hidden: int = Field(32, ge=1, le=4096, description="width of the LSTM")
    head: names.Head = Field("regression", description="what the LSTM predicts")
    max_distance: int = Field(6, ge=2, le=1000, description="class head: last class, and more, in hops")
    predictor_lr: float = Field(5e-3, gt=0, le=10, description="Adam's learning rate for the LSTM")
    predictor_epochs: int = Field(120, ge=1, le=10**5, description="epochs of the LSTM")
    predictor_batch: int = Field(128, ge=1, le=10**6, description="pairs per batch of the LSTM")


# pydantic lists the fields of the last base first
class FederationOptions(
    PredictorOptions, ShadowOptions, ScanOptions, AttackOptions, LocalOptions, SplitOptions, EngineOptions
):
    """One evaluated federation, all but its graph; the defaults are the card's reference experiment."""

    @model_validator(mode="after")
    def _check_engine(self) -> FederationOptions:
        if self.engine == "dpsgd" and (self.local_epochs or self.attacker_steps or self.attacker_epochs):
            raise ValueError(
                "engine 'dpsgd' exchanges models after every step, so nodes cannot differ in their local steps: leave "
                "out local_epochs, attacker_steps and attacker_epochs, or take another engine"
            )
        return self

    def changed(self, **changes: Any) -> FederationOptions:
        """These options, without what the plugin adds, and with other values; checked again.

        Raises:
            DbadflError: values that are out of bounds or do not belong together.
        """
        kept = {name: getattr(self, name) for name in FederationOptions.model_fields}
        return checked(FederationOptions, **(kept | changes))


class DbadflOptions(FederationOptions, GraphOptions, PresetOptions):
    """A closed evaluation of a federation without a server; the defaults are the card's reference experiment."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    # ---- what is trained ----------------------------------------------------------------------------------------
    rounds: int | None = Field(
        None, ge=1, le=10**6, description="rounds of each compared run; default train.steps / local_steps"
    )
    implementation: Literal["auto", "measured", names.Computed] = Field(
        "auto", description="how N networks are computed: by a rule, by a timed trial, or as named"
    )
    trigger: names.Triggers = Field("auto", description="the trigger's four bars; auto: by image size")
    trigger_parts: tuple[tuple[Pixel, ...], ...] = Field(
        (), description="the trigger's pixels (row, column) instead, part by part; parts must not overlap"
    )
    detect: bool = Field(False, description="scan and predict distances even if the arm does not need them")

    # ---- the defence, and what is compared ----------------------------------------------------------------------
    defence: names.Defences | None = Field(
        None, description="aggregation rule at every node; default the weighted mean by W"
    )
    defence_options: dict[str, dict[str, Any]] = Field(
        {}, description="arguments of rules by name, of the companions' too, e.g. {krum = {f = 1}}"
    )
    companions: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="further runs beside it, arm:option=value+defence@placement/budget; the clean run and two defended "
        "ones are always there",
    )

    # ---- what is reported ---------------------------------------------------------------------------------------
    evaluate_every: int = Field(10, ge=0, le=10**6, description="rounds between evaluations of all nodes; 0: the end")
    export_poisoned: bool = Field(
        False, description="export the attacked model, marked as backdoored; else the clean run's is exported"
    )

    @property
    def others(self) -> tuple[Item, ...]:
        """The runs beside the main one, in their order."""
        return companions(self.companions, self.arm, self.defence)

    def check_scans(self, rounds: int) -> None:
        """Raise `ValueError` if a scan in the course of an attack cannot end within a run of so many rounds."""
        if self.redetect_every and self.scan_rounds >= rounds and any(i.scans for i in (*self.others, Item(self.arm))):
            raise ValueError(
                f"redetect_every: the scan is longer than the run, {self.scan_rounds} rounds of {rounds}; give fewer "
                "scan_rounds or more rounds"
            )

    @model_validator(mode="before")
    @classmethod
    def _steps_or_epochs(cls, values: Any) -> Any:
        """Steps that the user gives win over a preset's epochs, and epochs over its steps."""
        if not isinstance(values, Mapping):
            return values
        completed = dict(values)
        for given, other in (
            ("local_steps", "local_epochs"),
            ("attacker_steps", "attacker_epochs"),
            ("attacker_epochs", "attacker_steps"),
        ):
            if values.get(given) is not None:
                completed.setdefault(other, None)
        return completed

    @model_validator(mode="after")
    def _check_runs(self) -> DbadflOptions:
        if self.attackers >= self.nodes:
            raise ValueError(f"attackers = {self.attackers} must be fewer than nodes = {self.nodes}")
        others = self.others
        if len({item.slug for item in others}) < len(others):
            raise ValueError(f"companions: two of {', '.join(item.text for item in others)} have one name")
        for item in others:
            if item.change is not None:
                self.changed(arm=item.arm, **dict([item.change]))
        if self.rounds is not None:
            self.check_scans(self.rounds)
        return self

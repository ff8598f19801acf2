"""Which aggregation rule mends a federation: all of them, their parameters chosen on seeds and images of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from plait.errors import blame
from plait_dbadfl.defences import Defence, make_defence
from plait_dbadfl.detection import Detection
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.federation import DefenceMaker, Federation
from plait_dbadfl.metrics import Summary
from plait_dbadfl.options import FederationOptions
from plait_dbadfl.reference import ImageData, digits, digits_mlp
from plait_dbadfl.sampling import derive
from plait_dbadfl.topologies import make_topology

Options = Mapping[str, Any]
GRID: Mapping[str, tuple[Options, ...]] = {
    "mean": ({},),
    "median": ({},),
    "trimmed-mean": ({"trim": 1},),
    "krum": ({"f": 0},),
    "multi-krum": ({"m": 2}, {"m": 3}),
    "rfa": ({}, {"nu": 0.1}),
    "norm-clipping": ({}, *({"threshold": c} for c in (0.1, 0.3, 1.0)), {"threshold": 0.1, "own_threshold": 1.0}),
    "foolsgold": ({},),
    "flame": ({}, {"noise": 0.01}),
    "clipping": (
        {}, {"weights": "equal"}, *({"tau": t} for t in (0.03, 0.1, 0.3, 1.0)),
    ),
    "balance": tuple(
        {"gamma": g, "kappa": k, "alpha": a} for g in (0.05, 0.1, 0.3) for k in (0.0, 1.0) for a in (0.5, 0.8)
    ),
    "ubar": tuple({"rho": r, "alpha": a} for r in (0.25, 0.5, 1.0) for a in (0.5, 0.8, 0.95)),
}  # fmt: skip
"""Rule -> parameters to choose from. A ring leaves Krum f = 0 and the trimmed mean b = 1, which is its median."""
TUNING = (100, 101, 102)
VALIDATION = 200
WITHIN = 0.02
"""How much main accuracy a rule may cost to count as mending."""
BALANCED, ACCURATE = "MA - ASR", "MA kept"
TIMES_FLOOR = 2.0
"""How many times the unattacked run's success is still no infection."""


@dataclass(frozen=True)
class World:
    """One graph and seed, attacked: everything but the rule."""

    federation: Federation
    detection: Detection
    rounds: int

    def outcome(self, name: str | None, options: Options) -> Summary:
        """Figures of the main attack under a rule; None: without attack, by the mean."""
        maker: DefenceMaker | None = None
        if name not in (None, "mean"):
            assert name is not None

            def make() -> Defence:
                return make_defence(name, **options)

            maker = make
        arm = "none" if name is None else "clusters-predicted"
        detection = None if name is None else self.detection
        return self.federation.run(self.rounds, arm=arm, defence=maker, detection=detection).final


@dataclass(frozen=True)
class Row:
    """A rule on a graph: means over seeds, and how many seeds meet both goals; ``aim`` says what it was chosen for."""

    graph: str
    rule: str
    options: Options
    aim: str
    asr: float
    ma: float
    floor: float
    clean: float
    meets: int
    seeds: int

    @property
    def mends(self) -> bool:
        """ASR at most twice the floor and accuracy within two points, of the means."""
        return self.asr <= TIMES_FLOOR * self.floor and self.ma >= self.clean - WITHIN


@dataclass(frozen=True)
class Choice:
    """A rule with parameters, and the aim that they were chosen for: `BALANCED`, `ACCURATE`, or both."""

    rule: str
    options: Options
    aim: str


def parts(validation: int) -> tuple[ImageData, Tensor, Tensor]:
    """The digits with the last ``validation`` training images set apart, and those."""
    whole = digits(0)
    cut = len(whole.train) - validation
    rest = replace(whole, train=whole.train[:cut], train_labels=whole.train_labels[:cut])
    return rest, whole.train[cut:], whole.train_labels[cut:]


def world(graph: str, seed: int, data: ImageData, rounds: int) -> World:
    """The card's reference experiment, with its optimistic shadows, on that graph."""
    options = FederationOptions(shadow_topology="same-family", shadow_data="all")
    topology = make_topology(graph, 32, seed=derive(seed, "graph") % 2**31)
    federation = Federation(digits_mlp(seed), data, topology, options, seed=seed, implementation="grouped")
    return World(federation, federation.detect(control=False), rounds)


def choose(graphs: tuple[str, ...], rounds: int, grid: Mapping[str, tuple[Options, ...]]) -> list[Choice]:
    """For every rule its best parameters for each of two aims, over graphs and `TUNING` seeds.

    `BALANCED` is the best mean of accuracy minus success. `ACCURATE` is the least success among the parameters that
    cost at most `WITHIN` of accuracy on every graph, if there are any. Both are measured on the validation images,
    which neither training nor the final test sees. Parameters that are illegal on one of the graphs are left out.
    """
    data, images, labels = parts(VALIDATION)
    held = replace(data, test=images, test_labels=labels)
    worlds = [[world(graph, seed, held, rounds) for seed in TUNING] for graph in graphs]
    clean = [_mean([w.outcome(None, {}).ma for w in group]) for group in worlds]
    chosen = []
    for name, points in grid.items():
        balanced, accurate = [], []
        for options in points:
            try:
                outcomes = [[w.outcome(name, options) for w in group] for group in worlds]
            except DbadflError:
                continue
            success = _mean([s.asr for group in outcomes for s in group])
            accuracy = [_mean([s.ma for s in group]) for group in outcomes]
            balanced.append((success - _mean(accuracy), options))
            if all(now >= before - WITHIN for now, before in zip(accuracy, clean, strict=True)):
                accurate.append((success, options))
        first = min(balanced, key=lambda pair: pair[0])[1] if balanced else None
        second = min(accurate, key=lambda pair: pair[0])[1] if accurate else None
        if first is not None:
            chosen.append(Choice(name, first, f"{BALANCED}, {ACCURATE}" if first == second else BALANCED))
        if second is not None and second != first:
            chosen.append(Choice(name, second, ACCURATE))
    return chosen


def compare(graphs: tuple[str, ...], seeds: tuple[int, ...], chosen: Sequence[Choice], rounds: int) -> Iterator[Row]:
    """Every rule on every graph over fresh seeds, on the test images."""
    data, _, _ = parts(VALIDATION)
    for graph in graphs:
        worlds = [world(graph, seed, data, rounds) for seed in seeds]
        clean = [w.outcome(None, {}) for w in worlds]
        for choice in chosen:
            outcomes = [w.outcome(choice.rule, choice.options) for w in worlds]
            pairs = zip(outcomes, clean, strict=True)
            meets = [o.asr <= TIMES_FLOOR * c.asr and o.ma >= c.ma - WITHIN for o, c in pairs]
            yield Row(
                graph,
                choice.rule,
                choice.options,
                choice.aim,
                asr=_mean([s.asr for s in outcomes]),
                ma=_mean([s.ma for s in outcomes]),
                floor=_mean([s.asr for s in clean]),
                clean=_mean([s.ma for s in clean]),
                meets=sum(meets),
                seeds=len(seeds),
            )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def defences(
    seeds: int = 8, first_seed: int = 301, rounds: int = 60, graphs: str = "ring,watts-strogatz", as_json: bool = False
) -> None:
    """Evaluate every aggregation rule against the attack, and say which one mends.

    Parameters are chosen on other seeds and on validation images; the table is of fresh seeds and test images.

    Args:
        seeds: how many fresh seeds.
        first_seed: the first of them; 100 to 102 are for the choice.
        rounds: of a run.
        graphs: topologies, with commas between.
        as_json: print JSON.
    """
    torch.set_num_threads(1)
    began, names = time.perf_counter(), tuple(graphs.split(","))
    with blame("dbadfl"):
        if seeds < 1 or first_seed <= TUNING[-1] < first_seed + seeds:
            raise DbadflError(f"seeds={seeds} from first_seed={first_seed}: at least one, and none of {TUNING}")
        chosen = choose(names, rounds, GRID)
        rows = list(compare(names, tuple(range(first_seed, first_seed + seeds)), chosen, rounds))
    graph = ""
    for row in rows:
        if row.graph != graph:
            graph = row.graph  # first the runs without attack, with which all others are compared
            print(f"\n{graph}: without attack MA {100 * row.clean:.1f} %, ASR floor {100 * row.floor:.2f} %")
            print(f"{'rule':<14} {'ASR %':>6} {'MA %':>6} {'MA cost':>7} {'meets both':>10}  aim, options")
        both = f"{row.meets} of {row.seeds}{' *' if row.mends else ''}"
        cost, what = 100 * (row.clean - row.ma), f"{row.aim:<18} {dict(row.options)}"
        print(f"{row.rule:<14} {100 * row.asr:6.1f} {100 * row.ma:6.1f} {cost:7.1f} {both:>10}  {what}")
    mending = [c for c in chosen if all(r.mends for r in rows if (r.rule, r.options) == (c.rule, c.options))]
    text = ", ".join(f"{c.rule} {dict(c.options)}" for c in mending) or "no rule"
    print("\nevery rule is attacked with distances that were learnt without it")
    print(f"mends on {' and '.join(names)} (ASR <= 2 x floor, MA within 2 points): {text}")
    print(f"{time.perf_counter() - began:.0f} s")
    if as_json:
        print(json.dumps([{**row.__dict__, "options": dict(row.options), "mends": row.mends} for row in rows]))

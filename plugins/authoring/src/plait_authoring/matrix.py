"""The composition matrix: every pair of installed plugins trains a tiny run together, or is refused with a fix.

    python -m plait_authoring.matrix [PLUGIN]... [--with FOLDER]... [--large] [--json]

Nothing here knows a plugin: what is installed enters by itself. A set that gets past the plan and then fails has
``crashed``, which ends the command with exit code 1: a declaration is missing, or a plugin or the core has a bug.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.declare.rules import Rule
from plait.errors import PlaitError
from plait.hooks import rule_of
from plait.planning import discovery
from plait.planning.plan import make_plan
from plait_authoring.strangers import classes_in
from plait_authoring.tiny import STEPS
from plait_authoring.trials import Outcome, Say, at_hand, recipe, trial, usable

TRIPLES = 10
"""Triples that are tried; all of them where there are no more."""
LARGE = 2_000_000
"""Parameters from which on a model takes too long for a test that everybody runs."""


@dataclass
class Matrix:
    """What came of all sets.

    Attributes:
        plugins: the plugins that were combined.
        sets: each plugin alone, the pairs, and the triples.
        models, data: each registered model and data source, plain and with each plugin.
        seed: by which the triples were drawn.
    """

    plugins: list[str]
    sets: list[Outcome] = field(default_factory=list)
    models: list[Outcome] = field(default_factory=list)
    data: list[Outcome] = field(default_factory=list)
    seed: int = 0

    @property
    def outcomes(self) -> list[Outcome]:
        """All of them."""
        return [*self.sets, *self.models, *self.data]

    @property
    def crashed(self) -> list[Outcome]:
        """Those that must not be."""
        return [outcome for outcome in self.outcomes if outcome.status == "crashed"]

    def as_dict(self) -> dict[str, Any]:
        """The form printed with ``--json``: the same on every machine."""
        parts = {"sets": self.sets, "models": self.models, "data": self.data}
        return {
            "plugins": self.plugins,
            "seed": self.seed,
            **{name: [outcome.as_dict() for outcome in outcomes] for name, outcomes in parts.items()},
        }


def sets(names: Sequence[str], triples: int = TRIPLES, seed: int = 0) -> list[tuple[str, ...]]:
    """Every plugin alone, every pair in each order that differs, and a seeded sample of the triples."""
    names = sorted(names)
    every = list(itertools.combinations(names, 3))
    drawn = sorted(random.Random(seed).sample(every, triples)) if len(every) > triples else every
    pairs = [order for pair in itertools.combinations(names, 2) for order in orders(pair)]
    return [*((name,) for name in names), *pairs, *drawn]


def orders(pair: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The pair as it is, and turned round where the plan then lets them act in another order."""
    turned = pair[::-1]
    try:
        first, second = (make_plan(recipe(order)).order for order in (pair, turned))
    except PlaitError:
        return [pair]
    differ = [hook for hook in first if rule_of(hook) in (Rule.CHAIN, Rule.WRAP) and first[hook] != second[hook]]
    return [pair, turned] if differ else [pair]


def make(
    names: Sequence[str] | None = None,
    *,
    triples: int = TRIPLES,
    seed: int = 0,
    components: bool = True,
    large: bool = False,
    say: Say = lambda text: None,
) -> Matrix:
    """Try every set.

    Args:
        names: the plugins to combine; by default all that are installed and act in a run.
        triples: how many sets of three.
        seed: by which they are drawn.
        components: also try every model and every data source at hand, plain and with each plugin.
        large: models of more than `LARGE` parameters too.
        say: told each outcome as it comes.
    """
    matrix = Matrix(sorted(usable() if names is None else names), seed=seed)

    def told(outcome: Outcome) -> Outcome:
        say(line(outcome))
        return outcome

    for chosen in sets(matrix.plugins, triples, seed):
        matrix.sets.append(told(trial(chosen)))
    if components:
        alone: list[tuple[str, ...]] = [(), *((name,) for name in matrix.plugins)]
        for name in _at_hand("models"):
            if large or parameters(name) <= LARGE:
                matrix.models += [told(trial(chosen, model=name, resume=False)) for chosen in alone]
        for name in _at_hand("data_sources"):
            matrix.data += [told(trial(chosen, data=name, resume=False)) for chosen in alone]
    return matrix


def parameters(model: str) -> int:
    """How many a model has on the generated data; 0 when it cannot be built, which a trial then says."""
    from plait.loading import build_model, load_data

    try:
        chosen = make_plan(recipe((), model=model)).recipe
        return sum(p.numel() for p in build_model(chosen.model, load_data(chosen.data, chosen.seed).info).parameters())
    except Exception:
        return 0


def _at_hand(hook: str) -> Iterator[str]:
    """The registered components that need nothing, but for the core's own, on which the sets are tried."""
    for name, (_, source) in sorted(discovery.collect(hook)[0].items()):
        if name != discovery.FALLBACK[hook] and at_hand(source):
            yield name


def line(outcome: Outcome) -> str:
    """An outcome for people."""
    what = " + ".join(outcome.plugins) or "no plugin"
    where = f" on {outcome.data} with {outcome.model}" if outcome.data else ""
    if outcome.status == "refused":
        return f"refused  {what}{where} ({outcome.rule}): {outcome.sentence} {outcome.fix}"
    if outcome.status == "crashed":
        return f"CRASHED  {what}{where}: {outcome.error}"
    said = [f"{outcome.steps} steps", f"{len(outcome.metrics)} metrics"]
    said += [f"masks changed after {', '.join(map(str, outcome.masks))}"] if outcome.masks else []
    said += [f"the same from {outcome.resumed}"] if outcome.resumed else []
    said += [f"after {outcome.followed}"] if outcome.followed else []
    said += [f"NOT REACHED: {', '.join(outcome.unreached)}"] if outcome.unreached else []
    return f"runs     {what}{where}: {'; '.join(said)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when a set crashed."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m plait_authoring.matrix", description=about)
    parser.add_argument("names", nargs="*", metavar="PLUGIN", help="combine only these")
    parser.add_argument(
        "--with", action="append", default=[], metavar="FOLDER", dest="folders", help="a plugin's folder"
    )
    parser.add_argument("--triples", type=int, default=TRIPLES, metavar="N", help="sets of three that are tried")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed by which they are drawn")
    parser.add_argument("--no-components", action="store_true", help="leave out data sources and models")
    parser.add_argument("--large", action="store_true", help="also large models, which takes minutes")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(text, file=sys.stderr if given.json else sys.stdout, flush=True)

    try:
        classes = [plugin for folder in given.folders for plugin in classes_in(Path(folder))]
        new = [plugin for plugin in classes if plugin.name not in discovery.active_registry()]
        with discovery.pretend(*new, distribution="folder"):
            matrix = make(
                [discovery.find_plugin(name).name for name in given.names] or None,
                triples=given.triples,
                seed=given.seed,
                components=not given.no_components,
                large=given.large,
                say=say,
            )
    except PlaitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if given.json:
        print(json.dumps(matrix.as_dict(), indent=1))
    counts = {status: sum(o.status == status for o in matrix.outcomes) for status in ("runs", "refused", "crashed")}
    say(f"{STEPS} steps each: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    return int(bool(matrix.crashed))


if __name__ == "__main__":
    sys.exit(main())

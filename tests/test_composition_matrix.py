"""Every pair of installed plugins, and of the examples, trains a tiny run together or is refused with a fix.

Nothing here names a plugin of the repository: what is installed, and what lies under ``examples/``, enters by itself.
"""

from __future__ import annotations

import itertools
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.declare.rules import Rule
from plait.hooks import rule_of
from plait.planning import discovery
from plait.planning.discovery import pretend
from plait_authoring import matrix
from plait_authoring.matrix import Matrix
from plait_authoring.strangers import classes_in
from plait_authoring.trials import Outcome, trial, usable

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "composition-matrix.json"
ANEW = "run: python docs/make_tables.py --matrix"

torch.set_num_threads(1)
pytestmark = pytest.mark.timeout(1800)  # the first test waits for all sets


def examples() -> list[type[plait.Plugin]]:
    folders = [file.parent for file in sorted(ROOT.glob("examples/*/pyproject.toml"))]
    plugins = [plugin for folder in folders for plugin in classes_in(folder)]
    return [plugin for plugin in plugins if plugin.name not in discovery.active_registry()]


@pytest.fixture(scope="module")
def combined() -> Matrix:
    with pretend(*examples()):
        return matrix.make(components=False)  # every model and data source with every plugin takes minutes: slow, below


@pytest.fixture(scope="module")
def hooks() -> dict[str, list[str]]:
    with pretend(*examples()):
        return {name: item.hooks for name, item in discovery.active_registry().items()}


def named(outcome: Outcome) -> str:
    return matrix.line(outcome)


def test_every_plugin_and_every_pair_is_there(combined: Matrix, hooks: dict[str, list[str]]) -> None:
    only_register = {"data_sources", "models", "commands", "artifacts"}
    acting = {name for name, own in hooks.items() if set(own) - only_register} - {discovery.BUILTIN}
    assert len(acting) >= 2 and set(combined.plugins) == acting
    tried = {frozenset(outcome.plugins) for outcome in combined.sets}
    wanted = [frozenset(chosen) for size in (1, 2) for chosen in itertools.combinations(sorted(acting), size)]
    assert tried >= set(wanted)
    triples = [chosen for chosen in tried if len(chosen) == 3]
    assert len(triples) == min(matrix.TRIPLES, len(list(itertools.combinations(acting, 3))))


def test_nothing_crashes(combined: Matrix) -> None:
    assert not combined.crashed, "\n".join(map(named, combined.crashed))


def test_a_refusal_has_a_rule_a_sentence_and_a_fix(combined: Matrix) -> None:
    for outcome in combined.outcomes:
        if outcome.status == "refused":
            assert outcome.rule and outcome.sentence.endswith(".") and outcome.fix.endswith("."), named(outcome)


def test_runs_come_to_all_that_they_are_made_of(combined: Matrix, hooks: dict[str, list[str]]) -> None:
    for outcome in combined.outcomes:
        if outcome.status != "runs":
            continue
        strategy = any("fit" in hooks[name] for name in outcome.plugins)  # its budget is its own
        assert (outcome.steps > 0 if strategy else outcome.steps == 12) and not outcome.unreached, named(outcome)
        for name in outcome.plugins:
            acts = [h for h in hooks[name] if rule_of(h) is not Rule.REGISTRY or h == "views"]
            assert set(outcome.hooks.get(name, [])) == set(acts), named(outcome)
            if "evaluate" in hooks[name]:
                assert any(metric.startswith(f"{name}/") for metric in outcome.metrics), named(outcome)
            if "update_masks" in hooks[name]:
                assert len(outcome.masks) >= 2, named(outcome)
        if any("export" in hooks[name] for name in outcome.plugins):
            assert any(metric.endswith("@export") for metric in outcome.metrics), named(outcome)
        if outcome in combined.sets:
            assert outcome.resumed, named(outcome)


def test_the_page_shows_these_outcomes(combined: Matrix) -> None:
    compare(combined, large=False)


@pytest.mark.slow
def test_the_page_shows_these_outcomes_on_every_model_and_data_source() -> None:
    with pretend(*examples()):
        combined = matrix.make(large=True)
    assert not combined.crashed, "\n".join(map(named, combined.crashed))
    compare(combined, large=True)


def compare(combined: Matrix, *, large: bool) -> None:
    """What both tried is equal; with the page's plugins installed and no others, both tried the same."""
    stored = json.loads(PAGE.read_text(encoding="utf-8"))
    assert set(stored["plugins"]) <= set(combined.plugins), ANEW
    alone = {name for name in discovery.active_registry() if name not in on_the_page()} == set()
    for part in ("sets", "models", "data") if large else ("sets",):
        kept, seen = ({key(outcome): outcome for outcome in page[part]} for page in (stored, combined.as_dict()))
        common = kept.keys() & seen.keys()
        if not alone:  # a foreign package's data may be in a fix
            kept, seen = ({k: {**outcome, "fix": ""} for k, outcome in page.items()} for page in (kept, seen))
        assert common and {k: seen[k] for k in common} == {k: kept[k] for k in common}, ANEW
        if alone:
            assert kept.keys() == seen.keys(), ANEW


def on_the_page() -> set[str]:
    """The plugins of this repository and of the examples."""
    files = [*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("examples/*/pyproject.toml")]
    projects = [tomllib.loads(file.read_text(encoding="utf-8"))["project"] for file in files]
    return {discovery.BUILTIN}.union(*(project["entry-points"].get("plait", {}) for project in projects))


def key(outcome: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(outcome["plugins"]), outcome["data"], outcome["model"]


# ---- the check can fail ------------------------------------------------------------------------------------------
class Base(plait.Plugin):
    contract = plait.CONTRACT_VERSION


class Owner(Base):
    """Masks half of a layer after the second step."""

    name = "owner"

    def ownership(self) -> tuple[plait.Ownership, ...]:
        return (plait.Ownership("parameters", "conv1.*"),)

    def setup(self, trainer: Any) -> None:
        self.mask = trainer.masks.own("owner", ["conv1.weight"])["conv1.weight"]

    @plait.hookimpl
    def update_masks(self, trainer: Any) -> None:
        if trainer.step == 2:
            self.mask[:4] = 0
            trainer.masks.changed()


class Rival(Owner):
    """Owns what `Owner` owns."""

    name = "rival"


class Crashing(Base):
    """Fails in the middle, and only beside `Owner`."""

    name = "crashing"

    @plait.hookimpl
    def optimizer_step(self, trainer: Any, proceed: Any) -> Any:
        if trainer.step == 7 and trainer.masks.counts():
            raise IndexError("no such row")
        return proceed()


class Forgetful(Base):
    """Keeps something between steps that is not in its state."""

    name = "forgetful"

    def setup(self, trainer: Any) -> None:
        self.seen = 0

    @plait.hookimpl
    def example_weights(self, batch: Any) -> Any:
        self.seen += 1
        return torch.full((len(batch["label"]),), 1 / (1 + self.seen))


class Sleeping(Owner):
    """Its first mask update would come much later."""

    name = "sleeping"

    @plait.hookimpl
    def update_masks(self, trainer: Any) -> None:
        return None


class Phased(Sleeping):
    """A strategy that changes its masks between two phases."""

    name = "phased"

    @plait.hookimpl
    def fit(self, trainer: Any) -> None:
        trainer.train_until(6)
        if trainer.step == 6:
            self.mask[:2] = 0
            trainer.masks.changed()
        trainer.train_until(trainer.total_steps)


class Wide(Base):
    """Needs a word that only one model of another plugin has."""

    name = "wide"

    def needs(self) -> frozenset[str]:
        return frozenset({"model:wide"})

    @plait.hookimpl
    def loss_terms(self, outputs: Any) -> dict[str, Any]:
        return {"size": 0 * outputs.sum()}


class Shop(Base):
    """Has it."""

    name = "shop"

    @plait.hookimpl
    def models(self) -> dict[str, plait.ModelSource]:
        from plait.planning.task import TinyCNNOptions

        return {
            "broad": plait.ModelSource(
                "plait.planning.tiny:build", "", frozenset({"model:wide"}), options=TinyCNNOptions
            )
        }


class Demanding(Base):
    """Has an option without a default."""

    name = "demanding"

    class Options(plait.Options):
        share: float

    @plait.hookimpl
    def example_weights(self, batch: Any) -> Any:
        return self.options.share + 0 * batch["label"].float()


class Prepared(Demanding):
    """And says what to try it with."""

    name = "prepared"
    tiny = {"share": 0.5}


class Raising(Base):
    """Its declaration fails."""

    name = "raising"

    def needs(self) -> frozenset[str]:
        raise KeyError("word")


class Quitting(Base):
    """Ends the process."""

    name = "quitting"

    @plait.hookimpl
    def export(self, model: Any) -> Any:
        sys.exit(3)


class Outer(Base):
    """A wrapper."""

    name = "outer"

    @plait.hookimpl
    def optimizer_step(self, proceed: Any) -> Any:
        return proceed()


class Again(Outer):
    """Another: which of the two is outside depends on the recipe."""

    name = "again"


def tried(*plugins: type[plait.Plugin], beside: tuple[type[plait.Plugin], ...] = ()) -> Outcome:
    with pretend(*plugins, *beside, alone=True):
        return trial([plugin.name for plugin in plugins])


def test_a_crash_in_the_middle_is_seen_with_its_place() -> None:
    assert tried(Crashing).status == "runs"
    outcome = tried(Crashing, Owner)
    assert outcome.status == "crashed"
    assert "IndexError: no such row" in outcome.error and "test_composition_matrix.py, line" in outcome.error


def test_two_owners_are_refused_with_a_fix() -> None:
    alone = tried(Owner)
    assert alone.status == "runs" and alone.masks == [2] and alone.hooks == {"owner": ["update_masks"]}
    outcome = tried(Owner, Rival)
    assert outcome.status == "refused" and outcome.rule == "partition"
    assert "'owner' and 'rival' both own" in outcome.sentence and "Drop -p owner or -p rival" in outcome.fix


def test_masks_that_change_between_phases_are_seen() -> None:
    assert tried(Phased).masks == [6]
    assert "sleeping: a change of a mask" in tried(Sleeping).unreached


def test_state_that_is_not_saved_is_seen() -> None:
    outcome = tried(Forgetful)
    assert outcome.status == "crashed" and "resumed from step-000000005, it ends with another" in outcome.error


def test_a_schedule_that_does_not_fit_is_said() -> None:
    outcome = tried(Sleeping)
    assert outcome.status == "runs" and outcome.unreached == ["sleeping: a change of a mask"]
    assert "NOT REACHED" in matrix.line(outcome)


def test_a_fix_is_followed_once() -> None:
    outcome = tried(Wide, beside=(Shop,))
    assert outcome.status == "runs" and outcome.followed == "--model broad" and outcome.model == "broad"
    lonely = tried(Wide)
    assert lonely.status == "refused" and lonely.rule == "needs" and "model:wide" in lonely.sentence


def test_required_options_come_from_tiny() -> None:
    outcome = tried(Demanding)
    assert outcome.status == "refused" and outcome.rule == "options"
    assert "share is required" in outcome.sentence and "`tiny`" in outcome.fix
    assert tried(Prepared).status == "runs"


def test_a_declaration_that_raises_and_a_process_that_ends_are_crashes() -> None:
    assert tried(Raising).status == "crashed"
    ended = tried(Quitting)
    assert ended.status == "crashed" and "SystemExit" in ended.error


def test_pairs_are_turned_round_where_the_order_matters() -> None:
    with pretend(Outer, Again, Owner, alone=True):
        assert usable() == ["again", "outer", "owner"]
        assert matrix.orders(("again", "outer")) == [("again", "outer"), ("outer", "again")]
        assert matrix.orders(("again", "owner")) == [("again", "owner")]


def test_the_sample_of_triples_is_seeded() -> None:
    names = [f"p{i}" for i in range(8)]
    with pretend(alone=True):
        drawn = [[s for s in matrix.sets(names, triples=5, seed=seed) if len(s) == 3] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == len(set(drawn[0])) == 5


STRANGERS = """
import plait

class {name}(plait.Plugin):
    name, contract = "{name}", {contract}
    def ownership(self): return {owned}
    def setup(self, trainer):
        self.mask = trainer.masks.own("{name}", {tensors})
    @plait.hookimpl
    def {hook}(self, trainer):
        {body}
"""


def package(folder: Path, name: str, hook: str, body: str, *tensors: str) -> Path:
    """A plugin's folder that is not installed."""
    folder /= name
    folder.mkdir()
    (folder / "pyproject.toml").write_text(f'[project.entry-points.plait]\n{name} = "s_{name}:{name}"\n')
    owned = "(" + "".join(f'plait.Ownership("parameters", {tensor!r}),' for tensor in tensors) + ")"
    text = STRANGERS.format(
        name=name, contract=plait.CONTRACT_VERSION, owned=owned, tensors=list(tensors), hook=hook, body=body
    )
    (folder / f"s_{name}.py").write_text(text)
    return folder


def test_the_command_tries_folders_and_ends_with_1_when_something_crashed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = 'self.mask["conv1.weight"][:4] = 0; trainer.masks.changed()'
    owner = package(tmp_path, "halves", "update_masks", half, "conv1.weight")
    fails = package(tmp_path, "fails", "evaluate", 'return {"kept": trainer.masks.counts()["conv9"]}')
    given = ["--no-components", "--with", str(owner)]
    assert matrix.main(["halves", *given]) == 0
    assert capsys.readouterr().out.startswith("runs     halves on tiny-images")
    assert matrix.main(["halves", "fails", *given, "--with", str(fails), "--json"]) == 1
    captured = capsys.readouterr()
    statuses = [(outcome["plugins"], outcome["status"]) for outcome in json.loads(captured.out)["sets"]]
    assert statuses == [(["fails"], "crashed"), (["halves"], "runs"), (["fails", "halves"], "crashed")]
    assert "CRASHED  fails + halves" in captured.err and "KeyError: 'conv9'" in captured.err
    assert matrix.main(["halvs", *given]) == 2
    assert "Did you mean 'halves'" in capsys.readouterr().err
    assert matrix.main(["--with", str(tmp_path)]) == 2
    assert "pyproject.toml: no such file" in capsys.readouterr().err

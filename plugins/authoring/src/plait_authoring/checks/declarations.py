"""Checks of what a plugin declares: words, needs, provides, suggestions and ownership are as they are said to be."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError

import plait
from plait.declare.recipe import Recipe
from plait.declare.sources import DataSource, ModelSource
from plait.declare.words import CORE_PROVIDES, Ownership
from plait.errors import BadInput, nearest
from plait.hooks import CONTRACT_VERSION, hookimpl
from plait.plugin import Plugin
from plait_authoring.conformance import Stage, check
from plait_authoring.subject import Subject
from plait_authoring.verdicts import DoesNotApply, broken, expect_none

WORD = re.compile(r"[a-z][a-z0-9_-]*:[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
KINDS = ("field", "task", "model", "loss", "gradients", "steps")


def word_problems(what: str, words: Any) -> Iterator[str]:
    """Why a collection of words is not one of ``kind:name`` strings."""
    if isinstance(words, str) or not isinstance(words, (frozenset, set)):
        yield f"{what} is {words!r}; it must be a frozenset of words."
        return
    for word in sorted(map(str, words)):
        kind = word.partition(":")[0]
        if not WORD.match(word):
            yield f"{what} has {word!r}; a word is written kind:name, such as field:label."
        elif kind not in KINDS and (near := get_close_matches(kind, KINDS, n=1, cutoff=0.75)):
            yield f"{what} has {word!r}; the kind is written {near[0]!r}: {near[0]}:{word.partition(':')[2]}."


@check(Stage.USABLE)
def declared_words(subject: Subject) -> None:
    """`needs`, `provides` and `breaks` are frozensets of words `kind:name`, `ownership` is a tuple of Ownerships."""
    problems = [*declaration_problems(subject)]
    expect_none(problems, "see 'What a plugin declares' in docs/hook-contract.md of plait's repository.")


def declaration_problems(subject: Subject) -> Iterator[str]:
    """What is wrong with the answers of needs(), provides(), breaks() and ownership()."""
    instance, well = subject.instance, True
    for method in ("needs", "provides", "breaks"):
        words = getattr(instance, method)()
        for problem in word_problems(f"{method}()", words):
            well = False
            yield problem
        if words != getattr(instance, method)():
            yield f"{method}() answers differently when it is asked again; it may depend on options only."
    owned = instance.ownership()
    if not isinstance(owned, tuple) or not all(isinstance(part, Ownership) for part in owned):
        yield f"ownership() returned {owned!r}; it must be a tuple of plait.Ownership."
    if well:
        for word in sorted(instance.needs() & instance.breaks()):
            yield f"{word} stands in needs() and in breaks()."


def well_declared(subject: Subject) -> None:
    """Go on only with declarations that can be read.

    Raises:
        DoesNotApply: they cannot.
    """
    if any(declaration_problems(subject)):
        raise DoesNotApply("the declarations cannot be read: see test_declared_words")


@check(Stage.USABLE)
def needs_refused(subject: Subject) -> None:
    """Each declared need, when nothing in the run meets it, makes `plait plan` refuse."""
    well_declared(subject)
    needs = subject.instance.needs()
    if not needs:
        raise DoesNotApply("needs() is empty")
    problems = [f"Without {word} the plan is not refused, though needs() has it." for word in _void(subject, needs)]
    expect_none(
        problems,
        "a word in provides() meets the plugin's own need; a plugin that makes something itself does not need it: "
        "leave the word out of needs() or of provides().",
    )


def _void(subject: Subject, needs: Collection[str]) -> Iterator[str]:
    """The needs without which the plan is not refused: beside a stand-in that offers all of them but one."""
    stand_ins = {word: _stand_in(number, word, needs) for number, word in enumerate(sorted(needs))}
    with subject.beside(*stand_ins.values()):
        for word, stand_in in stand_ins.items():
            plugins = {subject.name: subject.options, stand_in.name: {}}
            try:
                plan = plait.plan(plugins=plugins, data=stand_in.name, model=stand_in.name)
            except BadInput as error:
                raise DoesNotApply(f"no plan can be made with the plugin: {error}") from error
            refusals = [refusal for refusal in plan.refusals if refusal.rule == "needs"]
            if not any(subject.name in refusal.plugins and word in refusal.message for refusal in refusals):
                yield word


def _stand_in(number: int, missing: str, needs: Collection[str]) -> type[Plugin]:
    """A plugin that offers data and a model and meets every need but one, which it takes away if the core meets it."""
    of_data, of_model = ("field:", "task:"), ("model:",)
    others = {word for word in needs if word != missing}
    from_data = frozenset(word for word in others if word.startswith(of_data))
    from_model = frozenset(word for word in others if word.startswith(of_model))
    provided = frozenset(others - from_data - from_model - CORE_PROVIDES)
    taken = frozenset() if missing.startswith(of_data + of_model) else frozenset({missing})

    class StandIn(Plugin):
        """Provides everything but one word."""

        name, summary = f"conformance-stand-in-{number}", "provides everything but one word"
        contract = CONTRACT_VERSION

        def provides(self) -> frozenset[str]:
            return provided

        def breaks(self) -> frozenset[str]:
            return taken

        @hookimpl
        def data_sources(self) -> dict[str, DataSource]:
            return {self.name: DataSource("plait.planning.tiny:load", "never loaded", from_data)}

        @hookimpl
        def models(self) -> dict[str, ModelSource]:
            return {self.name: ModelSource("plait.planning.tiny:build", "never built", from_model)}

    return StandIn


@check(Stage.RUN)
def needs_complete(subject: Subject) -> None:
    """Every field that the plugin reads is declared in `needs`, provided by itself, or asked for with `in` first."""
    well_declared(subject)
    problems = subject.observed.watch.findings["needs_complete"]
    expect_none(
        problems,
        'add the word "field:NAME" to needs(), so that `plait plan` refuses data without it; '
        'or ask `if "NAME" in batch` first, where the plugin can do without. (Every batch has input and index.)',
    )


@check(Stage.RUN)
def provides_kept(subject: Subject) -> None:
    """What `provides` promises is there: fields in the training batches, the task, properties of the model."""
    well_declared(subject)
    watch, recipe = subject.observed.watch, subject.observed.run.recipe if subject.observed.run else Recipe()
    assert watch.trainer is not None
    promised = {(word, "provides()") for word in subject.instance.provides()}
    for hook, component in (("data_sources", recipe.data), ("models", recipe.model)):
        source = subject.registered(hook).get(component.name or "")
        promised |= {(word, f"{hook} {component.name!r}") for word in (source.provides if source else ())}
    if not watch.fields:
        raise DoesNotApply("batches of this kind do not say which fields they have")
    facts = {f"field:{name}" for name in watch.fields} | {f"task:{watch.trainer.info.task}"}
    if callable(getattr(watch.trainer.model, "channel_groups", None)):
        facts.add("model:channel-groups")
    checked = [
        (w, who) for w, who in sorted(promised) if w.startswith(("field:", "task:")) or w == "model:channel-groups"
    ]
    problems = [
        f"{who} promises {word}, which the tiny run did not have." for word, who in checked if word not in facts
    ]
    if problems:
        there = ", ".join(sorted(facts))
        broken([*problems, f"It had: {there}."], "add the field to every batch, or leave the word out.")
    if not checked:
        raise DoesNotApply("nothing that was active in the tiny run provides a field, a task or a model's property")


@check(Stage.LOADED)
def suggestions(subject: Subject) -> None:
    """`suggests` has keys and values of the recipe, `tiny` valid options, suggested data and models are tuples."""
    plugin, problems = subject.plugin, []
    for attribute in ("suggests_data", "suggests_model"):
        value = getattr(plugin, attribute)
        if not isinstance(value, tuple) or not all(isinstance(name, str) for name in value):
            problems.append(f'{attribute} is {value!r}; it must be a tuple of names, ("one",) with a comma.')
    for key, value in dict(plugin.suggests).items():
        if key.partition(".")[0] in ("plugins", "data", "model"):
            problems.append(f"suggests {key!r}: plugins, data and model are not suggested this way.")
            continue
        try:
            Recipe().merged({key: value}, "suggests")
        except BadInput as error:
            problems.append(str(error))
    problems += _tiny_problems(plugin)
    expect_none(
        problems,
        "in suggests use dotted keys of the recipe, such as train.epochs or optimizer.lr, and in tiny the options "
        "for a run of a dozen steps.",
    )
    if not (plugin.suggests or plugin.tiny or plugin.suggests_data or plugin.suggests_model):
        raise DoesNotApply("the plugin suggests nothing")


def _tiny_problems(plugin: type[Plugin]) -> Iterator[str]:
    if not plugin.tiny:
        return
    try:
        plugin.Options.model_validate(dict(plugin.tiny))
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            key = ".".join(map(str, problem["loc"]))
            if problem["type"] == "missing":
                yield f"tiny lacks {key!r}, a required option."
            elif problem["type"] == "extra_forbidden":
                yield f"tiny: unknown option {key!r}.{nearest(key, plugin.Options.model_fields)}"
            elif not problem["loc"] or problem["loc"][0] in plugin.tiny:
                yield f"tiny: {key or 'as a whole'}: {problem['msg']}."


@check(Stage.USABLE)
def ownership_kept(subject: Subject) -> None:
    """A plugin that owns masks declares them in `ownership`, takes what it declares, and nothing else."""
    well_declared(subject)
    owned = subject.instance.ownership()
    if "update_masks" in subject.hooks and not owned:
        broken(
            ["The plugin implements update_masks, and ownership() is empty: nobody could tell whose masks it changes."],
            'return what it owns, e.g. (plait.Ownership("parameters", "*.weight"),), and take it in setup with '
            "trainer.masks.own(name, names).",
        )
    seen = subject.observed
    problems = list(seen.watch.findings["ownership_kept"])
    owners = getattr(getattr(seen.watch.trainer, "masks", None), "owner", {})
    mine = [tensor for tensor, owner in owners.items() if owner == subject.name]
    if not problems and not owned:
        raise DoesNotApply("the plugin owns no masks")
    if not problems and seen.run is None:
        raise DoesNotApply("the tiny run did not finish: see test_trains")
    problems += [
        f"ownership() declares {part}, and setup took no mask that it names; it keeps other owners away for nothing."
        for part in owned
        if part.kind == "parameters" and not any(fnmatchcase(tensor, part.pattern) for tensor in mine)
    ]
    if problems:
        broken(
            problems, "let ownership() name exactly the tensors that setup takes with trainer.masks.own, and no others."
        )


@check(Stage.RUN)
def masks_own(subject: Subject) -> None:
    """`update_masks` changes the plugin's own masks and weights only, to 0 and 1, and says so with `changed()`."""
    if "update_masks" not in subject.hooks:
        raise DoesNotApply("the plugin does not implement update_masks")
    problems = subject.observed.watch.findings["masks_own"]
    if not problems and (owner := _other_owner(subject)) is not None:
        with subject.beside(owner):
            problems = subject.watched("beside-an-owner", owner.name).watch.findings["masks_own"]
    expect_none(
        problems,
        "in update_masks, change in place only the masks that trainer.masks.own gave in setup, and then call "
        "trainer.masks.changed(); the core zeroes the weights. Other weights are the optimizer's.",
    )


def _other_owner(subject: Subject) -> type[Plugin] | None:
    """A plugin that owns every mask that the plugin under test does not own; None when nothing is left."""
    model: Any = getattr(subject.observed.watch.trainer, "model", None)
    mine = subject.instance.ownership()
    free = [n for n, _ in model.named_parameters() if not any(Ownership("parameters", n).overlaps(c) for c in mine)]
    if not free:
        return None

    class OtherOwner(Plugin):
        """Holds masks and never changes them."""

        name, summary, contract = "conformance-other-owner", "owns the other masks", CONTRACT_VERSION

        def ownership(self) -> tuple[Ownership, ...]:
            return tuple(Ownership("parameters", name) for name in free)

        def setup(self, trainer: Any) -> None:
            names = dict(trainer.model.named_parameters())
            for mask in trainer.masks.own(self.name, [n for n in free if n in names]).values():
                mask.view(-1)[0] = 0
            trainer.masks.changed()

    return OtherOwner

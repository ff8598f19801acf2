"""``claims.toml``: what a plugin's paper claims, as experiments. Pydantic models, loading and checking; no torch here.

A file names metrics, scales and arms once, and then any number of claims about them::

    [metrics.accuracy]                        # a short name for expressions
    name = "task/accuracy"                    # as in run.metrics
    better = "higher"
    unit = "%"

    [scales.laptop.recipe.data]               # what every arm starts from
    name = "tiny-images"

    [arms.sam]
    plugins.fairsam = { baseline = "sam" }
    grid = { "fairsam.rho" = [0.02, 0.05] }   # chosen on validation data, arm by arm
    choose = "fairsam/clean_accuracy_worst_group@validation"

    [[claims]]
    id = "robust"
    sentence = "..."
    source = "section 4, table 2"
    expect = ["mean(fairsam.accuracy) >= mean(sam.accuracy) - 1.0"]
    minutes = { laptop = 10 }
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from plait.declare.recipe import validated
from plait.errors import BadInput, nearest
from plait.planning import discovery
from plait_experiments.expressions import Comparison, parse

FILE = "claims.toml"
ScaleName = Literal["laptop", "paper"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=60)]
Id = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=60)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]
ImportPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=10_000)]
SCALES: tuple[ScaleName, ...] = ("laptop", "paper")
KEYWORDS = frozenset({"seeds", "mean", "min", "max", "abs", "wins"})


class FileTable(BaseModel):
    """Base of the tables of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MetricTable(FileTable):
    """A metric under a short name."""

    name: Text = Field(description="as in run.metrics, e.g. task/accuracy or chase/macs@export")
    better: Literal["higher", "lower", "neither"] = Field("neither", description="its good direction")
    unit: str = Field("", max_length=40, description="unit, empty for a pure number")


class ScaleTable(FileTable):
    """A size of the experiment: what every arm's recipe starts from."""

    about: str = Field("", max_length=1000, description="data, model and budget in words")
    machine: str = Field("2 cores", max_length=100, description="the machine that the claims' minutes are counted on")
    recipe: dict[str, Any] = Field(default_factory=dict, description="a recipe without seed; $NAME is an environment")
    plugins: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="plugin -> options, for the arms that use the plugin"
    )
    seeds: Seeds = Field((0, 1, 2, 3, 4), description="seeds of the final comparison, the same for every arm")
    tuning_seeds: Seeds = Field((100, 101, 102), description="seeds on which an arm's grid is chosen")
    environment: dict[str, Text] = Field(
        default_factory=dict, description="environment variables that name data on disk, and what they must hold"
    )


class Change(FileTable):
    """What is different in one arm at one scale."""

    set: dict[str, Any] = Field(default_factory=dict, description="dotted keys -> values")
    grid: dict[str, list[Any]] | None = Field(None, description="another grid")


class Arm(FileTable):
    """One side of a comparison: changes to the scale's recipe, or a function."""

    about: str = Field("", max_length=1000, description="what it is, in words")
    plugins: dict[str, dict[str, Any]] = Field(default_factory=dict, description="plugin -> options, in order")
    set: dict[str, Any] = Field(
        default_factory=dict, description="dotted keys of the recipe -> values; $NAME is one of the scale's environment"
    )
    grid: dict[str, Annotated[list[Any], Field(min_length=1, max_length=20)]] = Field(
        default_factory=dict, description="dotted key -> values to choose from, on validation data"
    )
    choose: str | None = Field(None, description="the metric to choose by; it ends in @validation")
    choose_better: Literal["higher", "lower"] = Field("higher", description="its good direction")
    function: ImportPath | None = Field(
        None, description="function(recipe, folder, **options) -> metrics, instead of a run; may make runs in folder"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="options of the function")
    measure: ImportPath | None = Field(None, description="function(run) -> further metrics, after the run")
    at: dict[ScaleName, Change] = Field(default_factory=dict, description="changes at one scale")


class Claim(FileTable):
    """A statement of the paper, and what must be seen for it to hold."""

    id: Id
    sentence: Text = Field(description="the claim in our own words")
    source: Text = Field(description="section, table or figure of the paper; or where else it comes from")
    ours: bool = Field(False, description="the thresholds are ours, because the paper's text gives none")
    reconstruction: str = Field("", max_length=4000, description="what of the method or the test is [inferred]")
    gate: bool = Field(True, description="false: reported only, the exit code does not depend on it")
    extra: bool = Field(False, description="a long experiment: it runs only when it is asked for")
    arms: tuple[Name, ...] = Field((), description="arms to show, in order; those in expressions are added")
    show: tuple[Name, ...] = Field((), description="metrics to show beside those in expressions")
    expect: tuple[Text, ...] = Field(description="all of these must hold; at least one")
    guards: tuple[Text, ...] = Field((), description="what must not be lost on the way")
    required: dict[Text, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="expectation -> the margin that a verdict must be able to see, in the unit of its sides (of what "
        "wins counts); the seeds needed are counted for it instead of for the observed margin",
    )
    minutes: dict[ScaleName, Annotated[float, Field(ge=0)]] = Field(
        min_length=1, description="scale -> minutes; a scale that is not here has no such experiment"
    )
    seeds: Seeds | None = Field(None, description="instead of the scale's")
    paper: dict[str, float] = Field(default_factory=dict, description='the paper\'s figures: "arm.metric" -> value')
    paper_setting: str = Field("", max_length=1000, description="what the paper's figures were measured on")
    notes: str = Field("", max_length=4000, description="how to read it")


class Book(FileTable):
    """A whole ``claims.toml``.

    Attributes:
        where: the file, for messages.
        plugin: the plugin whose claims these are.
    """

    schema_version: Literal[1] = Field(alias="schema")
    metrics: dict[Name, MetricTable]
    scales: dict[ScaleName, ScaleTable]
    arms: dict[Name, Arm]
    claims: tuple[Claim, ...]
    where: str = Field("claims.toml", exclude=True)
    plugin: str = Field("", exclude=True)

    def claim(self, name: str) -> Claim:
        """The claim of that id.

        Raises:
            BadInput: there is none.
        """
        known = {claim.id: claim for claim in self.claims}
        if name not in known:
            raise BadInput(f"{self.plugin or self.where}: no claim {name!r}.{nearest(name, known)} {_known(known)}")
        return known[name]

    def expectations(self, claim: Claim) -> list[tuple[Comparison, bool]]:
        """Every expectation and then every guard of a claim, parsed, with whether it is a guard."""
        return [*((parse(t), False) for t in claim.expect), *((parse(t), True) for t in claim.guards)]

    def arms_of(self, claim: Claim) -> list[str]:
        """The arms that a claim needs, in the order in which they are shown."""
        used = [arm for comparison, _ in self.expectations(claim) for arm, _ in comparison.references]
        return list(dict.fromkeys([*claim.arms, *used]))

    def metrics_of(self, claim: Claim) -> list[str]:
        """The metrics that a claim shows, those of its expectations first."""
        used = [metric for comparison, _ in self.expectations(claim) for _, metric in comparison.references]
        return list(dict.fromkeys([*used, *claim.show]))


# ---- loading -----------------------------------------------------------------------------------------------------
def load(plugin: str) -> Book | None:
    """The claims of an installed plugin, from the ``claims.toml`` beside its plugin module; None when it has none.

    Raises:
        BadInput: no such plugin; or the file is wrong, with file and key.
    """
    declared = discovery.find_plugin(plugin).plugin
    assert declared is not None
    package = getattr(sys.modules.get(declared.__module__), "__package__", None)
    if not package:
        return None
    try:
        source = files(package) / FILE
        if not source.is_file():
            return None
    except (TypeError, OSError):  # a module that is no package holds no files
        return None
    return read(source, f"{package}/{FILE}", plugin)


def load_file(path: Path | str, plugin: str = "") -> Book:
    """The claims in a file.

    Raises:
        BadInput: the file is missing or wrong, with file and key.
    """
    return read(Path(path), str(path), plugin)


def read(source: Traversable | Path, where: str, plugin: str = "") -> Book:
    """`load_file` for any readable resource."""
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{where}: cannot be read: {error}.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"{where}: not valid TOML: {error}.") from None
    return parse_book(values, where, plugin)


def parse_book(values: Mapping[str, Any], where: str, plugin: str = "") -> Book:
    """Check a nested mapping.

    Raises:
        BadInput: one line per problem, each with file and key.
    """
    try:
        book = validated(Book, dict(values), where).model_copy(update={"where": where, "plugin": plugin})
    except BadInput as error:
        raise BadInput(str(error).replace("; give it with --set or in the recipe", "")) from None
    problems = [f"{where}: {problem}" for problem in _problems(book)]
    if problems:
        raise BadInput("\n".join(problems))
    return book


def _problems(book: Book) -> Iterator[str]:
    ids = [claim.id for claim in book.claims]
    if not ids:
        yield "claims = []: there is none."
    for name in sorted({i for i in ids if ids.count(i) > 1}):
        yield f"claims: the id {name!r} is given twice."
    for kind, names in (("metrics", book.metrics), ("arms", book.arms)):
        for name in sorted(KEYWORDS & set(names)):
            yield f"{kind}.{name}: the word has a meaning in expressions; choose another name."
    for name, arm in book.arms.items():
        yield from _arm_problems(f"arms.{name}", arm, book)
    for name, scale in book.scales.items():
        for key in ("seed", "plugins"):
            if key in scale.recipe:
                yield f"scales.{name}.recipe.{key}: seeds and plugins are not the recipe's here; see seeds and plugins."
        for key in ("seeds", "tuning_seeds"):
            if len(set(getattr(scale, key))) < len(getattr(scale, key)):
                yield f"scales.{name}.{key}: a seed is given twice."
    for claim in book.claims:
        yield from _claim_problems(claim, book)


def _arm_problems(key: str, arm: Arm, book: Book) -> Iterator[str]:
    tuned = bool(arm.grid) or any(change.grid for change in arm.at.values())
    if tuned and not arm.choose:
        yield f"{key}.choose: a grid needs the validation metric that it is chosen by."
    if arm.choose and not arm.choose.endswith("@validation"):
        yield f"{key}.choose = {arm.choose!r}: it must end in @validation; choices never see the test."
    if arm.function and arm.measure:
        yield f"{key}.measure: a function gives its own metrics; measure is for runs."
    if arm.options and not arm.function:
        yield f"{key}.options: they belong to a function, and there is none."
    for scale in arm.at:
        if scale not in book.scales:
            yield f"{key}.at.{scale}: there is no scales.{scale}."
    for grid in (arm.grid, *(change.grid or {} for change in arm.at.values())):
        points = 1
        for values in grid.values():
            points *= len(values)
        if points > 64:
            yield f"{key}.grid: {points} points; a small grid (at most 64) is fair to every arm."


def _claim_problems(claim: Claim, book: Book) -> Iterator[str]:
    key = f"claims.{claim.id}"
    if not claim.expect:
        yield f"{key}.expect = []: there is none; a claim without an expectation says nothing."
    if claim.extra and claim.gate:
        yield f"{key}.extra: what decides the exit code must run every time; set gate = false."
    for scale in claim.minutes:
        if scale not in book.scales:
            yield f"{key}.minutes.{scale}: there is no scales.{scale}."
    for kind, texts in (("expect", claim.expect), ("guards", claim.guards)):
        for number, text in enumerate(texts):
            try:
                comparison = parse(text)
            except BadInput as error:
                yield f"{key}.{kind}.{number} = {text!r}: {error}"
                continue
            for arm, metric in comparison.references:
                yield from _unknown(f"{key}.{kind}.{number} = {text!r}", arm, metric, book)
    for text in claim.required:
        place = f"{key}.required.{text!r}"
        if text not in (*claim.expect, *claim.guards):
            yield f"{place}: it is none of the claim's expectations; write it as it stands there."
        elif _judged_exactly(text):
            yield f"{place}: it is judged in every seed, without an interval; no margin can be required."
    for arm in claim.arms:
        yield from _unknown(f"{key}.arms", arm, None, book)
    for metric in claim.show:
        yield from _unknown(f"{key}.show", None, metric, book)
    for name in claim.paper:
        arm, dot, metric = name.partition(".")
        if not dot:
            yield f"{key}.paper.{name}: write it as arm.metric."
        else:
            yield from _unknown(f'{key}.paper."{name}"', arm, metric, book)


def _judged_exactly(text: str) -> bool:
    try:
        comparison = parse(text)
    except BadInput:  # said already
        return False
    return not (comparison.smooth or comparison.counts)


def _unknown(place: str, arm: str | None, metric: str | None, book: Book) -> Iterator[str]:
    if arm is not None and arm not in book.arms:
        yield f"{place}: there is no arm {arm!r}.{nearest(arm, book.arms)} {_known(book.arms)}"
    if metric is not None and metric not in book.metrics:
        yield f"{place}: there is no metric {metric!r}.{nearest(metric, book.metrics)} {_known(book.metrics)}"


def _known(names: Mapping[str, Any]) -> str:
    return f"Known: {', '.join(names)}."

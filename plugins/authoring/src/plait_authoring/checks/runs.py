"""Checks of whole runs: they finish, repeat, resume, and work in other precisions and batch sizes."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plait
from plait.declare.options import load_object
from plait.declare.recipe import Recipe
from plait.planning import discovery
from plait_authoring.conformance import Stage, check, passes
from plait_authoring.subject import Subject
from plait_authoring.tiny import SETTINGS, TinyRun, described
from plait_authoring.verdicts import DoesNotApply, broken, expect_none

BLOCKING = ("hook_signatures", "hook_order", "options_checked", "options_round_trip", "declared_words", "suggestions")
"""Checks without which no run can be expected to finish."""
FILES = ("recipe.toml", "environment.json", "metrics.jsonl", "export/model.safetensors")
TIME = re.compile(r"^([mun\u00b5]?s|sec|seconds|min|minutes|h)$|/s$")
"""Units of what a clock says, which no two runs share."""


@check(Stage.USABLE)
def trains(subject: Subject) -> None:
    """A tiny run finishes, and leaves an exported model, and a recipe that reads back as the same recipe."""
    seen = subject.observed
    if seen.run is None:
        others = [f"test_{name}" for name, problems in seen.watch.findings.items() if problems]
        others += [f"test_{name}" for name in BLOCKING if not passes(subject, name)]
        if others:
            raise DoesNotApply(f"the tiny run stopped over what another check reports: see {', '.join(others)}")
        data, model = subject.components
        broken(
            [f"plait run -p {subject.name} --data {data} --model {model} stopped: {seen.reason}"],
            "if the plugin needs other data, another model, options or more steps, say so: "
            "plait_plugin_suite(name, data=..., model=..., options={...}, settings={...}, steps=...).",
        )
    missing = [name for name in FILES if not (seen.run.path / name).is_file()]
    if missing:
        broken([f"The run directory has no {name}." for name in missing], "the run's own output says why.")
    written = Recipe.load(seen.run.path / "recipe.toml")
    again = plait.plan(written).recipe
    if again != written:
        broken(
            [f"recipe.toml reads back as another recipe: {again} in the place of {written}."],
            "let options depend on nothing but what was given.",
        )


@check(Stage.RUN)
def artifacts_made(subject: Subject) -> None:
    """Of the finished run every artifact can be made: the plugin's own, and those of other plugins (the report)."""
    registered = discovery.collect("artifacts")[0]
    if not registered:
        raise DoesNotApply("no installed plugin makes an artifact of a run")
    if not passes(subject, "registered"):
        raise DoesNotApply("what the plugin registers cannot be used: see test_registered")
    assert subject.observed.run is not None
    path = subject.observed.run.path
    problems = [
        problem for name, (owner, function) in registered.items() for problem in _artifact(name, owner, function, path)
    ]
    expect_none(
        problems,
        "mend the function, or the figures, tables and plots that it stumbles over; it is given the run directory, "
        "and returns the path of the file that it wrote there.",
    )


def _artifact(name: str, owner: str, function: str, path: Path) -> Iterator[str]:
    where = f"The artifact {name!r} of plugin {owner!r}"
    try:
        file = load_object(function, "artifact")(path)
    except Exception as error:
        yield f"{where} cannot be made of the tiny run: {described(error)}"
        return
    if not isinstance(file, Path):
        yield f"{where}: {function} returned a {type(file).__name__}; it must return a pathlib.Path."
    elif not file.exists() or path.resolve() not in file.resolve().parents:
        yield f"{where}: {function} returned {file}, and no such file is in the run directory."


@check(Stage.RUN)
def deterministic(subject: Subject) -> None:
    """The same recipe and seed give the same bits, in this process and in another."""
    problems = differences(subject.folder / "watched", subject.unbroken)
    expect_none(
        problems,
        "draw every random number from trainer.generator(name); do not depend on the clock, on the order of a set, "
        "or on what an earlier run left in a module or a class.",
    )


@check(Stage.RUN)
def state_types(subject: Subject) -> None:
    """`state_dict` holds tensors, numbers, strings, booleans and None, in lists and in dicts with string keys."""
    problems = subject.findings("state_types")
    expect_none(problems, "turn it into tensors, numbers and strings in state_dict(), and back in load_state_dict().")


@check(Stage.RUN)
def resumable(subject: Subject) -> None:
    """A run that is killed (SIGKILL) and resumed, twice, or resumed from a checkpoint, ends with the same bits."""
    whole = subject.unbroken
    if whole.code or differences(subject.folder / "watched", whole):
        raise DoesNotApply("the same recipe does not give the same bits twice: see test_deterministic")
    first, second = subject.every, 2 * subject.every
    ends = {
        f"killed in step {first + 1} and in step {second + 1}, and resumed each time": _killed_twice(subject),
        f"resumed from its checkpoint of step {first}": _from_checkpoint(subject, first),
    }
    tried = {how: end for how, end in ends.items() if end is not None}
    if not tried:
        raise DoesNotApply("the plugin's fit trains without train_step and writes no checkpoint on the way")
    problems = [f"A run {how}: {problem}" for how, end in tried.items() for problem in differences(whole.path, end)]
    expect_none(
        problems,
        "return everything that the plugin keeps between two steps from state_dict(), and take all of it back in "
        "load_state_dict(); make streams, generators and modules in setup, through the trainer.",
    )


def _killed_twice(subject: Subject) -> TinyRun | None:
    first = subject.killed("killed", subject.every + 1)
    if first.code != -signal.SIGKILL:
        return None if first.code == 0 else first
    second = subject.resumed(first.path, kill_after=2 * subject.every + 1)
    return subject.resumed(first.path) if second.code == -signal.SIGKILL else second


def _from_checkpoint(subject: Subject, step: int) -> TinyRun | None:
    name = f"step-{step:09d}"
    if not (subject.unbroken.path / "checkpoints" / f"{name}.safetensors").exists():
        return None
    copied = subject.folder / "from-checkpoint"
    shutil.copytree(subject.unbroken.path, copied)
    return subject.resumed(copied, checkpoint=name)


def differences(reference: Path, other: TinyRun) -> list[str]:
    """How a run differs from the reference, in words; empty when it ends with the same bits and figures."""
    from plait_authoring.kill import final_state, first_difference

    if other.code:
        return [f"it stopped: {other.error or f'exit code {other.code}'}"]
    sentences = []
    left, right = (final_state(path, generators=False) for path in (reference, other.path))
    place = first_difference(left, right)
    if place is not None:
        sentences.append(f"the last checkpoints differ, first in {place.strip('/')}.")
    place = first_difference(_figures(reference), _figures(other.path))
    if place is not None:
        sentences.append(f"the figures differ, first in {place.strip('/')}.")
    return sentences


def _figures(path: Path) -> dict[str, Any]:
    """The metrics of a run; the value of a measured time is left out."""
    details = plait.load_run(path).details
    return {
        name: {**detail, "value": None} if TIME.search(str(detail["unit"])) else detail
        for name, detail in details.items()
    }


@check(Stage.RUN)
def own_generators(subject: Subject) -> None:
    """No hook draws from the global generators of Python, NumPy or PyTorch (first weights of new modules excepted)."""
    problems = subject.findings("own_generators")
    expect_none(
        problems,
        "draw with generator=trainer.generator(name); for NumPy, seed a numpy.random.Generator from it. A draw "
        "from a global generator changes what every other plugin draws.",
    )


@check(Stage.RUN)
def looks_only(subject: Subject) -> None:
    """Evaluation, views, losses, export and `state_dict` leave weights, buffers, masks and mode as they were."""
    problems = subject.findings("looks_only")
    expect_none(
        problems,
        "change weights in optimizer_step only, and a copy elsewhere (copy.deepcopy; export is given a copy). "
        "Put model.train(mode) back after model.eval().",
    )


@check(Stage.RUN)
def bfloat16(subject: Subject) -> None:
    """A tiny run in bfloat16 on the CPU finishes with a finite loss."""
    steps = min(4, subject.steps)
    end = subject.run("bfloat16", precision="bf16", train__steps=steps)
    if end.code and not _model_too(subject, "bfloat16-alone", precision="bf16", train__steps=steps):
        broken(
            [f"With precision = bf16 the run stopped: {end.error or f'exit code {end.code}'}"],
            "outputs may be bfloat16 in the loss hooks: call .float() before .numpy(), before comparisons with float32 "
            "tensors and before operations that have no bfloat16 form.",
        )


@check(Stage.RUN)
def batch_of_one(subject: Subject) -> None:
    """Batches of one example work, also as the last batch of an epoch, or are refused before the training in words."""
    cases: dict[str, dict[str, Any]] = {"train.batch_size = 1": {"train__batch_size": 1, "train__steps": 3}}
    if subject.components[0] == discovery.FALLBACK["data_sources"]:
        size = SETTINGS["train.batch_size"]
        last = {"data__train": size + 1, "train__batch_size": size, "train__steps": 4}
        cases["a last batch of one example"] = last
    problems = []
    for number, (what, settings) in enumerate(cases.items()):
        end = subject.run(f"one-{number}", **settings)
        refused = end.code in (2, 3) and not end.trained
        if end.code and not refused and not _model_too(subject, f"one-{number}-alone", **settings):
            problems.append(f"With {what} the run stopped: {end.error or f'exit code {end.code}'}")
    expect_none(
        problems,
        "mind std() and var() of one value (NaN), and squeeze(), which also drops a batch dimension of 1. A method "
        "that cannot work on one example refuses in setup: raise plait.BadInput and say which batch size it needs.",
    )


def _model_too(subject: Subject, folder: str, **settings: Any) -> bool:
    """Whether data and model fail in the same way without the plugin, so that it is not to blame."""
    return subject.run(folder, without=True, **settings).code == 1

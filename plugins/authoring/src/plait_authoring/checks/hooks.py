"""Checks of the plugin's functions: hooks that exist, their arguments, their order, and what they register."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from plait.declare.options import load_object
from plait.declare.sources import DataSource, ModelSource
from plait.errors import BadInput, nearest
from plait.hooks import HookSpecs, hook_names
from plait.planning.discovery import NAME, default_instance
from plait_authoring.checks.declarations import word_problems
from plait_authoring.conformance import Stage, check
from plait_authoring.subject import Subject
from plait_authoring.verdicts import DoesNotApply, expect_none

REGISTRIES = ("data_sources", "models", "commands", "artifacts")
"""Hooks that name things before any run (views are named in one)."""


def marked(subject: Subject) -> Iterator[tuple[str, Callable[..., Any]]]:
    """(name, function) of every method marked with ``@hookimpl``."""
    for name in dir(subject.plugin):
        function = getattr(subject.plugin, name, None)
        if callable(function) and hasattr(function, "plait_impl"):
            yield name, function


def arguments(subject: Subject, name: str, function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A method's named parameters, without ``self``."""
    taken = dict(inspect.signature(function).parameters)
    if not isinstance(inspect.getattr_static(subject.plugin, name), (staticmethod, classmethod)):
        taken.pop(next(iter(taken), ""), None)
    return {argument: p for argument, p in taken.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


@check(Stage.LOADED)
def hook_signatures(subject: Subject) -> None:
    """Every hook that is implemented exists, is marked, and takes arguments that the hook has."""
    problems = [*_signature_problems(subject)]
    if (
        not problems
        and subject.item is not None
        and subject.item.status == "broken"
        and not [*_order_problems(subject)]
    ):
        problems = [f"The hooks cannot be registered: {subject.item.reason}."]
    expect_none(problems, "write the hooks as docs/hook-contract.md in plait's repository lists them.")


def _signature_problems(subject: Subject) -> Iterator[str]:
    owner = subject.plugin.__qualname__
    hooks = dict(marked(subject))
    for name in hook_names():
        function = getattr(subject.plugin, name, None)
        if callable(function) and name not in hooks:
            yield f"{owner}.{name} is not marked with @hookimpl, so it is never called."
    for name, function in hooks.items():
        if name not in hook_names():
            yield f"{owner}.{name}: there is no hook {name!r}.{nearest(name, hook_names())}"
            continue
        spec = [a for a in inspect.signature(getattr(HookSpecs, name)).parameters if a != "self"]
        for argument, parameter in arguments(subject, name, function).items():
            if argument not in spec:
                yield (
                    f"{owner}.{name} takes {argument!r}, which this hook does not have.{nearest(argument, spec)} "
                    f"It has: {', '.join(spec) or 'no arguments'}."
                )
            elif parameter.default is not parameter.empty:
                yield f"{owner}.{name}: {argument!r} has a default, so it is never given; write it without."
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            yield f"{owner}.{name} is a generator or a coroutine; a hook is an ordinary function (call proceed())."


@check(Stage.LOADED)
def hook_order(subject: Subject) -> None:
    """`before` and `after` are tuples of names, `inner` stands on optimizer_step only, a wrapper takes `proceed`."""
    problems = [*_order_problems(subject)]
    expect_none(problems, 'write @hookimpl(before=("name",)) with a comma, and inner=True only on an innermost step.')


def _order_problems(subject: Subject) -> Iterator[str]:
    owner = subject.plugin.__qualname__
    for name, function in marked(subject):
        order = getattr(function, "plait_order", {})
        for key in ("before", "after"):
            names = order.get(key, ())
            if len(names) > 1 and all(isinstance(n, str) and len(n) == 1 for n in names):
                whole = "".join(names)
                yield f"{owner}.{name}: {key}={whole!r} is read letter by letter; write {key}=({whole!r},)."
                continue
            for other in names:
                if not isinstance(other, str) or not NAME.match(other.replace(":", "-", 1)):
                    yield f"{owner}.{name}: {key} names {other!r}, neither a plugin's name nor a word kind:name."
                elif other == subject.name:
                    yield f"{owner}.{name}: {key} names the plugin itself."
        for other in {*order.get("before", ())} & {*order.get("after", ())}:
            yield f"{owner}.{name}: {other!r} stands in before and in after."
        if order.get("inner") and name != "optimizer_step":
            yield f"{owner}.{name}: inner=True belongs to optimizer_step; {name} has no innermost implementation."
        if name == "optimizer_step":
            proceeds = "proceed" in arguments(subject, name, function)
            if order.get("inner") and proceeds:
                yield f"{owner}.{name} is the innermost step (inner=True) and takes proceed; leave one of the two."
            if not order.get("inner") and not proceeds:
                yield f"{owner}.{name} is a wrapper and takes no proceed, so no step inside it can ever run."


@check(Stage.USABLE)
def registered(subject: Subject) -> None:
    """Data sources, models, commands and artifacts that are registered can be imported, and describe themselves."""
    problems: list[str] = []
    for hook in REGISTRIES:
        if hook in subject.hooks:
            problems += _answer_problems(subject, hook)
    for hook, kind, takes in (("data_sources", DataSource, "options, seed"), ("models", ModelSource, "options, info")):
        for name, source in subject.registered(hook).items():
            where = f"{hook} {name!r}"
            if not isinstance(source, kind):
                problems.append(f"{where} is a {type(source).__name__}; it must be a plait.{kind.__name__}.")
                continue
            if ":" in name or not name.strip():
                problems.append(f"{where}: a name has no colon, which would make it an import path.")
            if not source.summary.strip():
                problems.append(f"{where} has no summary.")
            problems += [f"{where}: {p}" for p in word_problems("provides", source.provides)]
            problems += [f"{where}: {p}" for p in _import_problems(source.factory, 2, takes)]
    for name, path in subject.registered("commands").items():
        problems += [f"command {name!r}: {problem}" for problem in _import_problems(path, None, "")]
    for name, path in subject.registered("artifacts").items():
        problems += [f"artifact {name!r}: {problem}" for problem in _import_problems(path, 1, "run directory")]
    expect_none(problems, "mend these declarations; an import path is written package.module:function.")
    if not set(REGISTRIES) & set(subject.hooks):
        raise DoesNotApply("the plugin registers no data source, model, command or artifact")


def _answer_problems(subject: Subject, hook: str) -> Iterator[str]:
    try:
        answer = getattr(default_instance(subject.plugin), hook)()
    except Exception as error:
        yield f"{hook} raised {type(error).__name__}: {error}; it may depend on nothing, not even on options."
        return
    if not isinstance(answer, Mapping):
        yield f"{hook} returned a {type(answer).__name__}; it must be a mapping from names."


def _import_problems(path: str, count: int | None, takes: str) -> Iterator[str]:
    try:
        function = load_object(path, "import path")
    except BadInput as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and (missing.name or "").split(".")[0] != path.split(".")[0]:
            return  # an optional library that is not in this environment
        yield str(error)
        return
    try:
        signature = inspect.signature(function)
        if count is not None:
            signature.bind(*[None] * count)
    except TypeError:
        yield f"{path} takes {signature}; it is called with ({takes})."
    except ValueError:
        return  # a builtin without a signature

"""Groups of commands that are imported when they are called: plait's own, those of tools, and the methods'."""

from __future__ import annotations

import functools
import gc
import importlib.util
import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import typer
import typer.core
import typer.main

COMMANDS = {
    "plugins": "plait_cli.commands.plugins:plugins",
    "info": "plait_cli.commands.info:info",
    "plan": "plait_cli.commands.plan:plan",
    "run": "plait_cli.commands.run:run",
    "resume": "plait_cli.commands.run:resume",
    "runs": "plait_cli.commands.runs:runs",
}
"""plait's own commands, in the order of the help: name -> import path of its function."""

SHORT = ("plugins", "info", "plan", "runs")
"""Those of them that train nothing."""

TOOLS = {
    "compare": "plait-experiments",
    "sweep": "plait-experiments",
    "verify": "plait-experiments",
    "report": "plait-report",
    "new": "plait-authoring",
    "doctor": "plait-doctor",
}
"""Commands that packages beside this one bring, to say how to get them where they are not installed."""


def build(function: Callable[..., Any], name: str) -> Any:
    """A Typer command of a typed function."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    single.command(name)(function)
    return typer.main.get_command(single)


def tool_commands() -> tuple[dict[str, str], dict[str, str]]:
    """The commands of installed tools, which stand at the root.

    A tool is a plugin that implements no hook but ``commands`` and ``artifacts``.

    Returns:
        Command -> import path, and commands that cannot be used -> why: several tools bring them, or the hook of the
        tool that is meant raises.
    """
    from plait.planning import discovery

    paths: dict[str, str] = {}
    owners: dict[str, str] = {}
    problems: dict[str, str] = {}
    for name, item in discovery.active_registry().items():
        if "commands" not in item.hooks or not set(item.hooks) <= {"commands", "artifacts"}:
            continue
        try:
            declared = plugin_commands(name)
        except Exception as error:  # a stranger's hook may raise anything
            problems[name] = str(error)
            continue
        for command, path in declared.items():
            if command in owners:
                owner = discovery.find_plugin(owners[command])
                problems[command] = (
                    f"the command {command!r} is brought by {owner.distribution} and by {item.distribution}: "
                    "uninstall one of them."
                )
            elif command not in COMMANDS:
                paths[command], owners[command] = path, name
    return {command: path for command, path in paths.items() if command not in problems}, problems


@functools.cache
def text_of(path: str) -> str:
    """What the function at an import path says of itself, read from its compiled module, which is not run.

    The path itself where it says nothing or is not there.
    """
    module, _, name = path.partition(":")
    try:
        spec: Any = importlib.util.find_spec(module)
        constants = spec.loader.get_code(module).co_consts
        body = next(c for c in constants if isinstance(c, CodeType) and c.co_name == name)
    except Exception:  # a stranger's package may raise anything when it is looked for
        return path
    text = inspect.cleandoc(FunctionType(body, {}).__doc__ or path)
    return " ".join(text.partition("\n\n")[0].split())


class LazyGroup(typer.core.TyperGroup):
    """Commands by import path: what is called is imported, and what is listed is not."""

    def listed(self, ctx: Any) -> dict[str, str]:
        """Name -> text of every command that help and completion show."""
        raise NotImplementedError

    def called(self, ctx: Any, name: str) -> Any:
        """The command of that name; None where a half-typed line cannot be completed.

        Raises:
            BadInput: unknown, or it cannot be loaded.
        """
        raise NotImplementedError

    def list_commands(self, ctx: Any) -> list[str]:
        """The names that are listed."""
        return list(self.listed(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command as it is listed, a name and a text; the one that can be called gives `resolve_command`."""
        text = self.listed(ctx).get(cmd_name)
        return None if text is None else typer.core.TyperCommand(cmd_name, help=text)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that is called."""
        name, *rest = args
        if name.startswith("-"):
            return super().resolve_command(ctx, args)
        command = self.called(ctx, name)
        return name if command else None, command, rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in the help, with whole sentences."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.listed(ctx).items()))


class RootGroup(LazyGroup):
    """plait's own commands and the tools'; any other name is looked up among the installed plugins."""

    def listed(self, ctx: Any) -> dict[str, str]:
        """Own commands and the tools'; for shell completion also the plugins that have commands."""
        texts = {name: text_of(path) for name, path in {**COMMANDS, **tool_commands()[0]}.items()}
        if ctx.resilient_parsing:
            from plait_cli import completion

            texts |= completion.plugins_with_commands()
        return texts

    def called(self, ctx: Any, name: str) -> Any:
        """plait's own command, a tool's, or a plugin's group."""
        if name not in SHORT:
            gc.enable()  # see `plait_cli.main`
        if name in COMMANDS:
            return load(COMMANDS[name], name, f"command {name!r}")
        from plait.errors import BadInput

        paths, problems = tool_commands()
        if name in paths:
            return load(paths[name], name, f"command {name!r}", quiet=ctx.resilient_parsing)
        if name in problems and not ctx.resilient_parsing:
            raise BadInput(problems[name])
        return plugin_group(name, quiet=ctx.resilient_parsing)


class PluginGroup(LazyGroup):
    """The commands of one plugin: ``paths``, name -> import path."""

    paths: dict[str, str]

    def listed(self, ctx: Any) -> dict[str, str]:
        """In the plugin's order."""
        return {name: text_of(path) for name, path in self.paths.items()}

    def called(self, ctx: Any, name: str) -> Any:
        """The plugin's command; errors name the plugin."""
        from plait.errors import BadInput, nearest

        if name in self.paths:
            what = f"plugin {self.name!r}: command {name!r}"
            return load(self.paths[name], name, what, quiet=ctx.resilient_parsing)
        if ctx.resilient_parsing:
            return None
        known = f"{nearest(name, self.paths)} It has: {', '.join(self.paths)}."
        raise BadInput(f"plugin {self.name!r} has no command {name!r}.{known}")


def load(path: str, name: str, what: str, *, quiet: bool = False) -> Any:
    """A command by the import path of its function; with ``quiet`` None instead of an error.

    Raises:
        BadInput: it cannot be loaded.
    """
    from plait.declare.options import load_object
    from plait.errors import BadInput

    try:
        return build(load_object(path, "command"), name)
    except Exception as error:  # a stranger's module or signature may raise anything
        if quiet:
            return None
        detail = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
        raise BadInput(f"{what} cannot be loaded: {detail}") from error


def plugin_group(name: str, quiet: bool = False) -> PluginGroup | None:
    """The group ``plait NAME``; with ``quiet`` None instead of an error.

    Raises:
        BadInput: no command and no plugin of that name, an unusable plugin, or one without commands.
    """
    from plait.errors import BadInput, nearest
    from plait.planning import discovery

    try:
        if name in TOOLS:
            for item in discovery.installed():
                if item.distribution == TOOLS[name]:
                    discovery.find_plugin(item.name)  # says why it is not usable
            raise BadInput(f"`plait {name}` comes with {TOOLS[name]}: pip install {TOOLS[name]}.")
        if name not in {item.name for item in discovery.installed()}:
            known = [*COMMANDS, *tool_commands()[0], *discovery.active_registry()]
            raise BadInput(
                f"no command and no installed plugin is named {name!r}.{nearest(name, known)} See plait --help."
            )
        plugin = discovery.find_plugin(name).plugin
        assert plugin is not None
        paths = plugin_commands(name)
        if not paths:
            raise BadInput(
                f"plugin {name!r} has no commands of its own; `plait info {name}` describes it, -p {name} uses it."
            )
    except BadInput:
        if quiet:
            return None
        raise
    group = PluginGroup(name=name, help=plugin.summary, no_args_is_help=True, rich_markup_mode=None)
    group.paths = paths
    return group


def plugin_commands(name: str) -> dict[str, str]:
    """The commands that a usable plugin declares: name -> import path; empty when it declares none.

    Raises:
        BadInput: its ``commands`` hook raises or returns something else.
    """
    from plait.errors import BadInput
    from plait.planning import discovery

    item = discovery.find_plugin(name)
    if "commands" not in item.hooks or item.plugin is None:
        return {}
    try:
        declared = dict(discovery.default_instance(item.plugin).commands())  # type: ignore[attr-defined]
        return {str(command): str(path) for command, path in declared.items()}
    except Exception as error:
        raise BadInput(f"plugin {name!r}: its commands hook raised {type(error).__name__}: {error}") from error

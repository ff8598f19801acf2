"""Groups of commands that are imported when they are called: plait's own, those of tools, and the methods'."""

from __future__ import annotations

import importlib
from collections.abc import Callable
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


def _unloaded() -> None:
    """Stands for a command whose module is not imported."""


class LazyGroup(typer.core.TyperGroup):
    """plait's own commands and the tools'; any other name is looked up among the installed plugins."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Own commands and the tools'; for shell completion also the plugins that have commands."""
        names = [*COMMANDS, *tool_commands()[0]]
        if not ctx.resilient_parsing:
            return names
        from plait_cli import completion

        return [*names, *completion.plugins_with_commands()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or a plugin's group.

        Raises:
            BadInput: no such command, no such plugin, or a plugin without commands.
        """
        if cmd_name in COMMANDS:
            if cmd_name not in self.commands:
                module, _, function = COMMANDS[cmd_name].partition(":")
                self.commands[cmd_name] = build(getattr(importlib.import_module(module), function), cmd_name)
            return self.commands[cmd_name]
        if cmd_name.startswith("-"):
            return None
        from plait.errors import BadInput

        paths, problems = tool_commands()
        if cmd_name in paths:
            return load(paths[cmd_name], cmd_name, f"command {cmd_name!r}", quiet=ctx.resilient_parsing)
        if cmd_name in problems and not ctx.resilient_parsing:
            raise BadInput(problems[cmd_name])
        return plugin_group(cmd_name, quiet=ctx.resilient_parsing)


class PluginGroup(typer.core.TyperGroup):
    """The commands of one plugin; a command's module is imported when the command is called."""

    paths: dict[str, str]

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the plugin's order."""
        return list(self.paths)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the command.

        Raises:
            BadInput: unknown, or it cannot be loaded; the plugin is named.
        """
        from plait.errors import BadInput, nearest

        if cmd_name.startswith("-"):
            return None
        if cmd_name not in self.paths:
            if ctx.resilient_parsing:
                return None
            known = f"{nearest(cmd_name, self.paths)} It has: {', '.join(self.paths)}."
            raise BadInput(f"plugin {self.name!r} has no command {cmd_name!r}.{known}")
        typed = (*ctx.args, *getattr(ctx, "_protected_args", ()))
        if ctx.resilient_parsing and cmd_name not in typed:
            return build(_unloaded, cmd_name)  # completion lists names; only the command being typed is imported
        what = f"plugin {self.name!r}: command {cmd_name!r}"
        return load(self.paths[cmd_name], cmd_name, what, quiet=ctx.resilient_parsing)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Names and import paths: help must not import what it lists."""
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text(self.help or "")
        with formatter.section("Commands"):
            formatter.write_dl(list(self.paths.items()))
        formatter.write_paragraph()
        formatter.write_text(f"`{ctx.command_path} COMMAND --help` describes one.")


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
        if name in TOOLS and name not in discovery.active_registry():
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
    group = PluginGroup(name=name, help=plugin.summary, no_args_is_help=True)
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

"""The names of a new plugin, and which of them are taken."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

from plait.errors import BadInput
from plait.planning import discovery

LONGEST = 30
"""Characters of a name; it is part of file, class and command names."""
OWN = frozenset({"core", "cli"})
"""``plait-core`` and ``plait-cli`` are plait's own distributions."""


@dataclass(frozen=True)
class Names:
    """What a plugin is called in the places where it needs a name.

    Attributes:
        name: on the command line and as entry point: ``soft-focus``.
    """

    name: str

    @property
    def distribution(self) -> str:
        """For pip, and the folder: ``plait-soft-focus``."""
        return f"plait-{self.name}"

    @property
    def package(self) -> str:
        """For ``import``: ``plait_soft_focus``."""
        return f"plait_{self.name.replace('-', '_')}"

    @property
    def stem(self) -> str:
        """The beginning of its classes' names: ``SoftFocus``."""
        return "".join(part.capitalize() for part in re.split("[-_]", self.name))


def check_name(name: str) -> Names:
    """The names of a plugin that does not exist yet.

    Raises:
        BadInput: not a name, reserved, or taken by an installed plugin, distribution or importable package.
    """
    if not discovery.NAME.match(name):
        raise BadInput(
            f"{name!r} cannot be a plugin's name: it begins with a lower-case letter a-z and goes on with lower-case "
            f"letters, digits, - and _.{_suggestion(name)}"
        )
    if name[-1] in "-_" or len(name) > LONGEST:
        raise BadInput(
            f"{name!r} cannot be a plugin's name: it ends in a letter or digit and has at most {LONGEST} characters, "
            f"so that pip accepts plait-NAME.{_suggestion(name)}"
        )
    if keyword.iskeyword(name):
        raise BadInput(f"{name!r} is a word of Python's grammar; choose another name. For example '{name}-method'.")
    if name in reserved():
        what = "a distribution of plait itself" if name in OWN else "a command of plait or a table of its recipes"
        raise BadInput(f"the name {name!r} is reserved: it is {what}. Choose another name.")
    for item in discovery.installed():
        if item.name == name:
            raise BadInput(
                f"a plugin named {name!r} is installed already, by {item.distribution} {item.version}. "
                "Choose another name, or uninstall that one."
            )
    return _free(Names(name))


def reserved() -> frozenset[str]:
    """Names that no plugin may have: tables of recipes, commands of plait and of tools, and its own distributions."""
    from plait_cli import groups

    return OWN | discovery.RESERVED | {*groups.COMMANDS, *groups.TOOLS, *groups.tool_commands()[0]}


def _free(names: Names) -> Names:
    try:
        present = distribution(names.distribution)
    except PackageNotFoundError:
        pass
    else:
        raise BadInput(
            f"a distribution named {names.distribution} is installed already ({present.version}). Choose another name."
        )
    for item in discovery.installed():
        if Names(item.name).package == names.package:
            raise BadInput(
                f"the package of {names.name!r} would be {names.package}, as that of the installed plugin "
                f"{item.name!r} ({item.distribution}). Choose another name."
            )
    spec = find_spec(names.package)
    if spec is not None:
        where = spec.origin or next(iter(spec.submodule_search_locations or ()), "an unknown place")
        raise BadInput(
            f"a package named {names.package} can be imported already, from {where}. "
            "Choose another name, or take that one away."
        )
    return names


def _suggestion(name: str) -> str:
    """`` For example 'soft-focus'.`` when something close would do."""
    close = re.sub(r"[^a-z0-9_-]+", "-", name.strip().lower()).lstrip("-_0123456789")[:LONGEST].rstrip("-_")
    taken = reserved() | {item.name for item in discovery.installed()}
    usable = close and close != name and close not in taken and not keyword.iskeyword(close)
    return f" For example {close!r}." if usable else ""

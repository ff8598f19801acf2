"""Which hooks a new plugin begins with."""

from __future__ import annotations

from collections.abc import Iterable

from plait.errors import BadInput, nearest
from plait.hooks import HookSpecs, hook_names

DEFAULT_HOOKS = ("loss_terms", "evaluate")
"""A loss term with an option, and metrics that show what it does."""


def families() -> dict[str, str]:
    """The contract's families -> the hook that each stands for: the default one if it has one, else its first.

    A family that is called as its hook needs no word of its own.
    """
    chosen: dict[str, str] = {}
    for hook in hook_names():
        family = getattr(HookSpecs, hook).plait_family.replace(" ", "_")
        if family not in chosen or hook in DEFAULT_HOOKS:
            chosen[family] = hook
    return {family: hook for family, hook in chosen.items() if family != hook}


def choose_hooks(words: Iterable[str] = ()) -> tuple[str, ...]:
    """The hooks that the words name, each once, in the contract's order.

    Args:
        words: hooks (``loss_terms``) or families (``loss``); ``all`` is every hook; none at all is `DEFAULT_HOOKS`.

    Raises:
        BadInput: a word that is neither, with the nearest one and the list.
    """
    known, of_family = hook_names(), families()
    wanted = [word.strip().lower().replace(" ", "_").replace("-", "_") for word in words]
    chosen: set[str] = set()
    for word in wanted or DEFAULT_HOOKS:
        if word == "all":
            chosen.update(known)
        elif word in known or word in of_family:
            chosen.add(of_family.get(word, word))
        elif not word:
            raise BadInput(f"the list of hooks has an empty name; separate them by one comma each. {_list(known)}")
        else:
            raise BadInput(f"no hook named {word!r}.{nearest(word, [*known, *of_family])} {_list(known)}")
    return tuple(hook for hook in known if hook in chosen)


def _list(known: Iterable[str]) -> str:
    shown = ", ".join(f"{family} ({hook})" for family, hook in families().items())
    return f"Hooks: {', '.join(known)}. Families: {shown}. all takes every hook."

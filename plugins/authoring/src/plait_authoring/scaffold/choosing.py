"""Which hooks a new plugin begins with."""

from __future__ import annotations

from collections.abc import Iterable

from plait.errors import BadInput, nearest
from plait.hooks import hook_names

DEFAULT_HOOKS = ("loss_terms", "evaluate")
"""A loss term with an option, and metrics that show what it does."""

FAMILIES = {
    "data": "data_sources",
    "model": "models",
    "loss": "loss_terms",
    "mask_update": "update_masks",
    "evaluation": "evaluate",
    "strategy": "fit",
    "afterwards": "export",
    "cli": "commands",
}
"""The contract's families -> the most common hook of each (``optimizer_step`` is a family of its own name)."""


def choose_hooks(words: Iterable[str] = ()) -> tuple[str, ...]:
    """The hooks that the words name, each once, in the contract's order.

    Args:
        words: hooks (``loss_terms``) or families (``loss``); ``all`` is every hook; none at all is `DEFAULT_HOOKS`.

    Raises:
        BadInput: a word that is neither, with the nearest one and the list.
    """
    known = hook_names()
    wanted = [word.strip().lower().replace(" ", "_").replace("-", "_") for word in words]
    chosen: set[str] = set()
    for word in wanted or DEFAULT_HOOKS:
        if word == "all":
            chosen.update(known)
        elif word in known or word in FAMILIES:
            chosen.add(FAMILIES.get(word, word))
        elif not word:
            raise BadInput(f"the list of hooks has an empty name; separate them by one comma each. {_list(known)}")
        else:
            raise BadInput(f"no hook named {word!r}.{nearest(word, [*known, *FAMILIES])} {_list(known)}")
    return tuple(hook for hook in known if hook in chosen)


def _list(known: Iterable[str]) -> str:
    families = ", ".join(f"{family} ({hook})" for family, hook in FAMILIES.items())
    return f"Hooks: {', '.join(known)}. Families: {families}. all takes every hook."

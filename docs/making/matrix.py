"""The composition matrix of this repository's plugins and the examples, kept in a file because it takes minutes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from making.shared import DOCS, ROOT, only_ours, table
from plait.planning import discovery
from plait.testing.matrix import Matrix, make
from plait.testing.strangers import classes_in

FILE = DOCS / "composition-matrix.json"
Outcome = Mapping[str, Any]


@contextmanager
def with_examples() -> Iterator[None]:
    """The registry with this repository's plugins and those under ``examples/``."""
    classes = [plugin for file in sorted(ROOT.glob("examples/*/pyproject.toml")) for plugin in classes_in(file.parent)]
    with only_ours():
        before = discovery.installed
        found = (
            *before(),
            *(discovery.examine(discovery.Installed(p.name, f"plait-{p.name}", "0.1.0"), p) for p in classes),
        )
        discovery.installed = lambda: found  # type: ignore[assignment]
        try:
            yield
        finally:
            discovery.installed = before


def write() -> Matrix:
    """Try every set anew and write the file."""
    with with_examples():
        made = make(large=True, say=print)
    if not made.crashed:
        FILE.write_text(json.dumps(made.as_dict(), indent=1) + "\n", encoding="utf-8")
    return made


def stored() -> dict[str, Any]:
    """The outcomes as they were when the file was written."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


# ---- the parts ---------------------------------------------------------------------------------------------------
def matrix_part(which: str) -> str:
    """``pairs``, ``sets``, ``models``, ``data`` or ``refusals``."""
    return {"pairs": _pairs, "sets": _sets, "models": _grid, "data": _grid, "refusals": _refusals}[which](which)


def _pairs(_: str) -> str:
    """Plugins by plugins: on the diagonal each alone, below it the pair turned round where that is another run."""
    found = stored()
    names = found["plugins"]
    outcomes = {tuple(one["plugins"]): one for one in found["sets"]}
    rows = [
        [f"**{row}**", *(_word(outcomes.get((row,) if row == column else (row, column))) for column in names)]
        for row in names
    ]
    return table(["first in the recipe", *names], rows)


def _grid(which: str) -> str:
    """Models or data by plugins."""
    found = stored()
    kind = "model" if which == "models" else "data"
    cells = {(one[kind], tuple(one["plugins"])): one for one in found[which]}
    rows = []
    for component in dict.fromkeys(one[kind] for one in found[which]):
        alone = [(), *((name,) for name in found["plugins"])]
        rows.append([f"`{component}`", *(_word(cells.get((component, names))) for names in alone)])
    return table([kind, "no plugin", *found["plugins"]], rows)


def _sets(_: str) -> str:
    """Every set with what the run came to."""
    rows = []
    for one in stored()["sets"]:
        masks = ", ".join(map(str, one.get("masks", ()))) or "-"
        again = f"step {int(one['resumed'].removeprefix('step-'))}" if "resumed" in one else "-"
        hooks = ", ".join(dict.fromkeys(f"`{h}`" for hooks in one.get("hooks", {}).values() for h in hooks))
        figures = len(one.get("metrics", ()))
        rows.append([" + ".join(one["plugins"]), _word(one), one.get("steps", "-"), masks, figures, again, hooks])
    columns = [
        "plugins",
        "verdict",
        "steps",
        "masks changed after",
        "figures",
        "same bits again from",
        "hooks that acted",
    ]
    return table(columns, rows)


def _refusals(_: str) -> str:
    """Why each refused set is refused, and the fix."""
    found = stored()
    refused = [one for part in ("sets", "models", "data") for one in found[part] if one["status"] == "refused"]
    if not refused:
        return "None."
    rows = [[" + ".join(one["plugins"]), one["rule"], one["sentence"], one["fix"]] for one in refused]
    return table(["plugins", "rule", "why", "fix"], rows)


def _word(one: Outcome | None) -> str:
    if one is None:
        return ""
    return f"refused ({one['rule']})" if one["status"] == "refused" else str(one["status"])


__all__: Sequence[str] = ("matrix_part", "stored", "with_examples", "write")

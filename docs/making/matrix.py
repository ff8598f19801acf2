"""The composition matrix of this repository's plugins and the examples, kept in a file because it takes minutes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from making.shared import DOCS, ROOT, installed, only_ours, table
from plait.planning import discovery
from plait_authoring.matrix import Matrix, make
from plait_authoring.strangers import classes_in

FILE = DOCS / "composition-matrix.json"
Outcome = Mapping[str, Any]


@contextmanager
def with_examples() -> Iterator[None]:
    """The registry with this repository's plugins and those under ``examples/``."""
    classes = [plugin for file in sorted(ROOT.glob("examples/*/pyproject.toml")) for plugin in classes_in(file.parent)]
    examples = [discovery.examine(discovery.Installed(p.name, f"plait-{p.name}", "0.1.0"), p) for p in classes]
    with only_ours(), installed([*discovery.installed(), *examples]):
        yield


def write() -> Matrix:
    """Try every set anew and write the file."""
    with with_examples():
        matrix = make(large=True, say=print)
    if not matrix.crashed:
        FILE.write_text(json.dumps(matrix.as_dict(), indent=1) + "\n", encoding="utf-8")
    return matrix


def stored() -> dict[str, Any]:
    """The outcomes as they were when the file was written."""
    matrix: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return matrix


# ---- the parts ---------------------------------------------------------------------------------------------------
def matrix_part(which: str) -> str:
    """``pairs``, ``sets``, ``models``, ``data`` or ``refusals``."""
    return {"pairs": _pairs, "sets": _sets, "models": _grid, "data": _grid, "refusals": _refusals}[which](which)


def _pairs(_: str) -> str:
    """Plugins by plugins: on the diagonal each alone, below it the pair turned round where that is another run."""
    matrix = stored()
    names = matrix["plugins"]
    outcomes = {tuple(outcome["plugins"]): outcome for outcome in matrix["sets"]}
    rows = [
        [f"**{row}**", *(_word(outcomes.get((row,) if row == column else (row, column))) for column in names)]
        for row in names
    ]
    return table(["first in the recipe", *names], rows)


def _grid(which: str) -> str:
    """Models or data by plugins."""
    matrix = stored()
    kind = "model" if which == "models" else "data"
    cells = {(outcome[kind], tuple(outcome["plugins"])): outcome for outcome in matrix[which]}
    rows = []
    for component in dict.fromkeys(outcome[kind] for outcome in matrix[which]):
        alone = [(), *((name,) for name in matrix["plugins"])]
        rows.append([f"`{component}`", *(_word(cells.get((component, names))) for names in alone)])
    return table([kind, "no plugin", *matrix["plugins"]], rows)


def _sets(_: str) -> str:
    """Every set with what the run came to."""
    rows = []
    for outcome in stored()["sets"]:
        masks = ", ".join(map(str, outcome.get("masks", ()))) or "-"
        again = f"step {int(outcome['resumed'].removeprefix('step-'))}" if "resumed" in outcome else "-"
        hooks = ", ".join(dict.fromkeys(f"`{h}`" for hooks in outcome.get("hooks", {}).values() for h in hooks))
        names, figures = " + ".join(outcome["plugins"]), len(outcome.get("metrics", ()))
        rows.append([names, _word(outcome), outcome.get("steps", "-"), masks, figures, again, hooks])
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
    outcomes = [outcome for part in ("sets", "models", "data") for outcome in stored()[part]]
    refused = [outcome for outcome in outcomes if outcome["status"] == "refused"]
    if not refused:
        return "None."
    rows = [[" + ".join(o["plugins"]), o["rule"], o["sentence"], o["fix"]] for o in refused]
    return table(["plugins", "rule", "why", "fix"], rows)


def _word(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    return f"refused ({outcome['rule']})" if outcome["status"] == "refused" else str(outcome["status"])


__all__: Sequence[str] = ("matrix_part", "stored", "with_examples", "write")

"""``plait plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from plait_cli import output
from plait_cli.parameters import AsJson, DataName, ModelName, PluginNames, RecipeFile, Settings, assemble

if TYPE_CHECKING:
    from plait.planning.plan import Plan

REFUSED = 3


def plan(
    recipe: RecipeFile = None,
    plugins: PluginNames = None,
    data: DataName = None,
    model: ModelName = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Say whether plugins can work together, in which order they act and why; nothing is started.

    Exit code 3 when they cannot, with what to change.

    Examples:

      plait plan -p chase -p fairsam
      plait plan recipe.toml --set chase.density=0.05
      plait plan -p fairsam --data tiny-images --json
    """
    from plait.planning.plan import make_plan

    judged = make_plan(assemble(recipe, plugins, settings, data=data, model=model))
    if as_json:
        output.emit(judged.as_dict())
    else:
        typer.echo(described(judged))
    if not judged.ok:
        raise typer.Exit(REFUSED)


def described(judged: Plan) -> str:
    """The plan for people."""
    from plait.declare.rules import Rule
    from plait.hooks import rule_of

    names = list(judged.recipe.plugins) or ["no plugin"]
    lines = [output.heading(f"{' + '.join(names)} on {judged.recipe.data.name} with {judged.recipe.model.name}")]
    rows = []
    for hook, order in judged.order.items():
        rule = rule_of(hook)
        if rule is not Rule.REGISTRY or hook == "views":
            rows.append((hook, rule.value, " -> ".join(order), "; ".join(judged.reasons.get(hook, []))))
    if rows:
        head, *body = output.aligned([("HOOK", "RULE", "ORDER", "WHY"), *rows]).splitlines()
        lines += ["", output.heading(head), *body]
    owned = [(name, ", ".join(map(str, things))) for name, things in judged.ownership.items()]
    if owned:
        lines += ["", output.heading("OWNERSHIP"), output.aligned(owned)]
    if judged.unchecked:
        lines += ["", output.heading("NOT CHECKED YET"), *judged.unchecked]
    lines.append("")
    if judged.ok:
        lines.append(typer.style("ok: they can work together.", fg="green"))
    for refusal in judged.refusals:
        lines.append(typer.style(f"refused ({refusal.rule}): ", fg="red", bold=True) + refusal.message)
        lines.append(f"  fix: {refusal.fix}")
    return "\n".join(lines)

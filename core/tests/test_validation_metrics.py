"""The plugins' metrics on the validation split: ``<plugin>/<metric>@validation``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import plait
from plait import Metric, Plugin, Table, hookimpl
from plait.storage.directory import RunDirectory

RECIPE: dict[str, Any] = {"data": {"name": "tiny-images"}, "train": {"steps": 8}, "device": "cpu"}


class Looks(Plugin):
    """A metric and a table of the clean view."""

    name = "looks"
    contract = 1

    @hookimpl
    def evaluate(self, trainer: Any, predictions: Mapping[str, Any]) -> Mapping[str, Metric | Table]:
        count = len(predictions["clean"].outputs)
        return {"count": Metric(float(count)), "table": Table("t", ["n"], [[count]])}


class Ignores(Plugin):
    """A metric that depends on no data."""

    name = "ignores"
    contract = 1

    @hookimpl
    def evaluate(self) -> Mapping[str, Metric]:
        return {"one": Metric(1.0)}


class Wants(Plugin):
    """Needs a view of its own."""

    name = "wants"
    contract = 1

    @hookimpl
    def views(self) -> Mapping[str, Any]:
        return {"mine": plait.View("mine", tags={"mine": 1})}

    @hookimpl
    def evaluate(self, predictions: Mapping[str, Any]) -> Mapping[str, Metric]:
        return {"count": Metric(float(len(predictions["mine"].outputs)))}


def test_what_is_recorded(tmp_path: Path, install: Callable[..., None]) -> None:
    install(Looks, Ignores, Wants)
    run = plait.run(RECIPE, plugins=["looks", "ignores", "wants"], out=tmp_path / "r")
    assert run.metrics["looks/count"] == 128 and run.metrics["looks/count@validation"] == 64
    assert {n for n in run.metrics if n.endswith("@validation")} == {
        "task/accuracy@validation",
        "task/loss@validation",
        "looks/count@validation",
    }
    assert run.details["task/accuracy@validation"]["unit"] == "%"
    again = plait.load_run(run.path)
    assert again.metrics == run.metrics and again.details == run.details
    result = RunDirectory(run.path).result()
    assert result is not None and not any("@validation" in name for name in result["details"])


def test_it_is_the_final_state_on_the_validation_split(tmp_path: Path) -> None:
    run = plait.run({**RECIPE, "train": {"steps": 8, "batch_size": 64}}, out=tmp_path / "r")
    last = [e["values"] for e in RunDirectory(run.path).events() if "validation/accuracy" in e.get("values", {})][-1]
    assert run.metrics["task/accuracy@validation"] == pytest.approx(last["validation/accuracy"])

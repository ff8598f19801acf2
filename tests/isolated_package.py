"""Collected by test_isolation.py alone, in an environment of the core, the command line, the kit and one package."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.planning import discovery
from plait_authoring.fixtures import Answer, call
from plait_authoring.trials import usable

__all__ = ["call"]

pytestmark = pytest.mark.smoke
SET: dict[str, list[str]] = json.loads(os.environ["PLAIT_ISOLATED"])
"""What is installed: the distributions, the plugins of all of them, and those of the package itself."""


def test_nothing_else_of_plait_is_there() -> None:
    names = {str(distribution.metadata["Name"]) for distribution in importlib.metadata.distributions()}
    assert sorted(name for name in names if name.startswith("plait")) == SET["distributions"]
    status = {item.name: item.status for item in discovery.installed()}
    assert status == dict.fromkeys([discovery.BUILTIN, *SET["plugins"]], "ok")


def test_it_runs(tmp_path: Path, call: Callable[..., Answer]) -> None:
    acting = sorted({*SET["own"]} & {*usable()})
    words = ["run", "--steps", "4", "--out", str(tmp_path / "tiny"), "--json"]
    for name in acting:
        plugin = discovery.find_plugin(name).plugin
        assert plugin is not None
        words += ["-p", name]
        words += [word for key, value in plugin.tiny.items() for word in ("--set", f"{name}.{key}={json.dumps(value)}")]
    done = call(*words)
    assert done.code == 0, done.err
    metrics = done.document["metrics"]
    assert acting or metrics["task/accuracy"] >= 0
    assert all(any(metric.startswith(f"{name}/") for metric in metrics) for name in acting)


def test_the_refusal_without_the_zoo_says_what_to_do(call: Callable[..., Answer]) -> None:
    if "zoo" in SET["plugins"]:
        pytest.skip("the zoo is there")
    done = call("run", "--data", "toned-digits", "--out", "none")
    assert done.code == 2 and "no data source named 'toned-digits'" in done.err

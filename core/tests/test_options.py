"""Options that start from a named preset."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

import plait
from plait import BadInput, DataSource, PresetOptions
from plait.planning import discovery


class StepOptions(PresetOptions):
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"plain": {}, "bold": {"size": 3.0, "times": 2}}

    size: float = Field(1.0, ge=0, le=5, description="length of a step")
    times: int = Field(1, ge=1, le=9, description="steps")


class Stepper(plait.Plugin):
    name, contract, Options = "stepper", plait.CONTRACT_VERSION, StepOptions


@pytest.mark.parametrize(
    "given, wanted",
    [
        ({}, {"size": 1.0, "times": 1}),
        ({"baseline": "plain"}, {"baseline": "plain", "size": 1.0, "times": 1}),
        ({"baseline": "bold"}, {"baseline": "bold", "size": 3.0, "times": 2}),
        ({"times": 5, "baseline": "bold"}, {"baseline": "bold", "size": 3.0, "times": 5}),
        ({"baseline": None, "size": 2}, {"size": 2.0, "times": 1}),
    ],
)
def test_a_preset_fills_what_is_not_given(
    install: Callable[..., None], given: dict[str, Any], wanted: dict[str, Any]
) -> None:
    install(Stepper)
    resolved = plait.plan(plugins={"stepper": given}).recipe
    assert resolved.plugins["stepper"] == wanted
    # what stands in recipe.toml says everything: presets of a later release do not change a resumed run
    assert plait.plan(resolved).recipe == resolved


@pytest.mark.parametrize("name", ["bald", 3, ["bold"]])
def test_an_unknown_preset_is_bad_input_that_lists_the_known(install: Callable[..., None], name: Any) -> None:
    install(Stepper)
    with pytest.raises(BadInput, match=r"plugin stepper: .*no baseline .*known: plain, bold"):
        plait.plan(plugins={"stepper": {"baseline": name}})


def test_a_bad_value_in_a_preset_is_found_like_any_other() -> None:
    class Wrong(StepOptions):
        presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"huge": {"size": 50.0}}

    with pytest.raises(ValueError, match="less than or equal to 5"):
        Wrong.model_validate({"baseline": "huge"})


def test_the_description_lists_the_presets_of_each_class() -> None:
    assert (StepOptions.model_fields["baseline"].description or "").endswith(": plain, bold")
    assert not (PresetOptions.model_fields["baseline"].description or "").endswith("bold")


@pytest.mark.parametrize("plugin", ["chase", "fairsam"])
def test_the_methods_presets_resolve_to_themselves(plugin: str) -> None:
    """Oracle: the defaults, updated by the preset, updated by what is given."""
    options = pytest.importorskip(f"plait_{plugin}.options")
    presets = pytest.importorskip(f"plait_{plugin}.presets").BASELINES
    kind: type[PresetOptions] = getattr(options, f"{plugin.capitalize()}Options")
    extra = {"density": 0.3} if plugin == "chase" else {"eta": 0.2}
    defaults = kind.model_validate({}).model_dump()
    for name, preset in presets.items():
        assert kind.model_validate({"baseline": name, **extra}).model_dump() == {
            **defaults,
            "baseline": name,
            **preset,
            **extra,
        }


# ---- options that are imported later ----------------------------------------------------------------------------
def module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


LAZY = """
from pydantic import Field
from plait import Options

class LazyOptions(Options):
    size: float = Field(2.0, ge=0, le=5, description="length")

NUMBER = 3
"""


def test_later_options_are_imported_when_they_are_used(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(tmp_path, monkeypatch, "lazy_options", LAZY)
    of_data = module(tmp_path, monkeypatch, "lazy_data_options", LAZY)

    class Lazy(plait.Plugin):
        name, contract, Options = "lazy", plait.CONTRACT_VERSION, plait.later("lazy_options:LazyOptions")

        @plait.hookimpl
        def data_sources(self) -> dict[str, Any]:
            assert self.options is not None
            return {
                "lazy-data": DataSource("nowhere:load", "none", options=plait.later("lazy_data_options:LazyOptions"))
            }

    install(Lazy)
    assert discovery.active_registry()["lazy"].hooks == ["data_sources"]
    assert name not in sys.modules
    source = discovery.collect("data_sources")[0]["lazy-data"][1]
    assert of_data not in sys.modules
    assert source.options.model_fields["size"].default == 2.0
    assert Lazy.Options is sys.modules[name].LazyOptions
    assert source.options is sys.modules[of_data].LazyOptions
    assert plait.plan(plugins={"lazy": {"size": 3}}).recipe.plugins["lazy"] == {"size": 3.0}
    with pytest.raises(BadInput, match=r"plugin lazy: .*size"):
        plait.plan(plugins={"lazy": {"size": 9}})
    assert discovery.default_instance(Lazy).options.size == 2.0  # a registry hook that reads an option gets the default


@pytest.mark.parametrize(
    "path, said",
    [
        ("no_such_module_here:Options", "importing no_such_module_here failed"),
        ("lazy_options:Missing", "has no 'Missing'"),
        ("lazy_options:NUMBER", "is a int, not a function or class"),
        ("pathlib:Path", "is not a pydantic model"),
    ],
)
def test_later_options_that_are_not_there_are_said(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, said: str
) -> None:
    module(tmp_path, monkeypatch, "lazy_options", LAZY)

    class Lazy(plait.Plugin):
        name, contract, Options = "lazy", plait.CONTRACT_VERSION, plait.later(path)

    install(Lazy)
    with pytest.raises(BadInput, match=said):
        plait.plan(plugins={"lazy": {}})
    assert plait.plan(plugins={}).ok  # others are not disturbed


@pytest.mark.parametrize("path", ["", "module", "module:", ":Name"])
def test_later_wants_an_import_path(path: str) -> None:
    with pytest.raises(BadInput, match=r"write it as package.module:name"):
        plait.later(path)

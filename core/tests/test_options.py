"""Options that start from a named preset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
from pydantic import Field

import plait
from plait import BadInput, PresetOptions


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

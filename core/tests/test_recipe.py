"""Recipes: TOML in and out, unknown keys with suggestions, changes that win, and nothing but BadInput on bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plait
from plait.declare.recipe import Recipe, assemble, parse_value
from plait.errors import BadInput, PlaitError

keys = st.sampled_from([*Recipe.model_fields, "train.epochs", "optimizer.lr", "x", "a.b.c", "plugins.task", "", "."])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(keys, values, max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_mapping_gives_a_plan_or_bad_input(mapping: dict[str, Any]) -> None:
    for attempt in (lambda: plait.plan(mapping), lambda: plait.plan(settings=mapping)):
        message = None
        try:
            attempt()
        except PlaitError as error:
            message, code = str(error), error.exit_code
        assert message is None or (message and code in (2, 3))


@given(st.integers(0, 2**62), st.floats(1e-6, 1), st.integers(1, 1000), st.sampled_from(["sgd", "adam"]))
def test_toml_round_trip(seed: int, lr: float, epochs: int, name: str) -> None:
    recipe = Recipe.parse(
        {
            "seed": seed,
            "optimizer": {"lr": lr, "name": name},
            "train": {"epochs": epochs},
            "data": {"name": "d", "x": [1, 2.5]},
        }
    )
    import tomllib

    assert Recipe.parse(tomllib.loads(recipe.to_toml())) == recipe.model_copy(update={})


def test_unknown_keys_name_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("[train]\nepoch = 3\n")
    with pytest.raises(BadInput, match=r"r\.toml.*train\.epoch.*Did you mean 'epochs'"):
        Recipe.load(file)
    with pytest.raises(BadInput, match="Did you mean 'optimizer'"):
        assemble(settings={"optimiser.lr": 1})
    with pytest.raises(BadInput, match="no such file"):
        Recipe.load(tmp_path / "none.toml")
    file.write_text("a = [")
    with pytest.raises(BadInput, match="not valid TOML"):
        Recipe.load(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        Recipe.load(file)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer.lr": -1},
        {"optimizer.lr": float("nan")},
        {"train.batch_size": 0},
        {"device": "tpu"},
        {"train": 3},
        {"seed": "x"},
    ],
)
def test_values_out_of_bounds(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        assemble(settings=settings)


def test_changes_win_and_budgets_replace_each_other() -> None:
    base = Recipe.parse({"train": {"epochs": 3}, "data": {"name": "tiny-images", "classes": 5}})
    assert assemble(base, steps=7).train.steps == 7 and assemble(base, steps=7).train.epochs is None
    assert assemble(base).data.options == {"classes": 5}
    assert assemble(base, data="other").data.options == {}
    with pytest.raises(BadInput, match="epochs or steps"):
        assemble(base, steps=7, epochs=2)


def test_parse_value() -> None:
    assert [parse_value(t) for t in ("1", "0.5", "true", "[1, 2]", "word", "1e-3", '"q"', "a b", "")] == [
        1,
        0.5,
        True,
        [1, 2],
        "word",
        1e-3,
        "q",
        "a b",
        "",
    ]


def test_component_options_are_checked() -> None:
    with pytest.raises(BadInput, match=r"data tiny-images.*Did you mean 'classes'"):
        plait.plan(data="tiny-images", settings={"data.clases": 3})
    with pytest.raises(BadInput, match="classes = 1"):
        plait.plan(data="tiny-images", settings={"data.classes": 1})

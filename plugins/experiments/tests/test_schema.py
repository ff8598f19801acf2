"""claims.toml: what is refused, with file and key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from claims_book import VALUES, book, values
from hypothesis import given
from hypothesis import strategies as st

from plait.errors import BadInput
from plait_experiments.experiment import check
from plait_experiments.schema import load, load_file, parse_book


def refused(**changes: Any) -> str:
    with pytest.raises(BadInput) as caught:
        book(**changes)
    return str(caught.value)


def test_the_example_is_good() -> None:
    claims = book()
    claim = claims.claim("learns")
    assert claims.arms_of(claim) == ["trained", "untrained"]
    assert claims.metrics_of(claim) == ["accuracy"]
    assert check(claims) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "schema = 2"),
        ({"clams": []}, "unknown key 'clams'. Did you mean 'claims'?"),
        ({"claims": []}, "claims = []"),
        ({"claims__0__expect": []}, "claims.learns.expect = []"),
        ({"claims__0__extra": True}, "claims.learns.extra: what decides the exit code must run every time"),
        ({"claims__0__sentense": "x"}, "unknown key 'claims.0.sentense'"),
        ({"claims__0__sentence": " "}, "claims.0.sentence"),
        ({"claims__0__id": "Bad Id"}, "claims.0.id"),
        ({"claims__0__minutes": {}}, "claims.0.minutes"),
        ({"claims__0__minutes": {"moon": 1}}, "claims.0.minutes.moon"),
        ({"claims__0__minutes": {"paper": 1}}, "claims.learns.minutes.paper: there is no scales.paper"),
        ({"claims__0__expect": ["trained.accuracy"]}, "claims.learns.expect.0 = 'trained.accuracy': not a comparison"),
        ({"claims__0__guards": ["trained.acuracy > 1"]}, "no metric 'acuracy'. Did you mean 'accuracy'?"),
        ({"claims__0__expect": ["trainde.accuracy > 1"]}, "no arm 'trainde'. Did you mean 'trained'?"),
        ({"claims__0__arms": ["nobody"]}, "claims.learns.arms: there is no arm 'nobody'"),
        ({"claims__0__show": ["nothing"]}, "claims.learns.show: there is no metric 'nothing'"),
        ({"claims__0__required": {"trained.accuracy > 1": 1.0}}, "it is none of the claim's expectations"),
        (
            {
                "claims__0__expect": ["max(trained.accuracy) > 1"],
                "claims__0__required": {"max(trained.accuracy) > 1": 1},
            },
            "judged in every seed",
        ),
        ({"claims__0__required": {"trained.accuracy - untrained.accuracy > 0": 0}}, "claims.0.required"),
        ({"claims__0__paper": {"accuracy": 1.0}}, "write it as arm.metric"),
        ({"claims__0__paper": {"trained.loss": 1.0}}, "no metric 'loss'"),
        ({"claims__0__paper": {"trained.accuracy": float("nan")}}, "paper"),
        ({"metrics__seeds": {"name": "x"}}, "metrics.seeds: the word has a meaning"),
        ({"metrics__a-b": {"name": "x"}}, "a-b"),
        ({"metrics__accuracy__better": "bigger"}, "metrics.accuracy.better = 'bigger'"),
        ({"arms__trained__grid": {"optimizer.lr": [1, 2]}}, "arms.trained.choose: a grid needs"),
        ({"arms__trained__grid": {"optimizer.lr": []}}, "arms.trained.grid"),
        ({"arms__trained__choose": "task/accuracy"}, "choices never see the test"),
        ({"arms__trained__options": {"x": 1}}, "arms.trained.options"),
        ({"arms__trained__function": "no path"}, "arms.trained.function"),
        ({"arms__trained__function": "a:b", "arms__trained__measure": "a:b"}, "arms.trained.measure"),
        ({"arms__trained__at": {"paper": {}}}, "arms.trained.at.paper"),
        ({"scales__laptop__recipe__seed": 1}, "scales.laptop.recipe.seed"),
        ({"scales__laptop__seeds": [1, 1]}, "scales.laptop.seeds: a seed is given twice"),
        ({"scales__laptop__seeds": [-1]}, "scales.laptop.seeds"),
        ({"claims": [*VALUES["claims"], *VALUES["claims"]]}, "'learns' is given twice"),
    ],
)
def test_bad_claims_are_named_with_file_and_key(changes: dict[str, Any], said: str) -> None:
    message = refused(**changes)
    assert said in message
    assert all(line.startswith("test/claims.toml: ") for line in message.splitlines())


def test_a_missing_key_is_named() -> None:
    lacking = values()
    del lacking["claims"][0]["source"]
    with pytest.raises(BadInput, match=r"claims\.toml: claims\.0\.source is required\.$"):
        parse_book(lacking, "claims.toml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms__trained__set": {"train.setps": 1}}, "arms.trained at laptop: unknown key 'train.setps'"),
        ({"arms__trained__set": {"chase.density": 1}}, "'chase' is neither a table"),
        ({"arms__trained__set": {"data.size": 1}}, "arms.trained at laptop: data tiny-images: size = 1"),
        ({"arms__trained__plugins": {"task": {"x": 1}}}, "plugins.task: unknown key 'x'"),
        ({"scales__laptop__recipe__train__steps": "many"}, "train.steps = 'many'"),
    ],
)
def test_recipe_problems_are_found_without_running(changes: dict[str, Any], said: str) -> None:
    problems = check(book(**changes))
    assert problems and said in problems[0] and problems[0].startswith("test/claims.toml: ")


def test_what_is_not_installed_is_not_judged() -> None:
    assert check(book(scales__laptop__recipe__data={"name": "nowhere-data", "size": 3})) == []
    assert check(book(arms__trained__plugins={"nowhere": {"x": 1}})) == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(
        ["schema", "metrics", "scales", "arms", "claims", "arms__trained", "claims__0", "claims__0__expect"]
    ),
)
def test_any_value_anywhere_is_accepted_or_bad_input(value: Any, place: str) -> None:
    message = "test/claims.toml"
    try:
        book(**{place: value})
    except BadInput as error:
        message = str(error)
    assert message.startswith("test/claims.toml")


def test_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"missing\.toml: cannot be read"):
        load_file(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("claims = [")
    with pytest.raises(BadInput, match=r"bad\.toml: not valid TOML"):
        load_file(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"binary\.toml: cannot be read"):
        load_file(tmp_path / "binary.toml")


def test_plugins_without_claims_and_unknown_plugins() -> None:
    assert load("task") is None
    with pytest.raises(BadInput, match="no plugin named"):
        load("nobody")


def test_importing_and_loading_need_no_torch() -> None:
    code = """
import sys
from plait_experiments import experiment, expressions, plugin, schema, sweep, tables, verification
schema.load("task")
print([name for name in ("torch", "scipy", "numpy", "matplotlib", "ray") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_plugin_is_light() -> None:
    code = """
import sys
import plait_experiments.plugin
print([name for name in ("torch", "scipy", "numpy", "matplotlib", "jinja2", "typer", "rich") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

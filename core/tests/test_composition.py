"""Composition is decided from declarations: each rule, the order, ownership, needs, and people-friendly refusals."""

from __future__ import annotations

import fnmatch
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plait
from plait.declare.words import globs_intersect
from plait.errors import BadInput
from plait.planning import discovery

Install = Callable[..., None]


def make(name: str, **members: Any) -> type[plait.Plugin]:
    return type(name, (plait.Plugin,), {"name": name, "contract": plait.CONTRACT_VERSION, **members})


@plait.hookimpl
def optimizer_step(self: Any, proceed: Any) -> Any:
    return proceed()


@plait.hookimpl(inner=True)
def inner_step(self: Any, trainer: Any, batch: Any) -> Any:
    return trainer.gradients(batch)


inner_step.__name__ = "optimizer_step"


@plait.hookimpl
def update_masks(self: Any, trainer: Any) -> None:
    return None


@plait.hookimpl
def objective(self: Any, outputs: Any, batch: Any) -> Any:
    return outputs


def owns(*pairs: tuple[str, str]) -> Callable[[Any], tuple[plait.Ownership, ...]]:
    return lambda self: tuple(plait.Ownership(*pair) for pair in pairs)


def refusals(*plugins: str, **changes: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [(r.rule, r.plugins) for r in plait.plan(plugins=plugins, **changes).refusals]


def test_wrappers_keep_the_recipes_order_and_the_inner_step_is_innermost(install: Install) -> None:
    install(
        make("own", optimizer_step=inner_step),
        make("clip", optimizer_step=optimizer_step),
        make("ema", optimizer_step=optimizer_step),
    )
    assert plait.plan(plugins=["own", "ema", "clip"]).order["optimizer_step"] == ["ema", "clip", "own"]
    assert plait.plan(plugins=["clip", "own", "ema"]).order["optimizer_step"] == ["clip", "ema", "own"]


def test_two_inner_steps_are_refused_and_both_are_named(install: Install) -> None:
    install(make("one", optimizer_step=inner_step), make("two", optimizer_step=inner_step))
    plan = plait.plan(plugins=["one", "two"])
    assert [(r.rule, r.plugins) for r in plan.refusals] == [("wrap", ("one", "two"))]
    assert "-p one" in plan.refusals[0].fix and "-p two" in plan.refusals[0].fix
    assert not plan.ok


def test_two_objectives_are_refused(install: Install) -> None:
    install(make("a", objective=objective), make("b", objective=objective))
    assert refusals("a", "b") == [("one", ("a", "b"))]
    assert refusals("a") == []


@pytest.mark.parametrize(
    ("left", "right", "collide"),
    [
        (("parameters", "*"), ("parameters", "*"), True),
        (("parameters", "encoder.*"), ("parameters", "decoder.*"), False),
        (("parameters", "encoder.*"), ("parameters", "*.weight"), True),
        (("parameters", "*"), ("edges", "*"), False),
    ],
)
def test_partition_by_ownership(install: Install, left: Any, right: Any, collide: bool) -> None:
    install(
        make("l", update_masks=update_masks, ownership=owns(left)),
        make("r", update_masks=update_masks, ownership=owns(right)),
    )
    assert (refusals("l", "r") == [("partition", ("l", "r"))]) is collide


def test_mask_owner_without_claims_is_refused(install: Install) -> None:
    install(make("sly", update_masks=update_masks))
    assert refusals("sly") == [("partition", ("sly",))]


def test_declared_order_beats_the_recipes_and_a_circle_is_refused(install: Install) -> None:
    def step(**order: Any) -> Any:
        def optimizer_step(self: Any, proceed: Any) -> Any:
            return proceed()

        return plait.hookimpl(**order)(optimizer_step)

    install(
        make("late", optimizer_step=step(after=("early",))),
        make("early", optimizer_step=step()),
        make("worded", optimizer_step=step(before=("step:special",))),
        make("special", optimizer_step=step(), provides=lambda self: frozenset({"step:special"})),
        make("x", optimizer_step=step(before=("y",))),
        make("y", optimizer_step=step(before=("x",))),
    )
    plan = plait.plan(plugins=["late", "early"])
    assert plan.order["optimizer_step"] == ["early", "late"]
    assert plan.reasons["optimizer_step"] == ["late after early: declared"]
    assert plait.plan(plugins=["special", "worded"]).order["optimizer_step"] == ["worded", "special"]
    assert refusals("x", "y") == [("order", ("x", "y"))]


def test_missing_need_names_what_would_provide_it(install: Install) -> None:
    install(
        make("fair", needs=lambda self: frozenset({"field:group"})),
        make("deep", needs=lambda self: frozenset({"model:depth"})),
        make("deepener", provides=lambda self: frozenset({"model:depth"})),
    )
    assert refusals("fair", data="tiny-images") == []
    plan = plait.plan(plugins=["deep"])
    assert plan.refusals[0].rule == "needs" and "-p deepener" in plan.refusals[0].fix
    assert refusals("deep", "deepener") == []
    assert plait.plan(plugins=["fair"], data="my.module:load").unchecked


def test_a_fix_offers_what_suits_the_rest_of_the_recipe(install: Install) -> None:
    image, graph = {"field:input", "task:classification"}, {"field:graph", "task:classification"}

    @plait.hookimpl
    def data_sources(self: Any) -> dict[str, plait.DataSource]:
        sources = {"photos": image, "old-photos": image | {"field:age"}, "friends": graph | {"field:age"}}
        return {name: plait.DataSource("x:y", "z", frozenset(words)) for name, words in sources.items()}

    @plait.hookimpl
    def models(self: Any) -> dict[str, plait.ModelSource]:
        words, each = frozenset({"model:wide"}), "loss:per-example"  # a word that no data source has to provide
        return {
            "wide-graph-net": plait.ModelSource("x:y", "z", words, frozenset({"field:graph", each})),
            "wide-net": plait.ModelSource("x:y", "z", words, frozenset({"field:input", each})),
        }

    install(
        make("aged", data_sources=data_sources, models=models, needs=lambda self: frozenset({"field:age"})),
        make("wide", needs=lambda self: frozenset({"model:wide"})),
    )
    (refused,) = plait.plan(plugins=["aged"], data="photos", model="tiny-cnn").refusals
    assert refused.fix == "Use --data old-photos."
    (refused,) = plait.plan(plugins=["wide"], data="photos", model="tiny-cnn").refusals
    assert refused.fix == "Use --model wide-net."
    first, _ = plait.plan(plugins=["aged"], data="photos", model="wide-graph-net").refusals
    assert first.fix == "Use --data friends."


def test_broken_word_is_refused_with_both_names(install: Install) -> None:
    install(
        make("weigh", needs=lambda self: frozenset({"loss:per-example"})),
        make("scalar", breaks=lambda self: frozenset({"loss:per-example"})),
    )
    assert refusals("weigh") == []
    assert refusals("weigh", "scalar") == [("needs", ("weigh", "scalar"))]


def test_order_does_not_depend_on_installation(install: Install) -> None:
    plugins = [make(n, optimizer_step=optimizer_step) for n in ("p", "q", "r")]
    for order in (plugins, plugins[::-1]):
        install(*order)
        assert plait.plan(plugins=["q", "r", "p"]).order["optimizer_step"] == ["q", "r", "p"]


def test_wrong_signature_unknown_hook_version_and_name_are_named_and_skipped(install: Install) -> None:
    def objective(self: Any, outputs: Any, nonsense: Any) -> Any:
        return outputs

    def objektive(self: Any) -> None:
        return None

    install(
        make("bad-signature", objective=plait.hookimpl(objective)),
        make("bad-hook", objektive=plait.hookimpl(objektive)),
        make("old", contract=plait.CONTRACT_VERSION - 1 or -1),
        make("new", contract=plait.CONTRACT_VERSION + 1),
        make("Bad Name"),
        make("good"),
    )
    status = {item.name: (item.status, item.reason) for item in discovery.installed()}
    assert status["bad-signature"][0] == "broken" and "nonsense" in status["bad-signature"][1]
    assert status["bad-hook"][0] == "broken" and "objektive" in status["bad-hook"][1]
    assert status["old"][0] == status["new"][0] == "incompatible"
    assert "pip install -U plait-core" in status["new"][1] and "newer release" in status["old"][1]
    assert status["Bad Name"][0] == "broken"
    assert status["good"] == ("ok", "")
    assert plait.plan(plugins=["good"]).ok
    with pytest.raises(BadInput, match="incompatible"):
        plait.plan(plugins=["new"])


def test_duplicate_names_name_both_packages(install: Install) -> None:
    install(make("twin"), make("twin"), make("other"))
    with pytest.raises(BadInput, match="registered by"):
        plait.plan(plugins=["twin"])
    assert plait.plan(plugins=["other"]).ok


def test_unknown_names_suggest_the_nearest(install: Install) -> None:
    install(make("fairsam-like"))
    with pytest.raises(BadInput, match="Did you mean 'fairsam-like'"):
        plait.plan(plugins=["fairsam-lik"])
    with pytest.raises(BadInput, match="Did you mean 'tiny-images'"):
        plait.plan(data="tiny-image")


@given(st.text("ab*?", max_size=6), st.text("ab*?", max_size=6))
def test_globs_intersect_against_enumeration(left: str, right: str) -> None:
    """Oracle: fnmatch over every string of length <= 6 is enough for patterns this short."""
    words = [""]
    for length in range(7):
        words += [w + c for w in words if len(w) == length for c in "ab"]
    common = any(fnmatch.fnmatchcase(w, left) and fnmatch.fnmatchcase(w, right) for w in words)
    assert globs_intersect(left, right) >= common
    if len(left.replace("*", "")) + len(right.replace("*", "")) <= 6:
        assert globs_intersect(left, right) == common


def test_importing_and_planning_import_no_torch() -> None:
    code = "import sys, plait; plait.plan(data='tiny-images'); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

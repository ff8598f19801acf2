"""Every row of the card's bad input: one line that names option and value, exit code 2, nothing left behind."""

from __future__ import annotations

import dataclasses
from math import nan
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.data import TensorSplit
from plait.planning.discovery import pretend

pytestmark = pytest.mark.smoke

SMALL = {"data.classes": 2, "data.train": 64, "train.batch_size": 16}


def refused(tmp_path: Path, options: dict[str, Any], settings: dict[str, Any], *others: str) -> str:
    """The message of a run that must be bad input."""
    plugins = {**{name: {} for name in others}, "fairprune": options}
    out = tmp_path / "run"
    with pytest.raises(plait.BadInput) as caught:
        plait.run(
            plugins=plugins, data="tiny-images", model="tiny-cnn", steps=8, settings={**SMALL, **settings}, out=out
        )
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 1.0}, ("sparsity", "1.0")),
        ({"sparsity": -0.1}, ("sparsity", "-0.1")),
        ({"sparsity": nan}, ("sparsity",)),
        ({"sparsity": 0.9999}, ("sparsity = 0.9999", "leaves none of 1256")),
        ({"sparsity": 0.999}, ("sparsity = 0.999", "fewer than the 3", "layer_floor")),
        ({"strength": -1.0}, ("strength", "-1")),
        ({"strength": nan}, ("strength",)),
        ({"mask_strength": -2.0}, ("mask_strength", "-2")),
        ({"weight_strength": -2.0}, ("weight_strength", "-2")),
        ({"tolerance": 1.0}, ("tolerance", "1.0")),
        ({"tolerance": -0.1}, ("tolerance", "-0.1")),
        ({"tolerance": 0.1, "penalty": "signed"}, ("tolerance = 0.1", "signed")),
        ({"measure": "fairness"}, ("measure", "'fairness'", "degradation")),
        ({"surrogate": "step"}, ("surrogate", "'step'", "hinge")),
        ({"scope": "world"}, ("scope", "'world'", "layer")),
        ({"penalty": "none"}, ("penalty", "'none'", "absolute")),
        ({"baseline": "best"}, ("baseline", "'best'", "prune-then-fair")),
        ({"include": ["no.such"]}, ("include = 'no.such'", "matches no parameter")),
        ({"exclude": ["*"]}, ("nothing to prune",)),
        ({"scores": "snip"}, ("scores = 'snip'", "learn_mask = false")),
        ({"scores": "fpgm", "learn_mask": False}, ("scores = 'fpgm'", "structure = 'channels'")),
        ({"rewind": True}, ("rewind", "'rounds'")),
        ({"measure": "degradation"}, ("measure = 'degradation'", "protocol = 'paper'")),
        ({"target_share": 0.9}, ("target_share = 0.9", "freeze_share")),
        ({"density": "rounds", "rounds": 50}, ("rounds = 50", "do not fit")),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_an_option_is_refused(tmp_path: Path, options: dict[str, Any], words: tuple[str, ...]) -> None:
    message = refused(tmp_path, options, {})
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ({"data.classes": 4}, {"measure": "eo"}, "measure = 'eo' needs two classes, not 4"),
        ({"data.minority_share": 0.0}, {}, "group 1 has no training example"),
        ({"train.accumulate": 2}, {}, "leave out train.accumulate=2"),
    ],
)
def test_data_and_recipe_are_refused(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    assert words in refused(tmp_path, options, settings)


class Regrouped(plait.Plugin):
    """Other groups or labels on the training split."""

    name = "regrouped"
    contract = 1

    @plait.hookimpl
    def transform_data(self, data: plait.Data) -> plait.Data:
        """A third group."""
        fields = dict(data.train.fields)
        fields["group"] = fields["group"] + (fields["label"] * 2)
        return dataclasses.replace(data, train=TensorSplit(fields), info=dataclasses.replace(data.info, num_groups=4))


def test_a_bound_over_more_than_two_groups_is_refused_and_another_surrogate_offered(tmp_path: Path) -> None:
    with pretend(Regrouped):
        for options in ({"surrogate": "hinge"}, {"penalty": "signed"}):
            message = refused(tmp_path, options, {}, "regrouped")
            assert "the data have 4" in message
            assert "surrogate = 'sigmoid' with penalty = 'absolute' takes largest minus smallest" in message


def test_without_groups_or_beside_another_owner_it_is_refused_by_the_plan() -> None:
    pytest.importorskip("plait_zoo")
    plan = plait.plan(plugins=["fairprune"], data="digits", model="cnn")
    assert ["sensitive attribute" in refusal.message for refusal in plan.refusals] == [True]
    with pytest.raises(plait.Refused) as caught:
        plait.run(plugins=["fairprune"], data="digits", model="cnn")
    assert caught.value.exit_code == 3


class PartsPlugin(plait.Plugin):
    """Its step computes the loss on parts of the batch."""

    name = "parts"
    contract = 1

    def breaks(self) -> frozenset[str]:
        """Batches are not whole."""
        return frozenset({"loss:whole-batch"})


def test_a_plugin_that_cuts_batches_is_refused_by_the_plan() -> None:
    with pretend(PartsPlugin):
        wanted = {"data": "tiny-images", "model": "tiny-cnn"}
        (refusal,) = plait.plan(plugins=["fairprune", "parts"], **wanted).refusals
        assert "'fairprune' needs loss:whole-batch, which 'parts' takes away" in refusal.message
        alone = {"fairprune": {"weight_strength": 0.0}, "parts": {}}
        assert not plait.plan(plugins=alone, **wanted).refusals  # the mask's batches are its own

"""Runs: exact sparsity, the same bits after a kill, batches in proportion, the caller's loop, refusals."""

from __future__ import annotations

import dataclasses
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.data import TensorSplit
from plait.planning.discovery import pretend
from plait_authoring.kill import final_state, first_difference, forked, resume_until_done
from plait_fairprune.batches import FairSplit, proportional_order
from plait_fairprune.options import FairpruneOptions
from plait_fairprune.presets import BASELINES
from plait_fairprune.schedule import Schedule

pytestmark = pytest.mark.smoke

with_cooper = pytest.mark.skipif(find_spec("cooper") is None, reason="cooper-optim is not installed")

SMALL = {"data.classes": 2, "data.train": 64, "train.batch_size": 16, "optimizer.lr": 0.05, "checkpoint.every_steps": 5}


def run(out: Path, steps: int = 20, settings: dict[str, Any] | None = None, **options: Any) -> plait.Run:
    options = {"sparsity": 0.6, "mask_every": 2, "curve_points": 3, **options}
    chosen = {**SMALL, **(settings or {})}
    return plait.run(
        plugins={"fairprune": options}, data="tiny-images", model="tiny-cnn", steps=steps, settings=chosen, out=out
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"structure": "channels"},
        {"protocol": "paper", "hypergradient": "ig", "measure": "degradation"},
        {"baseline": "lottery"},
        {"baseline": "fpgm"},
        {"baseline": "snip"},
        {"baseline": "fairgrape"},
        pytest.param({"baseline": "lagrangian", "dual_rate": 5.0}, marks=with_cooper),
        {"scores": "random", "density": "constant", "surrogate": "hinge", "penalty": "signed"},
        {"measure": "eodds", "penalty": "hinge", "tolerance": 0.05, "scope": "layer"},
    ],
    ids=lambda options: ",".join(map(str, options.values())) or "default",
)
def test_a_run_is_exactly_as_sparse_as_asked_and_two_are_alike(tmp_path: Path, options: dict[str, Any]) -> None:
    first, second = run(tmp_path / "one", **options), run(tmp_path / "two", **options)
    assert first.metrics == second.metrics or str(first.metrics) == str(second.metrics)
    size = 24 if "channels" in options.values() or options.get("baseline") == "fpgm" else 72 + 1152 + 16 * 2
    assert first.metrics["fairprune/kept"] == round(0.4 * size)
    model = first.model
    if size == 24:
        assert model.conv1.out_channels + model.conv2.out_channels == round(0.4 * 24)
        assert first.metrics["fairprune/export_error@export"] < 1e-5
    else:
        weights = [model.conv1.weight, model.conv2.weight, model.head.weight]
        assert sum(int(weight.count_nonzero()) for weight in weights) <= round(0.4 * size)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"protocol": "paper", "hypergradient": "ig", "measure": "degradation"},
        {"baseline": "lottery"},
        {"structure": "channels", "scores": "random"},
        pytest.param({"baseline": "lagrangian", "dual_rate": 5.0}, marks=with_cooper),
    ],
    ids=lambda options: ",".join(map(str, options.values())) or "default",
)
def test_resumed_in_every_phase_it_ends_with_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {"checkpoint.every_steps": 3}
    assert forked(lambda: run(tmp_path / "whole", settings=settings, **options)) == 0
    for number, call in enumerate((3, 6, 9)):
        path = tmp_path / f"killed-{number}"
        killed = forked(lambda path=path: run(path, settings=settings, **options), kill_at=("os.replace", call))
        assert killed == -signal.SIGKILL
        resume_until_done(path, {})
        assert first_difference(final_state(path), final_state(tmp_path / "whole")) is None
        assert str(plait.load_run(path).metrics) == str(plait.load_run(tmp_path / "whole").metrics)


def test_proportional_batches_have_every_cell() -> None:
    cells = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = proportional_order(cells, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(100))
    for part in cells[order].split(20):
        counts = torch.bincount(part, minlength=3)
        assert (counts - torch.tensor([12, 6, 2])).abs().max() <= 1
    other = proportional_order(cells, torch.Generator().manual_seed(1))
    assert not torch.equal(order, other)


def test_the_stream_changes_its_rows_where_pruning_begins_and_goes_on_anywhere() -> None:
    label, group = torch.arange(40) % 2, (torch.arange(40) // 2) % 2
    split = FairSplit(
        TensorSplit({"input": torch.zeros(40, 1), "label": label, "group": group}), 2, True, 0.5, 0, False
    )
    split.dense_steps = 5
    dense, pruning = set(split.dense_rows.tolist()), set(split.pruning_rows.tolist())
    assert not dense & pruning
    assert len(dense) == len(pruning) == 20
    stream = split.stream("train", 3, 8)
    drawn = [next(stream)["index"].tolist() for _ in range(11)]
    assert all(set(rows) <= dense for rows in drawn[:5])
    assert all(set(rows) <= pruning for rows in drawn[5:])
    assert sorted(drawn[0] + drawn[1] + drawn[2]) == sorted(dense)
    assert sorted(drawn[5] + drawn[6] + drawn[7]) == sorted(pruning)
    for number in (4, 5, 9):
        later = split.stream("train", 3, 8)
        later.load_state_dict({"drawn": number})
        assert next(later)["index"].tolist() == drawn[number]
    masks = split.stream("fairprune", 3, 8)
    assert set(next(masks)["index"].tolist()) <= pruning
    halves = [split.stream("train", 3, 8, rank=rank, world=2) for rank in (0, 1)]
    assert [row for half in halves for row in next(half)["index"].tolist()] == drawn[0]


def test_every_baseline_is_valid() -> None:
    for name in BASELINES:
        options = FairpruneOptions(baseline=name)
        assert Schedule.of(options, 1000, 100).kept(100) == (1000 if "dense" in name else 50)


def test_in_the_caller_s_loop(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, s = torch.rand(96, 1, 8, 8, generator=generator), torch.arange(96) % 2, (torch.arange(96) // 2) % 2
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    names = ("input", "label", "group")
    woven = plait.weave(
        model,
        optimizer,
        plugins={"fairprune": {"sparsity": 0.5, "mask_every": 2}},
        total_steps=12,
        example=(x[:16], y[:16], s[:16]),
        fields=names,
        train=TensorSplit({"input": x, "label": y, "group": s}),
    )
    for step in range(12):
        rows = torch.arange(16) + 16 * (step % 6)
        woven.step((x[rows], y[rows], s[rows]))
    kept = sum(int(p.count_nonzero()) for name, p in model.named_parameters() if name.endswith("weight"))
    assert kept == round(0.5 * (36 + 288))
    with pytest.raises(plait.Refused, match=r"dense_share = 0 with a network that is trained already"):
        plait.weave(
            model, optimizer, plugins={"fairprune": {"protocol": "paper"}}, total_steps=9,
            example=(x[:16], y[:16], s[:16]), fields=names, train={"label": y, "group": s},
        )  # fmt: skip


def test_plain_pruning_may_accumulate(tmp_path: Path) -> None:
    assert run(tmp_path / "run", settings={"train.accumulate": 2}, strength=0).metrics["fairprune/kept"] == 502


def test_with_fairsam_both_act(tmp_path: Path) -> None:
    """SAM perturbs surviving weights alone, and the fair term is in both of its passes."""
    pytest.importorskip("plait_fairsam")

    def together(out: Path, **options: Any) -> plait.Run:
        chosen = {"fairprune": {"sparsity": 0.6, "mask_every": 2, **options}, "fairsam": {"severities": [3]}}
        return plait.run(plugins=chosen, data="tiny-images", model="tiny-cnn", steps=20, settings=SMALL, out=out)

    fair, plain = together(tmp_path / "fair"), together(tmp_path / "plain", strength=0)
    assert fair.metrics["fairprune/kept"] == plain.metrics["fairprune/kept"] == 502
    assert fair.metrics["fairsam/passes_per_step"] == 2
    assert not torch.equal(fair.model.head.weight, plain.model.head.weight)
    chosen = {"fairprune": {"sparsity": 0.6}, "fairsam": {"severities": [3], "perturbation": "per_group"}}
    with pytest.raises(plait.PlaitError, match=r"needs loss:whole-batch|on .* of the batch's 16 examples"):
        plait.run(plugins=chosen, data="tiny-images", model="tiny-cnn", steps=4, settings=SMALL, out=tmp_path / "parts")
    chosen["fairsam"]["perturbation"] = "per_group_whole"
    plait.run(plugins=chosen, data="tiny-images", model="tiny-cnn", steps=4, settings=SMALL, out=tmp_path / "whole")
    alone = run(tmp_path / "alone")
    assert not torch.equal(fair.model.head.weight, alone.model.head.weight)


def test_other_owners_of_masks_are_refused() -> None:
    pytest.importorskip("plait_chase")
    plan = plait.plan(plugins=["fairprune", "chase"], data="tiny-images", model="tiny-cnn")
    assert [set(refusal.plugins) for refusal in plan.refusals] == [{"fairprune", "chase"}]


class HalfPlugin(plait.Plugin):
    """Train on the first half of the training split."""

    name = "half"
    contract = 1

    @plait.hookimpl
    def transform_data(self, data: plait.Data) -> plait.Data:
        """As plain tensors."""
        half = {name: column[: len(data.train) // 2] for name, column in data.train.fields.items()}
        return dataclasses.replace(data, train=TensorSplit(half))


def test_a_division_that_another_plugin_undoes_is_refused(tmp_path: Path) -> None:
    chosen = {"fairprune": {"protocol": "paper", "sparsity": 0.5}, "half": {}}
    wanted = {"data": "tiny-images", "model": "tiny-cnn", "steps": 10, "settings": SMALL}
    with pretend(HalfPlugin):
        with pytest.raises(plait.BadInput, match="name that plugin before fairprune"):
            plait.run(plugins=chosen, out=tmp_path / "after", **wanted)
        before = dict(reversed(chosen.items()))
        assert plait.run(plugins=before, out=tmp_path / "before", **wanted).metrics["fairprune/kept"] == 628


def test_an_empty_cell_is_said(tmp_path: Path) -> None:
    class Empty(plait.Plugin):
        """No example of group 1 with label 1."""

        name = "empty"
        contract = 1

        @plait.hookimpl
        def transform_data(self, data: plait.Data) -> plait.Data:
            """As plain tensors."""
            there = ~((data.train.fields["group"] == 1) & (data.train.fields["label"] == 1))
            return dataclasses.replace(
                data, train=TensorSplit({name: column[there] for name, column in data.train.fields.items()})
            )

    wanted = {"data": "tiny-images", "model": "tiny-cnn", "steps": 10, "settings": SMALL}
    with pretend(Empty):
        done = plait.run(plugins={"empty": {}, "fairprune": {"sparsity": 0.5}}, out=tmp_path / "run", **wanted)
        with pytest.raises(plait.BadInput, match="group 1 has no training example with label 1"):
            plait.run(plugins={"empty": {}, "fairprune": {"measure": "eo"}}, out=tmp_path / "eo", **wanted)
    notes = [event["text"] for event in done.directory.events() if event.get("kind", event.get("event")) == "note"]
    assert any("no training example of group 1 has label 1" in note for note in notes)

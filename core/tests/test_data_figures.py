"""Figures that the data brings, the choice of the best state by them, many labels at once, and rows taken at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import plait
from plait.data import Data, DataInfo, TensorSplit
from plait.declare.results import Metric
from plait.distributed.world import World
from plait.errors import BadInput
from plait.training import evaluation
from plait.training.objectives import default_objective

LABELS = 3


def _splits(rows: int, seed: int) -> list[TensorSplit]:
    generator = torch.Generator().manual_seed(seed)
    turn = torch.randn(6, LABELS, generator=generator)
    splits = []
    for _ in range(3):
        x = torch.randn(rows, 6, generator=generator)
        splits.append(TensorSplit({"input": x, "label": (x @ turn > 0).long()}))
    return splits


def labelled(seed: int) -> Data:
    """Three labels for each row; what counts is that the outputs are small, which training undoes."""

    def calm(outputs: Tensor, fields: Any) -> dict[str, Metric]:
        assert fields["label"].shape == outputs.shape
        return {"calm": Metric(-float(outputs.abs().mean()), "", "higher")}

    info = DataInfo("multilabel", (6,), LABELS, fields=frozenset({"input", "label", "index"}))
    return Data(info, *_splits(60, seed), figures=calm)


def linear(num_classes: int) -> nn.Module:
    return nn.Linear(6, num_classes)


def run(path: Path, **settings: Any) -> plait.Run:
    train = {"train.select": "best", "train.evaluate_every": 1, "optimizer.lr": 2.0, "train.batch_size": 20}
    return plait.run(
        data=f"{__name__}:labelled", model=f"{__name__}:linear", epochs=6, settings={**train, **settings}, out=path
    )


def test_the_first_figure_chooses_the_state_and_all_are_published(tmp_path: Path) -> None:
    trained = run(tmp_path / "run")
    assert set(trained.metrics) >= {"task/loss", "task/calm"}
    assert "task/accuracy" not in trained.metrics
    events = trained.directory.events()
    curve = [e["values"]["validation/calm"] for e in events if "validation/calm" in e.get("values", {})]
    losses = [e["values"]["validation/loss"] for e in events if "validation/loss" in e.get("values", {})]
    assert len(curve) == len(losses) == 6
    validation = labelled(trained.recipe.seed).validation.fields  # type: ignore[attr-defined]
    with torch.no_grad():
        outputs = trained.model(validation["input"])
    assert -float(outputs.abs().mean()) == pytest.approx(max(curve))
    assert curve[losses.index(min(losses))] < max(curve)  # by the loss another state would have been chosen


def test_many_labels_by_hand() -> None:
    info = DataInfo("multilabel", (), LABELS)
    logits = torch.tensor([[0.0, 2.0, -1.0], [3.0, -0.5, 0.0]])
    label = torch.tensor([[1, 1, 0], [0, 1, 0]])
    probability = logits.double().sigmoid()
    by_hand = -(label * probability.log() + (1 - label) * (1 - probability).log()).mean(1)
    torch.testing.assert_close(default_objective(info, logits, {"label": label}).double(), by_hand)
    whole = evaluation.split_figures(Data(info, *_splits(2, 0)), logits, {"label": label})
    assert whole == {"loss": Metric(pytest.approx(float(by_hand.mean())), "nats", "lower")}
    with pytest.raises(BadInput, match=r"a logit for each label \(2, 3\), got \(2, 2\)"):
        default_objective(info, logits[:, :2], {"label": label})


def test_a_figure_that_is_to_be_low_is_turned_round() -> None:
    assert evaluation.score({"error": Metric(3.0, "", "lower"), "other": Metric(9.0, "", "higher")}) == -3.0
    assert evaluation.score({"accuracy": Metric(80.0, "%", "higher")}) == 80.0


def test_the_datas_figure_takes_the_place_of_the_tasks_own() -> None:
    data = Data(
        DataInfo("classification", (), 2), *_splits(2, 0), figures=lambda o, f: {"loss": Metric(7.0, "", "lower")}
    )
    figures = evaluation.split_figures(data, torch.eye(2), {"label": torch.tensor([0, 1])})
    assert list(figures) == ["loss", "accuracy"] and figures["loss"].value == 7.0


def test_a_split_says_how_many_rows_it_takes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 7)
    seen: list[int] = []

    class Looking:
        world = World(torch.device("cpu"))
        autocast = staticmethod(torch.no_grad)

        def __call__(self, model: nn.Module, batch: Any) -> Tensor:
            seen.append(batch.size)
            outputs: Tensor = model(batch["input"])
            return outputs

    network, test = linear(LABELS), _splits(60, 0)[2]
    first, _ = evaluation.predict(Looking(), network, test)  # type: ignore[arg-type]
    test.at_once = 40  # type: ignore[attr-defined]
    second, _ = evaluation.predict(Looking(), network, test)  # type: ignore[arg-type]
    assert seen == [7] * 8 + [4] + [40, 20]
    torch.testing.assert_close(first, second)

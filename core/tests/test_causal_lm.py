"""The task causal-lm: the loss of each text, perplexity over tokens, and a model's own terms of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import plait
from plait import BadInput, Batch, Data, DataInfo, TensorSplit
from plait.planning.discovery import pretend
from plait.training.objectives import default_objective, token_losses
from plait_authoring.kill import final_state, first_difference, forked
from plait_authoring.together import together

VOCAB = 11
INFO = DataInfo("causal-lm", (), VOCAB, 2, frozenset({"input", "attention_mask", "group"}))


class Reader(nn.Module):
    """Predicts the next token from this one and the sum of those before; padding is not summed."""

    def __init__(self, num_classes: int = VOCAB) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes, 8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self.table(tokens)
        before = hidden if mask is None else hidden * mask[..., None]
        out: Tensor = self.head(torch.tanh(hidden + 0.1 * before.cumsum(1)))
        return out


class Balanced(Reader):
    """A model with a term of its own."""

    def loss_terms(self, raw: Any, batch: Any) -> dict[str, Tensor]:
        return {"size": 0.5 * self.head.weight.square().sum()}


def masked(model: Any, batch: Any) -> Tensor:
    out: Tensor = model(batch["input"], batch["attention_mask"])
    return out


def padded(texts: list[list[int]], left: bool = False) -> dict[str, Tensor]:
    width = max(map(len, texts))
    rows = [[0] * (width - len(t)) + t if left else t + [0] * (width - len(t)) for t in texts]
    real = [[0] * (width - len(t)) + [1] * len(t) for t in texts]
    mask = real if left else [row[::-1] for row in real]
    return {"input": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def texts(n: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (n,), generator=generator).tolist()
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]


class Ragged:
    """Texts of different length; a batch is as wide as its longest."""

    in_memory = True

    def __init__(self, given: list[list[int]]) -> None:
        self.given = given
        self.fields = {"group": torch.arange(len(given)) % 2}

    def __len__(self) -> int:
        return len(self.given)

    def __getitems__(self, rows: Any) -> Batch:
        picked = torch.as_tensor(rows)
        fields = padded([self.given[row] for row in picked.tolist()])
        return Batch({**fields, "group": self.fields["group"][picked], "index": picked})


def load(seed: int) -> Data:
    splits = [Ragged(texts(n, n)) for n in (26, 8, 13)]
    return Data(INFO, *splits, forward=masked, names={"group": ["odd", "even"]})  # type: ignore[arg-type]


def build(num_classes: int, terms: bool = False) -> nn.Module:
    return Balanced(num_classes) if terms else Reader(num_classes)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with pretend(distribution="plait", alone=True):
        yield


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "data": {"name": f"{__name__}:load"},
        "model": {"name": f"{__name__}:build", **changes.pop("model", {})},
        "train": {"steps": 12, "batch_size": 6, **changes.pop("train", {})},
        "checkpoint": {"every_steps": 3, "keep": 9},
        "device": "cpu",
        **changes,
    }


# ---- the loss --------------------------------------------------------------------------------------------------------
def by_hand(logits: Tensor, text: list[int], first: int = 0) -> tuple[float, int]:
    """Of the text that begins at a column of logits [T, V]."""
    each = [-float(logits[first + t].log_softmax(0)[text[t + 1]]) for t in range(len(text) - 1)]
    return float(sum(each)), len(each)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), left=st.booleans(), seed=st.integers(0, 99))
def test_a_texts_loss_is_the_mean_over_its_own_tokens(lengths: list[int], left: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    given = [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]
    batch = padded(given, left)
    logits = torch.randn(*batch["input"].shape, VOCAB, generator=generator)
    width = max(lengths)
    wanted = [by_hand(row, t, width - len(t) if left else 0) for row, t in zip(logits, given, strict=True)]
    torch.testing.assert_close(token_losses(logits, batch), torch.tensor(wanted, dtype=torch.float32))
    means = torch.tensor([total / max(1, count) for total, count in wanted])
    torch.testing.assert_close(default_objective(INFO, logits, batch), means)


def test_labels_say_what_counts_where_they_are_given() -> None:
    tokens, logits = torch.tensor([[1, 2, 3, 4]]), torch.randn(1, 4, VOCAB)
    label = torch.tensor([[-100, -100, 5, 6]])
    wanted = functional.cross_entropy(logits[0, 1:3], torch.tensor([5, 6]), reduction="sum")
    torch.testing.assert_close(
        token_losses(logits, {"input": tokens, "label": label})[0], torch.stack([wanted, torch.tensor(2.0)])
    )


@pytest.mark.parametrize("outputs", [torch.zeros(2, VOCAB), torch.zeros(2, 3, VOCAB), "text"])
def test_outputs_that_are_no_logits_of_tokens_are_refused(outputs: Any) -> None:
    with pytest.raises(BadInput, match=r"causal-lm needs logits \[2, 4, V\] from the model"):
        default_objective(INFO, outputs, {"input": torch.zeros(2, 4, dtype=torch.int64)})


# ---- figures ---------------------------------------------------------------------------------------------------------
def direct(model: nn.Module, given: list[list[int]]) -> float:
    """Perplexity, text by text and without padding."""
    with torch.no_grad():
        sums = [by_hand(model(torch.tensor([t]), torch.ones(1, len(t)))[0], t) for t in given]
    return math.exp(sum(total for total, _ in sums) / sum(count for _, count in sums))


def test_perplexity_counts_tokens_over_all_and_for_each_group(tmp_path: Path) -> None:
    done = plait.run(recipe(), out=tmp_path / "run")
    test = texts(13, 13)
    assert math.isclose(done.metrics["task/perplexity"], direct(done.model, test), rel_tol=1e-5)
    assert math.isclose(done.metrics["task/loss"], math.log(direct(done.model, test)), rel_tol=1e-5)
    assert math.isclose(done.metrics["task/perplexity_odd"], direct(done.model, test[::2]), rel_tol=1e-5)
    assert math.isclose(done.metrics["task/perplexity_even"], direct(done.model, test[1::2]), rel_tol=1e-5)
    assert done.details["task/perplexity"]["better"] == "lower"
    assert math.isclose(done.metrics["task/perplexity@validation"], direct(done.model, texts(8, 8)), rel_tol=1e-5)


def test_the_best_state_is_that_of_the_lowest_perplexity(tmp_path: Path) -> None:
    done = plait.run(recipe(train={"select": "best", "steps": 20}, optimizer={"lr": 30.0}), out=tmp_path / "run")
    events = done.directory.events()
    seen = [e["values"]["validation/perplexity"] for e in events if "validation/perplexity" in e.get("values", {})]
    assert math.isclose(done.metrics["task/perplexity@validation"], min(seen), rel_tol=1e-6)


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_have_the_figures_of_one(tmp_path: Path, world: int) -> None:
    ended = together(lambda rank: plait.run(recipe(distributed={"timeout": 60}), out=tmp_path / "many"), world)
    assert [e.code for e in ended] == [0] * world, ended
    many, one = plait.load_run(tmp_path / "many"), plait.run(recipe(), out=tmp_path / "one")
    assert many.metrics.keys() == one.metrics.keys()
    assert all(math.isclose(value, one.metrics[name], rel_tol=1e-4) for name, value in many.metrics.items())


def test_a_killed_run_ends_bit_identical(tmp_path: Path) -> None:
    whole = recipe(model={"terms": True})
    plait.run(whole, out=tmp_path / "unbroken")
    assert forked(lambda: plait.run(whole, out=tmp_path / "killed"), kill_at=("os.replace", 6)) == -9
    plait.resume(tmp_path / "killed")
    assert first_difference(final_state(tmp_path / "unbroken"), final_state(tmp_path / "killed")) is None


# ---- a model's own terms, and files --------------------------------------------------------------------------------
def test_a_models_own_term_is_trained_and_reported(tmp_path: Path) -> None:
    done = plait.run(recipe(model={"terms": True}, train={"log_every": 1}), out=tmp_path / "run")
    logged = [e["values"] for e in done.directory.events() if "train/loss" in e.get("values", {})]
    assert all(values["model/size"] > 0 for values in logged)
    assert len(logged) == 12 and logged[-1]["model/size"] < logged[0]["model/size"]
    plain = plait.run(recipe(), out=tmp_path / "plain")
    assert done.model.head.weight.norm() < plain.model.head.weight.norm()  # type: ignore[union-attr,operator]
    assert not any("size" in name for name in done.metrics)


def test_its_gradient_is_the_terms_own() -> None:
    model = Balanced()
    batch = {**padded(texts(4)), "index": torch.arange(4)}
    woven = plait.weave(
        model, torch.optim.SGD(model.parameters(), 0.1), total_steps=1, example=batch, task="causal-lm", forward=masked
    )
    report = woven.gradients(batch)
    grown = model.head.weight.grad
    expected = default_objective(INFO, masked(model, batch), batch).mean() + model.loss_terms(None, None)["size"]
    wanted, *_ = torch.autograd.grad(expected, [model.head.weight])
    torch.testing.assert_close(grown, wanted)
    torch.testing.assert_close(report.loss, expected.detach())


def test_a_woven_loop_has_the_figures_too() -> None:
    model = Reader()
    batches = [{**padded(texts(4, seed)), "group": torch.tensor([0, 1, 1, 0])} for seed in (1, 2)]
    woven = plait.weave(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        total_steps=2,
        example=batches[0],
        task="causal-lm",
        forward=masked,
        names={"group": ["a", "b"]},
    )
    for batch in batches:
        woven.step(batch)
    figures = woven.evaluate(batches)
    assert math.isclose(figures["task/perplexity"].value, direct(model, [*texts(4, 1), *texts(4, 2)]), rel_tol=1e-5)
    assert {"task/perplexity_a", "task/perplexity_b"} <= figures.keys()


def test_files_of_the_model_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "export_files", {"words.txt": b"a b"}, raising=False)
    done = plait.run(recipe(), out=tmp_path / "run")
    assert (done.export / "words.txt").read_bytes() == b"a b"
    assert sorted(p.name for p in done.export.iterdir()) == ["config.json", "model.safetensors", "words.txt"]


def test_rows_of_one_length_need_no_mask() -> None:
    tokens = torch.randint(VOCAB, (9, 5), generator=torch.Generator().manual_seed(0))
    split = TensorSplit({"input": tokens})
    data = Data(DataInfo("causal-lm", (5,), VOCAB), split, split, TensorSplit({"input": tokens}))
    with pytest.raises(BadInput, match="validation split is the test split"):
        Data(data.info, split, split, split).check("x")
    data.check("x")
    batch = data.train.__getitems__([0, 1])
    assert token_losses(torch.zeros(2, 5, VOCAB), batch).tolist() == [[pytest.approx(4 * math.log(VOCAB)), 4.0]] * 2

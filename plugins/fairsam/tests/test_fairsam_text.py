"""On texts: domains are the groups, and the weights and the perturbation act on the mean token loss of each text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import plait
from plait.loading import load_data
from plait_authoring.kill import final_state

pytest.importorskip("transformers")
torch.set_num_threads(1)
RATE, RHO = 0.1, 0.05
DATA = {"length": 20, "vocab": 270, "rows": "texts", "test_share": 0.2}
MODEL = {"family": "llama", "hidden": 16, "layers": 1}


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Two domains, one with three times as many texts, of different length."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, words, count in (("bible", "the cat sat on the mat. ", 36), ("code", "def f(x): return x ", 12)):
        lines = [json.dumps({"text": f"{number} {words * (1 + number % 3)}"}) for number in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return f"{folder}/*.jsonl"


def run(corpus: str, out: Path, steps: int = 1, **options: Any) -> plait.Run:
    return plait.run(
        plugins={"fairsam": {"rho": RHO, **options}},
        data="text-files",
        model="transformers",
        settings={
            **{f"data.{name}": value for name, value in DATA.items()},
            "data.path": corpus,
            **{f"model.{name}": value for name, value in MODEL.items()},
            "train.batch_size": 64,
            "optimizer.name": "sgd",
            "optimizer.lr": RATE,
            "optimizer.momentum": 0.0,
        },
        steps=steps,
        out=out,
    )


@pytest.mark.parametrize("weights", ["group", "none"])
def test_one_step_is_the_formula_on_the_losses_of_the_texts(corpus: str, tmp_path: Path, weights: str) -> None:
    from plait.loading import build_model

    before, after = (run(corpus, tmp_path / str(n), n, weights=weights) for n in (0, 1))
    assert after.metrics["fairsam/passes_per_step"] == 2
    assert {"task/perplexity_bible", "task/perplexity_code"} <= set(after.metrics)
    recipe = plait.load_run(before.path).recipe
    data = load_data(recipe.data, recipe.seed)
    model: Any = build_model(recipe.model, data.info)
    start, end = (final_state(done.path)["model"] for done in (before, after))
    model.load_state_dict(start)
    batch = data.train.__getitems__(torch.arange(len(data.train)))
    sizes = batch["group"].bincount().double()
    assert len(sizes) == 2 and sizes[0] > 2 * sizes[1], "the weights must matter"
    v = len(batch["group"]) / (2 * sizes[batch["group"]]) if weights == "group" else torch.ones(len(batch["group"]))

    def objective() -> torch.Tensor:
        mask = batch["attention_mask"]
        logits = model(batch["input"], attention_mask=mask).logits[:, :-1].transpose(1, 2)
        each = cross_entropy(logits, batch["input"][:, 1:], reduction="none") * mask[:, 1:]
        return (v * each.sum(1) / mask[:, 1:].sum(1)).mean()

    names, weighted = zip(*model.named_parameters(), strict=True)
    ascent = torch.autograd.grad(objective(), weighted)
    norm = torch.sqrt(sum(g.square().sum() for g in ascent))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter, gradient in zip(weighted, ascent, strict=True):
            parameter.add_(RHO * gradient / norm)
    descent = torch.autograd.grad(objective(), weighted)
    for name, gradient in zip(names, descent, strict=True):
        torch.testing.assert_close(end[name], start[name] - RATE * gradient, rtol=1e-4, atol=2e-6, msg=name)


def test_one_domain_is_enough_for_plain_sam_and_too_few_for_weights(corpus: str, tmp_path: Path) -> None:
    alone = corpus.replace("*", "code")
    assert run(alone, tmp_path / "sam", baseline="sam").metrics["fairsam/passes_per_step"] == 2
    with pytest.raises(plait.errors.BadInput, match="the only group in the training split"):
        run(alone, tmp_path / "fair")


def test_weights_by_label_need_labels(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(plait.Refused, match="needs field:label"):
        run(corpus, tmp_path / "run", weights="kamiran")

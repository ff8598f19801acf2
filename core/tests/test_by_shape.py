"""Batches whose examples have several shapes: one step, its parts, evaluation and splits of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import plait
from plait.data import Batch, ByShape, Subset
from plait.data.batches import in_parts, not_finite

LENGTHS = torch.tensor([3, 5, 3, 4, 5, 5, 3, 3, 5, 4])


class Ragged:
    """Rows of different length [length, 2], with a label."""

    in_memory = True

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = [torch.randn(int(length), 2, generator=generator) for length in LENGTHS]
        self.fields = {"label": torch.arange(len(self.rows)) % 2}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> ByShape:
        picked = torch.as_tensor(rows)
        parts, order = [], []
        for length in LENGTHS[picked].unique():
            own = (LENGTHS[picked] == length).nonzero().flatten()
            inputs = torch.stack([self.rows[int(row)] for row in picked[own]])
            parts.append(Batch({"input": inputs, "label": self.fields["label"][picked[own]], "index": picked[own]}))
            order.append(own)
        return ByShape(parts, torch.cat(order))


class Net(nn.Module):
    """The mean over the length, then a line; it has seen which lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x.mean(1))  # type: ignore[no-any-return]


def module(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / "ragged.py").write_text(
        "from plait import Data, DataInfo\n"
        "from core_test_by_shape import Net, Ragged\n"
        "def load(seed):\n"
        "    info = DataInfo('classification', num_classes=2, fields=frozenset({'input', 'label', 'index'}))\n"
        "    return Data(info, Ragged(), Ragged(), Ragged())\n"
        "def net():\n"
        "    return Net()\n"
    )
    (path / "core_test_by_shape.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(path)


def of_all(net: Net, batch: ByShape) -> Tensor:
    losses = [functional.cross_entropy(net(p["input"]), p["label"], reduction="none") for p in batch.parts]
    return torch.cat(losses)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_step_is_the_mean_over_all_examples(accumulate: int) -> None:
    torch.manual_seed(0)
    net, batch = Net(), Ragged().__getitems__(torch.arange(10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    of_all(net, batch).mean().backward()
    wanted = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    expected = of_all(net, batch).detach()
    woven = plait.weave(net, optimizer, total_steps=2, example=batch, accumulate=accumulate)
    report = woven.gradients(batch)
    torch.testing.assert_close([p.grad for p in net.parameters()], wanted)
    torch.testing.assert_close(report.per_example, expected)
    torch.testing.assert_close(report.loss, expected.mean())
    rows = torch.tensor([9, 0, 4])
    chosen = woven.gradients(batch, rows=rows)
    given = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    part = batch.take(rows)
    of_all(net, part).mean().backward()
    torch.testing.assert_close(given, [p.grad for p in net.parameters()])
    torch.testing.assert_close(chosen.loss, of_all(net, part).mean().detach())
    net.zero_grad()
    assert sorted(part["index"].tolist()) == sorted(batch["index"][rows].tolist())
    before = [p.detach().clone() for p in net.parameters()]
    woven.step(batch)
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_list_is_asked_for_in_any_order() -> None:
    split = Ragged()
    batch = split.__getitems__([5, 0, 3, 5])
    assert batch["index"].tolist() == [0, 3, 5, 5]
    assert batch.order.tolist() == [1, 2, 0, 3]
    assert batch.size == 4
    assert "input" not in batch
    renamed = batch.numbered(torch.tensor([10, 11, 12, 13]))
    assert renamed["index"].tolist() == [11, 12, 10, 13]
    assert [part["index"].tolist() for part in renamed.parts] == [[11], [12], [10, 13]]
    subset = Subset(split, torch.tensor([5, 0, 5, 8]))
    picked = subset.__getitems__([3, 0, 1])
    assert picked["index"].tolist() == [1, 3, 0]
    torch.testing.assert_close(picked.parts[1]["input"][0], split.rows[8])


def test_chunks_cover_everything_once() -> None:
    batch = Ragged().__getitems__(torch.arange(10))
    for parts in (1, 2, 4, 20):
        chunks = batch.chunks(parts)
        assert sorted(torch.cat([chunk["index"] for chunk in chunks]).tolist()) == list(range(10))
        assert len(chunks) >= len(batch.parts)
        assert parts < 20 or all(chunk.size == 1 for chunk in chunks)


def test_numbers_that_are_not_finite_are_found_in_a_part() -> None:
    batch = Ragged().__getitems__([0, 1])
    assert not_finite(batch) == ""
    batch.parts[1]["input"][0, 0, 0] = torch.nan
    assert "row 1" in not_finite(batch)
    assert in_parts(batch) == batch.parts
    assert in_parts(batch.parts[0]) == [batch.parts[0]]


def test_a_run_trains_and_evaluates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch)
    figures = []
    for accumulate in (1, 2):
        settings = {"train.batch_size": 4, "train.accumulate": accumulate, "optimizer.lr": 0.5}
        run = plait.run(
            data="ragged:load",
            model="ragged:net",
            epochs=30,
            settings=settings,
            device="cpu",
            out=tmp_path / str(accumulate),
        )
        figures.append(run.metrics["task/loss"])
        with torch.no_grad():
            outputs = torch.cat([run.model(row[None]) for row in Ragged().rows])
        own = functional.cross_entropy(outputs, Ragged().fields["label"])
        assert run.metrics["task/loss"] == pytest.approx(float(own), abs=1e-5)
    assert figures[0] == pytest.approx(figures[1], abs=1e-4)


def test_an_evaluation_of_a_loop_counts_its_rows() -> None:
    net = Net()
    batch = Ragged().__getitems__(torch.arange(10))
    woven = plait.weave(net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=1, example=batch)
    figures = woven.evaluate([batch, batch])
    assert figures["task/loss"].value == pytest.approx(float(of_all(net, batch).mean()), abs=1e-6)  # type: ignore[union-attr]

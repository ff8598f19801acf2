"""Streams: every row once an epoch, any resume point, any world size, the same order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.data import Batch, Data, DataInfo, Subset, TensorSplit
from plait.data.streams import Stream
from plait.errors import BadInput


def split(n: int) -> TensorSplit:
    return TensorSplit(
        {"input": torch.arange(n, dtype=torch.float32).reshape(n, 1), "label": torch.zeros(n, dtype=torch.int64)}
    )


def draw(stream: Stream, count: int) -> list[list[int]]:
    return [next(stream)["index"].tolist() for _ in range(count)]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_each_epoch_is_a_permutation_and_resume_goes_on(n: int, batch: int, seed: int) -> None:
    stream = Stream(split(n), "train", seed, batch)
    per = stream.batches_per_epoch
    batches = draw(stream, 2 * per)
    for epoch in (batches[:per], batches[per:]):
        assert sorted(i for b in epoch for i in b) == list(range(n))
    for position in (1, per, per + 1):
        again = Stream(split(n), "train", seed, batch)
        again.load_state_dict({"drawn": position})
        assert draw(again, 2 * per - position) == batches[position:]


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 4))
def test_ranks_share_the_same_batches(n: int, batch: int, world: int) -> None:
    whole = Stream(split(n), "train", 0, batch)
    ranks = [Stream(split(n), "train", 0, batch, rank=r, world=world) for r in range(world)]
    for number in range(2 * whole.batches_per_epoch):
        shares = [r.share(number) for r in ranks]
        parts = [p for p, s in zip([next(r)["index"].tolist() for r in ranks], shares, strict=True) if s > 0]
        rows = next(whole)["index"].tolist()
        assert [i for p in parts for i in p] == rows
        assert sum(shares) == pytest.approx(world)


def test_streams_of_different_names_differ_and_augmentation_is_seeded() -> None:
    a, b = Stream(split(50), "a", 0, 50), Stream(split(50), "b", 0, 50)
    assert draw(a, 1) != draw(b, 1)

    def jitter(batch: Batch, generator: torch.Generator) -> Batch:
        return Batch({**batch, "input": batch["input"] + torch.rand(batch["input"].shape, generator=generator)})

    stream, two = (Stream(split(9), "a", 0, 4, augment=jitter) for _ in range(2))
    first = [next(stream)["input"] for _ in range(6)]
    two.load_state_dict({"drawn": 4})
    assert torch.equal(next(two)["input"], first[4])


class Files:
    """A split that is not in memory, as images on disk are."""

    def __len__(self) -> int:
        return 10

    def __getitems__(self, rows: list[int]) -> Batch:
        return Batch({"index": torch.as_tensor(rows), "input": torch.as_tensor(rows)})


def test_worker_processes_keep_the_order() -> None:
    plain = Stream(Files(), "train", 3, 4)
    workers = Stream(Files(), "train", 3, 4, workers=2)
    assert draw(workers, 4) == draw(plain, 4)


def test_bad_data_is_refused() -> None:
    with pytest.raises(BadInput, match="one length"):
        TensorSplit({"a": torch.zeros(2), "b": torch.zeros(3)})
    same = split(4)
    with pytest.raises(BadInput, match="validation split is the test split"):
        Data(DataInfo(num_classes=1), split(4), same, same).check("x")
    with pytest.raises(BadInput, match="the train split is empty"):
        Data(DataInfo(num_classes=1), split(0), split(1), split(1)).check("x")
    bad = TensorSplit({"input": torch.zeros(2, 1), "label": torch.tensor([0, 5])})
    with pytest.raises(BadInput, match=r"0\.\.5 lie outside 0\.\.2"):
        Data(DataInfo(num_classes=3), bad, split(1), split(1)).check("x")


def test_subset_keeps_columns_and_rows() -> None:
    whole = TensorSplit({"input": torch.arange(6.0).reshape(6, 1), "label": torch.arange(6)})
    part = Subset(whole, torch.tensor([4, 1, 5]))
    assert len(part) == 3 and part.fields["label"].tolist() == [4, 1, 5]
    batch = part.__getitems__([2, 0])
    assert batch["input"].flatten().tolist() == [5.0, 4.0] and batch["index"].tolist() == [2, 0]
    assert whole.__getitems__([4])["index"].tolist() == [4]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3))
def test_a_smaller_last_batch_can_be_left_out(n: int, batch: int, world: int) -> None:
    stream = Stream(split(n), "train", 0, batch, drop_last=True)
    whole = Stream(split(n), "train", 0, batch)
    assert stream.batches_per_epoch == max(1, n // batch)
    wanted = [rows for rows in draw(whole, whole.batches_per_epoch) if len(rows) == batch] or draw(
        Stream(split(n), "train", 0, batch), 1
    )
    assert draw(stream, stream.batches_per_epoch) == wanted
    ranks = [Stream(split(n), "train", 0, batch, rank=r, world=world, drop_last=True) for r in range(world)]
    assert all(sum(r.share(b) for r in ranks) == pytest.approx(world) for b in range(2 * stream.batches_per_epoch))

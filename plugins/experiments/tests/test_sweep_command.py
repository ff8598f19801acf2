"""``plait sweep``: what it prints and writes, gone on with, and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

ARGUMENTS = ("--data", "tiny-images", "--model", "tiny-cnn", "--steps", "2", "--set", "data.train=64")


def test_a_sweep(call: Callable[..., Any], tmp_path: Path) -> None:
    over = ("--over", "optimizer.lr=0.01,0.2", "--over", "seed=0:2", "--cache", "cache", "--workers", "0")
    first = call("sweep", *ARGUMENTS, *over, "--json")
    assert first.code == 0, first.err
    assert (first.document["ran"], first.document["cached"]) == (4, 0)
    assert {g["point"]["optimizer.lr"] for g in first.document["groups"]} == {0.01, 0.2}
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir()) == ["plot.svg", "runs.csv", "sweep.json"]
    shown = call("sweep", *ARGUMENTS, *over, "--metric", "task/loss")
    assert shown.code == 0, shown.err
    assert "0 run, 4 kept from before" in shown.out
    assert "optimizer.lr" in shown.out
    refused = call("sweep", *ARGUMENTS, *over, "--metric", "task/los")
    assert refused.code == 2
    assert "Did you mean 'task/loss'" in refused.err


def test_bad_sweeps(call: Callable[..., Any]) -> None:
    for arguments, said in (
        ((), "needs something to vary"),
        (("--over", "seed"), "write it as KEY=VALUES"),
        (("--over", "optimizer.lr=0..1"), "is for --optimize METRIC"),
        (("--over", "optimizer.rate=1,2", "--workers", "0"), "unknown key"),
    ):
        answer = call("sweep", *ARGUMENTS, *arguments)
        assert answer.code == 2
        assert said in answer.err

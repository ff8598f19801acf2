"""The authors' files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait_cdmoe.decoder import Decoder
from plait_cdmoe.errors import CdmoeError
from plait_cdmoe.options import SearchOptions
from plait_cdmoe.replay import read_experts, read_gates, read_order, replayed
from plait_cdmoe.search import Search

PUBLISHED_SR = [19, 15, 22, 10, 12, 6, 14, 21, 26, 7, 17, 1, 24, 23, 9]
PUBLISHED_S = [19, 12, 7, 23, 10, 14, 1, 24, 17, 15, 9, 21, 18, 6, 26]


def test_published_orders_are_read() -> None:
    for order in (PUBLISHED_SR, PUBLISHED_S):
        assert read_order(order, 27) == order


def test_files_give_the_model_that_they_describe(small: Callable[..., Any], texts: Any, tmp_path: Path) -> None:
    gates = {f"{layer}-{e}": [0.5 * (e + 1), 5, 0.1 * (e + 1)] for layer in range(3) for e in range(6)}
    del gates["2-5"]
    (tmp_path / "gates.json").write_text(json.dumps(gates))
    (tmp_path / "experts.json").write_text(json.dumps({"0": [3, 1, 2], "1": [0, 5, 2], "2": [4, 2, 1]}))
    (tmp_path / "layers.json").write_text(json.dumps([2, 0, 1]))
    search = Search(Decoder(small("deepseek")), texts, SearchOptions(layers=2))
    replayed(search, tmp_path)
    assert search.entries() == {
        3: {"experts": [4, 2], "weights": pytest.approx([0.5, 0.3])},
        1: {"experts": [3, 1], "weights": pytest.approx([0.4, 0.2])},
    }
    assert search.state.gates.never_selected() == [(2, 5)]
    assert sorted(search.small().config.condensed_layers) == [1, 3]
    (tmp_path / "experts.json").write_text(json.dumps({"0": [3, 1], "1": [0, 5], "2": [5, 2]}))
    with pytest.raises(CdmoeError, match="layer 2: expert 5 of its keep list has no gate weight"):
        replayed(search, tmp_path)
    (tmp_path / "layers.json").write_text("[2]")
    with pytest.raises(CdmoeError, match="1 layers are in it, and 2 are wanted"):
        replayed(search, tmp_path)
    (tmp_path / "gates.json").unlink()
    with pytest.raises(CdmoeError, match=r"gates\.json cannot be read"):
        replayed(search, tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: read_order([1, 1], 4), "each once"),
        (lambda: read_order([4], 4), "layers of 0 to 3"),
        (lambda: read_order({"0": 1}, 4), "must be a list of layers"),
        (lambda: read_experts({"0": [1]}, 2), "layer 1 has no keep list"),
        (lambda: read_experts({"0": [1], "7": [2]}, 1), "layer 7 is out of range"),
        (lambda: read_experts([1], 1), "must be a JSON object"),
        (lambda: read_gates({"0": [1, 2, 3]}, 1, 4), "'layer-expert'"),
        (lambda: read_gates({"0-9": [1, 2, 0.5]}, 1, 4), "outside a model of 1 layers with 4 experts"),
        (lambda: read_gates({"0-1": [1, 2, 0.9]}, 1, 4), "not its sum over its count"),
    ],
)
def test_bad_files_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(CdmoeError, match=message):
        call()

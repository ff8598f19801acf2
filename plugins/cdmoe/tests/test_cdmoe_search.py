"""The searches against brute force, and their state against kills, batches, padding and processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from plait_cdmoe import figures
from plait_cdmoe.condensed import condensed_layer
from plait_cdmoe.decoder import Decoder, batches_of, unpadded
from plait_cdmoe.distance import jensen_shannon
from plait_cdmoe.errors import CdmoeError
from plait_cdmoe.experts import Capture, ExpertScores, greedy_experts, slow_scores
from plait_cdmoe.families import Family
from plait_cdmoe.gates import GateStats, most
from plait_cdmoe.layers import Beam
from plait_cdmoe.options import SearchOptions
from plait_cdmoe.search import Search, SearchState

KINDS = ("qwen2_moe", "deepseek_v2", "deepseek_v3", "deepseek")
Small = Callable[..., Any]


def lists(state: SearchState) -> tuple[Any, ...]:
    return state.keep, state.order


def search(model: Any, texts: list[Tensor], **options: Any) -> SearchState:
    return Search(Decoder(model), texts, SearchOptions(**{"layers": 2, **options})).run()


# ---- gates -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_mean_gate_where_it_was_selected(small: Small, texts: list[Tensor], kind: str) -> None:
    model = small(kind)
    family = Family(model)
    seen: list[tuple[Tensor, Tensor]] = []
    place = family.moe_layers()[1]

    def keep(module: Any, given: tuple[Tensor, ...]) -> None:
        seen.append(family.gates(1, given[0].reshape(-1, 32)))

    with model.model.layers[place].mlp.register_forward_pre_hook(keep), torch.no_grad():
        for text in texts:
            model(text[None])
    values: dict[int, list[float]] = {}
    for index, weight in seen:
        for e, g in zip(index.flatten().tolist(), weight.flatten().tolist(), strict=True):
            values.setdefault(e, []).append(g)
    stats = search(model, texts, layers=0).gates
    tokens = sum(map(len, texts))
    assert stats.tokens == tokens
    for e in range(6):
        assert stats.counts[1][e] == len(values.get(e, []))
        weight = float(stats.weights(1)[e])
        if e not in values:
            assert weight != weight
            assert (1, e) in stats.never_selected()
            continue
        assert weight == pytest.approx(sum(values[e]) / len(values[e]), rel=1e-9)
        assert float(stats.weights(1, conditional=False)[e]) == pytest.approx(sum(values[e]) / tokens, rel=1e-9)


def test_the_most_of_equal_ones_is_the_lowest() -> None:
    assert most([3.0, 5.0, 5.0, 1.0], 3, [0, 1, 2, 3]) == [1, 2, 0]
    assert most([3.0, 5.0, 5.0, 1.0], 1, [2, 3]) == [2]


# ---- experts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [False, True])
def test_fast_scores_are_the_slow_ones(small: Small, texts: list[Tensor], kind: str, last: bool) -> None:
    model = small(kind, num_hidden_layers=3)
    decoder, family = Decoder(model), Family(model)
    state = search(model, texts, layers=0, text_tokens=12)
    layer = family.geometry().layers - 1 if last else 0
    place, weights = family.moe_layers()[layer], state.gates.weights(layer)
    batches = batches_of(texts, 3, 12)
    slow = slow_scores(decoder, family, layer, batches, weights, jensen_shannon)
    chosen: list[int] = []
    for e, value in greedy_experts(slow, weights, 3, layer):
        chosen.append(e)
        last_value = value
    assert state.keep[layer] == chosen[:2]
    assert state.traces[layer][1] == pytest.approx(float(slow(chosen[:1])[chosen[1]]), rel=1e-6)

    captures = []
    for batch in batches:
        hidden = decoder.embed(batch)
        for before in range(place):
            hidden = decoder.run(before, hidden)
        with torch.no_grad():
            x, residual, output = decoder.capture(place, hidden)
            x = x.flatten(0, -2)
            base = residual.flatten(0, -2) + family.shared(layer, x)
        owners = torch.tensor(batch.rows).repeat_interleave(batch.ids.shape[1])
        captures.append(Capture(owners, x, base, decoder.final(place, output).flatten(0, -2)))
    lengths = torch.tensor([float(min(12, len(text))) for text in texts], dtype=torch.float64)
    for budget in (1, 6 * 32 * 8 * 8 * 20, 2**30):  # a token at a time, some, all
        fast = ExpertScores(
            family,
            layer,
            captures,
            weights,
            lengths,
            jensen_shannon,
            lambda states: decoder.final(place, states),
            budget=budget,
        )
        ways = list(greedy_experts(fast, weights, 3, layer))
        assert [e for e, _ in ways] == chosen
        assert ways[-1][1] == pytest.approx(last_value, rel=1e-6)


def test_greedy_takes_the_lowest_of_equal_ones_and_none_without_a_weight() -> None:
    weights = torch.tensor([torch.nan, 0.1, 0.1, 0.1], dtype=torch.float64)
    ways = list(greedy_experts(lambda chosen: torch.tensor([0.0, 1.0, 1.0, 0.5]), weights, 3, 7))
    assert ways == [(3, 0.5), (1, 1.0), (2, 1.0)]
    with pytest.raises(CdmoeError, match="layer 7: 4 experts are to be kept, and only 3 were ever selected"):
        list(greedy_experts(lambda chosen: torch.zeros(4), weights, 4, 7))
    with pytest.raises(CdmoeError, match="layer 7: the distance with expert 2 is nan"):
        list(greedy_experts(lambda chosen: torch.tensor([0.0, 1.0, torch.nan, 0.5]), weights, 1, 7))


# ---- layers ----------------------------------------------------------------------------------------------------------
def brute_force(model: Any, texts: list[Tensor], state: SearchState, order: list[int]) -> float:
    """JS of the final states with layers condensed, text by text with the whole model."""
    family = Family(model)
    values = []
    with torch.no_grad():
        references = [model(t[None], output_hidden_states=True).hidden_states[-1][0] for t in texts]
        own = {place: model.model.layers[place].mlp for place in family.moe_layers()}
        small = {layer: condensed_layer(family, layer, state.keep[layer], state.weights(layer)) for layer in order}
        for layer, mlp in small.items():
            model.model.layers[family.moe_layers()[layer]].mlp = mlp
        for text, reference in zip(texts, references, strict=True):
            hidden = model(text[None], output_hidden_states=True).hidden_states[-1][0]
            values.append(float(jensen_shannon(reference, hidden).mean()))
        for place, mlp in own.items():
            model.model.layers[place].mlp = mlp
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["SR", "S"])
def test_layers_are_chosen_as_by_brute_force(small: Small, texts: list[Tensor], kind: str, mode: str) -> None:
    model = small(kind)
    state = search(model, texts, mode=mode, layers=3)
    left, order = list(range(len(state.keep))), []
    for number in range(3):
        ways = {layer: brute_force(model, texts, state, [*order, layer]) for layer in left}
        best = min(ways, key=lambda layer: (ways[layer], layer))
        assert state.order[number] == best
        assert state.distances[number] == pytest.approx(ways[best], rel=1e-6)
        order.append(best)
        left.remove(best)


def test_a_wide_beam_finds_the_best_set_and_counts_a_set_once(small: Small, texts: list[Tensor]) -> None:
    from itertools import combinations

    model = small()
    state = search(model, texts[:3], layers=2, beam=6)
    best = min(combinations(range(4), 2), key=lambda pair: brute_force(model, texts[:3], state, list(pair)))
    assert set(state.order) == set(best)
    assert len({frozenset(beam.order) for beam in state.beams}) == len(state.beams) == 6


def test_no_layers_are_no_change(small: Small, texts: list[Tensor]) -> None:
    assert search(small(), texts, layers=0).order == []


# ---- what must not change the lists ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["qwen2_moe", "deepseek_v3"])
def test_batch_size_and_padding_do_not_matter(small: Small, texts: list[Tensor], kind: str) -> None:
    model = small(kind, torch.float32)
    expected = search(model, texts, layers=3, text_batch=8)
    width = max(map(len, texts))
    for side in ("left", "right"):
        mask = torch.stack([_padded(torch.ones_like(text), width, side) for text in texts])
        ids = torch.stack([_padded(text, width, side) for text in texts])
        again = unpadded(ids, mask)
        assert all(torch.equal(a, b) for a, b in zip(again, texts, strict=True))
    for size in (1, 2, 3):
        assert lists(search(model, texts, layers=3, text_batch=size)) == lists(expected)


def _padded(text: Tensor, width: int, side: str) -> Tensor:
    fill = torch.zeros(width - len(text), dtype=text.dtype)
    return torch.cat([fill, text] if side == "left" else [text, fill])


def test_the_number_of_processes_does_not_matter_bit_for_bit(small: Small, texts: list[Tensor]) -> None:
    options = SearchOptions(layers=3, text_batch=2)
    alone = Search(Decoder(small()), texts, options).run().dump()
    for world in (2, 3):
        for state in together([small() for _ in range(world)], texts, options):
            assert {**state, "seconds": 0} == {**alone, "seconds": 0}


def together(models: list[Any], texts: list[Tensor], options: SearchOptions) -> list[Any]:
    """The states of a search that threads make together, each with a model of its own."""
    world = len(models)
    barrier, parts, states = threading.Barrier(world), [torch.zeros(0)] * world, [None] * world

    def work(rank: int) -> None:
        def reduce(tensor: Tensor) -> Tensor:
            parts[rank] = tensor
            barrier.wait()
            total = torch.stack(list(parts)).sum(0)
            barrier.wait()
            return total

        one = Search(Decoder(models[rank]), texts, options, reduce=reduce, rank=rank, world=world)
        states[rank] = one.run().dump()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return states


@pytest.mark.parametrize("options", [{}, {"mode": "S"}, {"beam": 2}, {"experts": "random"}])
def test_killed_at_every_point_it_ends_with_the_same_lists(
    small: Small, texts: list[Tensor], options: dict[str, Any]
) -> None:
    """What is stored is text, so it is what a kill right after it leaves."""
    chosen = SearchOptions(**{"layers": 2, "kept": 2, **options})
    model = small(seed=3, num_hidden_layers=3)
    stored: list[str] = []
    expected = Search(Decoder(model), texts, chosen, store=lambda s: stored.append(json.dumps(s.dump()))).run()
    assert len(stored) >= 3
    for text in stored:
        state = SearchState.read(json.loads(text), "state")
        again = Search(Decoder(model), texts, chosen, state=state).run()
        assert {**again.dump(), "seconds": 0} == {**expected.dump(), "seconds": 0}


def test_a_state_of_another_search_is_refused(small: Small, texts: list[Tensor]) -> None:
    model = small()
    state = search(model, texts)
    with pytest.raises(CdmoeError, match="its kept is 2, here it is 3"):
        Search(Decoder(model), texts, SearchOptions(kept=3), state=state)
    with pytest.raises(CdmoeError, match="its texts"):
        Search(Decoder(model), texts[:3], SearchOptions(), state=state)
    with pytest.raises(CdmoeError, match=r"file\.json: this is no state"):
        SearchState.read({"version": 1}, "file.json")
    with pytest.raises(CdmoeError, match="another release"):
        SearchState.read({"version": 0}, "file.json")


# ---- other ways to choose --------------------------------------------------------------------------------------------
def test_frequency_weight_and_random_experts(small: Small, texts: list[Tensor]) -> None:
    model = small("deepseek_v2")
    gates: GateStats = search(model, texts, layers=0).gates
    for name, values in (("frequency", gates.counts[2]), ("weight", gates.weights(2).nan_to_num(-1).tolist())):
        state = search(model, texts, experts=name, layers=0)
        assert state.keep[2] == sorted(range(6), key=lambda e: (-values[e], e))[:2]
    draws = [search(model, texts, experts="random", draw=n, layers=0).keep for n in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_trimming_takes_the_most_similar(small: Small, texts: list[Tensor]) -> None:
    model = small("deepseek_v2")
    pairs: list[tuple[Tensor, Tensor]] = []
    whole: dict[int, list[float]] = {}
    family = Family(model)
    layer = model.model.layers[2]
    hook = layer.post_attention_layernorm.register_forward_pre_hook(lambda m, g: pairs.append((g[0][0], g[0][0])))
    cosines = []
    with torch.no_grad(), hook:
        for text in texts:
            pairs.clear()
            hidden = model(text[None], output_hidden_states=True).hidden_states
            cosines += torch.cosine_similarity(pairs[0][0], hidden[3][0], dim=-1).tolist()
            for place in range(3):
                values = torch.cosine_similarity(hidden[place][0], hidden[place + 1][0], dim=-1).tolist()
                whole.setdefault(place, []).extend(values)
    state = search(model, texts, mode="layer-trimming", layers=2)
    assert state.similarity[family.moe_layers().index(2)] == pytest.approx(sum(cosines) / len(cosines), rel=1e-9)
    assert state.order == most(state.similarity, 2, range(3))
    blocks = Search(Decoder(model), texts, SearchOptions(mode="block-trimming", layers=3))
    blocks.run()
    for place, values in whole.items():
        assert blocks.state.block_similarity[place] == pytest.approx(sum(values) / len(values), rel=1e-9)
    rows = [row[:4] for row in figures.layers(blocks)["layers"].rows]
    assert rows == [[rank, place, place, "none"] for rank, place in enumerate(blocks.state.order, 1)]
    dropped = search(model, texts, mode="layer-drop", layers=3)
    assert sorted(dropped.order) == [0, 1, 2]
    assert dropped.distances == sorted(dropped.distances)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("qwen2_moe", {"layers": 5}, "layers = 5 is more than the 4 layers"),
        ("qwen2_moe", {"kept": 7}, "kept = 7 is more than the 6 experts"),
        ("qwen3_moe", {"mode": "S"}, "qwen3_moe has no shared expert.*layer trimming"),
        ("qwen2_moe", {"mode": "block-trimming", "layers": 4}, "would remove every block"),
    ],
)
def test_options_that_do_not_fit(
    small: Small, texts: list[Tensor], kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CdmoeError, match=message):
        Search(Decoder(small(kind)), texts, SearchOptions(**options))


def test_texts_that_do_not_fit(small: Small) -> None:
    with pytest.raises(CdmoeError, match="calibration texts are empty"):
        search(small(), [torch.zeros(0, dtype=torch.int64)])
    with pytest.raises(CdmoeError, match=r"65 tokens is longer than the model's 64 positions"):
        search(small(), [torch.zeros(65, dtype=torch.int64)])
    with pytest.raises(CdmoeError, match="token 64 is outside the model's vocabulary of 64"):
        search(small(), [torch.tensor([1, 64])])
    empty = search(small(), [torch.arange(9), torch.zeros(0, dtype=torch.int64)], kept=1)
    assert empty.skipped == 1
    assert Beam() not in empty.beams


def test_numbers_that_are_not_finite_are_named(small: Small, texts: list[Tensor]) -> None:
    model = small()
    with torch.no_grad():
        model.model.layers[2].mlp.experts.down_proj[:] = torch.nan
    with pytest.raises(CdmoeError, match=r"layer 2: the distance with expert \d is nan"):
        search(model, texts)


def test_never_selected_experts_are_no_candidates(small: Small, texts: list[Tensor]) -> None:
    model = small("deepseek_v3")
    with torch.no_grad():
        model.model.layers[1].mlp.gate.e_score_correction_bias[:4] = -100.0
    state = search(model, texts, layers=1, kept=2)
    assert set(state.keep[0]) == {4, 5}
    assert {(0, e) for e in range(4)} <= set(state.gates.never_selected())
    with pytest.raises(CdmoeError, match="layer 0: 3 experts are to be kept, and only 2 were ever selected"):
        search(model, texts, layers=1, kept=3)

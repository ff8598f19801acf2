"""Ranking: exact counts, ties, targets; scores of the baselines; curves and winning tickets; options."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait_glt.baselines import degree_scores, drop_edges, magnitude_scores, random_scores
from plait_glt.config import VARIANTS, GLTConfig
from plait_glt.errors import GLTError
from plait_glt.pruning import check_target, kept_after, prune_count, prune_smallest
from plait_glt.sparsity import area_under_curve, extreme_sparsity, gradient_share, is_winning, sparsity

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@calm
@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.floats(0.05, 0.9), st.integers(0, 10**6))
def test_exact_count_smallest_first_over_all_tensors(sizes: list[int], share: float, seed: int) -> None:
    rng = generator(seed)
    total = sum(sizes)
    values = torch.randperm(total, generator=rng).float() + 1
    signs = torch.randint(0, 2, (total,), generator=rng) * 2 - 1
    scores = list((values * signs).split(sizes))
    kept = [torch.rand(size, generator=rng) < 0.8 for size in sizes]
    alive = torch.cat(kept)
    count = prune_count(int(alive.sum()), share)
    after = torch.cat(prune_smallest(scores, kept, count, rng))
    assert int(after.sum()) == int(alive.sum()) - count == int(alive.sum()) - round(share * int(alive.sum()))
    assert bool((after <= alive).all())
    went, stayed = values[alive & ~after], values[after]
    assert not len(went) or not len(stayed) or float(went.max()) < float(stayed.min())


def test_ties_go_in_a_seeded_order_and_not_in_that_of_memory() -> None:
    """Card, traps 3 and 9: all equal, as after a clip at 1."""
    scores, kept = [torch.ones(10, 10)], [torch.ones(10, 10, dtype=torch.bool)]
    first, again, other = (prune_smallest(scores, kept, 50, generator(s))[0] for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 10 < int((~first)[:5].sum()) < 40
    assert int(first.sum()) == 50 and bool(kept[0].all())


def test_scores_that_differ_in_the_last_bit_are_no_tie() -> None:
    """UGS's masks spread by 1e-5 after a dozen epochs: what is larger, by however little, stays."""
    half = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)).item()
    scores = torch.tensor([half, 0.5, -0.5, half])
    for seed in range(20):
        kept = prune_smallest([scores], [torch.ones(4, dtype=torch.bool)], 2, generator(seed))[0]
        assert kept.tolist() == [True, False, False, True]


def test_pruning_refuses_what_it_cannot_do() -> None:
    ones = torch.ones(4)
    with pytest.raises(GLTError, match="5 entries are to go, and 4 are kept"):
        prune_smallest([ones], [ones.bool()], 5, generator())
    with pytest.raises(GLTError, match="differ"):
        prune_smallest([ones], [ones[:3].bool()], 1, generator())
    broken = torch.tensor([1.0, torch.nan, 1.0, 1.0])
    with pytest.raises(GLTError, match="not finite"):
        prune_smallest([broken], [ones.bool()], 1, generator())
    pruned_nan = torch.tensor([True, False, True, True])
    assert int(prune_smallest([broken], [pruned_nan], 1, generator())[0].sum()) == 2


def test_twenty_rounds_of_the_defaults() -> None:
    """Card, section 2: 64.15 % and 98.85 %."""
    assert 1 - kept_after(5278, 0.05, 20)[-1] / 5278 == pytest.approx(0.6415, abs=1e-3)
    assert 1 - kept_after(737_000, 0.2, 20)[-1] / 737_000 == pytest.approx(0.9885, abs=1e-4)


def test_targets_out_of_reach_are_told() -> None:
    check_target("graph", 5278, 0.05, 20, 0.6)
    check_target("graph", 5278, 0.05, 20, None)
    with pytest.raises(
        GLTError, match=r"graph sparsity 0.9 is not reachable: 20 rounds of 0.05 end at 0.64.* 45 rounds"
    ):
        check_target("graph", 5278, 0.05, 20, 0.9)
    with pytest.raises(GLTError, match="no number of rounds"):
        check_target("weight", 10, 0.04, 5, 0.5)


# ---- baselines ---------------------------------------------------------------------------------------------------
def test_random_scores_are_one_order_over_all_tensors() -> None:
    scores = random_scores([torch.zeros(3, 4), torch.zeros(5)], generator())
    assert sorted(torch.cat([s.reshape(-1) for s in scores]).tolist()) == list(range(1, 18))


def test_degree_scores_keep_edges_between_low_degree_nodes() -> None:
    """A star of four leaves with a separate pair: products 4, 4, 4, 4 and 1."""
    ends = torch.tensor([[0, 0, 0, 0, 5], [1, 2, 3, 4, 6]])
    scores = degree_scores(ends, 7)
    assert scores.tolist() == [1, 1, 1, 1, 2]
    assert prune_smallest([scores], [torch.ones(5, dtype=torch.bool)], 4, generator())[0].tolist() == [False] * 4 + [
        True
    ]


def test_drop_edges_and_magnitudes() -> None:
    kept = torch.arange(20) % 4 > 0
    removed = drop_edges(kept, 0.4, generator())
    assert int(removed.sum()) == 6 and bool((removed <= kept).all())
    assert not bool(drop_edges(kept, 0.0, generator()).any())
    weight = torch.tensor([[-2.0, 1.0]], requires_grad=True)
    scores = magnitude_scores({"w": weight})["w"]
    assert scores.tolist() == [[2, 1]] and not scores.requires_grad
    with pytest.raises(GLTError, match="dropedge"):
        drop_edges(kept, 1.0, generator())


# ---- figures -----------------------------------------------------------------------------------------------------
def test_curves_and_winning_tickets() -> None:
    assert sparsity([torch.tensor([1.0, 0.0]), torch.zeros(2)]) == 0.75 and sparsity([]) == 0.0
    sparsities, accuracies = [0.0, 0.5, 0.25], [80.0, 70.0, 82.0]
    assert area_under_curve(sparsities, accuracies) == pytest.approx(0.25 * 81 + 0.25 * 76)
    assert area_under_curve(sparsities, accuracies, mean=True) == pytest.approx(78.5)
    assert extreme_sparsity(sparsities, accuracies, 80.0) == 0.25
    assert extreme_sparsity(sparsities, accuracies, 80.0, tolerance=10) == 0.5
    assert extreme_sparsity([0.5], [70.0], 80.0) is None
    assert is_winning(80.0, 80.0) and not is_winning(79.9, 80.0) and is_winning(79.5, 80.0, 0.5)
    assert gradient_share(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1, 1, 0])) == 0.5
    with pytest.raises(GLTError, match="sparsity 0 among"):
        area_under_curve([0.2, 0.5], [1.0, 2.0])


# ---- options -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("p_g", 0.0),
        ("p_g", 1.0),
        ("p_theta", -0.1),
        ("p_theta", float("nan")),
        ("lam", -0.1),
        ("wd_eps", 0.0),
        ("wd_samples", -1),
        ("rho", 1.0),
        ("alpha", -1.0),
        ("rounds", 0),
        ("mask_epochs", 1.5),
        ("adversary", "worst"),
        ("edge_ranking", "magnitude"),
        ("graph_target", 1.0),
    ],
)
def test_bad_options_are_named(option: str, value: object) -> None:
    with pytest.raises(GLTError, match=f"{option}="):
        GLTConfig(**{option: value})  # type: ignore[arg-type]


def test_variants() -> None:
    for name in VARIANTS:
        assert isinstance(GLTConfig.variant(name), GLTConfig)
    ugs = GLTConfig.variant("ugs", rounds=3)
    assert (ugs.lam, ugs.l1_edges, ugs.adversary, ugs.rounds) == (0.0, 0.01, "none", 3)
    # as published: a mask for each direction, decayed with the weights, not clipped, chosen from the first epoch on
    assert (ugs.tied, ugs.decay_masks, ugs.clip, ugs.warmup) == (False, True, False, 0)
    assert not GLTConfig.variant("random").trains_masks and GLTConfig.variant("magnitude").trains_masks
    with pytest.raises(GLTError, match="'uggs' is unknown"):
        GLTConfig.variant("uggs")
    with pytest.raises(GLTError, match="'p' is unknown"):
        GLTConfig.variant("ugs", p=0.1)

"""What attackers observe, and what a predictor makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.options import PredictorOptions
from plait_dbadfl.predictor import (
    DistancePredictor,
    LastValuePredictor,
    MedianPredictor,
    fit_shuffled,
    score_detection,
    swap_pair,
)
from plait_dbadfl.sampling import generator
from plait_dbadfl.scan import Signatures, make_signatures, pair_matrix, pair_sequences, probe_features

QUICK = PredictorOptions(predictor_epochs=40)


# ---- signatures --------------------------------------------------------------------------------------------------
def test_signatures_have_their_pixels_two_values_and_own_targets() -> None:
    s = make_signatures(12, 8, 8, 10, seed=0)
    for mask in (s.mask, s.control_mask):
        assert mask.flatten(1).sum(1).tolist() == [10] * 12
    assert set(s.value.unique().tolist()) == {0.0, 1.0}
    assert s.target.tolist() == [i % 10 for i in range(12)]
    everything = torch.cat([s.mask, s.control_mask]).flatten(1)
    assert len(everything.unique(dim=0)) == 24  # no control equals a signature
    assert make_signatures(3, 8, 8, 10, seed=0, target="shared", shared_target=7).target.tolist() == [7, 7, 7]


def test_a_signature_is_what_its_attacker_poisons_with() -> None:
    s = make_signatures(2, 8, 8, 10, seed=0)
    how = s.poison(0.5)
    assert how.ratio.tolist() == [0.5, 0.5] and how.target.tolist() == [0, 1]
    assert torch.equal(how.mask, s.mask) and torch.equal(how.value, s.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixels": 65}, r"pixels=65 is outside 1\.\.64"),
        ({"target": "mine"}, "'mine' is unknown"),
        ({"target": "shared", "shared_target": 10}, r"target=10 is outside 0\.\.9"),
    ],
)
def test_impossible_signatures_are_refused(options: dict, message: str) -> None:
    with pytest.raises(DbadflError, match=message):
        make_signatures(2, 8, 8, 10, seed=0, **options)
    with pytest.raises(DbadflError, match="r_s"):
        make_signatures(2, 8, 8, 10, seed=0).poison(1.5)


# ---- features ----------------------------------------------------------------------------------------------------
def one_by_one(models: list[torch.nn.Module], images: Tensor, valid: Tensor, s: Signatures) -> Tensor:
    """The same by loops over attackers, signatures and images."""
    m = len(models)
    out = torch.zeros(m, m, 3)
    for j in range(m):
        mine = images[j][valid[j]]
        for i in range(m):
            for k, (mask, value) in enumerate(
                (
                    (s.mask[i], s.value[i]),
                    (s.control_mask[i], s.control_value[i]),
                    (torch.zeros(8, 8).bool(), s.value[i]),
                )
            ):
                shown = mine.clone()
                for image in shown:
                    image[:, mask] = value[mask]
                out[j, i, k] = models[j](shown).softmax(-1)[:, s.target[i]].mean()
    return out


def models_and_forward(m: int) -> tuple[list[torch.nn.Module], object]:
    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)) for _ in range(m)]

    def forward(images: Tensor) -> Tensor:
        return torch.stack([functional_call(f, {}, (x,)) for f, x in zip(models, images, strict=True)])

    return models, forward


def test_features_are_the_mean_softmax_with_signature_control_and_clean() -> None:
    models, forward = models_and_forward(3)
    images = torch.rand(3, 5, 1, 8, 8, generator=generator(0))
    valid = torch.tensor([[True] * 5, [True, True, False, False, False], [True] * 3 + [False] * 2])
    s = make_signatures(3, 8, 8, 10, seed=1)
    got = probe_features(forward, images, valid, s)
    assert torch.allclose(got, one_by_one(models, images, valid, s), atol=1e-6)


def test_several_networks_are_measured_like_each_alone() -> None:
    _, forward = models_and_forward(6)
    images = torch.rand(6, 4, 1, 8, 8, generator=generator(0))
    valid = torch.ones(6, 4, dtype=torch.bool)
    signatures = [make_signatures(3, 8, 8, 10, seed=k) for k in (1, 2)]
    got = probe_features(forward, images, valid, Signatures.stacked(signatures))
    models, _ = models_and_forward(6)
    for k in range(2):
        rows = slice(3 * k, 3 * k + 3)
        want = one_by_one(models[rows], images[rows], valid[rows], signatures[k])
        assert torch.allclose(got[k], want, atol=1e-6)


def test_padding_is_no_observation() -> None:
    _, forward = models_and_forward(2)
    images = torch.rand(2, 4, 1, 8, 8, generator=generator(0))
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    s = make_signatures(2, 8, 8, 10, seed=1)
    first = probe_features(forward, images, valid, s)
    images[1, 2:] = 0.5
    assert torch.equal(first, probe_features(forward, images, valid, s))


def test_sequences_hold_both_directions_of_every_pair_once() -> None:
    features = torch.arange(2 * 4 * 4 * 3).view(2, 4, 4, 3).float()  # [t, viewer, signature, k]
    sequences, pairs = pair_sequences(features)
    assert sequences.shape == (6, 2, 6) and pairs.T.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    for p, (i, j) in enumerate(pairs.T.tolist()):
        assert torch.equal(sequences[p, :, :3], features[:, j, i])  # a_ij: j looks at i's signature
        assert torch.equal(sequences[p, :, 3:], features[:, i, j])
    assert torch.equal(swap_pair(swap_pair(sequences)), sequences)
    assert torch.equal(swap_pair(sequences)[..., :3], sequences[..., 3:])
    matrix = pair_matrix(torch.arange(1.0, 7.0), 4)
    assert torch.equal(matrix, matrix.T) and matrix[1, 3] == 5 and not matrix.diagonal().any()
    with pytest.raises(DbadflError, match="M >= 2"):
        pair_sequences(torch.zeros(2, 1, 1, 3))


# ---- predictor ---------------------------------------------------------------------------------------------------
def decaying(pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences whose signal falls with distance and arrives later, under noise."""
    rng = generator(seed)
    d = torch.randint(1, 9, (pairs,), generator=rng)
    t = torch.arange(12.0)
    a = torch.exp(-d[:, None] / 3) * (t[None] >= d[:, None])
    x = torch.rand(pairs, 12, 6, generator=rng) * 0.05
    x[..., 0] += a
    x[..., 3] += a
    return x, d


@pytest.fixture(scope="module")
def fitted() -> tuple[DistancePredictor, DistancePredictor]:
    x, d = decaying(400, 0)
    return DistancePredictor(QUICK, 0).fit(x, d), fit_shuffled(QUICK, x, d, 0)


def test_the_predictor_learns_a_falling_signal_and_the_shuffled_control_does_not(
    fitted: tuple[DistancePredictor, DistancePredictor],
) -> None:
    x, d = decaying(200, 1)
    real, shuffled = (score_detection(p.predict(x), d, tau=3) for p in fitted)
    constant = score_detection(MedianPredictor(decaying(400, 0)[1]).predict(x), d, tau=3)
    assert real.mae < 0.5 * constant.mae and real.auc > 0.95 and real.spearman > 0.9
    assert shuffled.mae > 0.9 * constant.mae
    assert math.isnan(constant.spearman)


def test_a_prediction_does_not_depend_on_the_order_of_the_pair(
    fitted: tuple[DistancePredictor, DistancePredictor],
) -> None:
    x = torch.rand(20, 12, 6, generator=generator(3))
    assert torch.allclose(fitted[0].predict(x), fitted[0].predict(swap_pair(x)), atol=1e-6)


def test_training_repeats_with_its_seed_and_leaves_the_global_generator_alone() -> None:
    x, d = decaying(60, 0)
    options = PredictorOptions(predictor_epochs=30, predictor_batch=16)
    torch.manual_seed(11)
    want = torch.rand(3)
    torch.manual_seed(11)
    first = DistancePredictor(options, 5).fit(x, d)
    assert torch.equal(torch.rand(3), want)
    again, other = (DistancePredictor(options, s).fit(x, d) for s in (5, 6))
    assert all(torch.equal(w, again.state_dict()[name]) for name, w in first.state_dict().items())
    assert not torch.equal(first.state_dict()["head.weight"], other.state_dict()["head.weight"])
    fresh = DistancePredictor(options, 99)
    fresh.load_state_dict(first.state_dict())
    guess = first.predict(x)
    assert float(guess.max()) > 1 and torch.equal(fresh.predict(x), guess)


def test_the_class_head_learns_too_and_stays_within_its_classes() -> None:
    x, d = decaying(400, 0)
    predictor = DistancePredictor(PredictorOptions(predictor_epochs=40, head="class", max_distance=6), 0).fit(x, d)
    x, d = decaying(200, 1)
    guess = predictor.predict(x)
    assert float(guess.min()) >= 1 and float(guess.max()) <= 6
    assert score_detection(guess, d, tau=3).auc > 0.95


def test_the_linear_control_sees_only_the_last_gap() -> None:
    x, d = decaying(300, 0)
    control = LastValuePredictor(x, d)
    changed = x.clone()
    changed[:, :-1] = 9.0
    changed[..., [2, 5]] = 7.0
    assert torch.equal(control.predict(x), control.predict(changed))
    score = score_detection(control.predict(x), d, tau=3)
    assert score.auc > 0.95


def test_detection_scores_by_hand() -> None:
    guess, true = torch.tensor([1.2, 2.0, 5.0, 4.4]), torch.tensor([1, 3, 3, 6])
    score = score_detection(guess, true, tau=2)
    assert score.mae == pytest.approx((0.2 + 1 + 2 + 1.6) / 4)
    assert score.within_one == 0.5 and score.auc == 1.0 and score.pairs == 4
    # Ranks 1 2 4 3 against 1 2.5 2.5 4.
    assert score.spearman == pytest.approx(1 - 6 * (0 + 0.25 + 2.25 + 1) / 60, abs=0.05)
    assert math.isnan(score_detection(guess, true, tau=9).auc)


@pytest.mark.parametrize(
    ("shape", "distances", "message"),
    [((3, 4, 5), [1, 1, 1], "6"), ((3, 4, 6), [1, 1], "as many distances"), ((1, 4, 6), [0], "below 1")],
)
def test_impossible_training_pairs_are_refused(shape: tuple[int, ...], distances: list[int], message: str) -> None:
    with pytest.raises(DbadflError, match=message):
        DistancePredictor(QUICK, 0).fit(torch.zeros(shape), torch.tensor(distances))

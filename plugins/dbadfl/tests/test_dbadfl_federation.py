"""Whole runs of a small federation: identities, resume, and what attackers may and may not see."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from plait_dbadfl.arms import noisy
from plait_dbadfl.defences import make_defence
from plait_dbadfl.detection import Detection, Detector
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.federation import Federation
from plait_dbadfl.local import Attack, NodeSGD, Training
from plait_dbadfl.options import AttackOptions, FederationOptions, ScanOptions, SGDOptions, ShadowOptions, SplitOptions
from plait_dbadfl.poisoning import Poison
from plait_dbadfl.reference import ImageData, digits, digits_mlp
from plait_dbadfl.sampling import draw_batch
from plait_dbadfl.scan import pair_sequences
from plait_dbadfl.shadows import block_diagonal, shadow_families, simulate_shadows
from plait_dbadfl.topologies import make_topology
from plait_dbadfl.triggers import Trigger

DATA = digits(0)
QUICK = FederationOptions(
    arm="none",
    attackers=4,
    local_steps=3,
    scan_rounds=4,
    shadows=3,
    shadow_topology="same-family",
    predictor_epochs=3,
)


SMALL_BATCH = SGDOptions(batch=8)


def federation(family: str = "ring", nodes: int = 12, sgd: SGDOptions = SMALL_BATCH, **changes: object) -> Federation:
    """QUICK with changes."""
    topology = make_topology(family, nodes, seed=1)
    options = QUICK.changed(**changes)
    return Federation(digits_mlp(0), DATA, topology, options, seed=4, sgd=sgd, implementation="grouped")


def models(training: Training) -> Tensor:
    return training.stack.flat()


def after(fed: Federation, rounds: int, **options: object) -> Tensor:
    """All models after a run."""
    seen: list[Tensor] = []
    fed.run(rounds, on_round=lambda t: seen.append(models(t)), **options)  # type: ignore[arg-type]
    return seen[-1]


# ---- identities --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def detection() -> Detection:
    return federation().detect(control=False)


def test_a_ratio_of_zero_is_the_clean_run_bit_for_bit() -> None:
    clean = after(federation(arm="none"), 4)
    assert torch.equal(clean, after(federation(arm="naive", budget="samples", ratio=0.0), 4))
    assert torch.equal(clean, after(federation(arm="naive", pixels=0.0), 4))
    assert not torch.equal(clean, after(federation(arm="naive"), 4))


def test_no_threshold_is_centralized_all_and_infinity_is_naive(detection: Detection) -> None:
    for tau, arm in ((0.0, "centralized-all"), ("inf", "naive")):
        want = after(federation(arm=arm), 3)
        for clusters in ("clusters-predicted", "clusters-random", "clusters-oracle"):
            assert torch.equal(want, after(federation(arm=clusters, tau=tau), 3, detection=detection))


def test_the_arms_share_everything_but_the_poison() -> None:
    first, other = federation(arm="none"), federation(arm="naive")
    assert torch.equal(first.attackers, other.attackers) and torch.equal(first.owned.index, other.owned.index)
    assert torch.equal(models(first.training()), models(other.training()))
    attack = other.plan().attack(0)
    clean_images, clean_labels = first.training().batch(None, None)
    images, labels = other.training().batch(None, attack)
    assert torch.equal(images[first.benign], clean_images[first.benign])
    assert torch.equal(labels[first.benign], clean_labels[first.benign])
    assert not torch.equal(images, clean_images)


def test_one_round_is_what_a_loop_over_nodes_computes() -> None:
    fed = federation(arm="naive", gamma=2.0)
    attack = fed.plan().attack(0)
    assert attack is not None
    training = fed.training(keep_start=True)
    nets = [training.stack.replica(i) for i in range(12)]
    start = models(training)
    for step in range(3):
        training.steps = step
        images, labels = training.batch(None, attack)
        for net, x, y in zip(nets, images, labels, strict=True):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    trained = torch.stack([nn.utils.parameters_to_vector(net.parameters()).detach() for net in nets])
    trained[fed.attackers] = start[fed.attackers] + 2.0 * (trained[fed.attackers] - start[fed.attackers])
    training.steps = 0
    training.run_round(attack)
    assert torch.allclose(models(training), fed.mixing.dense().float() @ trained, atol=1e-5)


def test_federated_averaging_keeps_all_models_equal() -> None:
    spread = after(federation("complete", 8, arm="naive", engine="fedavg", weights="average"), 2)
    assert torch.allclose(spread, spread[:1].expand_as(spread), atol=1e-6)


def test_whatever_poisons_spreads_one_hop_a_round() -> None:
    fed = federation(nodes=16, arm="centralized-one", attackers=1, placement="list", positions=(0,))
    clean, dirty = ([after(f, r) for r in (1, 2, 3)] for f in (federation(nodes=16, arm="none", attackers=1), fed))
    for r, (a, b) in enumerate(zip(clean, dirty, strict=True), start=1):
        touched = (a != b).any(1)
        assert torch.equal(touched, fed.topology.hops([0])[0] <= r)


# ---- updates -----------------------------------------------------------------------------------------------------
def test_node_sgd_is_torchs_sgd_with_a_rate_per_node() -> None:
    torch.manual_seed(0)
    stacked = torch.randn(3, 4, requires_grad=True)
    rows = [stacked.detach()[i].clone().requires_grad_() for i in range(3)]
    ours = NodeSGD([stacked], 0.1, momentum=0.9, weight_decay=0.01)
    ours.node_scale = torch.tensor([1.0, 0.5, 2.0])
    theirs = [
        torch.optim.SGD([p], 0.1 * s, momentum=0.9, weight_decay=0.01) for p, s in zip(rows, (1, 0.5, 2), strict=True)
    ]
    for _ in range(4):
        target = torch.randn(3, 4)
        stacked.grad = torch.autograd.grad(((stacked - target) ** 2).sum(), stacked)[0]
        ours.step()
        for row, t, optimizer in zip(rows, target, theirs, strict=True):
            optimizer.zero_grad()
            ((row - t) ** 2).sum().backward()
            optimizer.step()
    assert torch.allclose(stacked, torch.stack(list(rows)), atol=1e-6)


def test_the_distance_term_holds_attackers_near_their_start() -> None:
    def moved(alpha: float) -> Tensor:
        fed = federation(arm="naive", loss_alpha=alpha)
        training = fed.training(keep_start=True)
        start, sent = models(training), []
        plain = training.engine.aggregate

        def note(parameters: object, mixing: object, begun: object, round: int) -> None:
            sent.append(models(training))
            plain(parameters, mixing, begun, round)  # type: ignore[arg-type]

        training.engine.aggregate = note
        training.run_round(fed.plan().attack(0))
        return (sent[0] - start).norm(dim=1)

    near, far = moved(0.2), moved(1.0)
    attackers = federation().attackers
    assert bool((near[attackers] < far[attackers]).all())
    benign = federation().benign
    assert torch.equal(near[benign], far[benign])


def test_an_exploding_update_is_refused_with_node_and_round() -> None:
    fed = federation(sgd=SGDOptions(batch=8, lr=1e30), arm="naive", gamma=100.0, attack_start=1)
    with pytest.raises(DbadflError, match=r"round \d+: node \d+ has NaN or infinite parameters"):
        fed.run(3)


def test_scaling_without_a_kept_start_is_refused() -> None:
    fed = federation(arm="naive", gamma=2.0)
    with pytest.raises(DbadflError, match="keep_start"):
        fed.training().run_round(fed.plan().attack(0))


# ---- schedule ----------------------------------------------------------------------------------------------------
def test_an_attack_that_has_not_begun_leaves_the_clean_run() -> None:
    late = federation(arm="naive", attack_start=2)
    assert torch.equal(after(late, 2), after(federation(arm="none"), 2))
    assert not torch.equal(after(late, 3), after(federation(arm="none"), 3))


def test_parts_rotate_every_so_many_rounds() -> None:
    plan = federation(arm="naive", rotate_every=2).plan()
    assert torch.equal(plan.parts(0), plan.parts(1)) and not torch.equal(plan.parts(1), plan.parts(2))
    assert torch.equal(plan.parts(5).sum(0), torch.ones(8, dtype=torch.int64))


def test_arms_stamp_the_same_expected_pixels() -> None:
    totals = {}
    for arm in ("naive", "naive-4", "centralized-all", "centralized-one", "clusters-oracle"):
        budget = federation(arm=arm, pixels=0.8).plan().budget()
        totals[arm] = float(budget.pixels.sum())
        assert not bool(budget.short.any())
    assert {round(t, 9) for t in totals.values()} == {3.2}
    capped = federation(arm="naive", pixels=3.0).plan().budget()
    assert capped.short.tolist() == [True] * 4 and capped.pixels.tolist() == [2.0] * 4


# ---- resume ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("engine", "options"), [("dfedavg", {}), ("dfedavgm", {}), ("dpsgd", {}), ("swarm", {}), ("gossip", {"age": True})]
)
def test_an_attack_resumed_in_the_middle_of_a_round_ends_in_the_same_bits(engine: str, options: dict) -> None:
    fed = federation(arm="naive", gamma=1.5, engine=engine, **options)
    attack = fed.plan().attack(0)

    def run(interrupted: int | None) -> Tensor:
        training = fed.training(keep_start=True)
        for step in range(14):
            if step == interrupted:
                state = training.state_dict()
                training = fed.training(keep_start=True)
                training.load_state_dict(state)
            training.step(attack)
        return models(training)

    assert torch.equal(run(None), run(7))


def test_a_scan_resumed_in_its_middle_sees_the_same() -> None:
    fed = federation()
    whole = fed.scan().run(4)
    first = fed.scan()
    first.run(2)
    state = first.state_dict()
    first.run_round()
    second = fed.scan()
    second.load_state_dict(state)
    assert torch.equal(second.run(4), whole)


def test_a_defence_with_a_history_resumes_too() -> None:
    fed = federation("complete", 8, arm="naive")

    def make() -> Training:
        return fed.training(defence=lambda: make_defence("foolsgold"), rounds=4)

    attack = fed.plan().attack(0)
    straight, first, second = make(), make(), make()
    for _ in range(4):
        straight.run_round(attack)
    for _ in range(2):
        first.run_round(attack)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.run_round(attack)
    assert torch.equal(models(straight), models(second))


# ---- what attackers see ------------------------------------------------------------------------------------------
def test_features_come_from_the_attackers_own_models_and_images_alone() -> None:
    fed = federation()
    scan = fed.scan()
    scan.run(2)
    with torch.no_grad():
        for p in scan.training.parameters:
            p[fed.benign] = float("nan")
    own = fed.probes.images()
    hidden = torch.ones(len(DATA.train), dtype=torch.bool)
    hidden[own] = False
    scan.training.images = torch.full_like(DATA.train, float("nan"))
    scan.training.labels = torch.full_like(DATA.train_labels, -1)
    scan.training.engine = None  # type: ignore[assignment]
    scan.training.data = None  # type: ignore[assignment]
    before = scan.features[-1]
    scan.measure()
    assert torch.equal(scan.features[-1], before) and bool(torch.isfinite(before).all())


def test_predictions_do_not_read_the_true_distances() -> None:
    fed = federation()
    detector = fed.detector(control=False)
    features = fed.scan().run(4)
    alone = detector.detect(features, fed.attacker_hops, tau=3)
    other = detector.detect(features, torch.ones(4, 4, dtype=torch.int64), tau=3)
    assert torch.equal(alone.hops, other.hops) and alone.scores["lstm"].mae != other.scores["lstm"].mae
    assert torch.equal(alone.hops, alone.hops.T) and not alone.hops.diagonal().any()


@pytest.mark.parametrize(("median", "tau"), [(3.0, 2.0), (6.0, 3.0), (2.5, 1.5), (1.0, 0.0)])
def test_tau_by_the_shadows_median_is_that_number_as_tau(median: float, tau: float) -> None:
    fed = federation(attackers=4, tau="median")
    hops = torch.tensor([[0, 1, 2.2, 3.4], [1, 0, 2.4, 3.1], [2.2, 2.4, 0, 2.6], [3.4, 3.1, 2.6, 0]])
    detection = Detection(hops, fed.attacker_hops, torch.zeros(1, 4, 4, 3), {}, median)
    for arm in ("clusters-predicted", "clusters-random", "clusters-oracle"):
        by_rule = fed.changed(arm=arm).plan(detection).clusters
        by_number = fed.changed(arm=arm, tau=tau).plan(detection).clusters
        assert by_rule is not None and by_number is not None and torch.equal(by_rule, by_number)
    with pytest.raises(DbadflError, match="run the detection first"):
        fed.changed(arm="clusters-oracle").plan(None)


def test_the_median_is_of_the_shadows_true_distances() -> None:
    fed = federation(tau="median", arm="clusters-oracle", attackers=4)
    pairs = fed.shadows()
    detection = fed.detect(fed.detector(pairs, control=False))
    assert detection.median == pairs.distances.double().quantile(0.5).item()
    assert Detection.from_state(detection.state_dict()).median == detection.median
    # an arm that reads true distances still waits for the shadows' median
    assert fed.run(1).clusters is not None and fed.run(1, arm="naive").ari is None


def test_noise_on_distances_is_symmetric_seeded_and_as_large_as_said() -> None:
    hops = torch.full((60, 60), 50.0).fill_diagonal_(0.0)
    moved = noisy(hops, 2.0, seed=1)
    off = ~torch.eye(60, dtype=torch.bool)
    assert torch.equal(moved, moved.T) and not moved.diagonal().any() and torch.equal(moved, noisy(hops, 2.0, seed=1))
    assert abs(float((moved - hops)[off].std()) - 2.0) < 0.1 and abs(float((moved - hops)[off].mean())) < 0.2
    assert noisy(hops, 0.0, seed=1) is hops and float(noisy(hops, 1e3, seed=1)[off].min()) >= 1.0


def test_a_nearer_attacker_gives_the_stronger_signal() -> None:
    fed = federation(
        nodes=24, sgd=SGDOptions(), local_steps=5, scan_rounds=12, attackers=6, placement="list",
        positions=(0, 1, 2, 8, 9, 16),
    )  # fmt: skip
    detection = Detection(torch.zeros(6, 6), fed.attacker_hops, fed.scan().run(12), {})
    signal = detection.signal_by_hop()
    far = [v for d, v in signal.items() if d >= 6]
    assert signal[1] > 0.1 and signal[1] > signal[2] > max(0.03, sum(far) / len(far))


# ---- shadows -----------------------------------------------------------------------------------------------------
def test_networks_in_one_stack_are_scanned_like_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fed, several = federation(shadow_data="all"), partial(simulate_shadows, at_once=36)
    monkeypatch.setattr("plait_dbadfl.federation.simulate_shadows", partial(simulate_shadows, at_once=12))
    alone = fed.shadows()
    monkeypatch.setattr("plait_dbadfl.federation.simulate_shadows", several)
    stacked = fed.shadows()
    assert torch.equal(alone.distances, stacked.distances)
    # Batches differ, since one stack draws them together; what each network is does not.
    assert stacked.sequences.shape == (3 * 6, 4, 6) and stacked.network.tolist() == [
        k for k in range(3) for _ in range(6)
    ]
    assert bool((stacked.sequences >= 0).all()) and bool((stacked.sequences <= 1).all())
    assert not torch.equal(stacked.distances[:6], stacked.distances[6:12])


def test_blocks_do_not_mix() -> None:
    fed = federation()
    both = block_diagonal([fed.mixing, federation("torus", 9).mixing])
    dense = both.dense()
    assert torch.equal(dense[:12, :12], fed.mixing.dense()) and not dense[:12, 12:].any() and not dense[12:, :12].any()
    assert torch.equal(dense[12:, 12:], federation("torus", 9).mixing.dense())


def test_shadows_of_attackers_use_no_image_of_a_benign_node(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = federation()
    own = set(fed.owned.rows(fed.attackers).images().tolist())
    seen: set[int] = set()

    def noting(data: object, batch: int, seed: int, step: int) -> Tensor:
        picked = draw_batch(data, batch, seed, step)  # type: ignore[arg-type]
        seen.update(picked.flatten().tolist())
        return picked

    monkeypatch.setattr("plait_dbadfl.local.draw_batch", noting)
    fed.shadows()
    assert seen and seen <= own
    seen.clear()
    federation(shadow_data="all").shadows()
    assert seen - own


def test_shadow_families_are_those_declared() -> None:
    options = ShadowOptions()
    assert shadow_families(options, "ring", 32) == ("ring", "torus", "watts-strogatz", "erdos-renyi")
    assert "torus" not in shadow_families(options, "ring", 31)  # a prime number of nodes makes no torus
    assert shadow_families(ShadowOptions(shadow_topology="same-family"), "torus", 32) == ("torus",)
    assert "ring" not in shadow_families(ShadowOptions(shadow_topology="other-family"), "ring", 32)
    with pytest.raises(DbadflError, match="cannot redraw"):
        shadow_families(ShadowOptions(shadow_topology="same-family"), "file graph.csv", 32)


def test_a_shadow_seed_equal_to_the_runs_is_refused() -> None:
    with pytest.raises(DbadflError, match="shadow seed=4 equals the seed of the run"):
        federation(shadow_seed=4)


# ---- arms and defences -------------------------------------------------------------------------------------------
def test_every_arm_runs_and_says_what_it_did(detection: Detection) -> None:
    sizes = {}
    for arm in ("clusters-predicted", "clusters-random", "clusters-oracle"):
        result = federation(arm=arm).run(2, detection=detection)
        assert result.arm == arm and result.clusters is not None and result.ari is not None
        sizes[arm] = sorted(result.clusters.unique(return_counts=True)[1].tolist())
        assert len(result.final.asr_by_part) == len(result.parts.unique(dim=0))
    assert sizes["clusters-random"] == sizes["clusters-predicted"]
    oracle = federation(arm="clusters-oracle").run(1)
    assert oracle.ari == 1.0


def test_scanning_again_in_the_course_of_the_attack_changes_the_run() -> None:
    fed = federation(arm="clusters-predicted", redetect_every=2)
    detector = fed.detector(control=False)
    once = federation(arm="clusters-predicted")
    assert torch.equal(after(fed, 2, detector=detector), after(once, 2, detector=detector))
    assert not torch.equal(after(fed, 8, detector=detector), after(once, 8, detector=detector))


def test_an_attack_works_and_the_median_weakens_it() -> None:
    fed = federation(sgd=SGDOptions(), local_steps=5, arm="centralized-all", pixels=4.0)
    clean, attacked = fed.run(30, arm="none"), fed.run(30, evaluate_every=10)
    defended = fed.run(30, defence=lambda: make_defence("median"))
    assert clean.final.ma > 0.8 and clean.final.asr < 0.05
    assert attacked.final.asr > 0.8 and attacked.final.ma > 0.7 and attacked.defence is None
    assert [r for r, _ in attacked.history] == [10, 20, 30] and attacked.history[-1][1] == attacked.final
    assert defended.defence == "median" and defended.final.asr < attacked.final.asr
    assert set(attacked.final.asr_by_hop) == set(fed.topology.hops_to(fed.attackers)[fed.benign].tolist())


def test_rules_that_select_report_whom_they_refused() -> None:
    fed = federation("complete", 8, arm="naive", attackers=2)
    for name in ("ubar", "balance"):
        result = fed.run(3, defence=lambda name=name: make_defence(name))
        assert result.rejection is not None and all(0 <= r <= 1 for r in result.rejection)
    for gamma, refused in ((1e9, (0.0, 0.0)), (1e-9, (1.0, 1.0))):  # a radius that holds all models, and none
        assert fed.run(3, defence=lambda gamma=gamma: make_defence("balance", gamma=gamma)).rejection == refused
    assert fed.run(1, defence=lambda: make_defence("median")).rejection is None


def test_cross_losses_are_the_senders_models_on_the_receivers_batches() -> None:
    training = federation().training()
    training.run_round()
    receivers, senders = torch.tensor([0, 5, 3]), torch.tensor([1, 5, 0])
    got = training.cross_losses(receivers, senders)
    images, labels = training.batch(None, None)
    for loss, r, s in zip(got, receivers.tolist(), senders.tolist(), strict=True):
        want = nn.functional.cross_entropy(training.stack.replica(s)(images[r]), labels[r])
        assert float(loss) == pytest.approx(float(want), abs=1e-5)


# ---- bad input ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: federation(attackers=12), r"attackers=12 is outside 1\.\.11"),
        (lambda: federation(attackers=0), "attackers=0: Input should be greater than or equal to 1"),
        (lambda: federation(arm="clusters-oracle", attackers=1), "^arm='clusters-oracle' with attackers=1"),
        (lambda: federation(engine="dpsgd", attacker_steps=4), "^engine 'dpsgd' exchanges models after every step"),
        (lambda: federation(attackers=1).detect(), "centralized-one"),
        (lambda: federation(placement="list", positions=(0, 1, 2, 12)), "position 12"),
        (lambda: federation(target=10), r"target=10 is outside the classes 0\.\.9"),
        (lambda: federation(n_clusters=5), r"n_clusters=5 is outside 1\.\.4"),
        (lambda: federation(nodes=200, attackers=4), "need 1600 images"),
        (lambda: federation(arm="clusters-predicted").plan(), "needs predicted distances"),
        (lambda: federation().run(0), "rounds=0"),
        (lambda: federation(engine="fedavg"), "complete graph"),
    ],
)
def test_impossible_federations_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DbadflError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttackOptions(target=-1), "target"),
        (lambda: AttackOptions(ratio=1.2), "ratio"),
        (lambda: ScanOptions(scan_ratio=-0.1), "scan_ratio"),
        (lambda: AttackOptions(tau=-1), "from 0 to 1e6 hops"),
        (lambda: AttackOptions(gamma=101), "gamma"),
        (lambda: AttackOptions(arm="random"), "centralized-one"),
        (lambda: AttackOptions(shedule="single"), "shedule"),
        (lambda: SplitOptions(split_alpha=0), "split_alpha"),
        (lambda: SGDOptions(lr=0), "lr"),
        (lambda: SGDOptions(momentum=1.0), "momentum"),
    ],
)
def test_options_out_of_bounds_are_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()


def test_data_that_do_not_fit_are_refused() -> None:
    twos = DATA.test_labels == 2
    only = ImageData(DATA.train, DATA.train_labels, DATA.test[twos], DATA.test_labels[twos], 10)
    with pytest.raises(DbadflError, match=r"all .* test images are of the target class 2"):
        Federation(digits_mlp(0), only, make_topology("ring", 12), QUICK)
    with pytest.raises(DbadflError, match="28 x 28 does not fit images of 8 x 8"):
        Federation(digits_mlp(0), DATA, make_topology("ring", 12), QUICK, trigger=Trigger(((0, 0),), 28, 28))
    with pytest.raises(DbadflError, match=r"must lie in \[0, 1\]"):
        ImageData(DATA.train * 16, DATA.train_labels, DATA.test, DATA.test_labels, 10)
    with pytest.raises(DbadflError, match=r"labels must lie in 0\.\.4"):
        ImageData(DATA.train, DATA.train_labels, DATA.test, DATA.test_labels, 5)
    with pytest.raises(DbadflError, match="poison for 1"):
        Attack(torch.arange(2), Poison.none(1, 8, 8))


def test_a_detection_is_scored_beside_its_controls() -> None:
    fed = federation()
    pairs = fed.shadows()
    detector = Detector.train(pairs.sequences, pairs.distances, QUICK, 0)
    detection = detector.detect(fed.scan().run(4), fed.attacker_hops, tau=2)
    assert set(detection.scores) == {"lstm", "median", "linear", "shuffled"}
    assert all(s.pairs == 6 for s in detection.scores.values())
    assert detection.mae_ratio == detection.scores["lstm"].mae / detection.scores["median"].mae
    assert len(pair_sequences(detection.features)[0]) == 6

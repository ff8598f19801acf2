"""Attackers' own local training: numbers of steps, rates that fall on the way, passes, fresh momentum."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from plait_dbadfl.course import AttackCourse
from plait_dbadfl.engines import make_engine
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.federation import Federation
from plait_dbadfl.local import Training
from plait_dbadfl.options import FederationOptions, LocalOptions, SGDOptions
from plait_dbadfl.pace import Pace, lowered, passes
from plait_dbadfl.reference import digits, digits_mlp
from plait_dbadfl.topologies import make_topology

DATA = digits(0)
STEP = set(SGDOptions.model_fields)


def federation(engine: str = "dfedavg", **given: Any) -> Federation:
    """A small federation under the naive attack, with changes."""
    sgd = SGDOptions(**({"batch": 8} | {name: value for name, value in given.items() if name in STEP}))
    usual = FederationOptions(
        engine=engine,
        weights="average" if engine == "fedavg" else None,
        arm="naive",
        attackers=4,
        local_steps=3,
        scan_rounds=2,
        shadows=2,
        shadow_topology="same-family",
        predictor_epochs=2,
    )
    options = usual.changed(**{name: value for name, value in given.items() if name not in STEP})
    topology = make_topology("complete" if engine == "fedavg" else "ring", 12, seed=1)
    return Federation(digits_mlp(0), DATA, topology, options, seed=4, sgd=sgd, implementation="grouped")


def course(fed: Federation) -> AttackCourse:
    training = fed.training(rounds=9, keep_start=True)
    return AttackCourse(fed, training, 9)


def after(fed: Federation, rounds: int) -> Tensor:
    seen: list[Tensor] = []
    fed.run(rounds, on_round=lambda t: seen.append(t.stack.flat()))
    return seen[-1]


# ---- rates -------------------------------------------------------------------------------------------------------
def test_the_rate_falls_after_a_fifth_and_four_fifths_of_the_steps() -> None:
    rates = torch.stack([lowered(step, torch.tensor([10, 6, 5]), (0.2, 0.8), 0.1) for step in range(10)])
    assert rates[:, 0].tolist() == pytest.approx([1.0] * 2 + [0.1] * 6 + [0.01] * 2)
    # 1.2 and 4.8 of 6 steps lie behind from the third and from the sixth step on
    assert rates[:6, 1].tolist() == pytest.approx([1.0] * 2 + [0.1] * 3 + [0.01])
    assert rates[:5, 2].tolist() == pytest.approx([1.0] + [0.1] * 3 + [0.01])
    assert lowered(7, torch.tensor([10]), (0.7,), 0.5).item() == 0.5  # 0.7 * 10 is 7.000000000000001
    assert lowered(6, torch.tensor([10]), (), 0.5).item() == 1.0


@pytest.mark.parametrize("epochs", range(1, 21))
def test_whole_epochs_is_what_torchs_scheduler_makes_of_float_milestones(epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    marks: Any = [0.2 * epochs, 0.8 * epochs]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=marks, gamma=0.1)
    options = LocalOptions(attacker_epochs=epochs, attacker_lr_milestones=(0.2, 0.8), attacker_lr_at="whole-epochs")
    counted = options.milestones
    for epoch in range(epochs):
        want = optimizer.param_groups[0]["lr"]
        assert lowered(epoch, torch.tensor([epochs]), counted, 0.1).item() == pytest.approx(want)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no step of the optimizer before the scheduler's
            scheduler.step()
    assert (len(counted) == 2) == (epochs % 5 == 0)


def test_the_ancestors_six_epochs_never_lower_the_rate() -> None:
    milestones = {"attacker_epochs": 6, "attacker_lr_milestones": (0.2, 0.8)}
    assert LocalOptions(**milestones).milestones == (0.2, 0.8)
    assert LocalOptions(**milestones, attacker_lr_at="whole-epochs").milestones == ()
    assert LocalOptions(**milestones | {"attacker_epochs": 10}, attacker_lr_at="whole-epochs").milestones == (0.2, 0.8)


# ---- steps -------------------------------------------------------------------------------------------------------
def test_a_round_is_what_a_loop_of_optimizers_over_nodes_computes() -> None:
    fed = federation(
        gamma=2.0,
        attacker_steps=7, attacker_lr=0.3, attacker_lr_milestones=(0.2, 0.8), momentum=0.9, weight_decay=0.01,
        fresh_momentum=True,
    )  # fmt: skip
    run = course(fed)
    training, attackers = run.training, set(fed.attackers.tolist())
    for _ in range(2):
        nets = [training.stack.replica(i) for i in range(12)]
        start = training.stack.flat()
        optimizers = [torch.optim.SGD(n.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01) for n in nets]
        for step in range(7):
            attack, nodes = run.attack(), training.active()
            assert (nodes is None) == (step < 3)
            images, labels = training.batch(nodes, attack)
            who = range(12) if nodes is None else nodes.tolist()
            assert set(who) == set(range(12)) if step < 3 else set(who) == attackers
            for i, x, y in zip(who, images, labels, strict=True):
                # 1.4 and 5.6 of 7 steps
                factor = (1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.01)[step]
                optimizers[i].param_groups[0]["lr"] = 0.3 * factor if i in attackers else 0.2
                optimizers[i].zero_grad()
                nn.functional.cross_entropy(nets[i](x), y).backward()
                optimizers[i].step()
            training.step(attack)
        run.round_ended()
        trained = torch.stack([nn.utils.parameters_to_vector(n.parameters()).detach() for n in nets])
        trained[fed.attackers] = start[fed.attackers] + 2.0 * (trained[fed.attackers] - start[fed.attackers])
        assert torch.allclose(training.stack.flat(), fed.mixing.dense().float() @ trained, atol=1e-5)


@pytest.mark.parametrize("engine", ["dfedavg", "dfedavgm", "swarm", "gossip", "fedavg"])
def test_as_many_steps_as_the_others_are_the_others_bit_for_bit(engine: str) -> None:
    options = {"fedavg": {"drawn": 5}, "swarm": {"swarm_steps": "fixed"}}.get(engine, {})
    plain = after(federation(engine, **options, momentum=0.5), 3)
    assert torch.equal(plain, after(federation(engine, **options, momentum=0.5, attacker_steps=3), 3))
    assert not torch.equal(plain, after(federation(engine, **options, momentum=0.5, attacker_steps=5), 3))


@pytest.mark.parametrize("engine", ["dfedavg", "swarm"])
def test_further_steps_of_attackers_leave_benign_nodes_untouched(engine: str) -> None:
    """Also their momentum; and they see the same batches in every round."""

    def sent(**local: Any) -> tuple[Tensor, Tensor]:
        """Benign nodes' models and momentum just before the first exchange."""
        fed = federation(engine, momentum=0.9, **local)
        run, noted = course(fed), []
        plain = run.training.engine.aggregate

        def note(parameters: Any, mixing: Any, start: Any, round: int) -> None:
            buffers = [run.training.optimizer.state[p]["momentum_buffer"].flatten(1) for p in run.training.parameters]
            noted.append((run.training.stack.flat()[fed.benign], torch.cat(buffers, 1)[fed.benign]))
            plain(parameters, mixing, start, round)

        run.training.engine.aggregate = note
        run.training.run_round(run.attack())
        return noted[0]

    for sent_by_default, other in zip(sent(), sent(attacker_steps=9), strict=True):
        assert torch.equal(sent_by_default, other)


def test_attackers_may_take_fewer_steps() -> None:
    fed = federation(attacker_steps=1)
    run = course(fed)
    active = [run.training.active()]
    run.training.step(run.attack())
    active.append(run.training.active())
    assert active[0] is None and active[1] is not None
    assert set(active[1].tolist()) == set(range(12)) - set(fed.attackers.tolist())


@pytest.mark.parametrize(
    ("engine", "options"),
    [("dfedavg", {}), ("gossip", {}), ("swarm", {"swarm_steps": "geometric"}), ("fedavg", {"drawn": 6})],
)
def test_arms_share_benign_batches_however_long_attackers_train(engine: str, options: dict[str, Any]) -> None:
    drawn: dict[int | None, list[Tensor]] = {}
    for steps in (None, 1, 6):
        run = course(federation(engine, attack_start=1, **options, attacker_steps=steps))
        batches = drawn.setdefault(steps, [])
        while run.training.round < 2 + (engine == "dfedavg"):
            if (nodes := run.training.active()) is None or bool(run.federation.benign[nodes].any()):
                picked = run.training.picked(None)
                keep = torch.arange(12) if nodes is None else nodes
                rows = torch.zeros(12, dtype=torch.bool)
                rows[keep] = True
                batches.append(picked * (rows & run.federation.benign)[:, None])
            run.training.step(run.attack())
            if run.training.engine.starts_round:
                run.round_ended()
    assert len(drawn[None]) >= 6
    # steps in which no benign node trains exist in none of the lists, but for those that only attackers share
    kept = {steps: [b for b in batches if int(b.sum())] for steps, batches in drawn.items()}
    for steps in (1, 6):
        assert len(kept[steps]) == len(kept[None])
        assert all(torch.equal(a, b) for a, b in zip(kept[None], kept[steps], strict=True))


def test_only_the_rounds_of_the_attack_are_longer() -> None:
    fed = federation(schedule="single", attack_rounds=(1, 1, 3, 9), attacker_steps=10)
    run, lengths, acting = course(fed), [], []
    total = run.training.engine.steps_of(5)
    for _ in range(5):
        lengths.append(run.training.engine.steps_in_round)
        acting.append(run.training.engine.local_counts[fed.attackers].tolist())
        run.training.run_round(run.attack())
        run.round_ended()
    assert lengths == [3, 10, 3, 10, 3] and total == sum(lengths) == run.training.steps
    assert acting[1] == [10, 10, 3, 3] and acting[3] == [3, 3, 10, 3] and acting[0] == [3] * 4


@pytest.mark.parametrize(
    "attack", [{"arm": "none"}, {"pixels": 0.0}, {"arm": "centralized-one"}, {"arm": "naive-4", "attackers": 5}]
)
def test_whoever_attacks_takes_the_attackers_steps(attack: dict[str, Any]) -> None:
    run = course(federation(**attack, attacker_steps=8))
    attack_now = run.attack()
    acting = torch.tensor([], dtype=torch.int64) if attack_now is None else attack_now.acting()
    counts = run.training.engine.local_counts
    assert torch.equal((counts == 8).nonzero().flatten(), acting.sort().values)


def test_whoever_scans_in_the_course_of_the_attack_trains_as_everybody_does() -> None:
    fed = federation(arm="clusters-predicted", redetect_every=3, attacker_steps=5)
    detector = fed.detector(control=False)
    training = fed.training(rounds=9)
    run = AttackCourse(fed, training, 9, detection=fed.detect(detector), detector=detector)
    lengths, scanning = [], []
    while training.round < 9:
        attack = run.attack()
        scanning.append(run.scan is not None)
        lengths.append(training.engine.steps_in_round)
        training.run_round(attack)
        run.round_ended()
    assert lengths == [3 if scans else 5 for scans in scanning] and scanning == [False] * 3 + [True] * 2 + [
        False
    ] * 3 + [True]


# ---- passes ------------------------------------------------------------------------------------------------------
def test_an_epoch_is_as_many_steps_as_a_nodes_images_fill_batches() -> None:
    assert passes(torch.tensor([1, 8, 9, 16, 17]), 8, 3).tolist() == [3, 3, 6, 6, 9]
    fed = federation(local_epochs=2, attacker_epochs=5, batch=32)
    batches = -(-fed.owned.lengths // 32)
    want = torch.where(fed.benign, 2, 5) * batches
    run, taken = course(fed), torch.zeros(12, dtype=torch.int64)
    while run.training.round < 2:
        nodes = run.training.active()
        taken[torch.arange(12) if nodes is None else nodes] += 1
        run.training.step(run.attack())
    assert torch.equal(taken, 2 * want) and len(set(batches.tolist())) > 1


def test_scans_and_shadows_pass_over_their_own_images() -> None:
    fed = federation(local_epochs=1, attacker_epochs=4)
    scan = fed.scan()
    assert torch.equal(scan.training.engine.local_counts, -(-fed.owned.lengths // 8))
    pairs = fed.shadows()
    assert len(pairs.sequences) and bool(torch.isfinite(pairs.sequences).all())


def test_momentum_starts_afresh_in_every_round_if_asked() -> None:
    def momentum(fresh: bool) -> Tensor:
        training = federation(momentum=0.9, fresh_momentum=fresh).training()
        training.run_round()
        return torch.cat([training.optimizer.state[p]["momentum_buffer"].flatten() for p in training.parameters])

    assert float(momentum(True).abs().max()) == 0.0 < float(momentum(False).abs().max())


# ---- resume ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("dfedavg", {}),
        ("swarm", {"swarm_steps": "geometric"}),
        ("gossip", {"age": True}),
        ("fedavg", {"drawn": 6}),
    ],
)
@pytest.mark.parametrize("at", [2, 5, 8])
def test_a_run_stopped_among_attackers_further_steps_ends_in_the_same_bits(
    engine: str, options: dict[str, Any], at: int
) -> None:
    fed = federation(
        engine, gamma=1.5, **options, attacker_steps=7, attacker_lr_milestones=(0.2, 0.8), momentum=0.9,
        fresh_momentum=True,
    )  # fmt: skip

    def run(interrupted: int | None) -> Training:
        now = course(fed)
        for step in range(16):
            if step == interrupted:
                state, seen = now.training.state_dict(), now.state_dict()
                now = course(fed)
                now.training.load_state_dict(state)
                now.load_state_dict(seen)
            before = now.training.round
            now.training.step(now.attack())
            if now.training.round > before:
                now.round_ended()
        return now.training

    straight, resumed = run(None), run(at)
    assert torch.equal(straight.stack.flat(), resumed.stack.flat()) and straight.draw == resumed.draw


# ---- refusals ----------------------------------------------------------------------------------------------------
def test_impossible_numbers_are_refused() -> None:
    for bad, message in (
        ({"attacker_steps": 0}, "attacker_steps"),
        ({"local_epochs": 0}, "local_epochs"),
        ({"attacker_steps": 2, "attacker_epochs": 2}, "choose one"),
        ({"attacker_lr_milestones": (0.2, 1.0)}, "less than 1"),
        ({"attacker_lr_decay": 0.0}, "attacker_lr_decay"),
        ({"attacker_lr_at": "epochs"}, "'share' or 'whole-epochs'"),
        ({"attacker_lr_at": "whole-epochs"}, "give attacker_epochs"),
    ):
        with pytest.raises(ValidationError, match=message):
            LocalOptions(**bad)  # type: ignore[arg-type]
    with pytest.raises(DbadflError, match="after every step"):
        federation("dpsgd", attacker_steps=4)
    with pytest.raises(DbadflError, match="local_epochs"):
        federation("swarm", swarm_steps="geometric", local_epochs=1)
    with pytest.raises(DbadflError, match="at least one local step"):
        Pace(torch.tensor([1, 0]))
    fed = federation()
    with pytest.raises(DbadflError, match="pace of 3 nodes"):
        make_engine("dfedavg", fed.mixing, pace=Pace(torch.tensor([1, 2, 3])))

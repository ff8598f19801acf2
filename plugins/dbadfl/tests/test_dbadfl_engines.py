"""Schedules against hand-written loops on a quadratic problem, where every participant has its own minimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plait_dbadfl.defences import DEFENCES, RobustAggregation, make_defence
from plait_dbadfl.engines import ENGINES, Gossip, Swarm, make_engine
from plait_dbadfl.errors import DbadflError
from plait_dbadfl.interactions import random_matching, waves
from plait_dbadfl.mixing import Mixing, make_mixing
from plait_dbadfl.phases import Engine
from plait_dbadfl.poisoning import distance_to_start
from plait_dbadfl.topologies import make_topology

N, LR = 8, 0.1
TARGETS = torch.randn(N, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
CURVES = 0.5 + torch.rand(N, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def gradient(models: Tensor) -> Tensor:
    """Of 0.5 c (x - target)^2, for each participant."""
    return CURVES * (models - TARGETS)


def mixing(name: str = "ring", n: int = N) -> Mixing:
    return make_mixing(make_topology(name, n, seed=1), "average" if name == "complete" else None)


def first() -> Tensor:
    return torch.randn(N, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def run(
    engine: Engine, rounds: int, momentum: float = 0.0, sending: Callable[[Any], None] | None = None
) -> tuple[Tensor, int]:
    """Models [N, 3] after ``rounds``; two stacked tensors of different shapes take part."""
    x = first()
    parameters = [nn.Parameter(x[:, :1].clone()), nn.Parameter(x[:, 1:].reshape(N, 2, 1).clone())]
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=momentum)
    steps = 0
    while engine.round < rounds:
        step_with(engine, parameters, optimizer, sending)
        steps += 1
    return joined(parameters), steps


def joined(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([p.detach().reshape(N, -1) for p in parameters], 1)


def step_with(
    engine: Engine,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    sending: Callable[[Any], None] | None = None,
) -> None:
    engine.before_step(parameters, optimizer)
    slope = gradient(joined(parameters))
    parameters[0].grad, parameters[1].grad = slope[:, :1].clone(), slope[:, 1:].reshape(N, 2, 1).clone()
    optimizer.step()
    engine.after_step(parameters, optimizer, sending=sending)


def test_dpsgd_in_both_orders() -> None:
    matrix = mixing().dense()
    x, y = first(), first()
    for _ in range(5):
        x = matrix @ x - LR * gradient(x)
        y = matrix @ (y - LR * gradient(y))
    torch.testing.assert_close(run(make_engine("dpsgd", mixing()), 5)[0], x)
    got, steps = run(make_engine("dpsgd", mixing(), order="step-then-mix"), 5)
    torch.testing.assert_close(got, y)
    assert steps == 5
    # Several steps that count as one round are still one mix each.
    torch.testing.assert_close(run(make_engine("dpsgd", mixing(), local_steps=5), 1)[0], x)


@pytest.mark.parametrize("name", ["dfedavg", "dfedavgm"])
def test_dfedavg_with_and_without_momentum(name: str) -> None:
    matrix, x = mixing().dense(), first()
    engine = make_engine(name, mixing(), local_steps=3)
    factor = engine.momentum or 0.0
    for _ in range(4):
        velocity = torch.zeros_like(x)
        for _ in range(3):
            velocity = factor * velocity + gradient(x)
            x = x - LR * velocity
        x = matrix @ x
    got, steps = run(engine, 4, momentum=factor)
    torch.testing.assert_close(got, x)
    assert steps == 12
    assert engine.starts_round


def test_fedavg_is_centralized_federated_averaging() -> None:
    server = first().mean(0)
    clients = [first()[i] for i in range(N)]
    for _ in range(6):
        trained = []
        for i in range(N):
            model = clients[i].clone()
            for _ in range(2):
                model -= LR * CURVES[i] * (model - TARGETS[i])
            trained.append(model)
        server = sum(trained) / N  # type: ignore[assignment]
        clients = [server.clone() for _ in range(N)]
    got, _ = run(make_engine("fedavg", mixing("complete"), local_steps=2), 6)
    torch.testing.assert_close(got, server.expand(N, -1))
    uniform = make_mixing(make_topology("complete", N), "uniform")
    torch.testing.assert_close(run(make_engine("dfedavg", uniform, local_steps=2), 6)[0], got)
    with pytest.raises(DbadflError, match="needs the complete graph"):
        make_engine("fedavg", mixing())


@pytest.mark.parametrize("warmup", [0, 2])
def test_fedavg_of_drawn_clients_moves_the_servers_model(warmup: int) -> None:
    guests = {1: torch.tensor([5])}
    own: dict[str, Any] = {"drawn": 3, "server_step": 0.25, "warmup": warmup, "guests": guests}
    engine = make_engine("fedavg", mixing("complete"), local_steps=2, seed=4, **own)
    x = [nn.Parameter(first()[:1].repeat(N, 1))]
    optimizer, server, seen = torch.optim.SGD(x, lr=LR), first()[0], []
    for round_ in range(5):
        active = engine.active
        assert active is not None and int(active.sum()) == 3 and (round_ != 1 or bool(active[5]))
        seen.append(active.tolist())
        change = torch.zeros(3, dtype=torch.float64)
        for i in active.nonzero().flatten().tolist():
            model = server.clone()
            for _ in range(2):
                model -= LR * CURVES[i] * (model - TARGETS[i])
            change += model - server
        server = server + (1.0 if round_ < warmup else 0.25) / 3 * change
        while engine.round == round_:
            engine.before_step(x, optimizer)
            x[0].grad = gradient(x[0].detach())
            optimizer.step()
            engine.after_step(x, optimizer)
        torch.testing.assert_close(x[0].detach(), server.expand(N, -1))
    assert len({tuple(s) for s in seen}) > 1 and engine.steps_of(4) == 8
    for options in ({"drawn": N}, {"drawn": 0}, {"drawn": 2, "server_step": 0.0}, {"warmup": -1}):
        with pytest.raises(DbadflError, match="fedavg"):
            make_engine("fedavg", mixing("complete"), **options)


# ---- federated averaging under a defence: a server, written by hand ------------------------------------------------
def _krum_order(models: list[Tensor], f: int) -> list[int]:
    scores = []
    for i, x in enumerate(models):
        apart = sorted(float((x - y).square().sum()) for j, y in enumerate(models) if j != i)
        scores.append(sum(apart[: len(models) - f - 2]))
    return sorted(range(len(models)), key=lambda i: scores[i])


def _trimmed(models: list[Tensor], trim: int) -> Tensor:
    ranked = torch.stack(models).sort(0).values
    return ranked[trim : len(models) - trim].mean(0)


def _weiszfeld(models: list[Tensor]) -> Tensor:
    centre = sum(models) / len(models)
    for _ in range(10):
        weights = [1 / max(1e-6, float((x - centre).norm())) for x in models]  # type: ignore[union-attr]
        centre = sum(w * x for w, x in zip(weights, models, strict=True)) / sum(weights)
    return centre  # type: ignore[return-value]


def _clipped(update: Tensor, limit: float) -> Tensor:
    return update * min(1.0, limit / float(update.norm()))


def _middle(values: list[float]) -> float:
    ranked, m = sorted(values), len(values)
    return (ranked[(m - 1) // 2] + ranked[m // 2]) / 2


def _clip_around(g: Tensor, models: list[Tensor]) -> Tensor:
    limit = _middle([float((x - g).norm()) for x in models])
    return g + sum(_clipped(x - g, limit) for x in models) / len(models)  # type: ignore[return-value]


def _balanced(g: Tensor, models: list[Tensor], gamma: float) -> Tensor:
    near = [x for x in models if float((x - g).norm()) <= gamma * float(g.norm())]
    return 0.5 * g + 0.5 * sum(near) / len(near) if near else g  # type: ignore[return-value]


def _flame(g: Tensor, models: list[Tensor]) -> Tensor:
    from sklearn.cluster import HDBSCAN

    unit = torch.stack([(x - g) / (x - g).norm() for x in models])
    apart = (1 - unit @ unit.T).clamp(min=0)
    clusters = HDBSCAN(min_cluster_size=len(models) // 2 + 1, min_samples=1, metric="precomputed",
                    allow_single_cluster=True, copy=True).fit(((apart + apart.T) / 2).numpy()).labels_  # fmt: skip
    kept = [x for x, label in zip(models, clusters, strict=True) if label >= 0] or models
    limit = _middle([float((x - g).norm()) for x in models])
    return g + sum(_clipped(x - g, limit) for x in kept) / len(kept)  # type: ignore[return-value]


class _FoolsGoldServer:
    """Accumulated updates by client, as in the authors' loop."""

    def __init__(self) -> None:
        self.history: dict[int, Tensor] = {}

    def __call__(self, g: Tensor, models: dict[int, Tensor]) -> Tensor:
        for i, x in models.items():
            self.history[i] = self.history.get(i, torch.zeros_like(g)) + x - g
        drawn = sorted(models)
        cs = [[0.0 if i == j else float(torch.cosine_similarity(self.history[i], self.history[j], 0)) for j in drawn]
              for i in drawn]  # fmt: skip
        v = [max(row) + 1e-5 for row in cs]
        alpha = [
            1 - max(c * min(1.0, v[i] / v[j]) if v[j] > v[i] else c for j, c in enumerate(row))
            for i, row in enumerate(cs)
        ]
        alpha = [min(max(a, 0.0), 1.0) for a in alpha]
        alpha = [min(a / max(alpha), 0.99) for a in alpha]
        weights = [min(max(math.log(a / (1 - a)) + 0.5, 0.0), 1.0) if a > 0 else 0.0 for a in alpha]
        if not sum(weights):
            return g
        return sum(w * models[i] for w, i in zip(weights, drawn, strict=True)) / sum(weights)  # type: ignore[return-value]


Server = Callable[[Tensor, dict[int, Tensor]], Tensor]
SERVERS: dict[str, tuple[dict[str, Any], Callable[[], Server]]] = {
    "mean": ({}, lambda: lambda g, m: sum(m.values()) / len(m)),  # type: ignore[arg-type,return-value]
    "median": ({}, lambda: lambda g, m: _trimmed([*m.values()], (len(m) - 1) // 2)),
    "trimmed-mean": ({"trim": 1}, lambda: lambda g, m: _trimmed([*m.values()], 1)),
    "krum": ({"f": 1}, lambda: lambda g, m: [*m.values()][_krum_order([*m.values()], 1)[0]]),
    "multi-krum": (
        {"f": 1, "m": 3},
        lambda: lambda g, m: sum([*m.values()][i] for i in _krum_order([*m.values()], 1)[:3]) / 3,  # type: ignore[arg-type,return-value]
    ),
    "rfa": ({}, lambda: lambda g, m: _weiszfeld([*m.values()])),
    "norm-clipping": ({}, lambda: lambda g, m: _clip_around(g, [*m.values()])),
    "foolsgold": ({}, _FoolsGoldServer),
    "flame": ({"noise": 0.0}, lambda: lambda g, m: _flame(g, [*m.values()])),
    "clipping": ({"weights": "equal"}, lambda: lambda g, m: _clip_around(g, [*m.values()])),
    "balance": ({"gamma": 0.1, "kappa": 0.0}, lambda: lambda g, m: _balanced(g, [*m.values()], 0.1)),
}


@pytest.mark.parametrize("drawn", [None, 4, 5])
@pytest.mark.parametrize("name", sorted(SERVERS))
def test_fedavg_under_a_defence_is_a_server_with_that_rule(name: str, drawn: int | None) -> None:
    options, make = SERVERS[name]
    rule, eta = make(), 1.0 if drawn is None else 0.25
    aggregate = RobustAggregation(make_defence(name, **options))
    own = {} if drawn is None else {"drawn": drawn, "server_step": eta, "warmup": 1}
    engine = make_engine("fedavg", mixing("complete"), local_steps=2, seed=4, aggregate=aggregate, **own)
    x = [nn.Parameter(first()[:1, :1].repeat(N, 1)), nn.Parameter(first()[:1, 1:].reshape(1, 2, 1).repeat(N, 1, 1))]
    optimizer, g = torch.optim.SGD(x, lr=LR), first()[0]
    for round_ in range(5):
        chosen = torch.arange(N) if engine.active is None else engine.active.nonzero().flatten()
        assert len(chosen) == (drawn or N)
        trained = {}
        for i in chosen.tolist():
            model = g.clone()
            for _ in range(2):
                model = model - LR * CURVES[i] * (model - TARGETS[i])
            trained[i] = model
        g = g + (1.0 if round_ == 0 else eta) * (rule(g, trained) - g)
        while engine.round == round_:
            step_with(engine, x, optimizer)
        torch.testing.assert_close(joined(x), g.expand(N, -1))
        assert torch.equal(joined(x), joined(x)[:1].expand(N, -1))
        assert aggregate.mixing is not None and aggregate.mixing.edge_index[0].tolist() == chosen.tolist()


def test_what_a_server_cannot_do_is_refused() -> None:
    def serving(name: str, drawn: int | None = 3, **options: Any) -> Engine:
        aggregate = RobustAggregation(make_defence(name, **options))
        return make_engine("fedavg", mixing("complete"), aggregate=aggregate, drawn=drawn)

    assert {*SERVERS, "ubar"} == set(DEFENCES)
    for name, options, message in (
        ("ubar", {}, "'ubar' looks at a node's own batch, which the server"),
        ("norm-clipping", {"own_threshold": 1.0}, "a node's own update"),
        ("krum", {"f": 1}, "'krum': the server of 3 drawn nodes has 3 models, and f=1 needs 4"),
        ("trimmed-mean", {"trim": 2}, "the server of 3 drawn nodes has 3 models"),
    ):
        engine = serving(name, **options)  # type: ignore[arg-type]
        with pytest.raises(DbadflError, match=message):
            engine.aggregate.defence.check(engine.heard.degrees, engine.heard.votes)  # type: ignore[attr-defined]
        with pytest.raises(DbadflError, match=message):
            run(engine, 1)
    # with pairs a node hears one other, whatever its degree is
    for name in ("swarm", "gossip"):
        engine = make_engine(name, mixing("complete"), aggregate=RobustAggregation(make_defence("krum")))
        with pytest.raises(DbadflError, match="node 0 of degree 1 has 2 models"):
            engine.aggregate.defence.check(engine.heard.degrees, engine.heard.votes)  # type: ignore[attr-defined]


def drawn_swarm(seed: int, **options: Any) -> tuple[Swarm, list[tuple[int, int, int]]]:
    """An engine and its first round as a list of (i, j, h), wave by wave."""
    engine = make_engine("swarm", mixing("watts-strogatz"), local_steps=3, seed=seed, **options)
    drawn = []
    for phase in engine.phases():
        assert phase.mixing is not None and phase.active is not None
        for i, j in phase.mixing.edge_index.T.tolist():
            if i < j:
                h = int(phase.active[:, i].sum())
                assert h == int(phase.active[:, j].sum())
                drawn.append((i, j, h))
    engine.generator.manual_seed(seed)
    assert isinstance(engine, Swarm)
    return engine, drawn


@pytest.mark.parametrize("options", [{}, {"interactions": "matching"}, {"steps": "geometric"}])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_swarm_is_one_interaction_after_the_other(options: dict[str, str], seed: int) -> None:
    engine, interactions = drawn_swarm(seed, **options)
    assert len(interactions) == N // 2
    assert {frozenset(i[:2]) for i in interactions} <= {
        frozenset(e) for e in mixing("watts-strogatz").edge_index.T.tolist()
    }
    x = first()
    for i, j, h in interactions:
        pair = x[[i, j]]
        for _ in range(h):
            pair = pair - LR * CURVES[[i, j]] * (pair - TARGETS[[i, j]])
        x[[i, j]] = pair.mean(0)
    torch.testing.assert_close(run(engine, 1)[0], x)


def test_geometric_steps_have_mean_k() -> None:
    engine = make_engine("swarm", mixing("ring", 1000), local_steps=5, steps="geometric", seed=3)
    assert isinstance(engine, Swarm)
    nodes = torch.arange(0, 1000, 2)
    drawn = torch.cat([engine._phase(nodes, nodes + 1).active.sum(0).double() for _ in range(20)])  # type: ignore[union-attr]
    assert int(drawn.min()) == 1
    assert float(drawn.mean()) == pytest.approx(5, abs=0.2)
    assert float(drawn.std()) == pytest.approx((5 * 4) ** 0.5, abs=0.3)


@pytest.mark.parametrize("age", [False, True])
def test_gossip_is_one_push_after_the_other(age: bool) -> None:
    engine = make_engine("gossip", mixing("watts-strogatz"), local_steps=2, seed=4, age=age)
    pushes = [pair for phase in engine.phases() for pair in torch.stack(phase.pairs).T.tolist()]  # type: ignore[arg-type]
    engine.generator.manual_seed(4)
    assert sorted(sender for sender, _ in pushes) == list(range(N))
    x, ages = first(), [0] * N
    for i, j in pushes:
        weight = ages[i] / (ages[i] + ages[j]) if age and ages[i] + ages[j] else 0.5
        x[j] = weight * x[i] + (1 - weight) * x[j]
        ages[j] = max(ages[i], ages[j])
        for _ in range(2):
            x[j] = x[j] - LR * CURVES[j] * (x[j] - TARGETS[j])
        ages[j] += 2
    torch.testing.assert_close(run(engine, 1)[0], x)
    assert isinstance(engine, Gossip)
    assert engine.ages.tolist() == ages


pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda p: p[0] != p[1]), max_size=12)


@settings(deadline=None, max_examples=60)
@given(pairs, st.sampled_from(["both", "second"]))
def test_waves_give_what_the_sequence_gives(sequence: list[tuple[int, int]], effect: str) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(len(sequence), 2, 2, generator=generator, dtype=torch.float64)
    first_nodes = torch.tensor([a for a, _ in sequence], dtype=torch.int64)
    second_nodes = torch.tensor([b for _, b in sequence], dtype=torch.int64)

    def applied(order: list[list[int]]) -> Tensor:
        x = torch.arange(6, dtype=torch.float64)
        for group in order:
            before = x.clone()
            for k in group:
                a, b = sequence[k]
                both = maps[k] @ torch.stack([before[a], before[b]])
                x[b] = both[1]
                if effect == "both":
                    x[a] = both[0]
        return x

    expected = applied([[k] for k in range(len(sequence))])
    left = list(range(len(sequence)))
    groups = []
    for a, b in waves(first_nodes, second_nodes, 6, effect):  # type: ignore[arg-type]
        group = []
        for pair in zip(a.tolist(), b.tolist(), strict=True):
            group.append(next(k for k in left if sequence[k] == pair))
            left.remove(group[-1])
        groups.append(group)
    assert not left
    torch.testing.assert_close(applied(groups), expected)
    if effect == "both":
        assert all(len({n for k in g for n in sequence[k]}) == 2 * len(g) for g in groups)


def test_a_random_matching_is_maximal() -> None:
    edges = mixing("watts-strogatz", 40).edge_index
    edges = edges[:, edges[0] < edges[1]]
    seen = set()
    for seed in range(5):
        taken = random_matching(edges, 40, torch.Generator().manual_seed(seed))
        nodes = taken.flatten().tolist()
        assert len(set(nodes)) == len(nodes)
        assert all(u in set(nodes) or v in set(nodes) for u, v in edges.T.tolist())
        seen.add(tuple(sorted(nodes)))
    assert len(seen) > 1


def test_inactive_participants_keep_weights_and_momentum() -> None:
    engine = make_engine("swarm", mixing("ring"), local_steps=2, seed=1)
    parameters = [nn.Parameter(first()[:, :1].clone()), nn.Parameter(first()[:, 1:].reshape(N, 2, 1).clone())]
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=0.9)
    separate = [[torch.zeros(3, dtype=torch.float64), first()[i]] for i in range(N)]
    for phase in make_engine("swarm", mixing("ring"), local_steps=2, seed=1).phases():
        assert phase.active is not None and phase.mixing is not None
        for _ in range(phase.steps):
            step_with(engine, parameters, optimizer)
        for i in torch.nonzero(phase.active[0]).flatten().tolist():
            for _ in range(phase.steps):
                separate[i][0] = 0.9 * separate[i][0] + CURVES[i] * (separate[i][1] - TARGETS[i])
                separate[i][1] = separate[i][1] - LR * separate[i][0]
        models = [torch.stack([s[1] for s in separate])]
        phase.mixing.mix_(models)
        for i in range(N):
            separate[i][1] = models[0][i]
    torch.testing.assert_close(joined(parameters), torch.stack([s[1] for s in separate]))
    buffers = torch.cat([optimizer.state[p]["momentum_buffer"].reshape(N, -1) for p in parameters], 1)
    torch.testing.assert_close(buffers, torch.stack([s[0] for s in separate]))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("dpsgd", {"local_steps": 3}), ("dpsgd", {"order": "step-then-mix"}), ("dfedavg", {}), ("dfedavgm", {}),
    ("fedavg", {}),
    ("swarm", {"steps": "geometric"}), ("swarm", {"interactions": "matching"}), ("gossip", {"age": True}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_dict_goes_on_from_any_step(name: str, options: dict[str, Any]) -> None:
    graph = mixing("complete" if name == "fedavg" else "watts-strogatz")

    def fresh(seed: int) -> tuple[Engine, list[nn.Parameter], torch.optim.Optimizer]:
        parameters = [nn.Parameter(first()[:, :1].clone()), nn.Parameter(first()[:, 1:].reshape(N, 2, 1).clone())]
        engine = make_engine(name, graph, seed=seed, keep_start=True, **options)
        return engine, parameters, torch.optim.SGD(parameters, lr=LR, momentum=0.9)

    engine, parameters, optimizer = fresh(5)
    saved = []
    for _ in range(25):
        saved.append((engine.state_dict(), [p.detach().clone() for p in parameters], optimizer.state_dict()))
        saved[-1] = torch.utils._pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, saved[-1])
        step_with(engine, parameters, optimizer)
    for cut in (0, 1, 7, 12, 24):
        again, others, other_optimizer = fresh(99)
        state, weights, optimizer_state = saved[cut]
        again.load_state_dict(state)
        other_optimizer.load_state_dict(optimizer_state)
        for p, w in zip(others, weights, strict=True):
            p.data.copy_(w)
        for _ in range(25 - cut):
            step_with(again, others, other_optimizer)
        assert torch.equal(joined(others), joined(parameters))
        assert (again.round, again.step_in_round) == (engine.round, engine.step_in_round)


def test_sending_scales_what_is_exchanged_from_the_kept_start() -> None:
    gamma, attacker, matrix = 3.0, 2, mixing().dense()
    engine = make_engine("dfedavg", mixing(), local_steps=2, keep_start=True)

    def scale(parameters: Any) -> None:
        assert engine.start is not None
        for p, g in zip(parameters, engine.start, strict=True):
            p[attacker] = g[attacker] + gamma * (p[attacker] - g[attacker])

    x = first()
    for _ in range(3):
        start = x.clone()
        for _ in range(2):
            x = x - LR * gradient(x)
        x[attacker] = start[attacker] + gamma * (x[attacker] - start[attacker])
        x = matrix @ x
    torch.testing.assert_close(run(engine, 3, sending=scale)[0], x)


def test_a_defence_takes_the_place_of_the_mean() -> None:
    engine = make_engine("dfedavg", mixing(), local_steps=2, aggregate=RobustAggregation(make_defence("median")))
    x = first()
    for _ in range(3):
        for _ in range(2):
            x = x - LR * gradient(x)
        x = torch.stack([x, x.roll(1, 0), x.roll(-1, 0)]).median(0).values
    torch.testing.assert_close(run(engine, 3)[0], x)
    clipped = make_engine("dfedavg", mixing(), aggregate=RobustAggregation(make_defence("norm-clipping")))
    assert clipped.keep_start
    with pytest.raises(DbadflError, match="round 0: node 3 has NaN"):
        run(make_engine("dfedavg", mixing(), aggregate=RobustAggregation(make_defence("median"))), 1,
            sending=lambda parameters: parameters[0][3].fill_(float("nan")))  # fmt: skip


@pytest.mark.parametrize("name", ["dpsgd", "swarm", "gossip"])
def test_the_mean_as_a_defence_changes_nothing(name: str) -> None:
    graph = mixing("watts-strogatz")
    plain, _ = run(make_engine(name, graph, seed=3), 4)
    defended, _ = run(make_engine(name, graph, seed=3, aggregate=RobustAggregation(make_defence("mean"))), 4)
    torch.testing.assert_close(defended, plain)


def test_refusals() -> None:
    directed = make_mixing(make_topology("exponential", N))
    with pytest.raises(DbadflError, match="'swarm' needs an undirected graph"):
        make_engine("swarm", directed)
    assert make_engine("gossip", directed).steps_in_round > 0
    with pytest.raises(DbadflError, match="local_steps=0"):
        make_engine("dfedavg", mixing(), local_steps=0)
    with pytest.raises(DbadflError, match=f"'swam' is not one of {', '.join(ENGINES)}"):
        make_engine("swam", mixing())
    with pytest.raises(DbadflError, match="unexpected keyword argument 'age'"):
        make_engine("swarm", mixing(), age=True)
    with pytest.raises(DbadflError, match="order 'mix'"):
        make_engine("dpsgd", mixing(), order="mix")


# ---- numbers -------------------------------------------------------------------------------------------------------
DTYPES = [torch.float16, torch.bfloat16, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [None, *sorted(DEFENCES)])
def test_exchanges_in_every_dtype_are_those_of_double_precision(name: str | None, dtype: torch.dtype) -> None:
    """Oracle: the same exchange of real numbers in double precision; complex ones are two each."""
    graph, generator = mixing("watts-strogatz"), torch.Generator().manual_seed(0)
    models = torch.randn(N, 40, generator=generator, dtype=torch.complex128)
    given = (models if dtype.is_complex else models.real).to(dtype)
    begun = (0.5 * given).to(dtype)
    real = [(torch.view_as_real(t) if dtype.is_complex else t).double().flatten(1) for t in (given, begun)]
    options: dict[str, Any] = {"flame": {"noise": 0.0}}.get(name or "", {})
    losses: Callable[..., Tensor] = lambda receivers, senders: (senders * 7 % 5).double()

    def exchanged(parts: list[Tensor], start: list[Tensor]) -> list[Tensor]:
        if name is None:
            graph.mix_(parts)
        else:
            RobustAggregation(make_defence(name, **options), losses=losses)(parts, graph, start, 0)
        return parts

    (want,) = exchanged([real[0].clone()], [real[1]])
    parts = [given[:, :25].clone(), given[:, 25:].clone()]
    got = torch.cat(exchanged(parts, [begun[:, :25], begun[:, 25:]]), 1)
    assert got.dtype == dtype
    got = (torch.view_as_real(got) if dtype.is_complex else got).double().flatten(1)
    tolerance = 2 * torch.finfo(dtype).eps + 1e-5
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    if name is not None:
        alone = make_defence(name, **options)(given, graph, start=begun, losses=losses).models
        assert alone.dtype == dtype
        alone = (torch.view_as_real(alone) if dtype.is_complex else alone).double().flatten(1)
        torch.testing.assert_close(alone, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["dfedavg", "swarm", "fedavg"])
def test_many_exchanges_of_equal_models_change_nothing(name: str, dtype: torch.dtype) -> None:
    """Weights of 1/3 are rounded in half precision, and so were sums of W's rows: models shrank in every round."""
    engine = make_engine(name, mixing("complete" if name == "fedavg" else "ring"), local_steps=1)
    x = [torch.full((N, 3), 0.7).to(dtype)]
    before = x[0].clone()
    for _ in range(50 * engine.steps_in_round):
        engine.before_step(x)
        engine.after_step(x)
    torch.testing.assert_close(x[0], before)


def test_distances_to_the_start_in_every_dtype() -> None:
    for dtype in (*DTYPES, torch.float64):
        start = torch.randn(N, 900, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
        start = (start if dtype.is_complex else start.real).to(dtype)
        moved = (start * (1 + 2e-3)).to(dtype)
        want = torch.linalg.vector_norm((moved - start).to(torch.complex128), dim=1)
        got = distance_to_start([moved[:, :5], moved[:, 5:]], [start[:, :5], start[:, 5:]])
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-7)


def test_models_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DbadflError, match=r"models of torch\.int64"):
        make_defence("median")(torch.ones(N, 3, dtype=torch.int64), mixing())

"""Link prediction: pairs, negatives, division, figures, and runs whose evaluated graph is the pruned one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import plait
import plait_glt.training
import plait_glt.weave
from plait.data.streams import Stream
from plait.errors import BadInput
from plait.run import execute
from plait.storage import places
from plait_glt import cora_like
from plait_glt.auxiliary import auxiliary_loss
from plait_glt.config import GLTConfig
from plait_glt.data_options import CoraLikeLinksOptions, KarateLinksOptions
from plait_glt.errors import GLTError
from plait_glt.link_data import FreshNegatives, check_links, link_data
from plait_glt.links import Absent, Links, divide_links, numbered_pairs, pair_logits, pair_numbers
from plait_glt.masked import MaskedGNN
from plait_glt.measures import hits_at, mean_roc_auc, roc_auc
from plait_glt.models import GCN
from plait_glt.rounds import GraphLotteryTickets
from plait_glt.tasks import LinkTask
from plait_glt.tickets import Ticket
from plait_glt.tiny_graphs import karate_graph, load_links
from plait_glt.training import MaskStep

SMALL = {"rounds": 2, "p_g": 0.3, "p_theta": 0.4, "mask_epochs": 8, "fix_epochs": 12, "warmup": 2, "wd_samples": 16}


def run(out: Path, glt: dict[str, Any] | None = None, **changes: Any) -> plait.Run:
    settings = {"model.hidden": 16, "optimizer.lr": 0.02, **changes.pop("settings", {})}
    plugins = {"glt": {**SMALL, **(glt or {})}, **changes.pop("plugins", {})}
    plan = plait.plan(plugins=plugins, data="karate-links", settings=settings, **{"model": "gcn", **changes})
    return execute(plan, places.at(out), artifacts=False)


def tuples(pairs: Tensor) -> set[tuple[int, int]]:
    return {(min(pair), max(pair)) for pair in pairs.t().tolist()}


# ---- figures --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_roc_auc_is_the_share_of_pairs_in_order(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (60, 4), generator=generator).float()
    label = torch.randint(2, (60, 4), generator=generator)
    for column, area in enumerate(roc_auc(scores, label).tolist()):
        above, below = scores[label[:, column] == 1, column], scores[label[:, column] == 0, column]
        order = above.unsqueeze(1) - below
        assert area == pytest.approx(float(((order > 0).double() + 0.5 * (order == 0).double()).mean()))
    assert torch.equal(roc_auc(scores[:, 0], label[:, 0]), roc_auc(scores, label)[0])


def test_roc_auc_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(300, 7, generator=generator).round(decimals=1)
    label = (torch.rand(300, 7, generator=generator) < 0.2).long()
    for column, area in enumerate(roc_auc(scores, label).tolist()):
        assert area == pytest.approx(metrics.roc_auc_score(label[:, column], scores[:, column]))
    one_sided = torch.cat([label, torch.ones(300, 1, dtype=torch.int64)], 1)
    wide = torch.cat([scores, scores[:, :1]], 1)
    assert mean_roc_auc(wide, one_sided) == pytest.approx(float(roc_auc(scores, label).mean()))


def test_hits_at_k_by_hand_and_by_ogbs_definition() -> None:
    positive, negative = torch.tensor([0.9, 0.5, 0.1, 0.5]), torch.tensor([0.8, 0.5, 0.3])
    assert hits_at(positive, negative, 1) == 0.25
    assert hits_at(positive, negative, 2) == 0.25  # equal to the second best negative is no hit
    assert hits_at(positive, negative, 3) == 0.75
    assert hits_at(positive, negative, 4) == 1.0


def test_hits_at_50_against_ogbs_evaluator() -> None:
    evaluate = pytest.importorskip("ogb.linkproppred", reason="the extra plait-glt[ogb] is not installed")
    generator = torch.Generator().manual_seed(1)
    for number in (40, 300):
        positive = torch.randn(200, generator=generator) + 1
        negative = torch.randn(number, generator=generator)
        judge = evaluate.Evaluator("ogbl-collab")
        wanted = judge.eval({"y_pred_pos": positive, "y_pred_neg": negative})["hits@50"]
        assert hits_at(positive, negative, 50) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: roc_auc(torch.zeros(3), torch.zeros(4)), "scores .3,. and labels .4,."),
        (lambda: roc_auc(torch.tensor([0.0, float("nan")]), torch.tensor([0, 1])), "not finite"),
        (lambda: mean_roc_auc(torch.zeros(3, 2), torch.ones(3, 2)), "no label has both"),
        (lambda: hits_at(torch.zeros(0), torch.zeros(3)), "no positive pair"),
    ],
)
def test_figures_refuse(act: Any, message: str) -> None:
    with pytest.raises(GLTError, match=message):
        act()


# ---- pairs ----------------------------------------------------------------------------------------------------------
def test_pairs_have_numbers() -> None:
    pairs = torch.tensor(list(itertools.combinations(range(40), 2))).t()
    numbers = pair_numbers(pairs)
    assert sorted(numbers.tolist()) == list(range(780))
    assert torch.equal(numbered_pairs(numbers), pairs)
    assert torch.equal(pair_numbers(pairs.flip(0)), numbers)
    far = torch.tensor([[0, 3_000_000_000 - 2, 17], [2_999_999_999, 3_000_000_000 - 1, 2_999_999_999]])
    assert torch.equal(numbered_pairs(pair_numbers(far)), far)  # the root is no longer exact here


def test_absent_pairs_are_all_the_others() -> None:
    graph = karate_graph()
    absent = Absent(graph.edge_index, 34)
    assert absent.count == 34 * 33 // 2 - 78
    pairs = tuples(absent.at(torch.arange(absent.count)))
    assert pairs == set(itertools.combinations(range(34), 2)) - tuples(graph.edge_index)


def test_negatives_are_uniform() -> None:
    """Chi-square over the pairs of a small graph; the seed is fixed."""
    path = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    absent = Absent(path, 5)
    drawn = pair_numbers(absent.draw(60_000, torch.Generator().manual_seed(0)))
    counts = torch.bincount(drawn, minlength=10)
    assert (counts == 0).sum() == 4
    expected = 60_000 / 6
    assert float(((counts[counts > 0] - expected) ** 2 / expected).sum()) < 20.5  # p = 0.001 with 5 degrees of freedom


def test_a_full_graph_has_no_negatives() -> None:
    full = torch.tensor(list(itertools.combinations(range(4), 2))).t()
    with pytest.raises(GLTError, match="every pair of nodes has an edge"):
        Absent(full, 4).draw(1, torch.Generator())
    with pytest.raises(GLTError, match="7 negative pairs were asked for; 6 pairs of nodes have no edge"):
        Absent(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]), 5).draw_distinct(7, np.random.default_rng(0))


# ---- division -------------------------------------------------------------------------------------------------------
def test_division() -> None:
    graph = karate_graph()
    links = divide_links(graph.edge_index, 34, validation=0.1, test=0.2, seed=3)
    parts = [tuples(part) for part in (links.train, links.validation, links.test)]
    assert [len(part) for part in parts] == [54, 8, 16]
    assert set().union(*parts) == tuples(graph.edge_index) and sum(map(len, parts)) == 78
    assert tuples(links.edge_index) == parts[0] and links.edge_index.shape == (2, 108)
    negatives = [tuples(part) for part in (links.validation_negative, links.test_negative)]
    assert [len(part) for part in negatives] == [8, 16] and not negatives[0] & negatives[1]
    assert not (negatives[0] | negatives[1]) & tuples(graph.edge_index)
    assert links.train_negative.shape == (2, 54) and not tuples(links.train_negative) & parts[0]
    again, other = (divide_links(graph.edge_index, 34, validation=0.1, test=0.2, seed=s) for s in (3, 4))
    assert all(torch.equal(getattr(links, f), getattr(again, f)) for f in links.__dataclass_fields__)
    assert not torch.equal(links.test, other.test)


def test_fixed_negatives_are_spread_over_validation_and_test_alike() -> None:
    """Both parts draw from the same distribution: their mean number, in units of the largest, is near a half."""
    links = divide_links(karate_graph().edge_index, 34, validation=0.4, test=0.4, seed=0)
    middles = [pair_numbers(part).double().mean() / 561 for part in (links.validation_negative, links.test_negative)]
    assert all(0.35 < float(middle) < 0.65 for middle in middles)


def test_planetoids_division_of_a_generated_graph() -> None:
    data = cora_like.load_links(CoraLikeLinksOptions(graph_seed=0), 0)
    # 5,278 edges: 264 for validation, 528 for the test; as many negatives as edges in every part
    assert [len(split) for split in (data.train, data.validation, data.test)] == [2 * 4486, 2 * 264, 2 * 528]
    assert data.info.extra["edges"] == 4486 and data.info.num_classes == 2
    data.check("cora-like-links")


def test_no_held_out_edge_is_in_any_graph_that_a_batch_has() -> None:
    data = load_links(KarateLinksOptions(), 0)
    held = set()
    for split in (data.validation, data.test):
        batch = split.__getitems__(range(len(split)))
        held |= tuples(batch["node"][batch["label"] == 1].t())
    assert len(held) == 24
    for split in (data.train, data.validation, data.test):
        graph = split.__getitems__([0])["graph"]
        assert not tuples(graph.edge_index) & held and graph.edge_index.shape[1] == 108
    assert data.info.extra["directed_entries"] == 108


def test_training_negatives_are_fresh_in_every_epoch_and_seeded() -> None:
    data = load_links(KarateLinksOptions(), 0)

    def batches(seed: int, skip: int = 0) -> list[Any]:
        stream = Stream(data.train, "train", seed, 1000, augment=data.augment)
        stream.load_state_dict({"drawn": skip})
        return [next(stream) for _ in range(3 - skip)]

    first = batches(0)
    edges = tuples(data.train.__getitems__([0])["graph"].edge_index)
    drawn = []
    for batch in first:
        assert batch.size == 108 and int(batch["label"].sum()) == 54
        assert tuples(batch["node"][batch["label"] == 1].t()) == edges
        drawn.append(batch["node"][batch["label"] == 0].t())
        assert not tuples(drawn[-1]) & edges
        degree = torch.bincount(batch["graph"].edge_index[0], minlength=34)
        high = (degree > degree.median()).long()
        assert torch.equal(batch["group"], high[batch["node"]].amin(1))
    assert tuples(drawn[0]) != tuples(drawn[1]) != tuples(drawn[2])
    resumed = batches(0, skip=2)[0]
    assert torch.equal(resumed["node"], first[2]["node"])  # as the unbroken stream has them
    assert not torch.equal(batches(1)[0]["node"], first[0]["node"])


# ---- bad input ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: divide_links(karate_graph().edge_index, 34, validation=0.5, test=0.5), "each part needs at least one"),
        (lambda: divide_links(karate_graph().edge_index, 34, validation=0.001), "hold out 0 and 8"),
        (lambda: divide_links(torch.tensor([[0], [9]]), 5), "joins 0 and 9"),
        (lambda: GraphLotteryTickets.on(GCN(34, 4, 4), LinkTask(torch.eye(34), leaking())), "is in the graph"),
    ],
)
def test_library_refuses(act: Any, message: str) -> None:
    with pytest.raises(GLTError, match=message):
        act()


def leaking() -> Links:
    links = divide_links(karate_graph().edge_index, 34)
    return Links(**{**links.__dict__, "validation": links.train[:, :2]})


def broken(**changed: Any) -> Links:
    links = divide_links(karate_graph().edge_index, 34)
    return Links(**{**links.__dict__, **{n: torch.tensor(v, dtype=torch.int64) for n, v in changed.items()}})


@pytest.mark.parametrize(
    ("links", "message"),
    [
        (leaking, r"2 edges of the validation split are in the graph that the network sees .first: 0, \d"),
        (lambda: broken(test=[[], []]), "the test split has no edges"),
        (lambda: broken(validation_negative=[[], []]), "the validation split has no negative pairs"),
        (lambda: broken(test=[[0], [34]]), r"list the pair 0, 34; a pair is two different nodes of 0\.\.33"),
        (lambda: broken(test_negative=[[3], [3]]), "the negative pairs of the test split list the pair 3, 3"),
        (lambda: broken(test=[[24], [8]], test_negative=[[8], [24]]), "1 negative pairs of the test split are edges"),
    ],
)
def test_bad_divisions_are_refused(links: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        link_data("mine", karate_graph(), links())
    with pytest.raises(BadInput, match=message):
        check_links("mine", links(), 34)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave no training edge"):
        KarateLinksOptions(validation_share=0.5, test_share=0.6)
    with pytest.raises(BadInput, match=r"karate-links: of 78 edges, shares of 0\.001"):
        load_links(KarateLinksOptions(validation_share=0.001), 0)


# ---- runs -----------------------------------------------------------------------------------------------------------
def test_figures_of_a_run(tmp_path: Path) -> None:
    trained = run(tmp_path / "run", {"tolerance": 3.0})
    m = trained.metrics
    assert m["glt/auc"] == m["glt/auc_round_2"] == m["task/auc"]
    assert not [name for name in m if name.startswith("glt/") and "accuracy" in name]
    assert m["glt/gap"] == pytest.approx(m["glt/auc"] - m["glt/dense_auc"])
    assert m["glt/winning"] == float(m["glt/auc"] >= m["glt/dense_auc"] - 3.0)
    events = trained.directory.events()
    # the retrained ticket is the one of its best epoch by ROC-AUC on validation, the first of equal ones
    curve = {e["step"]: e["values"]["validation/auc"] for e in events if "validation/auc" in e.get("values", {})}
    last = [curve[step] for step in sorted(curve) if step > 12 + 8 + 12 + 8]
    assert len(last) == 12 and m["glt/validation_auc"] == pytest.approx(max(last))
    result = trained.directory.result()
    assert result is not None
    table = result["tables"]["glt/rounds"]
    row = dict(zip(table["columns"], table["rows"][-1], strict=True))
    assert row["best epoch"] == last.index(max(last)) + 1
    assert row["test ROC-AUC %"] == pytest.approx(m["glt/auc"], abs=1e-3)
    assert "ROC-AUC against graph sparsity" in {plot["title"] for plot in result["plots"].values()}


def test_the_evaluated_graph_is_the_pruned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Card, trap 6: in UGS's link prediction the pruned edges were still there when it was evaluated."""
    seen: list[int] = []
    whole = GCN.forward

    def look(self: GCN, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        if not self.training:
            seen.append(edge_index.shape[1])
        return whole(self, x, edge_index, edge_weight)

    monkeypatch.setattr(GCN, "forward", look)
    trained = run(tmp_path / "run")
    ticket = Ticket.load(trained.export / "ticket.safetensors")
    kept = int(ticket.edge_kept.sum())
    assert kept == trained.metrics["glt/kept_edges"] == 53
    # dense 108; masks of round 1 on 108, its retraining on 76; masks of round 2 on 76, its retraining on 53
    assert [size for size, _ in itertools.groupby(seen)] == [108, 76, kept]

    data = plait.loading.load_data(trained.recipe.data, trained.recipe.seed)
    batch = data.test.__getitems__(range(len(data.test)))
    graph = batch["graph"]

    def by_hand(edges: Tensor) -> float:
        with torch.no_grad():
            z = whole(trained.model.network.eval(), graph.x, edges)
        score = (z[batch["node"][:, 0]] * z[batch["node"][:, 1]]).sum(1)
        above, below = score[batch["label"] == 1], score[batch["label"] == 0]
        order = above.unsqueeze(1) - below
        return 100 * float(((order > 0).double() + 0.5 * (order == 0).double()).mean())

    left = ticket.pairs[:, ticket.edge_kept]
    assert by_hand(left) == pytest.approx(trained.metrics["glt/auc"], abs=1e-4)
    assert by_hand(graph.edge_index) != pytest.approx(trained.metrics["glt/auc"], abs=0.5)


def test_pruned_edges_do_not_matter_and_kept_ones_do() -> None:
    graph = karate_graph()
    links = divide_links(graph.edge_index, 34, seed=0)
    search = GraphLotteryTickets.on(
        GCN(34, 8, 8), LinkTask(graph.x.to_dense(), links), GLTConfig(rounds=1, p_g=0.4, mask_epochs=6, fix_epochs=6)
    )
    result = search.run()[-1]
    assert result.round == 1 and result.edges == 132 - 53
    kept = search.ticket().edge_index
    network, x = search.model.network.eval(), search.task.x
    with torch.no_grad():
        alone = network(x, kept)
        assert torch.equal(alone, search.model.eval()(x, links.edge_index))
        assert not torch.equal(alone, network(x, links.edge_index))
    assert result.accuracy == pytest.approx(search.task.score(alone, "test"))


@pytest.mark.parametrize("variant", ["wd", "glt", "ugs", "ascent", "ce"])
def test_a_mask_phase_is_the_librarys(tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same masks and weights after a mask phase, where both have the same negatives and no noise."""
    monkeypatch.setattr(plait_glt.weave, "INITIAL_NOISE", 0.0)
    monkeypatch.setattr(plait_glt.training, "INITIAL_NOISE", 0.0)
    monkeypatch.setattr(FreshNegatives, "__call__", lambda self, batch, generator: batch)
    monkeypatch.setattr(LinkTask, "renew", lambda self, generator: None)
    seen: dict[str, Tensor] = {}
    before: list[dict[str, Tensor]] = []

    def look(self: Any, trainer: Any) -> None:
        seen.update({name: value.detach().clone() for name, value in self.gnn.named_parameters()})
        before.append(dict(self.initial))

    monkeypatch.setattr(plait_glt.weave.Weave, "_prune", look)
    options = {"baseline": variant, "wd_samples": 0, "rounds": 1, "dense": False, "mask_epochs": 9, "warmup": 2}
    settings = {"model.dropout": 0.0, "train.select": "last", "optimizer.weight_decay": 1e-3}
    trained = run(tmp_path / "run", options, settings=settings)
    graph = karate_graph()
    links = divide_links(graph.edge_index, 34, validation=0.1, test=0.2, seed=trained.recipe.seed)
    network = GCN(34, 16, hidden=16, dropout=0.0)
    network.load_state_dict(before[0])
    model = MaskedGNN(network, links.edge_index, 34, tied=False)
    config = GLTConfig.variant(variant, lr=0.02, weight_decay=1e-3, wd_samples=0, mask_epochs=9)
    kept = {name: torch.ones_like(w, dtype=torch.bool) for name, w in model.weights().items()}
    step = MaskStep(
        model,
        LinkTask(graph.x, links),
        torch.ones_like(model.edge_mask, dtype=torch.bool),
        kept,
        config,
        torch.Generator(),
    )
    for epoch in range(9):
        step(with_aux=config.lam > 0 and epoch >= 2)
    for name, value in model.named_parameters():
        torch.testing.assert_close(seen[name], value.detach(), rtol=1e-4, atol=1e-5, msg=name)


def test_the_auxiliary_loss_is_about_links_and_no_links() -> None:
    """Classes are "no link" and "link" as predicted; with the exact distance by hand for one pair of each."""
    embedding = torch.tensor([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.5]])
    logits = pair_logits(embedding, torch.tensor([[0, 1], [0, 2]]))
    assert logits.tolist() == [[0.0, 2.0], [0.0, -2.0]]
    loss = auxiliary_loss(logits.softmax(1), samples=0, eps=1e-3)
    p = torch.tensor(2.0).sigmoid()
    apart = float((2 * (2 * p - 1) ** 2).sqrt())
    torch.testing.assert_close(loss.loss, torch.tensor(-2 * apart))


def test_without_the_auxiliary_loss(tmp_path: Path) -> None:
    trained = run(tmp_path / "run", {"lam": 0.0})
    assert trained.metrics["glt/graph_sparsity"] == pytest.approx(1 - 53 / 108)


@pytest.mark.parametrize("model", ["gin", "ugs-gin", "gat", "resgcn"])
def test_other_networks(tmp_path: Path, model: str) -> None:
    short = {"rounds": 1, "mask_epochs": 2, "fix_epochs": 2}
    trained = run(tmp_path / "run", short, model=model, settings={"model.hidden": 64})
    assert 0 <= trained.metrics["glt/auc"] <= 100
    assert trained.metrics["glt/kept_edges"] == 76  # 108 less 30 %


def test_sharpness_aware_steps_and_groups_of_pairs(tmp_path: Path) -> None:
    pytest.importorskip("plait_fairsam")
    trained = run(tmp_path / "run", plugins={"fairsam": {"rho": 0.05}})
    assert trained.metrics["glt/kept_edges"] == 53 and "fairsam/clean_accuracy" in trained.metrics


def test_a_ticket_is_trained_again_and_moved_to_another_division(tmp_path: Path) -> None:
    first = run(tmp_path / "find")
    ticket = first.export / "ticket.safetensors"
    again = run(tmp_path / "again", {"ticket": str(ticket), "dense": False})
    assert again.metrics["glt/kept_edges"] == 53 and torch.equal(again.model.kept_edges, first.model.kept_edges)
    other = run(tmp_path / "other", {"ticket": str(ticket), "dense": False}, settings={"data.split_seed": 9})
    # edges that the ticket does not know are kept: those that were held out when it was found
    loaded = Ticket.load(ticket)
    known, kept = tuples(loaded.pairs), tuples(loaded.pairs[:, loaded.edge_kept])
    seen = tuples(plait.loading.load_data(other.recipe.data, other.recipe.seed).train.graph.edge_index)
    assert tuples(other.model.kept_edges) == {pair for pair in seen if pair in kept or pair not in known}


def test_a_generated_graph_has_links_that_can_be_learned() -> None:
    """ROC-AUC far above chance on held-out edges, in the library."""
    from plait_glt.cora_like import generate

    graph = generate(0)
    links = divide_links(graph.edge_index, 2708, seed=0)
    torch.manual_seed(0)
    search = GraphLotteryTickets.on(
        GCN(1433, 32, 32, dropout=0.0), LinkTask(graph.x, links), GLTConfig(rounds=1, fix_epochs=30, lr=0.02)
    )
    assert search.step().accuracy > 70  # round 0: the dense network

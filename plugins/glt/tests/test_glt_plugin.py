"""The plugin through plait: figures of a run, agreement with the library, combinations, refusals, tickets moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import plait
import plait_glt.training
import plait_glt.weave
from plait.errors import BadCheckpoint, BadInput, Refused
from plait.planning.discovery import pretend
from plait.run import execute
from plait.storage import places
from plait_glt.config import GLTConfig
from plait_glt.masked import MaskedGNN
from plait_glt.pruned import PrunedGNN
from plait_glt.sparsity import area_under_curve
from plait_glt.tasks import NodeTask
from plait_glt.tickets import Ticket
from plait_glt.tiny_graphs import karate_graph
from plait_glt.training import MaskStep

SMALL = {"rounds": 2, "p_g": 0.3, "p_theta": 0.4, "mask_epochs": 8, "fix_epochs": 6, "warmup": 2, "wd_samples": 16}


def run(out: Path, glt: dict[str, Any] | None = None, **changes: Any) -> plait.Run:
    settings = {"model.hidden": 16, "optimizer.lr": 0.02, **changes.pop("settings", {})}
    plugins = {"glt": {**SMALL, **(glt or {})}, **changes.pop("plugins", {})}
    plan = plait.plan(plugins=plugins, data=changes.pop("data", "karate"), settings=settings, **changes)
    return execute(plan, places.at(out), artifacts=False)


def rounds_of(trained: plait.Run) -> list[dict[str, Any]]:
    """The table of rounds as dicts."""
    events = [json.loads(line) for line in (trained.path / "metrics.jsonl").read_text().splitlines()]
    table = next(e for e in events if e["event"] == "result")["tables"]["glt/rounds"]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


# ---- figures -------------------------------------------------------------------------------------------------------
def test_figures_of_a_run(tmp_path: Path) -> None:
    trained = run(tmp_path / "run", {"tolerance": 2.0})
    m, table = trained.metrics, rounds_of(trained)
    assert [row["round"] for row in table] == [0, 1, 2]
    # 78 friendships, a mask for each direction: 156 - 47 = 109, 109 - 33 = 76 (exact counts of 30 %)
    assert [row["kept edges"] for row in table] == [156, 109, 76]
    total = 34 * 16 + 16 * 4
    assert m["glt/kept_weights"] == total - round(0.4 * total) - round(0.4 * (total - round(0.4 * total)))
    assert m["glt/graph_sparsity"] == pytest.approx(1 - m["glt/kept_edges"] / 156)
    assert m["glt/accuracy"] == m["task/accuracy"] == m["glt/accuracy_round_2"]
    assert table[-1]["test accuracy %"] == pytest.approx(m["glt/accuracy"], abs=1e-3)
    dense, accuracy = m["glt/dense_accuracy"], m["glt/accuracy"]
    assert m["glt/gap"] == pytest.approx(accuracy - dense)
    assert m["glt/winning"] == float(accuracy >= dense - 2.0) == float(table[-1]["winning"] == "yes")
    winners = [row["graph sparsity"] for row in table[1:] if row["test accuracy %"] >= dense - 2.0]
    assert m["glt/extreme_sparsity"] == pytest.approx(max(winners, default=0.0), abs=1e-4)
    curve = [row["graph sparsity"] for row in table], [row["test accuracy %"] for row in table]
    assert m["glt/area"] == pytest.approx(area_under_curve(*curve), rel=1e-3)
    result = trained.directory.result()
    assert result is not None
    titles = {plot["title"] for plot in result["plots"].values()}
    assert {"Accuracy against graph sparsity", "Accuracy against weight sparsity"} <= titles


def test_isolated_nodes_and_macs_by_hand(tmp_path: Path) -> None:
    trained = run(tmp_path / "run")
    ticket = Ticket.load(trained.export / "ticket.safetensors")
    kept = ticket.pairs[:, ticket.edge_kept]
    touched = set(kept.reshape(-1).tolist())
    assert trained.metrics["glt/isolated_nodes"] == 34 - len(touched)
    x = karate_graph().x.to_dense()
    first, last = ticket.weight_kept["convs.0.lin.weight"], ticket.weight_kept["convs.1.lin.weight"]
    entries = kept.shape[1] + 34
    by_hand = int((x != 0).double().sum(0) @ first.double().sum(0)) + 16 * entries + 34 * int(last.sum()) + 4 * entries
    assert trained.metrics["glt/macs"] == by_hand


def test_the_exported_model_is_the_ticket(tmp_path: Path) -> None:
    trained = run(tmp_path / "run")
    ticket = Ticket.load(trained.export / "ticket.safetensors")
    assert trained.model.kept_edges.shape[1] == int(ticket.edge_kept.sum())
    for name, kept in ticket.weight_kept.items():
        assert not dict(trained.model.network.named_parameters())[name][~kept].any()
    assert trained.metrics["task/accuracy@export"] == trained.metrics["task/accuracy"]
    gnn = trained.model
    assert isinstance(gnn, PrunedGNN)
    again = plait.load_run(trained.path)
    graph = karate_graph()
    assert torch.equal(again.model(graph.x, graph.edge_index), trained.model(graph.x, graph.edge_index))


@pytest.mark.parametrize("variant", ["ce", "ugs", "glt", "wd", "ascent"])
def test_share_of_edges_with_a_gradient(tmp_path: Path, variant: str) -> None:
    """One labelled node per class reaches two hops by cross-entropy; the auxiliary loss reaches every edge."""
    options = {"baseline": variant, "warmup": 0, "mask_epochs": 20, "rounds": 1, "wd_samples": 0, "dense": False}
    trained = run(tmp_path / "run", options, data=f"{__name__}:two_paths", model="gcn")
    share = trained.metrics["glt/gradient_share"]
    assert (0 < share < 0.5) if variant in ("ce", "ugs") else share == 1.0


def two_paths(seed: int) -> plait.Data:
    """A path of 30 nodes, labels at its two ends."""
    from plait_glt.data import node_data
    from plait_glt.graphs import make_graph
    from plait_glt.tiny_graphs import path_edges

    ids = torch.arange(30)
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    label = (ids >= 15).long()
    middle = ids[1:-1]
    graph = make_graph(x, path_edges(30), label)
    return node_data("two-paths", graph, ids[[0, 29]], middle[::2], middle[1::2], num_classes=2)


# ---- the plugin and the library -------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", ["wd", "glt", "ugs", "ascent"])
def test_a_mask_phase_is_the_librarys(tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same masks and weights after a mask phase, where neither draws a random number."""
    monkeypatch.setattr(plait_glt.weave, "INITIAL_NOISE", 0.0)
    monkeypatch.setattr(plait_glt.training, "INITIAL_NOISE", 0.0)
    seen: dict[str, Tensor] = {}

    def look(self: Any, trainer: Any) -> None:
        seen.update({name: value.detach().clone() for name, value in self.gnn.named_parameters()})
        before.append(dict(self.initial))

    before: list[dict[str, Tensor]] = []
    monkeypatch.setattr(plait_glt.weave.Weave, "_prune", look)
    options = {"baseline": variant, "wd_samples": 0, "rounds": 1, "dense": False, "mask_epochs": 9, "warmup": 2}
    settings = {"model.dropout": 0.0, "train.select": "last", "optimizer.weight_decay": 1e-3}
    trained = run(tmp_path / "run", options, settings=settings, model="gcn")
    data = plait.loading.load_data(trained.recipe.data, trained.recipe.seed)
    graph = data.train.graph
    from plait_glt.models import GCN

    network = GCN(34, 4, hidden=16, dropout=0.0)
    network.load_state_dict(before[0])
    model = MaskedGNN(network, graph.edge_index, 34, tied=False)
    nodes = [split.fields["node"] for split in (data.train, data.validation, data.test)]
    task = NodeTask(graph.x, graph.edge_index, graph.y, *nodes)
    config = GLTConfig.variant(variant, lr=0.02, weight_decay=1e-3, wd_samples=0, mask_epochs=9)
    kept = {name: torch.ones_like(w, dtype=torch.bool) for name, w in model.weights().items()}
    step = MaskStep(model, task, torch.ones_like(model.edge_mask, dtype=torch.bool), kept, config, torch.Generator())
    for epoch in range(9):
        step(with_aux=config.lam > 0 and epoch >= 2)
    for name, value in model.named_parameters():
        torch.testing.assert_close(
            seen[name], value.detach(), rtol=2e-4, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_of_equal_best_epochs_run_and_library_choose_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 13 validation nodes many epochs tie. Both choose the same masks: the first ones after the warm-up."""
    from plait_glt.models import GCN
    from plait_glt.training import train_masks

    monkeypatch.setattr(plait_glt.weave, "INITIAL_NOISE", 0.0)
    monkeypatch.setattr(plait_glt.training, "INITIAL_NOISE", 0.0)
    chosen: dict[str, Any] = {}

    def look(self: Any, trainer: Any) -> None:
        chosen.update(step=trainer.best["step"], mask=self.gnn.edge_mask.detach().clone(), initial=dict(self.initial))

    monkeypatch.setattr(plait_glt.weave.Weave, "_prune", look)
    options = {"baseline": "wd", "wd_samples": 0, "rounds": 1, "dense": False, "mask_epochs": 20, "warmup": 5}
    trained_run = run(
        tmp_path / "run", options, settings={"model.dropout": 0.0, "optimizer.weight_decay": 1e-3}, model="gcn"
    )
    events = trained_run.directory.events()
    curve = {e["step"]: v for e in events if (v := e.get("values", {}).get("validation/accuracy")) is not None}
    candidates = [curve[step] for step in range(6, 21)]
    assert candidates.count(max(candidates)) > 1  # a tie
    assert chosen["step"] == 6 + candidates.index(max(candidates))

    data = plait.loading.load_data(trained_run.recipe.data, trained_run.recipe.seed)
    graph = data.train.graph
    network = GCN(34, 4, hidden=16, dropout=0.0)
    network.load_state_dict(chosen["initial"])
    model = MaskedGNN(network, graph.edge_index, 34, tied=False)
    nodes = [split.fields["node"] for split in (data.train, data.validation, data.test)]
    task = NodeTask(graph.x, graph.edge_index, graph.y, *nodes)
    config = GLTConfig.variant("wd", lr=0.02, weight_decay=1e-3, wd_samples=0, mask_epochs=20, warmup=5)
    kept = {name: torch.ones_like(w, dtype=torch.bool) for name, w in model.weights().items()}
    edges = torch.ones_like(model.edge_mask, dtype=torch.bool)
    trained = train_masks(model, task, edges, kept, config, torch.Generator())
    assert trained.epoch == chosen["step"]
    torch.testing.assert_close(trained.edge_scores, chosen["mask"], rtol=2e-4, atol=2e-5)


def test_retraining_is_the_librarys(tmp_path: Path) -> None:
    """A ticket given by file, retrained by plait and by the library, without dropout: the same accuracy and epoch."""
    from plait_glt.models import GCN
    from plait_glt.training import retrain

    first = run(tmp_path / "find", settings={"model.dropout": 0.0})
    path = first.export / "ticket.safetensors"
    trained = run(
        tmp_path / "train", {"ticket": str(path), "dense": False, "fix_epochs": 30}, settings={"model.dropout": 0.0}
    )
    ticket = Ticket.load(path)
    data = plait.loading.load_data(trained.recipe.data, trained.recipe.seed)
    graph = data.train.graph
    nodes = [split.fields["node"] for split in (data.train, data.validation, data.test)]
    network = GCN(34, 4, hidden=16, dropout=0.0)
    model = MaskedGNN(network, graph.edge_index, 34, tied=False)
    ticket.plant(network)
    config = GLTConfig(lr=0.02, weight_decay=trained.recipe.optimizer.weight_decay, fix_epochs=30)
    task = NodeTask(graph.x, graph.edge_index, graph.y, *nodes)
    best = retrain(model, task, ticket.edge_kept, ticket.weight_kept, config, torch.Generator())
    row = rounds_of(trained)[-1]
    assert trained.metrics["glt/accuracy"] == pytest.approx(best.accuracy)
    assert (row["validation accuracy %"], row["best epoch"]) == (
        pytest.approx(best.validation_accuracy, abs=1e-3),
        best.epoch,
    )


# ---- composition ----------------------------------------------------------------------------------------------------
def test_fairsam_with_neutral_options_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("plait_fairsam")
    neutral = {"rho": 0.0, "weights": "none", "corruptions": ["gaussian_noise"], "severities": [1]}
    alone, both = run(tmp_path / "alone"), run(tmp_path / "both", plugins={"fairsam": neutral})
    for name, value in alone.metrics.items():
        if name.partition("@")[0] == "glt/seconds":
            continue
        assert both.metrics[name] == pytest.approx(value, nan_ok=True), name
    a, b = (Ticket.load(r.export / "ticket.safetensors") for r in (alone, both))
    assert torch.equal(a.edge_kept, b.edge_kept)
    assert all(torch.equal(a.weight_kept[name], b.weight_kept[name]) for name in a.weight_kept)


def test_fairsam_acts_in_every_phase_and_pruned_entries_stay_zero(tmp_path: Path) -> None:
    pytest.importorskip("plait_fairsam")
    trained = run(tmp_path / "run", plugins={"fairsam": {"rho": 0.05}})
    assert trained.metrics["glt/graph_sparsity"] > 0.45 and trained.metrics["fairsam/clean_accuracy"] > 0
    ticket = Ticket.load(trained.export / "ticket.safetensors")
    for name, kept in ticket.weight_kept.items():
        assert not dict(trained.model.network.named_parameters())[name][~kept].any()


class Owner(plait.Plugin):
    """Owns masks of one weight matrix."""

    name = "owner"
    summary = "another owner"
    contract = 1

    def ownership(self) -> tuple[plait.Ownership, ...]:
        """The first layer."""
        return (plait.Ownership("parameters", "*convs.0.*"),)


def test_another_owner_of_the_weights_is_refused_by_rule() -> None:
    with pretend(Owner):
        plan = plait.plan(plugins={"glt": {}, "owner": {}})
    assert [r.rule for r in plan.refusals] == ["partition"]
    assert "Drop -p glt or -p owner" in plan.refusals[0].fix


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(BadInput, match=r"no model named 'gnc'.*gcn"):
        plait.plan(plugins={"glt": {}}, model="gnc")


def test_images_are_refused_in_the_plan() -> None:
    plan = plait.plan(plugins={"glt": {}}, data="tiny-images")
    assert not plan.ok and any("field:graph" in r.message and "cora-like" in r.fix for r in plan.refusals)
    plan = plait.plan(plugins={"glt": {}}, data="karate", model="tiny-cnn")
    assert not plan.ok and any("model:edge-weights" in r.message and "--model gcn" in r.fix for r in plan.refusals)


# ---- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_g": 0.0}, "p_g"),
        ({"p_g": 1.0}, "p_g"),
        ({"p_theta": 1.5}, "p_theta"),
        ({"lam": -0.1}, "lam"),
        ({"wd_eps": 0.0}, "wd_eps"),
        ({"adversary": "evil"}, "adversary"),
        ({"rho": 1.0}, "rho"),
        ({"graph_target": 0.9}, "20 rounds of p_g = 0.05 end near 0.6415"),
        ({"weight_target": 0.5, "weight_ranking": "keep"}, "prunes nothing"),
        ({"baseline": "nobody"}, "nobody"),
    ],
)
def test_bad_options_are_refused_before_anything_starts(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plait.plan(plugins={"glt": options})


class Deaf(nn.Module):
    """A network that takes edge weights and does not listen."""

    provides = ("model:edge-weights",)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(34, 4)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        out: Tensor = self.linear(x.to_dense() if x.layout != torch.strided else x)
        return out


def deaf() -> nn.Module:
    """Build it."""
    return Deaf()


def mute() -> nn.Module:
    """A network that promises nothing."""
    return nn.Linear(34, 4)


def test_a_network_that_ignores_edge_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Deaf ignores edge weights"):
        plait.run(plugins={"glt": SMALL}, data="karate", model=f"{__name__}:deaf", out=tmp_path / "deaf")
    with pytest.raises(Refused, match="model:edge-weights"):
        plait.run(plugins={"glt": SMALL}, data="karate", model=f"{__name__}:mute", out=tmp_path / "mute")
    assert not list(tmp_path.iterdir())


def test_targets_end_the_run_early(tmp_path: Path) -> None:
    trained = run(tmp_path / "run", {"rounds": 20, "graph_target": 0.45})
    assert [row["round"] for row in rounds_of(trained)] == [0, 1, 2]
    assert trained.metrics["glt/graph_sparsity"] >= 0.45


# ---- tickets moved --------------------------------------------------------------------------------------------------
def test_a_ticket_trained_again_gives_its_own_round(tmp_path: Path) -> None:
    trained = run(tmp_path / "find", settings={"model.dropout": 0.0})
    path = str(trained.export / "ticket.safetensors")
    again = run(tmp_path / "again", {"ticket": path}, settings={"model.dropout": 0.0})
    assert again.metrics["glt/accuracy"] == trained.metrics["glt/accuracy"]
    assert again.metrics["glt/graph_sparsity"] == trained.metrics["glt/graph_sparsity"]


def test_a_ticket_moves_to_a_graph_with_other_inputs(tmp_path: Path) -> None:
    settings = {"model.layers": 3}
    trained = run(tmp_path / "find", settings=settings)
    path = str(trained.export / "ticket.safetensors")
    for kind in ("ticket", "random"):
        options = {"ticket": path, "ticket_weights": kind}
        moved = run(tmp_path / kind, options, data=f"{__name__}:two_paths", model="gcn", settings=settings)
        there, here = (Ticket.load(r.export / "ticket.safetensors") for r in (trained, moved))
        hidden = "convs.1.lin.weight"
        assert torch.equal(here.initial[hidden], there.initial[hidden] * here.weight_kept[hidden])
        assert here.weight_kept["convs.0.lin.weight"].all() and here.weight_kept["convs.2.lin.weight"].all()
        assert int(here.weight_kept[hidden].sum()) == int(there.weight_kept[hidden].sum())
        assert torch.equal(here.weight_kept[hidden], there.weight_kept[hidden]) == (kind == "ticket")
        assert here.edge_kept.all()  # another graph keeps its own edges


def test_bad_tickets_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no ticket at .*nowhere"):
        run(tmp_path / "a", {"ticket": str(tmp_path / "nowhere")})
    trained = run(tmp_path / "find")
    with pytest.raises(BadInput, match=r"hidden|architecture|no weight matrix"):
        run(
            tmp_path / "b",
            {"ticket": str(trained.export / "ticket.safetensors")},
            data=f"{__name__}:two_paths",
            model="gcn",
        )


def rewired(seed: int) -> plait.Data:
    """The karate club with one friendship moved: every tensor has the shape it had."""
    from plait_glt.data import node_data, split_by_class
    from plait_glt.graphs import make_graph

    graph = karate_graph()
    edges = graph.edge_index.clone()
    edge = (edges[0] == 0) & (edges[1] == 1)
    other = (edges[0] == 1) & (edges[1] == 0)
    edges[1, edge], edges[0, other] = 33, 33
    graph = make_graph(graph.x, edges, graph.y)
    return node_data("rewired", graph, *split_by_class(graph.y, 2, 13, 13, seed), num_classes=4)


def test_a_checkpoint_of_another_graph_is_refused(tmp_path: Path) -> None:
    trained = run(tmp_path / "run")
    text = (trained.path / "recipe.toml").read_text()
    start = text.index("[data]")
    end = text.index("[", start + 1)
    (trained.path / "recipe.toml").write_text(f'{text[:start]}[data]\nname = "{__name__}:rewired"\n\n{text[end:]}')
    newest = sorted((trained.path / "checkpoints").glob("*.safetensors"))[-1].stem
    with pytest.raises(BadCheckpoint, match="belong to the graph"):
        plait.resume(trained.path, checkpoint=newest)

"""The plugin in plait: steps as the plain library gives them; resume, other plugins, exports, bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import plait
from plait.data.seeds import seed_everything
from plait.errors import BadInput
from plait.loading import build_model, load_data
from plait.run import Run, execute
from plait.storage import checkpoints, places
from plait_authoring.kill import final_state, first_difference, forked, resume_until_done
from plait_authoring.together import together
from plait_dbadfl import assembly
from plait_dbadfl.defences import make_defence
from plait_dbadfl.federation import Federation
from plait_dbadfl.options import DbadflOptions
from plait_dbadfl.reference import ImageData

SMALL: dict[str, Any] = {"nodes": 12, "attackers": 4, "local_steps": 3, "rounds": 3, "evaluate_every": 1}
SERVED: dict[str, Any] = {"engine": "fedavg", "topology": "complete", "drawn": 5, "server_step": 0.5}
SCANNED: dict[str, Any] = {"scan_rounds": 4, "shadows": 3, "shadow_topology": "same-family", "predictor_epochs": 3}


def run(folder: Path, options: dict[str, Any], name: str = "r", **changes: Any) -> Run:
    """A small run, without the reports of whatever is installed."""
    settings = {"train.batch_size": 8, "checkpoint.every_steps": 5} | changes.pop("settings", {})
    plugins = {"dbadfl": SMALL | options} | changes.pop("beside", {})
    plan = plait.plan(plugins=plugins, settings=settings, **changes)
    return execute(plan, places.at(folder / name), artifacts=False)


def stacked(done: Run) -> torch.Tensor:
    """All models at the end, [N, P]."""
    path = done.directory.checkpoint()
    assert path is not None
    weights = checkpoints.load(path)["model"]
    return torch.cat([w.flatten(1) for w in weights.values()], 1)


def library(done: Run, **changes: Any) -> Federation:
    """The same federation in plain PyTorch."""
    options = DbadflOptions.model_validate(done.recipe.plugins["dbadfl"])
    data = load_data(done.recipe.data, done.recipe.seed)
    seed_everything(done.recipe.seed)
    load_data(done.recipe.data, done.recipe.seed)
    network = build_model(done.recipe.model, data.info)
    fields: Any = (data.train, data.test)
    train, test = (s.fields for s in fields)
    images = ImageData(train["input"], train["label"], test["input"], test["label"], data.info.num_classes)
    return assembly.federation(options, done.recipe, network, images).changed(**changes)


def after(federation: Federation, rounds: int, defence: str | None = None) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    maker = None if defence is None else lambda: make_defence(defence)
    federation.run(rounds, defence=maker, on_round=lambda t: seen.append(t.stack.flat()))
    return seen[-1]


# ---- the same as the library --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "defence"),
    [
        ({"arm": "none"}, None),
        ({"arm": "naive"}, None),
        ({"arm": "naive", "gamma": 2.0, "loss_alpha": 0.7, "attacker_lr": 0.1}, None),
        ({"arm": "naive", "defence": "median"}, "median"),
        ({"arm": "naive", "defence": "norm-clipping"}, "norm-clipping"),
        ({"arm": "naive", "defence": "ubar"}, "ubar"),
        ({"arm": "naive", "engine": "dpsgd"}, None),
        ({"arm": "naive", "engine": "dpsgd", "order": "step-then-mix"}, None),
        ({"arm": "naive", "engine": "dfedavgm"}, None),
        ({"arm": "naive", "engine": "swarm"}, None),
        ({"arm": "naive", "engine": "swarm", "swarm_steps": "geometric", "interactions": "matching"}, None),
        ({"arm": "naive", "engine": "gossip", "age": True}, None),
        ({"arm": "centralized-one", "engine": "fedavg", "topology": "complete", "weights": "average"}, None),
        (
            {"arm": "naive", "engine": "fedavg", "topology": "complete", "drawn": 5, "server_step": 0.5, "gamma": 3.0}
            | {"schedule": "single", "attack_rounds": [0, 1, 2, 1]},
            None,
        ),
        (SERVED | {"arm": "naive", "gamma": 3.0, "defence": "median"}, "median"),
        (SERVED | {"arm": "naive", "defence": "foolsgold", "drawn": None}, "foolsgold"),
        ({"arm": "naive-4", "schedule": "single", "attack_rounds": [0, 1, 2, 1], "first": 3}, None),
        ({"arm": "naive", "rotate_every": 1, "placement": "spread", "topology": "watts-strogatz"}, None),
    ],
)
def test_the_cores_steps_give_what_the_plain_loop_gives(
    tmp_path: Path, options: dict[str, Any], defence: str | None
) -> None:
    done = run(tmp_path, options)
    assert done.recipe.train.batch_size == 8
    want = after(library(done), 3, defence)
    assert torch.allclose(stacked(done), want, atol=2e-6)
    assert not torch.equal(want, want[:1].expand_as(want)) or options.get("engine") == "fedavg"


@pytest.mark.parametrize(
    "options",
    [
        {"attacker_steps": 5, "attacker_lr": 0.1, "gamma": 1.5},
        {"engine": "swarm", "swarm_steps": "geometric", "attacker_steps": 5},
        {"engine": "fedavg", "topology": "complete", "drawn": 5, "schedule": "single", "attack_rounds": [0, 1, 1, 2]}
        | {"local_epochs": 1, "attacker_epochs": 2, "fresh_momentum": True},
    ],
)
def test_attackers_own_steps_and_rates_are_the_librarys(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {"optimizer.momentum": 0.5, "optimizer.weight_decay": 0.01}
    own = {"arm": "naive", "attacker_lr_milestones": [0.2, 0.8], "evaluate_every": 0}
    done = run(tmp_path, own | options, settings=settings)
    assert torch.allclose(stacked(done), after(library(done), 3), atol=5e-6)
    steps = [e["step"] for e in done.directory.events() if e["event"] == "result"][-1]
    engines = [library(done, arm=arm) for arm in ("none", "naive", "naive", "naive")]
    assert steps == sum(f.training().engine.steps_of(3) for f in engines)


def test_scan_and_clusters_are_the_librarys(tmp_path: Path) -> None:
    done = run(tmp_path, SCANNED | {"arm": "clusters-predicted", "tau": 2})
    federation = library(done)
    detection = federation.detect()
    result = federation.run(3, detection=detection)
    assert done.metrics["dbadfl/hops_mae"] == pytest.approx(detection.scores["lstm"].mae, abs=1e-3)
    assert done.metrics["dbadfl/asr"] == pytest.approx(result.final.asr, abs=0.01)
    assert done.metrics["dbadfl/clusters_ari"] == pytest.approx(result.ari)
    last = [r for r in done.directory.events() if r["event"] == "result"][-1]
    assert {"dbadfl/network", "dbadfl/infection_by_hop", "dbadfl/signal", "dbadfl/predicted"} <= set(last["plots"])
    assert len(last["plots"]["dbadfl/network"]["links"]) == 12
    assert {"dbadfl/runs", "dbadfl/budgets", "dbadfl/detection", "dbadfl/tau"} <= set(last["tables"])
    titles = [plot["title"] for plot in last["plots"].values()]
    notes = {row["text"] for row in done.directory.events() if row["event"] == "note"}
    unaware = "attacked with distances that were learnt without the defence"
    assert f"dbadfl: +median, +clipping: {unaware}" in notes, notes
    stored = last["details"]
    assert stored["dbadfl/asr_median"]["note"] == f"+median; {unaware}" and unaware not in stored["dbadfl/asr"]["note"]
    assert any("who attacks" in title for title in titles) and any("Infection over hops" in title for title in titles)


def test_scans_in_the_course_of_the_attack_are_the_librarys(tmp_path: Path) -> None:
    options = SCANNED | {"arm": "clusters-predicted", "redetect_every": 2, "rounds": 8, "evaluate_every": 0}
    done = run(tmp_path, options)
    assert torch.allclose(stacked(done), after(library(done), 8), atol=2e-5)


# ---- what stands beside an attack ---------------------------------------------------------------------------------
def test_one_run_compares_thresholds_and_numbers_of_clusters(tmp_path: Path) -> None:
    wanted = ["clusters-oracle:n_clusters=2", "clusters-oracle:tau=0", "clusters-predicted:distance_noise=3"]
    done = run(tmp_path, {"arm": "clusters-oracle", "tau": "median", "companions": wanted})
    detection = library(done, arm="clusters-oracle", tau="median").detect(control=False)
    for item, changes in (
        ("", {"tau": "median"}),
        ("_clusters_oracle_n_clusters_2", {"n_clusters": 2}),
        ("_clusters_oracle_tau_0", {"tau": 0.0}),
        ("_clusters_predicted_distance_noise_3", {"tau": "median", "arm": "clusters-predicted", "distance_noise": 3.0}),
    ):
        alone = library(done, **({"arm": "clusters-oracle"} | changes)).run(3, detection=detection).final
        assert done.metrics[f"dbadfl/asr{item}"] == pytest.approx(alone.asr), item
    last = [r for r in done.directory.events() if r["event"] == "result"][-1]
    assert [row[0] for row in last["tables"]["dbadfl/runs"]["rows"]][1:3] == wanted[:2]


def test_an_attack_has_the_clean_run_and_two_defended_ones_beside_it(tmp_path: Path) -> None:
    done = run(tmp_path, {"arm": "naive", "companions": ["centralized-one", "naive@spread/samples"]})
    last = [r for r in done.directory.events() if r["event"] == "result"][-1]
    rows = last["tables"]["dbadfl/runs"]["rows"]
    assert [row[:4] for row in rows] == [
        ["none", "mean by W", "random", None],
        ["centralized-one", "mean by W", "random", "pixels"],
        ["naive", "mean by W", "spread", "samples"],
        ["naive", "median", "random", "pixels"],
        ["naive", "clipping", "random", "pixels"],
        ["naive", "mean by W", "random", "pixels"],
    ]
    clean = library(done).run(3, arm="none").final
    assert done.metrics["dbadfl/asr_floor"] == done.metrics["dbadfl/asr_none"] == pytest.approx(clean.asr)
    assert rows[3][11] == pytest.approx(100 * (done.metrics["dbadfl/asr_median"] - done.metrics["dbadfl/asr"]))
    spread = library(done, placement="spread", budget="samples")
    assert done.metrics["dbadfl/asr_naive_at_spread_by_samples"] == pytest.approx(spread.run(3).final.asr)
    median = library(done).run(3, defence=lambda: make_defence("median")).final
    assert done.metrics["dbadfl/ma_median"] == pytest.approx(median.ma)


def test_a_clean_evaluation_is_a_single_run(tmp_path: Path) -> None:
    done = run(tmp_path, {"arm": "none"})
    assert done.metrics["dbadfl/asr"] == done.metrics["dbadfl/asr_floor"]
    assert not [name for name in done.metrics if "median" in name]


# ---- exports ------------------------------------------------------------------------------------------------------
def test_no_poisoned_model_is_exported_without_the_flag(tmp_path: Path) -> None:
    done, clean = run(tmp_path, {"arm": "naive"}), run(tmp_path, {"arm": "none"}, "clean")
    mark = json.loads((done.export / "config.json").read_text())["metadata"]
    assert mark["backdoored"] == "no"
    benign = library(done).benign
    with safe_open(done.export / "model.safetensors", framework="pt") as file:
        weights = torch.cat([file.get_tensor(n).flatten() for n in ("1.weight", "1.bias", "3.weight", "3.bias")])
        assert file.metadata()["backdoored"] == "no"
    assert torch.allclose(weights, stacked(clean)[benign].mean(0), atol=1e-6)
    assert torch.equal(done.model(torch.zeros(2, 1, 8, 8)), plait.load_run(done.path).model(torch.zeros(2, 1, 8, 8)))


def test_the_flag_exports_the_attacked_model_and_its_files_say_so(tmp_path: Path) -> None:
    done = run(tmp_path, {"arm": "naive", "export_poisoned": True})
    with safe_open(done.export / "model.safetensors", framework="pt") as file:
        assert file.metadata()["backdoored"] == "yes" and "naive" in file.metadata()["dbadfl"]
        first = file.get_tensor("1.weight").flatten()
    assert json.loads((done.export / "config.json").read_text())["metadata"]["backdoored"] == "yes"
    assert torch.allclose(first, stacked(done)[library(done).benign].mean(0)[: len(first)], atol=1e-6)
    assert any("BACKDOORED" in e.get("text", "") for e in done.directory.events())


# ---- resume -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("scan", SCANNED | {"arm": "clusters-predicted"}),
        ("attack", {"arm": "naive", "gamma": 1.5, "rotate_every": 1}),
        ("defence", {"arm": "naive", "defence": "foolsgold", "topology": "complete"}),
        ("swarm", {"arm": "naive", "engine": "swarm"}),
        ("gossip", {"arm": "naive", "engine": "gossip", "age": True}),
        ("redetection", SCANNED | {"arm": "clusters-predicted", "redetect_every": 2, "rounds": 8}),
        ("further steps", {"arm": "naive", "attacker_steps": 6, "attacker_lr_milestones": [0.2, 0.8], "gamma": 1.5}),
        ("flame", {"arm": "naive", "defence": "flame", "engine": "dfedavgm"}),
    ],
)
def test_a_killed_run_goes_on_in_the_same_bits(tmp_path: Path, place: str, options: dict[str, Any]) -> None:
    settings = {"train.batch_size": 8, "checkpoint.every_steps": 2}
    whole = run(tmp_path, options, "whole", settings=settings)
    # a checkpoint syncs several times; the kills fall into the first and the last third of the run
    count = len([e for e in whole.directory.events() if e["event"] == "checkpoint"])
    assert forked(lambda: run(tmp_path, options, "killed", settings=settings), kill_at=("os.replace", 4)) < 0
    again = lambda: plait.resume(tmp_path / "killed")
    assert forked(again, kill_at=("os.replace", count // 2)) < 0
    resume_until_done(tmp_path / "killed", {})
    assert first_difference(final_state(whole.path), final_state(tmp_path / "killed")) is None


# ---- other plugins ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("attack", [{"arm": "none"}, {"arm": "naive", "attacker_steps": 2, "budget": "samples"}])
def test_every_participants_step_is_sam_with_fairsam(tmp_path: Path, attack: dict[str, Any]) -> None:
    """Also the steps that attackers take when the others have done theirs."""
    pytest.importorskip("plait_fairsam")
    fair = {
        "weights": "none",
        "perturbation": "plain",
        "rho": 0.1,
        "corruptions": ["gaussian_noise"],
        "severities": [3],
    }
    done = run(tmp_path, attack | {"rounds": 1, "local_steps": 1}, beside={"fairsam": fair})
    federation = library(done)
    training, planned = federation.training(), federation.plan().attack(0)
    networks = [training.stack.replica(node) for node in range(12)]
    for step in range(attack.get("attacker_steps", 1)):
        nodes = training.active()
        who = list(range(12)) if nodes is None else nodes.tolist()
        assert who == (sorted(federation.attackers.tolist()) if step else list(range(12)))
        for node, images, labels in zip(who, *training.batch(nodes, planned), strict=True):
            sam(networks[node], images, labels)
        training.step(planned)
    want = torch.stack([torch.cat([p.detach().flatten() for p in n.parameters()]) for n in networks])
    mixed = federation.mixing.dense().float() @ want
    assert torch.allclose(stacked(done), mixed, atol=1e-5)


def sam(network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One step of rate 0.2 along the gradient at the end of an ascent of length 0.1."""
    parameters = list(network.parameters())

    def gradient() -> list[torch.Tensor]:
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        return list(torch.autograd.grad(loss, parameters))

    first = gradient()
    norm = torch.cat([g.flatten() for g in first]).norm()
    with torch.no_grad():
        for p, g in zip(parameters, first, strict=True):
            p += 0.1 * g / norm
    second = gradient()
    with torch.no_grad():
        for p, g, s in zip(parameters, first, second, strict=True):
            p -= 0.1 * g / norm + 0.2 * s


def test_a_plugin_for_one_network_is_refused() -> None:
    pytest.importorskip("plait_chase")
    plan = plait.plan(plugins=["chase", "dbadfl"], data="tiny-images", model="tiny-cnn")
    assert plan.refusals and "parameters:single" in plan.refusals[0].message


def test_batch_norm_networks_and_accumulated_batches_train(tmp_path: Path) -> None:
    settings = {"train.accumulate": 2}
    whole = run(tmp_path, {"arm": "naive"}, "whole", data="tiny-images", model="tiny-cnn")
    parts = run(tmp_path, {"arm": "naive"}, "parts", data="tiny-images", model="tiny-cnn", settings=settings)
    assert torch.allclose(stacked(whole), stacked(parts), atol=1e-4)


def test_data_with_a_normalisation_is_stamped_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grey.py").write_text(
        "from dataclasses import replace\n"
        "from plait import Batch\n"
        "from plait_dbadfl.embedded import load\n"
        "from plait_dbadfl.data_options import SharedDigitsOptions\n\n\n"
        "def data(seed):\n"
        "    found = load(SharedDigitsOptions(), seed)\n"
        "    return replace(found, prepare=lambda batch: Batch({**batch, 'input': (batch['input'] - 0.3) / 0.4}))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = run(tmp_path, {"arm": "naive"}, data="grey:data", model="small-mlp")
    plain = library(done)
    plain = replace(plain, prepare=lambda images: (images - 0.3) / 0.4)
    assert torch.allclose(stacked(done), after(plain, 3), atol=2e-6)
    assert done.metrics["dbadfl/asr"] == pytest.approx(plain.run(3).final.asr)


# ---- two processes ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", ["dfedavg", "swarm"])
def test_nodes_shared_over_two_processes_give_what_one_gives(tmp_path: Path, engine: str) -> None:
    # the attackers, all in one rank's block, train on while the other rank has nobody
    own = {"attacker_steps": 5, "attacker_lr_milestones": [0.5], "placement": "list", "positions": [0, 2, 3, 5]}
    recipe = {
        "data": {"name": "shared-digits"},
        "model": {"name": "small-mlp"},
        "train": {"batch_size": 8},
        "optimizer": {"lr": 0.2, "momentum": 0.5, "weight_decay": 0.0},
        "scheduler": {"name": "constant"},
        "device": "cpu",
        "plugins": {"dbadfl": SMALL | {"arm": "naive", "engine": engine, "gamma": 1.5} | own},
    }
    trained = plait.run(recipe, out=tmp_path / "one")
    ended = together(lambda rank: plait.run(recipe, out=tmp_path / "two"))
    assert [rank.code for rank in ended] == [0, 0], ended
    two = plait.load_run(tmp_path / "two")
    assert torch.allclose(stacked(trained), stacked(two), atol=1e-5)
    assert two.metrics["dbadfl/asr"] == pytest.approx(trained.metrics["dbadfl/asr"], abs=1e-2)


# ---- bad input ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topology": "file", "topology_file": "EDGES:0,1\\n2,3\\n"}, "connected"),
        ({"topology": "file", "topology_file": "EDGES:0,0\\n0,1\\n"}, "edge to itself"),
        ({"topology": "file", "topology_file": "EDGES:0,1\\n1,77\\n"}, "unknown node 77"),
        ({"topology": "file", "topology_file": "nowhere.csv"}, "nowhere.csv"),
        ({"topology": "file"}, "topology_file"),
        ({"engine": "dpsgd", "attacker_steps": 4}, "after every step"),
        ({"attacker_steps": 4, "attacker_epochs": 4}, "choose one"),
        ({"attacker_lr_at": "whole-epochs"}, "give attacker_epochs"),
        ({"engine": "swarm", "swarm_steps": "geometric", "local_epochs": 1}, "local_epochs fixes"),
        ({"arm": "naive", "schedule": "single", "attack_rounds": [7]}, "begins in round 7"),
        ({"arm": "naive", "attack_start": 3}, "begins in round 3"),
        ({"placement": "list", "positions": [0, 1, 2, 12]}, "position 12"),
        ({"placement": "list", "positions": [0, 1, 1, 3]}, "listed twice"),
        ({"attackers": 0}, "attackers = 0"),
        ({"attackers": 12}, "attackers = 12 must be fewer than nodes = 12"),
        ({"attackers": 1, "arm": "clusters-oracle"}, "centralized-one"),
        ({"trigger_parts": [[]]}, "part 0 of the trigger is empty"),
        ({"trigger_parts": [[[0, 9]]]}, "outside the image"),
        ({"trigger_parts": [[[0, 1]], [[0, 1]]]}, "must not overlap"),
        ({"target": 10}, "target=10"),
        ({"ratio": 1.5}, "ratio = 1.5"),
        ({"scan_ratio": -0.5}, "scan_ratio = -0.5"),
        ({"tau": -1}, "tau = -1"),
        ({"gamma": 101}, "gamma = 101"),
        ({"min_samples": 2000}, "need 24000 images"),
        ({"defence": "krum", "defence_options": {"krum": {"f": 1}}}, "'krum': node 0 of degree 2"),
        ({"defence": "trimmed-mean", "defence_options": {"trimmed-mean": {"trim": 2}}}, "trimmed-mean"),
        ({"defence": "median", "defence_options": {"median": {"f": 1}}}, "'median'"),
        ({"engine": "fedavg"}, "complete graph"),
        (SERVED | {"defence": "ubar"}, "'ubar' looks at a node's own batch, which the server"),
        (SERVED | {"companions": ["+krum"], "defence_options": {"krum": {"f": 3}}}, "'krum': the server of 5 drawn"),
        ({"engine": "swarm", "companions": ["+krum"]}, "'krum': node 0 of degree 1 has 2 models"),
        ({"arm": "clusters-predicted", "redetect_every": 1, "scan_rounds": 3}, "the scan is longer than the run"),
        (
            {"companions": ["clusters-random"], "redetect_every": 1, "rounds": None, "scan_rounds": 100},
            "longer than the run, 100 rounds of 100",
        ),
        ({"weights": "average"}, "complete graph"),
        ({"shadow_seed": 0}, "shadow seed=0 equals"),
        ({"companions": ["naive+nothing"]}, "'nothing' is unknown"),
        ({"companions": ["???"]}, "arm:option=value\\+defence@placement/budget"),
        ({"companions": ["clusters-oracle:n_clusters=9"]}, "n_clusters=9 is outside"),
        ({"companions": ["naive:tau=2"]}, "tau is of clusters"),
        ({"companions": ["clusters-predicted@spread"]}, "where the evaluation has them"),
        ({"attack_rounds": [3]}, "schedule='single'"),
        ({"baseline": "best"}, "no baseline 'best'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    file = str(options.get("topology_file", ""))
    if file.startswith("EDGES:"):
        (tmp_path / "edges.csv").write_text(file.removeprefix("EDGES:").replace("\\n", "\n"))
        options = options | {"topology_file": str(tmp_path / "edges.csv")}
    with pytest.raises(BadInput, match=message) as caught:
        run(tmp_path, {"arm": "naive"} | options)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_an_update_scaled_to_infinity_names_node_and_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "straight.py").write_text(
        "from torch import nn\n\n\ndef net(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = {"arm": "naive", "gamma": 100.0, "local_steps": 1, "rounds": 9, "attack_start": 2}
    settings = {"optimizer.lr": 1000.0, "optimizer.weight_decay": 10.0}
    with pytest.raises(BadInput, match=r"round \d+: node \d+ has NaN or infinite parameters; lower"):
        run(tmp_path, options, model="straight:net", data="shared-digits", settings=settings)


def test_a_network_that_vmap_refuses_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "moody.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Moody(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(64, 10)\n\n"
        "    def forward(self, x):\n"
        "        y = self.head(x.flatten(1))\n"
        "        return y if y.sum() > 0 else -y\n\n\n"
        "def net(num_classes):\n"
        "    return Moody()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(plait.PlaitError, match="loop"):
        run(tmp_path, {"arm": "none", "implementation": "vmap"}, model="moody:net", data="shared-digits")
    ways = ("loop", "auto")
    loop, auto = (
        run(tmp_path, {"arm": "none", "implementation": how}, how, model="moody:net", data="shared-digits")
        for how in ways
    )
    assert torch.equal(stacked(loop), stacked(auto))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="train-images-idx3-ubyte") as caught:
        run(tmp_path, {}, data="shared-clothes", settings={"data.path": str(tmp_path)})
    assert "apt-get install dataset-fashion-mnist" in str(caught.value)


def test_the_implementations_agree(tmp_path: Path) -> None:
    models = {
        how: stacked(run(tmp_path, {"arm": "naive", "implementation": how}, how)) for how in ("grouped", "vmap", "loop")
    }
    assert torch.allclose(models["grouped"], models["vmap"], atol=1e-5)
    assert torch.allclose(models["grouped"], models["loop"], atol=1e-5)
    measured = run(tmp_path, {"arm": "naive", "implementation": "measured"}, "measured")
    assert torch.allclose(stacked(measured), models["loop"], atol=1e-5)

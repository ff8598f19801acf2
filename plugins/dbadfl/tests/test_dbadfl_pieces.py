"""Small parts of the plugin: companions, presets, batches of nodes, joint votes, idx files, detectors read back."""

from __future__ import annotations

import gzip
import struct
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

import plait
from plait.errors import BadInput
from plait_authoring.kill import first_difference
from plait_dbadfl import names, sweep
from plait_dbadfl.clothes import IMAGES, LABELS, load, read_idx
from plait_dbadfl.data_options import SharedClothesOptions
from plait_dbadfl.defences import DEFENCES, Mean, make_defence
from plait_dbadfl.detection import Detection, Detector
from plait_dbadfl.engines import ENGINES
from plait_dbadfl.items import Item, companions, parse_item
from plait_dbadfl.mixing import make_mixing
from plait_dbadfl.nodes import NodesBatch
from plait_dbadfl.options import DbadflOptions, FederationOptions, PredictorOptions
from plait_dbadfl.placement import place_attackers
from plait_dbadfl.presets import PRESETS
from plait_dbadfl.stacking import Implementation, Stacked
from plait_dbadfl.sweep import Choice, choose, compare
from plait_dbadfl.topologies import from_edges, make_topology
from plait_dbadfl.triggers import LAYOUTS
from plait_dbadfl.vote import votes


# ---- what is compared ---------------------------------------------------------------------------------------------
def test_items_are_read_part_by_part() -> None:
    assert parse_item("naive", "none") == Item("naive", text="naive")
    assert parse_item("+rfa", "naive") == Item("naive", "rfa", text="+rfa")
    full = parse_item("naive-4+norm-clipping@two-groups/samples", "none")
    assert (full.arm, full.defence, full.placement, full.budget) == (
        "naive-4",
        "norm-clipping",
        "two-groups",
        "samples",
    )
    assert full.slug == "naive_4_norm_clipping_at_two_groups_by_samples" and parse_item("+rfa", "naive").slug == "rfa"
    other = parse_item("clusters-random:distance_noise=0.5+rfa", "naive")
    assert other == Item("clusters-random", "rfa", text=other.text, change=("distance_noise", "0.5"))
    assert other.slug == "clusters_random_distance_noise_0_5_rfa"
    for bad in ("", "naive+", "naive@moon", "naive/pixel", "sneaky", "a b", "clusters-oracle:gamma=3", ":tau="):
        with pytest.raises(ValueError, match=r"unknown|form"):
            parse_item(bad, "naive")


@pytest.mark.parametrize(
    "wanted",
    [(), ("+median",), ("+krum", "+rfa"), ("none",), ("naive", "naive+median"), ("clusters-oracle:tau=1+median",)],
)
@pytest.mark.parametrize("defence", [None, "median"])
def test_no_attack_without_its_clean_and_two_defended_runs(wanted: tuple[str, ...], defence: str | None) -> None:
    runs = [*companions(wanted, "naive-4", defence), Item("naive-4", defence)]
    assert any(i.arm == "none" and i.defence is None for i in runs)
    assert len({i.defence for i in runs if i.arm == "naive-4" and i.defence}) >= 2
    keys = [(i.attack, i.defence, i.placement, i.budget) for i in runs]
    assert len(set(keys)) == len(keys)


def test_a_clean_evaluation_has_no_companions_of_its_own() -> None:
    assert companions((), "none", None) == () and len(companions(("naive",), "none", None)) == 1


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_valid_and_what_is_given_beside_them_wins(name: str) -> None:
    options = DbadflOptions(baseline=name).model_dump(mode="json")
    assert {key: options[key] for key in PRESETS[name]} == PRESETS[name] and options["baseline"] == name
    assert DbadflOptions(baseline=name, gamma=3.0).gamma == 3.0


def test_given_steps_win_over_a_presets_epochs_and_are_read_back() -> None:
    preset = DbadflOptions(baseline="ancestor-cifar10")
    assert (preset.local_epochs, preset.attacker_epochs, preset.attacker_lr_milestones) == (2, 6, (0.2, 0.8))
    given = DbadflOptions(baseline="ancestor-cifar10", local_steps=4, attacker_steps=9)
    assert (given.local_epochs, given.local_steps, given.attacker_epochs, given.attacker_steps) == (None, 4, None, 9)
    for options in (preset, given):
        # a resolved recipe has every option but those that are None
        assert DbadflOptions.model_validate(options.model_dump(mode="json", exclude_none=True)) == options


def test_the_ancestors_preset_replaces_the_model_in_its_rounds(tmp_path: Path) -> None:
    options = {
        "baseline": "ancestor-mnist", "nodes": 10, "drawn": 4, "trigger": "digits", "attack_rounds": [3, 3, 3, 3],
        "gamma": 40.0, "first": 8, "local_steps": 4, "evaluate_every": 1, "rounds": 4,
    }  # fmt: skip
    done = plait.run(plugins={"dbadfl": options}, settings={"train.batch_size": 16}, out=tmp_path / "r")
    last = [r for r in done.directory.events() if r["event"] == "result"][-1]
    (series,) = last["plots"]["dbadfl/infection_by_round"]["series"].values()
    assert series[0] == [1, 2, 3, 4]
    # nobody poisons before its round; four drawn attackers scaled by drawn / eta then replace the model
    assert done.metrics["dbadfl/asr"] > 0.3 + max(series[1][:3]) / 100
    assert done.metrics["dbadfl/asr"] > done.metrics["dbadfl/asr_none"] + 0.3


# ---- names ---------------------------------------------------------------------------------------------------------
def test_the_lists_of_names_are_those_of_what_they_name() -> None:
    assert set(get_args(names.Engines)) == set(ENGINES)
    assert set(names.DEFENCES) == set(DEFENCES)
    assert {"auto", *LAYOUTS} == set(get_args(names.Triggers))
    assert {"auto", "measured", *get_args(names.Computed)} == set(get_args(Implementation))
    line = make_topology("ring", 9)
    for kind in names.PLACEMENTS:
        assert len(place_attackers(line, 2, kind, seed=0, positions=(1, 2) if kind == "list" else ())) == 2
    for name in set(names.TOPOLOGIES) - {"file"}:
        assert make_topology(name, 16).n == 16
    for rule in names.WEIGHTS:
        graph = {"average": "complete", "exponential": "exponential"}.get(rule, "ring")
        assert make_mixing(make_topology(graph, 8), rule).n == 8  # type: ignore[arg-type]


# ---- batches and votes --------------------------------------------------------------------------------------------
def test_a_batch_of_nodes_is_cut_along_its_examples() -> None:
    batch = NodesBatch.of(
        {"index": torch.arange(12).view(3, 4), "input": torch.rand(3, 4, 1, 2, 2)}, torch.tensor([1, 4, 7])
    )
    assert batch.size == 4
    part = batch.take(torch.tensor([3, 0]))
    assert part["index"].tolist() == [[3, 0], [7, 4], [11, 8]] and part.nodes is batch.nodes
    pieces = batch.chunks(3)
    assert torch.equal(torch.cat([p["input"] for p in pieces], 1), batch["input"])
    some = batch.of_nodes(torch.tensor([2, 0]))
    assert (
        some.nodes is not None
        and some.nodes.tolist() == [7, 1]
        and some["index"].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    )
    assert batch.to("cpu").nodes is not None


def test_the_vote_is_the_members_mean_probability() -> None:
    torch.manual_seed(0)
    stack = Stacked(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 5, init="different", implementation="loop")
    images, members = torch.rand(7, 1, 2, 2), torch.tensor([True, False, True, True, False])
    want = torch.stack([stack.replica(i)(images).softmax(-1) for i in (0, 2, 3)]).mean(0)
    assert torch.allclose(votes(stack, images, members).exp(), want, atol=1e-6)


# ---- names do not matter ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(DEFENCES))
def test_renumbering_the_nodes_renumbers_the_result(name: str) -> None:
    graph = make_topology("watts-strogatz", 14, seed=3)
    generator = torch.Generator().manual_seed(0)
    models, start = (torch.randn(14, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    order = torch.randperm(14, generator=generator)  # the node i of the renumbered graph was order[i]
    place = order.argsort()
    other = from_edges(place[graph.edge_index.T], 14)
    quality = torch.rand(14, 14, generator=generator, dtype=torch.float64)
    rules = [make_defence(name, **({"noise": 0.0} if name == "flame" else {})) for _ in range(2)]
    chosen = rules[0](models, make_mixing(graph), start=start, losses=lambda r, s: quality[r, s])
    two = rules[1](
        models[order], make_mixing(other), start=start[order], losses=lambda r, s: quality[order][:, order][r, s]
    )
    assert torch.allclose(two.models, chosen.models[order], atol=1e-10)
    if name != Mean.name and chosen.accept is not None:
        assert two.accept is not None and int(two.accept.sum()) == int(chosen.accept.sum())


# ---- detectors ----------------------------------------------------------------------------------------------------
def test_a_detector_and_its_findings_are_read_back_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    sequences, distances = torch.rand(20, 4, 6, generator=generator), torch.randint(1, 6, (20,), generator=generator)
    options = PredictorOptions(predictor_epochs=2)
    trained = Detector.train(sequences, distances, options, 3)
    again = Detector.from_state(trained.state_dict(), options, 3)
    features, hops = torch.rand(4, 5, 5, 3, generator=generator), make_topology("ring", 5).hops(range(5))
    first, two = (d.detect(features, hops, tau=2) for d in (trained, again))
    assert first_difference(first.state_dict(), two.state_dict()) is None
    read = Detection.from_state(first.state_dict())
    assert first_difference(read.state_dict(), first.state_dict()) is None and read.mae_ratio == first.mae_ratio


# ---- Fashion-MNIST's files ----------------------------------------------------------------------------------------
def idx(path: Path, magic: int, values: Tensor) -> None:
    content = struct.pack(f">{1 + values.ndim}i", magic, *values.shape) + values.byte().numpy().tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for part, count, end in (("train", 130, ".gz"), ("t10k", 110, "")):
        images = torch.randint(256, (count, 28, 28), generator=generator)
        idx(tmp_path / f"{part}-images-idx3-ubyte{end}", IMAGES, images)
        idx(tmp_path / f"{part}-labels-idx1-ubyte{end}", LABELS, torch.arange(count) % 10)
    return tmp_path


def test_idx_files_plain_and_gzipped(folder: Path) -> None:
    labels = read_idx(folder, "t10k-labels-idx1-ubyte", LABELS)
    assert labels.tolist() == [k % 10 for k in range(110)]
    clothes = load(SharedClothesOptions(path=str(folder), train=100, validation=20, test=100), 0)
    assert [len(s) for s in (clothes.train, clothes.validation, clothes.test)] == [100, 20, 100]
    batch = clothes.train.__getitems__([0, 1])
    assert batch["input"].shape == (2, 1, 28, 28) and float(batch["input"].max()) <= 1
    raw = read_idx(folder, "train-images-idx3-ubyte", IMAGES)
    assert bool((raw.float().div(255) == batch["input"][0]).flatten(1).all(1).any())


def test_broken_idx_files_are_named(folder: Path) -> None:
    with pytest.raises(BadInput, match="130 images and 130 labels; 140 are wanted"):
        load(SharedClothesOptions(path=str(folder), train=120, validation=20, test=100), 0)
    with pytest.raises(BadInput, match="magic number 2049"):
        read_idx(folder, "t10k-labels-idx1-ubyte", IMAGES - 1)
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadInput, match="train-images-idx3-ubyte"):
        read_idx(folder, "train-images-idx3-ubyte", IMAGES)


# ---- the comparison of all rules ----------------------------------------------------------------------------------
def test_the_sweep_chooses_on_validation_and_compares_on_fresh_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "FederationOptions", partial(FederationOptions, shadows=2, predictor_epochs=1))
    monkeypatch.setattr(sweep, "TUNING", (100,))
    monkeypatch.setattr(sweep, "WITHIN", 0.16)  # in 12 rounds a wide radius costs 0.13 of accuracy, none at all 0.19
    grid = {"mean": ({},), "krum": ({"f": 0}, {"f": 1}), "clipping": ({"tau": 1e-9}, {"tau": 100.0})}
    chosen = choose(("ring",), 12, grid)
    # f = 1 is illegal on a ring; a radius of nothing is local training: no exchange infects it, and it learns little
    assert Choice("krum", {"f": 0}, "MA - ASR") in chosen
    assert [c for c in chosen if c.rule == "clipping"] == [
        Choice("clipping", {"tau": 1e-9}, "MA - ASR"), Choice("clipping", {"tau": 100.0}, "MA kept")
    ]  # fmt: skip
    rows = list(compare(("ring",), (301, 302), [Choice("mean", {}, "x"), Choice("clipping", {"tau": 1e-9}, "x")], 12))
    assert [r.rule for r in rows] == ["mean", "clipping"] and rows[0].clean == rows[1].clean
    assert rows[1].asr < rows[0].asr and rows[1].ma < rows[1].clean and rows[0].seeds == 2

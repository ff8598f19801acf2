"""dydca with other methods of this repository: both act, or the refusal says why; skipped without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import plait
from plait.errors import Refused
from plait.loading import load_data
from plait.planning.discovery import pretend
from plait.storage import checkpoints
from plait_authoring.kill import final_state
from plait_dydca.measures import psnr_video
from plait_dydca.memory import plan_memory
from plait_dydca.network import RoutedNetwork
from plait_dydca.options import DydcaOptions
from plait_dydca.package import open_package, write_package
from plait_dydca.plugin import DydcaPlugin
from plait_dydca.routing import plan_clip
from plait_dydca.runtimes import build, difference
from plait_dydca.symbolic import analyse

SMALL = {"data.clip": "generated", "data.every": 60, "model.channels": 6, "device": "cpu", "train.batch_size": 4}
CHASE = {
    "density": 0.6,
    "channel_sparsity": 0.5,
    "exploration_interval": 2,
    "channel_interval": 4,
    "exclude": ["*.skip.*"],
    "timing_repeats": 0,
}


def both(path: Path, other: type, options: dict[str, Any], model: str = "wdsr", **changes: Any) -> plait.Run:
    with pretend(DydcaPlugin, other, alone=True):
        plugins = {"dydca": {"blocks": (2, 1)}, other.name: options}  # type: ignore[attr-defined]
        settings = {**SMALL, **changes.pop("settings", {})}
        return plait.run(plugins=plugins, data="clip", model=model, settings=settings, out=path, **changes)


def widths(network: nn.Module) -> dict[str, int]:
    return {name: m.out_channels for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and ".a." in name}


@pytest.fixture
def chase() -> type:
    return pytest.importorskip("plait_chase.plugin").ChasePlugin  # type: ignore[no-any-return]


def test_hidden_channels_of_both_paths_go_and_what_is_compiled_gets_narrow(tmp_path: Path, chase: type) -> None:
    keep = {"checkpoint.every_steps": 8, "checkpoint.keep": 9, "data.every": 30}
    done = both(tmp_path / "r", chase, CHASE, "wdsr-plain", steps=16, settings=keep)
    said, network = done.metrics, done.model
    assert isinstance(network, RoutedNetwork)
    hidden = widths(network)
    assert sum(hidden.values()) == 3 * 12 / 2  # half of the hidden channels of three blocks
    assert any(width < 12 for name, width in hidden.items() if name.startswith("paths.0."))
    assert any(width < 12 for name, width in hidden.items() if name.startswith("paths.1."))
    assert all(path.head.out_channels == path.tail.in_channels == 6 for path in network.paths)  # U stays
    assert said["chase/shrink_error@export"] < 1e-5
    assert said["dydca/parameters@export"] < said["dydca/parameters"]
    assert said["dydca/macs@export"] < said["dydca/macs"]
    assert said["dydca/psnr_video@export"] == pytest.approx(said["dydca/psnr_video"], abs=1e-3)
    # masks of both paths move: a tensor without a gradient is left alone at that step, not for ever
    first, last = (checkpoints.load(file)["masks"] for file in done.directory.saved_checkpoints())
    for name in ("paths.0.a.0.weight", "paths.1.a.0.weight"):
        assert not torch.equal(first[name]["bits"], last[name]["bits"])

    clip = clip_of(done)
    write_package(tmp_path / "p", network, plan_clip(clip, DydcaOptions(**done.recipe.plugins["dydca"])), clip)
    package = open_package(tmp_path / "p")
    assert widths(package.network) == hidden
    thin = package.network.paths[int(hidden["paths.0.a.0"] == 12)]
    wide = plan_memory(analyse(thin.at_depth(thin.blocks)), fused=False)  # type: ignore[operator]
    assert plan_memory(analyse(thin), fused=False).without_reuse < wide.without_reuse
    engine = build("eager", package.network)
    assert difference(engine, network, [(2, 9, 11), (1, 12, 8)]) < 1e-6
    frames = [frame for frame, _ in package.frames(engine)]
    assert psnr_video(clip.hr, frames) == pytest.approx(said["dydca/psnr_video@export"], abs=0.02)


def test_channels_go_from_mixed_batches_too(tmp_path: Path, chase: type) -> None:
    mixed = {"dydca.sampler": "mixed", "chase.shrink_during": True}
    done = both(tmp_path / "r", chase, CHASE, "wdsr-plain", steps=8, settings=mixed)
    assert sum(widths(done.model).values()) == 18
    assert done.metrics["chase/shrink_error@export"] < 1e-5


def test_with_weight_normalisation_the_refusal_names_it(tmp_path: Path, chase: type) -> None:
    with pytest.raises(Refused, match=r"'model wdsr' needs parameters:computed, which 'chase' takes away.*--model"):
        both(tmp_path / "r", chase, CHASE, steps=2)


def test_sharpness_acts_on_the_path_that_the_batch_takes(tmp_path: Path) -> None:
    fairsam = pytest.importorskip("plait_fairsam.plugin").FairsamPlugin
    sam = {"weights": "none", "perturbation": "plain", "corruptions": [], "rho": 0.05}
    plain = final_state(both(tmp_path / "a", fairsam, {**sam, "rho": 0.0}, steps=1).directory.path)["model"]
    done = both(tmp_path / "b", fairsam, sam, steps=1)
    sharp = final_state(done.directory.path)["model"]
    start = final_state(both(tmp_path / "c", fairsam, sam, steps=0).directory.path)["model"]
    trained = {name.split(".")[1] for name in start if not torch.equal(start[name], sharp[name])}
    assert len(trained) == 1  # both passes took one path
    assert {name.split(".")[1] for name in start if not torch.equal(plain[name], sharp[name])} == trained
    assert done.metrics["fairsam/passes_per_step"] == 2
    assert sum(int(row[7]) for row in done.directory.result()["tables"]["dydca/paths"]["rows"]) == 1  # type: ignore[index]


def test_sharpness_for_groups_is_refused(tmp_path: Path) -> None:
    fairsam = pytest.importorskip("plait_fairsam.plugin").FairsamPlugin
    with pytest.raises(Refused, match="field:group"):
        both(tmp_path / "r", fairsam, {}, steps=1)


def test_a_scheduler_of_nodes_changes_nothing_in_the_training(tmp_path: Path) -> None:
    malletrain = pytest.importorskip("plait_malletrain.plugin").MalletrainPlugin
    small = {"nodes": 8, "hours": 0.2, "policies": ["equal", "malletrain"]}
    beside = both(tmp_path / "a", malletrain, small, steps=2)
    assert "malletrain/over_equal" in beside.metrics
    with pretend(DydcaPlugin, alone=True):
        alone = plait.run(
            plugins={"dydca": {"blocks": (2, 1)}},
            data="clip",
            model="wdsr",
            settings=SMALL,
            out=tmp_path / "b",
            steps=2,
        )
    for name, value in final_state(alone.directory.path)["model"].items():
        assert torch.equal(value, final_state(beside.directory.path)["model"][name])


def clip_of(done: plait.Run) -> Any:
    with pretend(DydcaPlugin, alone=True):
        return load_data(done.recipe.data, done.recipe.seed).test.clip  # type: ignore[attr-defined]

"""The plugin in plait: runs of every preset, figures, resuming, two processes, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.errors import BadInput, Refused
from plait.planning.discovery import pretend
from plait.run import execute
from plait.storage import places
from plait_authoring.kill import final_state
from plait_dydca.bodies import WDSR
from plait_dydca.network import RoutedNetwork
from plait_dydca.options import BASELINES, DydcaOptions
from plait_dydca.plugin import DydcaPlugin
from plait_dydca.quadtree import PatchPlan

SMALL = {"data.clip": "generated", "data.every": 30, "model.channels": 4, "device": "cpu"}
ONE_FRAME = {"data.every": 60}


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with pretend(DydcaPlugin, distribution="plait-dydca", alone=True):
        yield


def run(path: Path, options: dict[str, Any] | None = None, **changes: Any) -> plait.Run:
    settings = {**SMALL, "train.log_every": 1, **changes.pop("settings", {})}
    chosen = {"data": "clip", "model": "wdsr", "settings": settings, **changes}
    chosen |= {} if "epochs" in chosen else {"steps": chosen.get("steps", 3)}
    plan = plait.plan(plugins={"dydca": {"blocks": (2, 1), **(options or {})}}, **chosen)
    return execute(plan, places.at(path), artifacts=False)


def figures(done: plait.Run) -> dict[str, float]:
    return {name.removeprefix("dydca/"): value for name, value in done.metrics.items() if name.startswith("dydca/")}


def paths(done: plait.Run) -> list[list[Any]]:
    result = done.directory.result()
    assert result is not None
    rows: list[list[Any]] = result["tables"]["dydca/paths"]["rows"]
    return rows


def test_a_run_reports_quality_bytes_and_work(tmp_path: Path) -> None:
    done = run(tmp_path / "r", steps=4)
    said = figures(done)
    assert said["psnr_frame_mean"] >= said["psnr_video"]
    assert said["gain"] == pytest.approx(said["psnr_video"] - said["bicubic"])
    assert said["hard_area"] == pytest.approx(50, abs=6)
    assert said["delivered_fp32"] == 4 * said["parameters"] + said["plan_bytes"]
    assert said["delivered_fp16"] == 2 * said["parameters"] + said["plan_bytes"]
    assert said["macs"] > said["macs_plain"]
    assert done.metrics["task/psnr_video"] == said["psnr_video"]
    # folding the weight norm changes nothing
    assert said["psnr_video@export"] == pytest.approx(said["psnr_video"], abs=1e-3)
    assert isinstance(done.model, RoutedNetwork)
    assert not any("parametrizations" in name for name in done.model.state_dict())
    rows = paths(done)
    assert [row[1] for row in rows] == [2, 1]
    assert sum(row[7] for row in rows) == 4  # each step trains one path


def test_quality_starts_at_bicubic_and_rises(tmp_path: Path) -> None:
    first = figures(run(tmp_path / "a", steps=0))
    assert abs(first["gain"]) < 1.0
    later = figures(run(tmp_path / "b", epochs=5))
    assert later["gain"] > max(0, first["gain"])


def test_the_published_start_is_far_below_bicubic(tmp_path: Path) -> None:
    assert figures(run(tmp_path / "r", {"init": "paper"}, steps=0))["gain"] < -3


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_preset_runs(tmp_path: Path, name: str) -> None:
    options = {"baseline": name, **({"grid": (10, 4)} if name == "released" else {})}
    frames = {"data.every": 12} if name == "chunks" else ONE_FRAME
    plan = plait.plan(plugins={"dydca": options}, data="clip", model="wdsr", steps=2, settings={**SMALL, **frames})
    done = execute(plan, places.at(tmp_path / "r"), artifacts=False)
    said = figures(done)
    blocks = DydcaOptions(**options).blocks
    assert said["psnr_video"] > 5
    if DydcaOptions(**options).init == "bicubic":
        assert said["gain"] > -1
    assert len(done.model.paths) == len(blocks)
    if name in ("whole", "whole-small", "chunks"):
        assert said["plan_bytes"] == 0
        assert said["macs"] > said["macs_plain"]  # whole frames have the halo of the crops that train them


def test_deeper_where_it_is_hard_has_the_parameters_and_work_of_stdo(tmp_path: Path) -> None:
    """Card: 80 312 parameters at U = 16, and the work without halo within 1 %."""
    wide = {"model.channels": 16, **ONE_FRAME}
    ours = figures(run(tmp_path / "a", {"blocks": (6, 2)}, steps=0, settings=wide))
    theirs = figures(run(tmp_path / "b", {"baseline": "stdo", "blocks": (4, 4)}, steps=0, settings=wide))
    assert ours["parameters"] == theirs["parameters"] == 80_312
    assert ours["macs_plain"] == pytest.approx(theirs["macs_plain"], rel=0.06)  # the share of the hard area is not 1/2
    assert figures(run(tmp_path / "c", {"blocks": (4, 2)}, steps=0, settings=wide))["parameters"] == 61_784


def test_a_batch_trains_its_path_and_no_other(tmp_path: Path) -> None:
    before = final_state(run(tmp_path / "a", steps=0, settings=ONE_FRAME).directory.path)["model"]
    done = run(tmp_path / "b", steps=1, settings=ONE_FRAME)
    after = final_state(done.directory.path)["model"]
    rows = paths(done)
    trained = [row[7] for row in rows].index(1)
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (int(name.split(".")[1]) != trained), name


def test_mixed_batches_are_lists_by_shape(tmp_path: Path) -> None:
    done = run(tmp_path / "r", {"sampler": "mixed"}, steps=2, settings={"train.batch_size": 30, "train.accumulate": 2})
    rows = paths(done)
    assert [row[7] for row in rows] == [2, 2]  # each step trains both paths


def test_paths_without_patches_are_not_delivered(tmp_path: Path) -> None:
    whole = figures(run(tmp_path / "a", steps=0, settings=ONE_FRAME))
    done = run(tmp_path / "b", {"tau": 0.0}, steps=1, settings=ONE_FRAME)
    said = figures(done)
    assert said["hard_area"] == 0
    assert said["parameters"] < whole["parameters"]
    events = (done.directory.path / "metrics.jsonl").read_text()
    assert "no patch takes path 0" in events


def test_the_gate_is_eight_bytes_and_says_how_often_it_is_right(tmp_path: Path) -> None:
    said = figures(run(tmp_path / "r", {"gate": "lr"}, steps=0))
    assert said["plan_bytes"] == 8
    assert said["gate_agreement"] > 75


@pytest.mark.parametrize("options", [{}, {"baseline": "whole", "blocks": (1,)}, {"sampler": "mixed"}])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {"checkpoint.every_steps": 2, "checkpoint.keep": 10, **ONE_FRAME}
    whole = run(tmp_path / "whole", options, steps=5, settings=settings)
    path = whole.directory.path
    wanted = final_state(path)
    again = plait.run(plait.load_run(path).recipe, out=tmp_path / "again")
    assert checks(final_state(again.directory.path)) == checks(wanted)
    first = sorted(saved.stem for saved in (path / "checkpoints").glob("step-*.safetensors"))[0]
    resumed = plait.resume(path, checkpoint=first)
    assert checks(final_state(resumed.directory.path)) == checks(wanted)


def checks(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.sum(dtype=torch.float64).item() for name, value in state["model"].items()} | dict(
        state["plugins"]
    )


# ---- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 40.0, "tau_quantile": 0.5}, "give tau or tau_quantile, not both"),
        ({"tau_quantile": 1.5}, "tau_quantile = 1.5"),
        ({"tau_quantile": -0.1}, "tau_quantile = -0.1"),
        ({"blocks": (4, 2, 1), "tau_hi": 30.0, "tau_lo": 30.0}, "tau_hi = 30 must lie above tau_lo = 30"),
        ({"blocks": (4, 2, 1), "tau_hi": 30.0}, "both tau_hi and tau_lo"),
        ({"blocks": (4, 2, 1), "tau": 30.0}, "tau is for two paths"),
        ({"tau_hi": 30.0, "tau_lo": 20.0}, "for three paths"),
        ({"blocks": (4, 3, 2, 1)}, "two or three paths"),
        ({"blocks": (4,)}, "two or three paths"),
        ({"split": "whole", "blocks": (4, 2)}, "one path"),
        ({"split": "clusters", "tau": 3.0}, "tau has no meaning with split = 'clusters'"),
        ({"split": "clusters", "gate": "lr"}, "are of split = 'quadtree'"),
        ({"blocks": (4, 2, 1), "gate": "lr"}, "decides between two paths"),
        ({"split": "whole", "blocks": (4,), "sampler": "mixed"}, "draws crops"),
        ({"halo": -1}, "halo = -1"),
        ({"halo": 40}, "halo = 40 is larger than the smallest patch"),
        ({"route": "random"}, "route = 'random'"),
        ({"grid": (10, 0)}, "grid"),
        ({"grid": (60, 4)}, "8 are the least"),
        ({"baseline": "best"}, "no baseline 'best'"),
        ({"split": "chunks", "blocks": (1, 1, 1)}, "3 parts of the time for 2 frames"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(tmp_path / "r", options)
    assert not (tmp_path / "r").exists()


def test_what_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="data clip: scale = 5"):
        run(tmp_path / "a", settings={"data.scale": 5})
    with pytest.raises(Refused, match="field:frame"):
        plait.run(plugins=["dydca"], data="tiny-images", model="wdsr", out=tmp_path / "b")
    with pytest.raises(BadInput, match=r"export\.formats has 'onnx': a routed network is several programs"):
        run(tmp_path / "c", settings={"export.formats": ["safetensors", "onnx"]})
    with pytest.raises(Refused, match="'dydca' needs model:skip"):
        run(tmp_path / "d", model="espcn")
    assert not list(tmp_path.iterdir())


def test_other_bodies_train(tmp_path: Path) -> None:
    for name in ("espcn", "edsr"):
        before, after = (
            run(tmp_path / f"{name}-{steps}", {"init": "paper"}, model=name, steps=steps, settings=ONE_FRAME)
            for steps in (0, 2)
        )
        assert figures(after)["parameters"] > 0
        pairs = zip(before.model.parameters(), after.model.parameters(), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs)


def test_a_loss_that_is_not_finite_names_step_and_path(tmp_path: Path) -> None:
    with pytest.raises(plait.RunFailed, match=r"step \d+: the loss of path \d is (nan|inf)"):
        run(tmp_path / "r", steps=60, settings={"optimizer.name": "sgd", "optimizer.lr": 1000.0})


def test_a_network_of_ones_own_may_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_of_dydca.py").write_text(
        "from plait_dydca.bodies import WDSR\n"
        "class Mine(WDSR):\n"
        "    pass\n"
        "def net(info):\n"
        "    return Mine(info.extra['scale'], 1, 4)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = run(tmp_path / "r", model="nets_of_dydca:net", settings={"model.channels": None, **ONE_FRAME})
    assert isinstance(done.model.paths[0], WDSR)


def test_the_export_says_how_to_build_it(tmp_path: Path) -> None:
    done = run(tmp_path / "r", steps=1)
    config = json.loads((done.export / "config.json").read_text())
    assert config["metadata"] == {"scale": "2", "blocks": "2,1"}
    plan = PatchPlan.unpacked((done.export / "plan.bin").read_bytes(), "quadtree", 2, (136, 320), (10, 4), 2)
    result = paths(done)
    assert [int((plan.patches[:, 5] == path).sum()) for path in range(2)] == [row[4] for row in result]

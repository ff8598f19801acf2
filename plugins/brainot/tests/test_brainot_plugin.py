"""The plugin in plait: options, every loss in a run, weaving, the schedule of m, masks, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plait
from plait.errors import BadInput
from plait.run import execute
from plait.storage import places
from plait_brainot.alignment import align
from plait_brainot.encoder import BrainEncoder
from plait_brainot.options import BrainotOptions, EncoderOptions, ScenesOptions
from plait_brainot.presets import BASELINES
from plait_brainot.synthetic import load

SCENES = {"data.train": 60, "data.validation": 12, "data.test": 16, "data.voxels": 80, "data.repetitions": 2}
MODEL = {"model.hidden": 8, "model.depth": 1}
QUICK = {"captioner_steps": 3, "captioner_width": 24, "max_new_tokens": 6, "resamples": 10}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def run(path: Path, options: dict[str, Any] | None = None, others: Any = (), **changes: Any) -> plait.Run:
    """A small run, without the reports of whatever is installed."""
    plugins = {"brainot": {**QUICK, **(options or {})}, **dict(others)}
    settings = {"device": "cpu", "train.log_every": 1, **SCENES, **MODEL, **changes.pop("settings", {})}
    chosen = {"data": "scenes", "model": "brain-encoder", "steps": 4, **changes}
    return execute(plait.plan(plugins=plugins, settings=settings, **chosen), places.at(path), artifacts=False)


# ---- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.smoke
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": 0}, "m = 0"),
        ({"m": 1.2}, "m = 1.2"),
        ({"m": float("nan")}, "m = nan"),
        ({"eps": 0}, "eps = 0"),
        ({"align": "ot"}, "align = 'ot'"),
        ({"lam": 2}, "lam = 2"),
        ({"baseline": "best"}, "no baseline 'best'"),
        ({"mask_mode": "mean"}, "mask_mode = 'mean'"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(tmp_path / "r", options)
    assert not (tmp_path / "r").exists()


def test_what_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(plait.Refused, match="needs field:target"):
        plait.run(plugins=["brainot"], data="tiny-images", model="tiny-cnn", steps=1, out=tmp_path / "a")
    with pytest.raises(BadInput, match=r"'early\+nothing' is not two regions joined by \+; there are early, object"):
        run(tmp_path / "b", {"masking": "pairs", "pairs": ["early+nothing"]})
    with pytest.raises(BadInput, match="align = 'mse' compares token with token"):
        run(tmp_path / "c", {"align": "mse"}, settings={"model.latents": 9})
    with pytest.raises(BadInput, match=r"train.batch_size = 121: the training split has 120 samples"):
        run(tmp_path / "c2", settings={"train.batch_size": 121})
    with pytest.raises(BadInput, match=r"no config.json"):
        run(tmp_path / "d", {"lm": str(tmp_path / "none")})
    with pytest.raises(BadInput, match="no such checkpoint"):
        run(tmp_path / "e", settings={"model.checkpoint": str(tmp_path / "none.pth")})
    assert not (tmp_path / "b").exists()


@pytest.mark.smoke
def test_plugin_imports_no_torch() -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'scipy', 'ot', 'transformers'}"
    code = f"import sys, plait_brainot.plugin; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- training --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["partial", "jsd", "mse"])
def test_a_loss(tmp_path: Path, name: str) -> None:
    done = run(tmp_path / "r", {"align": name, "m": 0.6, "eps": 0.2}, steps=2)
    metrics = done.metrics
    for figure in ("cider", "object_f1", "word", "cider_true", "cider_shuffled", "cider_mean", "transport_cost"):
        assert f"brainot/{figure}" in metrics
    assert metrics["brainot/mass"] == pytest.approx(
        0.6 if name in ("partial", "entropic_partial", "hybrid") else 1, rel=1e-6
    )
    assert metrics["brainot/cider@validation"] >= 0
    with np.load(tmp_path / "r" / "brainot-maps.npz") as maps:
        assert maps["plan"].shape == (25, 25)
        assert maps["similarity"].shape == (16, 16)
        assert (maps["untransported"] == (maps["plan"].sum(1) <= 1e-12)).all()
    said = json.loads((tmp_path / "r" / "brainot-captions.json").read_text())
    assert list(said) == [str(i) for i in range(16)]
    assert len(BASELINES) == 15


def test_rectangular_sets_run(tmp_path: Path) -> None:
    done = run(tmp_path / "r", {"align": "partial", "m": 0.5}, settings={"model.latents": 7}, steps=2)
    assert done.metrics["brainot/untransported"] > 0
    assert "brainot/token_cosine" not in done.metrics


def test_a_linear_floor(tmp_path: Path) -> None:
    done = run(tmp_path / "r", {"ridge": True}, steps=2)
    assert "brainot/cider_ridge" in done.metrics
    assert "brainot/object_f1_ridge@validation" in done.metrics
    from sklearn.linear_model import Ridge

    from plait_brainot.ridge import ridge

    g = torch.Generator().manual_seed(0)
    x, x_test = torch.randn(50, 6, generator=g), torch.randn(9, 6, generator=g)
    x = x - x.mean(0)
    y = torch.randn(50, 2, 3, generator=g)
    oracle = [Ridge(alpha=a).fit(x, y.flatten(1)).predict(x_test) for a in (10.0, 10_000.0)]
    wanted = torch.from_numpy(oracle[0]).float().view(9, 2, 3)
    torch.testing.assert_close(ridge(x, y, x_test, wanted, x_test), wanted, rtol=1e-4, atol=1e-5)


def data_of(**options: Any) -> Any:
    return load(ScenesOptions(train=40, validation=8, test=8, voxels=60, repetitions=1, **options), 0)


def encoder(seed: int = 0) -> BrainEncoder:
    torch.manual_seed(seed)
    return BrainEncoder({1: 60}, 25, 32, EncoderOptions(hidden=8, depth=1))


@pytest.mark.parametrize("options", [{"align": "partial", "m": 0.6}, {"align": "entropic_partial"}, {"align": "mse"}])
def test_woven_is_the_library(options: dict[str, Any]) -> None:
    """The same steps by `weave` and by a plain loop: one engine, two drivers."""
    data, nets = data_of(), [encoder(), encoder()]
    optimizers = [torch.optim.SGD(net.parameters(), 0.05) for net in nets]
    batches = [data.train.__getitems__(torch.arange(8 * i, 8 * i + 8)) for i in range(4)]
    fields = ("input", "target", "subject", "scene", "index", "group")
    woven = plait.weave(
        nets[0],
        optimizers[0],
        plugins={"brainot": options},
        total_steps=4,
        example={name: batches[0][name] for name in fields},
        task="regression",
    )
    for batch in batches:
        report = woven.step({name: batch[name] for name in fields})
        loss = align(nets[1](batch["input"]), batch["target"], BrainotOptions(**options)).loss
        optimizers[1].zero_grad()
        loss.mean().backward()
        optimizers[1].step()
        torch.testing.assert_close(report.per_example, loss.detach(), rtol=1e-4, atol=1e-5)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def values(done: plait.Run, name: str) -> list[float]:
    return [e["values"][name] for e in done.directory.events() if e["event"] == "scalars" and name in e["values"]]


def test_a_plan_is_used_again_within_a_step() -> None:
    data, net = data_of(), encoder()
    batch = data.train.__getitems__(torch.arange(8))
    woven = plait.weave(
        net,
        torch.optim.SGD(net.parameters(), 0.05),
        plugins={"brainot": {"plan_reuse": True, "align": "partial", "m": 0.6}},
        total_steps=2,
        example=dict(batch),
        task="regression",
    )
    plugin, trainer = woven.plan.plugins["brainot"], woven.trainer
    first, moved = torch.randn(2, 8, 25, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    options = BrainotOptions(align="partial", m=0.6)
    plan = align(first, batch["target"], options).plan
    plugin.objective(trainer, first, batch)
    again = plugin.objective(trainer, moved, batch)
    torch.testing.assert_close(again, align(moved, batch["target"], options, plan=plan).loss)
    trainer.step += 1
    fresh = plugin.objective(trainer, moved, batch)
    torch.testing.assert_close(fresh, align(moved, batch["target"], options).loss)
    assert bool((fresh < again).all())


def test_the_schedule_of_the_mass(tmp_path: Path) -> None:
    done = run(tmp_path / "r", {"m": 0.4, "m_schedule": "linear"}, steps=4)
    assert values(done, "brainot/mass") == pytest.approx([1.0, 0.8, 0.6, 0.4], rel=1e-5)


def test_a_plan_that_does_not_converge_is_said_once(tmp_path: Path) -> None:
    done = run(tmp_path / "r", {"align": "entropic_partial", "sweeps": 2}, steps=3)
    notes = [e["text"] for e in done.directory.events() if e["event"] == "note"]
    assert any("do not converge within 2 sweeps" in text for text in notes), notes


def test_a_run_that_diverges_stops_and_names_the_step() -> None:
    data, net = data_of(), encoder()
    batch = dict(data.train.__getitems__(torch.arange(8)))
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    woven = plait.weave(net, optimizer, plugins={"brainot": {}}, total_steps=2, example=batch, task="regression")
    woven.step(batch)
    torch.nn.init.constant_(net.perceiver.llm_proj.weight, torch.nan)
    with pytest.raises(
        plait.RunFailed, match=r"step 2: the loss is nan, first seen in the objective of plugin 'brainot'"
    ):
        woven.step(batch)


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    options = {"align": "partial", "m": 0.6}
    whole, parts = (
        run(tmp_path / str(n), options, settings={"train.accumulate": n, "train.batch_size": 12}) for n in (1, 3)
    )
    assert values(whole, "train/loss") == pytest.approx(values(parts, "train/loss"), rel=1e-4)


# ---- masks -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["zero", "shuffle"])
def test_masked_views(tmp_path: Path, mode: str) -> None:
    done = run(tmp_path / "r", {"masking": "pairs", "mask_mode": mode, "pairs": ["xorA+xorB"]})
    for kind in ("cider", "object_f1", "word"):
        assert f"brainot/drop_early_{kind}" in done.metrics
        assert f"brainot/alone_copy_{kind}" in done.metrics
        for name in ("inter_xorA_xorB", "redundancy"):
            low, value, high = (done.metrics[f"brainot/{name}_{kind}{end}"] for end in ("_low", "", "_high"))
            assert low <= value <= high
    assert not any(name.startswith("brainot/drop") and "@validation" in name for name in done.metrics)


def test_a_hidden_voxel_is_zero_or_another_samples() -> None:
    from plait_brainot.weave import _Hidden

    data = data_of(subjects=2)
    regions = data.info.extra["regions"]
    kept = frozenset({"early", "place"})
    batch = data.test.__getitems__(torch.arange(16))
    for mode in ("zero", "shuffle"):
        seen = _Hidden(regions, kept, mode, data.test)(batch)["input"]
        for row, subject in enumerate(batch["subject"].tolist()):
            for name, voxels in regions[subject].items():
                own = torch.equal(seen[row, voxels], batch["input"][row, voxels])
                assert own == (name in kept)
                if name not in kept and mode == "zero":
                    assert not seen[row, voxels].any()
        if mode == "shuffle":  # the values of a voxel are the same ones, in another order
            first = batch["subject"] == 1
            voxel = regions[1]["object"][0]
            assert not torch.equal(seen[first, voxel], batch["input"][first, voxel])


# ---- with others -----------------------------------------------------------------------------------------------------
def test_with_chase(tmp_path: Path) -> None:
    pytest.importorskip("plait_chase")
    done = run(tmp_path / "r", others={"chase": {"density": 0.5}}, steps=12)
    assert "brainot/cider@export" in done.metrics


def test_another_captioner_is_refused_at_resume(tmp_path: Path) -> None:
    from plait_brainot.weave import Weave

    weave = object.__new__(Weave)
    weave.captioner = None
    with pytest.raises(BadInput, match="was begun with the captioner abc, and this is none"):
        weave.load_state_dict({"captioner": "abc"})


def test_subjects_together(tmp_path: Path) -> None:
    done = run(tmp_path / "r", settings={"data.subjects": 3})
    assert done.model.voxels == {1: 80, 2: 73, 3: 67}

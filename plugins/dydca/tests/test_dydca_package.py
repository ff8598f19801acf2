"""Encode and play: what is delivered gives the video that was measured; what was cut off or altered is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import plait_dydca.package as packages
from plait.errors import BadInput
from plait.planning.discovery import pretend
from plait_dydca import commands
from plait_dydca.bodies import EDSR, WDSR
from plait_dydca.clips import Clip, generated, read_clip, read_frames
from plait_dydca.degradation import upscale
from plait_dydca.errors import DydcaError
from plait_dydca.measures import psnr_video
from plait_dydca.network import RoutedNetwork, reconstruct
from plait_dydca.options import DydcaOptions
from plait_dydca.package import open_package, write_package
from plait_dydca.plugin import DydcaPlugin
from plait_dydca.routing import Routing, plan_clip
from plait_dydca.runtimes import build

pytestmark = pytest.mark.smoke


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with pretend(DydcaPlugin, distribution="plait-dydca", alone=True):
        yield


@cache
def clip_of_three() -> Clip:
    return generated(2, every=20)


def parts(**options: object) -> tuple[RoutedNetwork, Routing, Clip]:
    clip = clip_of_three()
    chosen = DydcaOptions(blocks=(2, 1), **options)  # type: ignore[arg-type]
    torch.manual_seed(0)
    return RoutedNetwork.of(WDSR(2, 1, 4), chosen.blocks, "bicubic"), plan_clip(clip, chosen), clip


def picture_files(folder: Path, count: int, height: int = 64, width: int = 96) -> Path:
    folder.mkdir()
    coarse = np.random.default_rng(0).integers(0, 256, (count, height // 8, width // 8 + 1, 3), dtype=np.uint8)
    for number, frame in enumerate(coarse):
        Image.fromarray(upscale(frame, 8)[:height, :width]).save(folder / f"{number:04}.png")
    return folder


@pytest.mark.parametrize("options", [{}, {"gate": "lr"}, {"route": "shape"}, {"halo": 0}])
def test_a_package_plays_as_it_was_measured(tmp_path: Path, options: dict[str, object]) -> None:
    network, routing, clip = parts(**options)
    write_package(tmp_path / "p", network, routing, clip)
    opened = open_package(tmp_path / "p")
    frames = list(opened.frames(build("eager", opened.network)))
    assert [time for _, time in frames] == list(clip.times)
    for number, (frame, _) in enumerate(frames):
        own = routing.patches[routing.patches[:, 0] == number]
        plain = network.folded()
        wanted = reconstruct(clip.lr[number], own, lambda path, x: plain(x, path), 2, routing.halo)  # noqa: B023
        assert np.abs(frame.astype(int) - wanted).max() <= 1
    assert np.array_equal(np.stack([frame for frame, _ in read_frames(tmp_path / "p" / "lr.mkv")]), clip.lr)


def test_half_precision_halves_the_weights(tmp_path: Path) -> None:
    network, routing, clip = parts()
    sizes = [write_package(tmp_path / str(half), network, routing, clip, half=half) for half in (False, True)]
    assert sizes[1] < 0.65 * sizes[0]
    films = []
    for half in (False, True):
        opened = open_package(tmp_path / str(half))
        films.append(np.stack([frame for frame, _ in opened.frames(build("eager", opened.network))]))
    assert psnr_video(*films) > 55


def test_frames_are_pictures_where_pyav_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, routing, clip = parts()
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    write_package(tmp_path / "p", network, routing, clip)
    assert len(list((tmp_path / "p" / "lr").glob("*.png"))) == len(clip)
    opened = open_package(tmp_path / "p")
    assert len(list(opened.frames(build("eager", opened.network)))) == len(clip)


def test_whatever_was_cut_off_or_altered_is_refused(tmp_path: Path) -> None:
    network, routing, clip = parts()
    write_package(tmp_path / "good", network, routing, clip)
    names = sorted(path.name for path in (tmp_path / "good").iterdir())
    assert names == ["lr.mkv", "manifest.json", "plan.bin", "weights.safetensors"]
    for name in names:
        for change in ("short", "flipped", "gone"):
            bad = shutil.copytree(tmp_path / "good", tmp_path / f"{name}-{change}")
            data = bytearray((bad / name).read_bytes())
            if change == "gone":
                (bad / name).unlink()
            else:
                data[len(data) // 2] ^= 0xFF
                (bad / name).write_bytes(data[:-7] if change == "short" else data)
            with pytest.raises(DydcaError) as caught:
                open_package(bad)
            assert "\n" not in str(caught.value)
    for key, value in (
        ("format", 9),
        ("scale", 7),
        ("frames", 99),
        ("halo", 500),
        ("times", []),
        ("body", {}),
        ("blocks", [9, 9]),
    ):
        bad = tmp_path / "manifest"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(tmp_path / "good", bad)
        manifest = json.loads((bad / "manifest.json").read_text())
        altered = {**manifest, key: value}
        for signed in (altered, {**altered, "sha256": packages._digest(altered)}):  # a liar may sign again
            (bad / "manifest.json").write_text(json.dumps(signed))
            with pytest.raises(DydcaError):
                open_package(bad)
    with pytest.raises(DydcaError, match="is no package"):
        open_package(tmp_path)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    network, routing, clip = parts()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine.txt").write_text("keep")
    with pytest.raises(DydcaError, match="is not empty"):
        write_package(tmp_path / "p", network, routing, clip)
    assert [path.name for path in tmp_path.rglob("*")] == ["p", "mine.txt"]


def test_a_narrowed_network_is_delivered_narrow(tmp_path: Path) -> None:
    network, routing, clip = parts()
    plain = network.folded()
    path = plain.paths[0]
    path.a[0].weight = torch.nn.Parameter(path.a[0].weight[:5].detach())
    path.a[0].bias = torch.nn.Parameter(path.a[0].bias[:5].detach())
    path.b[0].weight = torch.nn.Parameter(path.b[0].weight[:, :5].detach())
    write_package(tmp_path / "p", plain, routing, clip)
    opened = open_package(tmp_path / "p")
    assert opened.network.paths[0].a[0].out_channels == 5
    x = torch.rand(1, 3, 12, 12)
    torch.testing.assert_close(opened.network(x, 0), plain(x, 0))


def test_the_network_that_is_delivered_or_built_stays_as_it_is(tmp_path: Path) -> None:
    """Also one without weight normalisation, which needs no folding: it is copied."""
    _, routing, clip = parts()
    network = RoutedNetwork.of(EDSR(2, 1, 4), (2, 1), "paper")
    write_package(tmp_path / "p", network, routing, clip)
    build("eager", network)
    assert all(module.training for module in network.modules())
    assert network.paths[0].head.weight.is_contiguous()


@pytest.mark.parametrize("count", [1, 3])
def test_encode_and_play_a_folder(tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    source = picture_files(tmp_path / "in", count)
    commands.encode(source, tmp_path / "p", epochs=1, channels=4, grid="4x2", json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["frames"] == count
    commands.play(tmp_path / "p", tmp_path / "out", json=True)
    played = json.loads(capsys.readouterr().out)
    assert played["frames"] == count
    assert 0 < played["fps"] < math.inf
    truth, frames = read_clip(source, 2).hr, read_clip(tmp_path / "out", 2).hr
    assert psnr_video(truth, frames) == pytest.approx(said["psnr_video"], abs=0.02)
    commands.play(tmp_path / "p", tmp_path / "out.mkv")
    assert "frames a second" in capsys.readouterr().out
    assert np.array_equal(read_clip(tmp_path / "out.mkv", 2).hr, frames)
    commands.play(tmp_path / "p", tmp_path / "out.mp4", json=True)
    assert psnr_video(frames, read_clip(tmp_path / "out.mp4", 2).hr) > 25
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """Frames come one at a time: the fourth is not read before it is asked for."""
    network, routing, clip = parts()
    write_package(tmp_path / "p", network, routing, clip)
    opened, seen = open_package(tmp_path / "p"), []
    machine = build("eager", opened.network)
    stream = opened.frames(lambda path, x: seen.append(len(x)) or machine(path, x))  # type: ignore[arg-type, func-returns-value]
    next(stream)
    first = len(seen)
    next(stream)
    assert 0 < first < len(seen)
    stream.close()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"out": None}, "Give --out"),
        ({"scale": 5}, "--scale 5 must be 2, 3 or 4"),
        ({"grid": "ten"}, "--grid ten"),
        ({"grid": "50x50"}, "8 are the least"),
        ({"video": "absent.mp4"}, "no such file or folder"),
        ({"scale": 3, "grid": "2x2"}, "--crop"),
    ],
)
def test_encode_refuses_in_a_line_and_writes_nothing(tmp_path: Path, call: dict[str, object], message: str) -> None:
    source = picture_files(tmp_path / "in", 2, height=64, width=98)
    given = {"video": source, "out": tmp_path / "p", "epochs": 1, "channels": 4, **call}
    given["video"] = Path(str(given["video"]))
    with pytest.raises(BadInput, match=message) as caught:
        commands.encode(**given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_play_refuses_in_a_line_and_writes_nothing(tmp_path: Path) -> None:
    network, routing, clip = parts()
    write_package(tmp_path / "p", network, routing, clip)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    for call, message in (
        ({"package": tmp_path}, "is no package"),
        ({"out": tmp_path / "full"}, "is not empty"),
        ({"out": tmp_path / "a.nonsense"}, "ending .nonsense"),
        ({"out": tmp_path / "a.webm"}, "ending .webm"),
        ({"out": tmp_path / "a.gif"}, "ending .gif"),
        ({"package": tmp_path / "full" / "x"}, "is no package"),
        ({"threads": 0}, "--threads 0"),
    ):
        with pytest.raises(BadInput, match=message):
            commands.play(**{"package": tmp_path / "p", **call})  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "p"]


def test_the_command_line(tmp_path: Path) -> None:
    from plait_cli.app import app

    network, routing, clip = parts()
    write_package(tmp_path / "p", network, routing, clip)
    done = CliRunner().invoke(app, ["dydca", "play", str(tmp_path / "p"), "--json"])
    assert done.exit_code == 0, done.output

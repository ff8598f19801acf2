"""Run directories on object stores: published whole, resumed from elsewhere, and refused in words."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import plait
from plait import BadInput, RunFailed
from plait.errors import BadCheckpoint
from plait.storage import places
from plait.storage.directory import RunDirectory
from plait.storage.places import url_of
from plait_authoring.kill import final_state, first_difference
from plait_cli import catalog
from plait_stores.directory import MANIFEST, StoredDirectory

fsspec = pytest.importorskip("fsspec")

RECIPE: dict[str, Any] = {
    "data": {"name": "tiny-images"},
    "model": {"name": "tiny-cnn"},
    "train": {"steps": 9, "batch_size": 24},
    "checkpoint": {"every_steps": 3},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket on moto's S3 server on the loopback interface."""
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    options = {"key": "test", "secret": "test", "client_kwargs": {"region_name": "eu-west-1"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "s3", {**options, "endpoint_url": f"http://{host}:{port}"})
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    running.stop()


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://runs"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Local copies in a place of the test's own; another one is another machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    return tmp_path


def elsewhere(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


class Killed(BaseException):
    """The process ends here, without a word."""


@pytest.mark.smoke
def test_urls() -> None:
    assert url_of("runs/one") is None
    assert url_of(Path("/abs/runs")) is None
    assert url_of("s3://b/r/") == "s3://b/r"
    assert url_of(Path("s3://b/r")) == "s3://b/r"
    assert url_of(Path("file:///tmp/x")) == "file:///tmp/x"
    assert url_of("C:/runs/one") is None


def test_a_name_longer_than_a_disk_allows_has_a_copy_all_the_same(memory: str) -> None:
    first, second = places.at(f"{memory}/{'x' * 300}"), places.at(f"{memory}/{'x' * 301}")
    first.path.mkdir(parents=True)
    assert first.path.is_dir() and first.path != second.path


@pytest.mark.smoke
@pytest.mark.parametrize("where", ["s3", "memory", "file"])
def test_a_run_there_is_the_run_here(
    where: str, cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    root = f"file://{cache}/store" if where == "file" else request.getfixturevalue(where)
    url = f"{root}/one"
    trained = plait.run(RECIPE, out=url)
    here = plait.run(RECIPE, out=cache / "local")
    assert trained.metrics == here.metrics
    assert trained.directory.shown == url
    elsewhere(monkeypatch, cache / "there")
    read = plait.load_run(url)
    assert read.metrics == here.metrics
    assert read.artifacts["report"].is_file()
    assert first_difference(final_state(read.path), final_state(here.path)) is None
    assert (read.export / "model.safetensors").read_bytes() == (here.export / "model.safetensors").read_bytes()
    with pytest.raises(BadInput, match="already holds a run: choose another --out, or `plait resume"):
        plait.run(RECIPE, out=url)
    files, path = fsspec.core.url_to_fs(url)
    objects = {name.rpartition("one/")[2] for name in files.find(path)}
    manifest = json.loads(files.cat_file(f"{path}/{MANIFEST}"))
    assert objects == {MANIFEST} | {entry["object"] for entry in manifest["files"].values()}  # nothing is left over


@pytest.mark.parametrize("where", ["s3", "memory"])
@pytest.mark.parametrize("call", range(1, 12, 2))
def test_killed_while_publishing_and_resumed_on_another_machine(
    where: str, call: int, cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Whatever write is the last one, a reader elsewhere sees one whole state, and the run ends with the same bits."""
    url = f"{request.getfixturevalue(where)}/killed-{call}"
    calls = 0

    def dying(original: Any) -> Any:
        def count(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise Killed
            return original(self, *arguments, **options)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_put", "_write_manifest"):
            patch.setattr(StoredDirectory, name, dying(getattr(StoredDirectory, name)))
        with pytest.raises(Killed):
            plait.run(RECIPE, out=url)
    elsewhere(monkeypatch, cache / "there")
    published = StoredDirectory(url)
    published.fetch()
    if published.recipe_file.exists():
        for checkpoint in published.saved_checkpoints():
            from plait.storage import checkpoints

            checkpoints.load(checkpoint)  # its checksum holds
        done = plait.resume(url)
    else:
        assert call <= 5  # nothing was published before the first checkpoint was whole
        done = plait.run(RECIPE, out=url)
    reference = plait.run(RECIPE, out=cache / "local")
    assert done.metrics == reference.metrics
    assert first_difference(final_state(done.path), final_state(reference.path)) is None


def test_a_file_that_was_changed_or_lost_is_refused(memory: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{memory}/changed"
    plait.run(RECIPE, out=url)
    files, path = fsspec.core.url_to_fs(url)
    entry = json.loads(files.cat_file(f"{path}/{MANIFEST}"))["files"]["checkpoints/step-000000009.safetensors"]
    files.pipe_file(f"{path}/{entry['object']}", b"something else")
    elsewhere(monkeypatch, cache / "there")
    with pytest.raises(BadCheckpoint, match="was changed after it was published"):
        plait.load_run(url)
    files.rm_file(f"{path}/{entry['object']}")
    with pytest.raises(BadCheckpoint, match="a published file is missing"):
        plait.load_run(url)
    files.pipe_file(f"{path}/{MANIFEST}", b"{}")
    with pytest.raises(BadInput, match="is not what plait publishes"):
        plait.load_run(url)


def test_two_writers(memory: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{memory}/two"
    plait.run(RECIPE, out=url)
    stored = StoredDirectory(url)
    stored.fetch()
    other = StoredDirectory(url)
    other.fetch()
    other.publish()
    with pytest.raises(RunFailed, match="is being published by another process"):
        stored.publish()


def test_a_store_that_fails_keeps_what_was_published(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{memory}/failing"

    def refuse(self: Any, *arguments: Any) -> None:
        raise OSError("no space for this account")

    original = StoredDirectory._put
    count = 0

    def put(self: Any, *arguments: Any) -> None:
        nonlocal count
        count += 1
        (original if count < 6 else refuse)(self, *arguments)

    monkeypatch.setattr(StoredDirectory, "_put", put)
    with pytest.raises(RunFailed, match=r"could not be published: OSError: no space for this account. What was"):
        plait.run(RECIPE, out=url)
    monkeypatch.setattr(StoredDirectory, "_put", original)
    assert plait.resume(url).finished


def test_what_is_not_there_is_said(s3: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    with pytest.raises(BadInput, match="is not a run directory"):
        plait.load_run(f"{s3}/nothing")
    with pytest.raises((BadInput, RunFailed), match=r"NoSuchBucket|bucket does not exist|not a run directory"):
        plait.load_run("s3://no-such-bucket/run")
    with pytest.raises(BadInput, match="Protocol not known: nosuch"):
        plait.run(RECIPE, out="nosuch://x/y")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(BadInput, match=r"pip install 'plait-stores\[gcs\]'"):
        plait.run(RECIPE, out="gs://bucket/run")
    monkeypatch.setattr(places, "entry_points", lambda group: ())  # plait-stores is not installed
    with pytest.raises(BadInput, match="no installed package opens runs on object stores"):
        plait.run(RECIPE, out=f"{s3}/x")
    assert not (cache / "here").exists() or not any((cache / "here").rglob("recipe.toml"))


def test_two_processes_publish_one_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plait_authoring.together import together

    url = f"file://{cache}/store/two"
    ended = together(lambda rank: plait.run(RECIPE, out=url))
    assert [e.code for e in ended] == [0, 0], ended
    elsewhere(monkeypatch, cache / "there")
    read = plait.load_run(url)
    assert read.finished
    before = final_state(read.path)["model"]
    shutil.rmtree(cache / "there")
    ended = together(lambda rank: plait.resume(url, checkpoint="step-000000006"))
    assert [e.code for e in ended] == [0, 0], ended
    assert first_difference(final_state(plait.load_run(url).path)["model"], before) is None


@pytest.mark.parametrize("where", ["s3", "memory", "file"])
def test_runs_are_found_and_compared_there(
    where: str, cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    root = f"file://{cache}/store" if where == "file" else request.getfixturevalue(where)
    for name in ("sweep/seed-1", "sweep/seed-0"):
        plait.run(RECIPE, seed=int(name[-1]), out=f"{root}/{name}")
    elsewhere(monkeypatch, cache / "there")
    seen = [catalog.look(directory) for directory in catalog.find(Path(f"{root}/sweep"))]
    assert [listed_run.shown for listed_run in seen] == [f"{root}/sweep/seed-0", f"{root}/sweep/seed-1"]
    assert [listed_run.status for listed_run in seen] == ["finished", "finished"]
    assert not list((cache / "there").rglob("*.safetensors"))  # nothing large is fetched to look
    assert [listed_run.shown for listed_run in catalog.finished([Path(f"{root}/sweep/seed-1")])] == [
        f"{root}/sweep/seed-1"
    ]
    assert plait.load_run(f"{root}/sweep/seed-1").metrics["task/loss"] == seen[1].details["task/loss"]["value"]
    with pytest.raises(BadInput, match="is not a run directory and holds none"):
        catalog.finished([Path(f"{root}/nothing")])


def test_a_run_that_is_published_half_way_is_seen_so(memory: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{memory}/half"
    with monkeypatch.context() as patch:
        publish, count = StoredDirectory.publish, itertools.count()

        def killed(self: StoredDirectory) -> None:
            if next(count) == 2:
                raise Killed
            publish(self)

        patch.setattr(StoredDirectory, "publish", killed)
        with pytest.raises(Killed):
            plait.run(RECIPE, out=url)
    elsewhere(monkeypatch, cache / "there")
    (seen,) = [catalog.look(directory) for directory in catalog.find(Path(url))]
    assert (seen.status, seen.reason) == ("interrupted", "or running on another machine")
    with pytest.raises(BadInput, match=f"Finish it with: plait resume {url}"):
        catalog.finished([Path(url)])


def test_reading_leaves_a_copy_alone_that_is_being_written(memory: str) -> None:
    url = f"{memory}/busy"
    plait.run(RECIPE, out=url)
    here = StoredDirectory(url)
    (here.path / "newer.txt").write_text("not published yet")
    with here.locked():
        other = StoredDirectory(url)
        other.fetch()
        assert (other.path / "newer.txt").exists()
        assert other.is_being_written()
    other.fetch()
    assert not (other.path / "newer.txt").exists()


def test_a_path_of_this_machine_needs_no_store(tmp_path: Path) -> None:
    assert type(places.at(tmp_path / "r")) is RunDirectory


def test_what_hidden_folders_hold_is_not_published(memory: str) -> None:
    here = StoredDirectory(f"{memory}/one")
    here.create()
    for name in ("recipe.toml", "export/model.bin", ".cache/x", "export/.ipynb_checkpoints/model.bin", ".lock"):
        (here.path / name).parent.mkdir(parents=True, exist_ok=True)
        (here.path / name).write_text(name)
    here.publish()
    published = json.loads(fsspec.filesystem("memory").cat_file(f"{memory}/one/{MANIFEST}"))
    assert set(published["files"]) == {"recipe.toml", "export/model.bin"}
    assert not [name for name in fsspec.filesystem("memory").find(memory) if "/." in name]

"""A run killed at any instant resumes and ends with the bits of the run that was never killed."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.errors import BadCheckpoint, BadInput, Interrupted, RunLocked
from plait.storage.directory import RunDirectory
from plait_authoring.kill import final_state, first_difference, forked, resume_until_done

RECIPE: dict[str, Any] = {
    "data": {"name": "tiny-images"},
    "train": {"steps": 60, "batch_size": 24, "evaluate_every": 2, "select": "best"},
    "checkpoint": {"every_steps": 3},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    path = tmp_path_factory.mktemp("unbroken") / "run"
    torch.set_num_threads(1)
    start = time.monotonic()
    assert forked(lambda: plait.run(RECIPE, out=path)) == 0
    return path, time.monotonic() - start


def scalars(path: Path) -> list[Any]:
    return [(e["step"], e["values"]) for e in RunDirectory(path).events() if e["event"] == "scalars"]


def assert_same(path: Path, reference: Path) -> None:
    assert first_difference(final_state(path), final_state(reference)) is None
    assert plait.load_run(path).metrics == plait.load_run(reference).metrics
    assert scalars(path) == scalars(reference)


@pytest.mark.parametrize("trial", range(8))
def test_sigkill_at_random_instants(tmp_path: Path, unbroken: tuple[Path, float], trial: int) -> None:
    reference, seconds = unbroken
    moments = random.Random(trial)
    killed = forked(lambda: plait.run(RECIPE, out=tmp_path / "r"), kill_after=moments.uniform(0.05, 1.0) * seconds)
    assert killed in (-signal.SIGKILL, 0)
    resume_until_done(tmp_path / "r", RECIPE)
    assert_same(tmp_path / "r", reference)


@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("call", [1, 3, 4, 9])
def test_sigkill_inside_a_checkpoint_write(tmp_path: Path, unbroken: tuple[Path, float], where: str, call: int) -> None:
    assert forked(lambda: plait.run(RECIPE, out=tmp_path / "r"), kill_at=(where, call)) == -signal.SIGKILL
    resume_until_done(tmp_path / "r", RECIPE)
    assert_same(tmp_path / "r", unbroken[0])


def test_killed_twice(tmp_path: Path, unbroken: tuple[Path, float]) -> None:
    path = tmp_path / "r"
    assert forked(lambda: plait.run(RECIPE, out=path), kill_at=("os.replace", 6)) == -signal.SIGKILL
    assert forked(lambda: plait.resume(path), kill_at=("os.replace", 4)) == -signal.SIGKILL
    resume_until_done(path, RECIPE)
    assert_same(path, unbroken[0])


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, unbroken: tuple[Path, float]) -> None:
    path = tmp_path / "r"
    code = forked(lambda: plait.run(RECIPE, out=path), kill_after=0.6 * unbroken[1], number=signal.SIGINT)
    if code == 0:
        pytest.skip("the run was over before the signal")
    assert code in (Interrupted.exit_code, 1)
    if code == Interrupted.exit_code:
        assert RunDirectory(path).events()[-1]["event"] == "interrupted"
    resume_until_done(path, RECIPE)
    assert_same(path, unbroken[0])


def test_resuming_a_finished_run_reads_it_back(unbroken: tuple[Path, float]) -> None:
    before = unbroken[0].joinpath("metrics.jsonl").read_bytes()
    (told,) = [event for event in map(json.loads, before.splitlines()) if event["event"] == "result"]
    resumed = plait.resume(unbroken[0]).metrics
    assert resumed == plait.load_run(unbroken[0]).metrics
    assert {name: resumed[name] for name in told["details"]} == {n: m["value"] for n, m in told["details"].items()}
    assert unbroken[0].joinpath("metrics.jsonl").read_bytes() == before


def test_the_loaded_model_predicts_as_the_run_said(unbroken: tuple[Path, float]) -> None:
    from plait.planning.task import TinyImagesOptions
    from plait.planning.tiny import load

    run = plait.load_run(unbroken[0])
    test = load(TinyImagesOptions(), 0).test
    with torch.no_grad():
        hits = run.model(test.fields["input"]).argmax(1) == test.fields["label"]  # type: ignore[attr-defined]
    assert 100 * hits.double().mean().item() == run.metrics["task/accuracy"]


def test_damaged_newest_checkpoint_is_refused_and_an_older_one_offered(tmp_path: Path) -> None:
    path = tmp_path / "r"
    forked(lambda: plait.run(RECIPE, out=path), kill_at=("os.replace", 8))
    newest = RunDirectory(path).saved_checkpoints()[-1]
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadCheckpoint, match="--checkpoint step-"):
        plait.resume(path)
    older = RunDirectory(path).saved_checkpoints()[0].stem
    assert plait.resume(path, checkpoint=older).finished


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    first, two = tmp_path / "one", tmp_path / "two"
    forked(lambda: plait.run(RECIPE, out=first), kill_at=("os.replace", 5))
    wider = {**RECIPE, "model": {"name": "tiny-cnn", "width": 12}}
    forked(lambda: plait.run(wider, out=two), kill_at=("os.replace", 5))
    source, target = RunDirectory(first).saved_checkpoints()[-1], RunDirectory(two).saved_checkpoints()[-1]
    target.write_bytes(source.read_bytes())
    with pytest.raises(BadCheckpoint, match="another model"):
        plait.resume(two)


def test_two_processes_on_one_run_directory(tmp_path: Path) -> None:
    path = tmp_path / "r"
    forked(lambda: plait.run(RECIPE, out=path), kill_at=("os.replace", 5))
    with RunDirectory(path).locked():
        assert forked(lambda: plait.resume(path)) == RunLocked.exit_code
    with pytest.raises(BadInput, match="already holds a run"):
        plait.run(RECIPE, out=path)
    assert plait.resume(path).finished


def test_unwritable_place_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be made"):
        plait.run(RECIPE, out=tmp_path / "file" / "r")
    with pytest.raises(BadInput, match="not a run directory"):
        plait.resume(tmp_path / "nothing")


def test_same_seed_same_bits_other_seed_other_bits(tmp_path: Path, unbroken: tuple[Path, float]) -> None:
    assert forked(lambda: plait.run(RECIPE, out=tmp_path / "same")) == 0
    assert_same(tmp_path / "same", unbroken[0])
    assert forked(lambda: plait.run(RECIPE, seed=1, out=tmp_path / "other")) == 0
    assert first_difference(final_state(tmp_path / "other")["model"], final_state(unbroken[0])["model"]) is not None


def test_json_files_are_json(unbroken: tuple[Path, float]) -> None:
    for line in unbroken[0].joinpath("metrics.jsonl").read_text().splitlines():
        json.loads(line)
    json.loads(unbroken[0].joinpath("environment.json").read_text())
    json.loads(unbroken[0].joinpath("export/config.json").read_text())


def test_bad_input_leaves_no_directory_behind(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"math:sqrt failed"):
        plait.run(data="math:sqrt", model="tiny-cnn", out=tmp_path / "r")
    assert not (tmp_path / "r").exists()

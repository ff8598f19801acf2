"""The manager with real runs: resized, killed, asked back, and gone on with; and what bad input gets."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from plait.declare.recipe import Recipe
from plait.errors import BadInput, Refused, RunLocked
from plait.storage.directory import RunDirectory
from plait_malletrain.channel import Channel, Ended, Imports, Work, greet, read_token
from plait_malletrain.commands import serve, status
from plait_malletrain.errors import MalletrainError
from plait_malletrain.jobs import admitted, spread
from plait_malletrain.launchers import LocalProcesses
from plait_malletrain.manager import Manager, read_state
from plait_malletrain.options import ServeOptions
from plait_malletrain.script import Order, read_script

STEPS = 120
OPTIONS = ServeOptions(profile_max=2, measure_seconds=0.2, measure_steps=3, warmup_steps=1)


def quick(**changes: Any) -> ServeOptions:
    """Options with which a test measures in an instant."""
    return OPTIONS.model_copy(update=changes)


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_recipe(path: Path, plugins: dict[str, dict[str, object]] | None = None, **train: object) -> Path:
    values = {
        "seed": 5,
        "data": {"name": "tiny-images", "train": 96},
        "model": {"name": "tiny-cnn"},
        "train": {"steps": STEPS, "batch_size": 16, "log_every": 1, "evaluate_every": 1000} | train,
        "checkpoint": {"every_steps": 10},
        "plugins": plugins or {},
    }
    path.write_text(Recipe.parse(values).to_toml(), encoding="utf-8")
    return path


def steps_of(run: Path) -> Counter[int]:
    events = RunDirectory(run).events()
    return Counter(e["step"] for e in events if e.get("event") == "scalars" and "train/loss" in e["values"])


ALONE = """
import os, socket
import torch._dynamo
from plait.declare.recipe import Recipe
from plait.planning.plan import make_plan
from plait.run import execute
from plait.storage.directory import RunDirectory
import plait.training.trainer

torch.set_num_threads(1)
with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
rank = 1 if os.fork() else 0
place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
os.environ |= {name: str(value) for name, value in place.items()}
recipe = Recipe.load("woven.toml").merged({"distributed.unused_parameters": True})
execute(make_plan(recipe), RunDirectory("alone"), go_on=True, artifacts=False)
if rank:
    assert os.wait()[1] == 0
"""
"""As `plait run --nproc 2`, but torch is imported once."""


@pytest.fixture(scope="module")
def woven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two methods, and the run of it that nothing disturbs, on two processes."""
    folder = tmp_path_factory.mktemp("woven")
    plugins: dict[str, dict[str, object]] = {"chase": {"timing_repeats": 0}, "fairsam": {"severities": [3]}}
    write_recipe(folder / "woven.toml", plugins)
    subprocess.run([sys.executable, "-P", "-c", ALONE], cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    return folder


def turn_until(manager: Manager, wanted: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline, json.dumps(manager.state_dict())
        manager.turn()


@pytest.fixture(scope="module")
def interrupted(woven: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a `serve` that was killed with its job under way, on the one slot of two that had come by then."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "script.txt").write_text("1000 join 1\n")
    line = [sys.executable, "-P", "-m", "plait_cli", "malletrain", "serve", str(woven / "woven.toml"), "--slots", "2"]
    line += ["--out", str(folder), "--script", str(folder / "script.txt"), "--json"]
    serving = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while serving.poll() is None and len(RunDirectory(folder / "woven").saved_checkpoints()) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(RunLocked, match="another manager"):
        Manager(folder, quick(nmax=2))
    serving.kill()
    serving.wait()
    return folder


@pytest.fixture(scope="module")
def warm(interrupted: Path) -> Iterator[Manager]:
    """The next manager there, with three workers of its own."""
    with Manager(interrupted, quick(nmax=2, grace=60, restarts=0), say=lambda text: None) as manager:
        manager.launcher = LocalProcesses(manager.address, interrupted / "token", interrupted / "workers.log")
        for slot in ("0", "1", "2"):
            manager.launcher.start(slot)
        turn_until(manager, lambda: len(manager.nodes) == 3)
        yield manager


def test_two_methods_resized_and_killed_end_with_the_bits_of_an_undisturbed_run(
    woven: Path, warm: Manager, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warm.submit(admitted([woven / "woven.toml"]))
    job = warm.jobs["woven"]
    before = job.generation  # of the manager that was killed
    assert warm.launcher is not None and before >= 1 and job.step < STEPS
    turn_until(warm, lambda: job.state == "running")
    assert job.step >= 10  # from its checkpoint, not from the start
    warm.ask_back(job.slots[-1])  # a planned shrink
    turn_until(warm, lambda: job.generation == before + 2 and job.state == "running")
    begun = job.step
    turn_until(warm, lambda: job.state == "running" and job.step >= begun + 12)
    warm.launcher.kill(job.slots[0])  # without notice
    warm.run(warm.launcher, [])
    assert job.state == "done" and job.generation >= before + 3
    assert len(warm.nodes) == 1 and max(warm.delays) < 60
    assert steps_of(warm.folder / "woven") == Counter(range(1, STEPS + 1))  # each once: none lost, none twice
    alone, served = (folder / "export/model.safetensors" for folder in (woven / "alone", warm.folder / "woven"))
    assert alone.read_bytes() == served.read_bytes()
    warm.save(force=True)
    (tmp_path / "manager.json").write_text((warm.folder / "manager.json").read_text())
    serve([woven / "woven.toml"], out=tmp_path, slots=2, json=True)  # nothing is left to do
    (again,) = json.loads(capsys.readouterr().out)["jobs"]
    assert (again["state"], again["generation"]) == ("done", job.generation)
    assert not (tmp_path / "workers.log").exists()  # no worker was started


def test_a_job_whose_disk_is_full_fails_with_the_reason(warm: Manager, tmp_path: Path) -> None:
    assert isinstance(warm.launcher, LocalProcesses)
    for worker in warm.launcher.processes.values():
        if worker.poll() is None:
            before = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (8192, before[1]))
    warm.submit(admitted([write_recipe(tmp_path / "job.toml")]))
    turn_until(warm, lambda: warm.over)
    assert warm.jobs["job"].state == "failed" and "could not be written" in warm.jobs["job"].why


class Noted:
    """A launcher that only notes what it is asked."""

    lines: ClassVar[list[str]] = []

    def start(self, name: str) -> None:
        self.lines.append(f"start {name}")

    def kill(self, name: str) -> None:
        self.lines.append(f"kill {name}")

    def watch(self) -> None: ...

    def close(self) -> None: ...


# ---- workers of the test's own --------------------------------------------------------------------------------------
def pretended(manager: Manager, name: str) -> Channel:
    """A worker that speaks the protocol and does nothing."""
    import threading

    ends: list[Channel] = []
    host, _, port = manager.address.partition(":")

    def come() -> None:
        ends.append(greet(socket.create_connection((host, int(port))), read_token(manager.folder / "token"), name))

    thread = threading.Thread(target=come)
    thread.start()
    turn_until(manager, lambda: not thread.is_alive() and name in manager.nodes, 20)
    return ends[0]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    said: list[str] = []
    with Manager(tmp_path / "served", quick(nmax=2, report_timeout=0.5, grace=0.3), say=said.append) as made:
        made.said = said  # type: ignore[attr-defined]
        made.submit(admitted([write_recipe(tmp_path / "job.toml")]))
        yield made


def test_a_worker_that_never_reports_costs_its_job_and_frees_the_node(manager: Manager) -> None:
    worker = pretended(manager, "0")
    turn_until(manager, lambda: manager.jobs["job"].state == "failed", 20)
    kinds = [message.kind for message in worker.receive()]
    assert kinds == ["work", "stop"] and "no step for 0.5 s (--report-timeout)" in manager.jobs["job"].why
    assert manager.jobs["job"].slots == [] and manager.over


def test_ranks_are_spread_over_the_nodes_and_always_as_many(manager: Manager) -> None:
    worker = pretended(manager, "0")
    turn_until(manager, lambda: manager.jobs["job"].state == "starting", 20)
    (order,) = worker.receive()
    assert isinstance(order, Work) and order.ranks == (0, 1) and order.world == 2
    assert spread(["0", "1"], 2) == {"0": (0,), "1": (1,)}


def test_a_node_asked_back_that_does_not_stop_is_taken_after_the_grace(manager: Manager) -> None:
    worker = pretended(manager, "0")
    turn_until(manager, lambda: manager.jobs["job"].state == "starting", 20)
    manager.ask_back("0")
    began = time.monotonic()
    turn_until(manager, lambda: manager.jobs["job"].now.killed, 20)
    assert time.monotonic() - began >= 0.3
    stops = [m.now for m in worker.receive() if m.kind == "stop"]
    assert stops == [False, True]
    manager.launcher = Noted()
    turn_until(manager, lambda: "kill 0" in Noted.lines, 20)  # and after twice the grace the worker itself


def test_a_node_whose_worker_talks_nonsense_is_lost(manager: Manager) -> None:
    worker = pretended(manager, "0")
    worker.connection.sendall(b"nonsense\n")
    turn_until(manager, lambda: "0" not in manager.nodes, 20)
    assert "turned away" in manager.said[-1]  # type: ignore[attr-defined]
    second = pretended(manager, "1")
    pretended(manager, "1")
    turn_until(manager, lambda: "1 is there already: ignored" in manager.said, 20)  # type: ignore[attr-defined]
    second.close()
    turn_until(manager, lambda: not manager.nodes, 20)


def test_a_full_disk_is_said_and_stops_nothing(manager: Manager) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    manager.save(force=True)
    content = (manager.folder / "manager.json").read_text()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        manager.save(force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "not written down" in manager.said[-1]  # type: ignore[attr-defined]
    assert (manager.folder / "manager.json").read_text() == content


def test_a_script_waits_for_the_slots_of_the_beginning(manager: Manager) -> None:
    Noted.lines.clear()
    manager.launcher, manager.expected = Noted(), {"0"}
    manager.script = [Order(0.0, "join", "1"), Order(0.1, "kill", "0"), Order(0.1, "leave", "7")]
    manager.turn()
    assert Noted.lines == []
    worker = pretended(manager, "0")
    turn_until(manager, lambda: not manager.script, 20)
    worker.close()
    assert Noted.lines == ["start 1", "kill 0"] and "7 is not in the pool: ignored" in manager.said  # type: ignore[attr-defined]


def test_a_job_that_loses_two_nodes_at_once_waits_for_the_ranks_of_the_third_only(tmp_path: Path) -> None:
    """With 4 ranks on 3 nodes: (0,), (1, 2), (3,). Spread anew over what is left they would be others."""
    with Manager(tmp_path / "served", quick(nmax=4, policy="equal"), say=lambda text: None) as manager:
        workers = [pretended(manager, name) for name in "012"]
        manager.submit(admitted([write_recipe(tmp_path / "job.toml")]))
        job = manager.jobs["job"]
        turn_until(manager, lambda: job.state == "starting", 20)
        assert job.now.ranks == {"0": (0,), "1": (1, 2), "2": (3,)}
        for worker in workers[:2]:
            worker.close()
            turn_until(manager, lambda: len(manager.nodes) < 3, 20)
        turn_until(manager, lambda: len(manager.nodes) == 1, 20)
        assert job.now.waiting_for == {3}
        workers[2].send(Ended(job="job", generation=1, rank=3, outcome="lost"))
        turn_until(manager, lambda: job.generation == 2, 20)
        assert job.now.ranks == {"2": (0, 1, 2, 3)} and job.restarts == 0


def test_a_stranger_who_says_nothing_keeps_nobody_waiting(manager: Manager) -> None:
    host, _, port = manager.address.partition(":")
    with socket.create_connection((host, int(port))):
        began = time.monotonic()
        pretended(manager, "0")
        assert time.monotonic() - began < 5 and "0" in manager.nodes


def test_what_a_job_imports_is_told_to_every_worker(manager: Manager) -> None:
    first, second = pretended(manager, "8"), pretended(manager, "9")
    first.send(Imports(names=("json", "csv")))
    turn_until(manager, lambda: bool(manager.imports), 20)
    third = pretended(manager, "10")  # one that comes later, too
    for worker in (second, third):
        while Imports(names=("json", "csv")) not in worker.receive():
            pass  # an order may come first


# ---- bad input -----------------------------------------------------------------------------------------------------
def test_models_of_participants_are_refused_with_the_reason(tmp_path: Path) -> None:
    values = {"data": {"name": "tiny-images"}, "model": {"name": "tiny-cnn"}, "plugins": {"dbadfl": {}}}
    (tmp_path / "fl.toml").write_text(Recipe.parse(values).to_toml())
    with pytest.raises(Refused) as refused:
        serve([tmp_path / "fl.toml"], out=tmp_path / "served")
    assert not (tmp_path / "served").exists()
    assert "participant" in str(refused.value) and refused.value.exit_code == 3


def test_recipes_that_cannot_be_jobs(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = write_recipe(tmp_path / "job.toml")
    second = write_recipe(tmp_path / "other/job.toml", steps=9)
    with Manager(tmp_path / "served", quick(nmax=2)) as manager:
        with pytest.raises(BadInput, match="another recipe is named job"):
            admitted([first, second])
        manager.submit(admitted([first]))
        manager.save(force=True)
    before = read_state(tmp_path / "served")["jobs"]
    with Manager(tmp_path / "served", quick(nmax=2)) as manager, pytest.raises(BadInput, match="of another recipe"):
        manager.submit(admitted([second]))
    assert read_state(tmp_path / "served")["jobs"] == before  # what was there stays
    with pytest.raises(MalletrainError, match=r"host = '192\.0\.2\.1': .*give an address of this machine"):
        Manager(tmp_path / "x", quick(host="192.0.2.1"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"jobs": []}', '{"jobs": [{"name": 3, "table": {}}]}'])
def test_a_state_that_is_none_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "manager.json").write_text(content)
    with pytest.raises(MalletrainError, match="not the state of a manager"):
        status(tmp_path)
    with Manager(tmp_path, OPTIONS) as manager, pytest.raises(MalletrainError, match="not the state of a manager"):
        manager.submit({})
    assert (tmp_path / "manager.json").read_text() == content


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MalletrainError, match=r"file: cannot be used: .*choose another --out"):
        Manager(tmp_path / "file", OPTIONS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 explode 0", "line 1"),
        ("x join 0", "line 1"),
        ("1 join", "line 1"),
        ("-1 join 0", "line 1"),
        ("5 join 0\n4 kill 0", "line 2: 4 s is before 5 s"),
        ("# nothing", "empty"),
    ],
)
def test_bad_scripts(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "script.txt").write_text(text)
    with pytest.raises(MalletrainError, match=said):
        read_script(tmp_path / "script.txt")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"slots": 0}, "slots = 0"),
        ({"nmax": 3}, "nmax = 3"),
        ({"slurm": True, "ray": "auto"}, "choose one"),
        ({"grace": 0.0}, "grace = 0"),
        ({"restarts": -1}, "restarts = -1"),
        ({"policy": "best"}, "policy = 'best'"),
        ({"policy": "oracle"}, "policy = 'oracle'"),
        ({"horizon": -1.0}, "horizon = -1"),
    ],
)
def test_bad_options_of_serve(tmp_path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        serve([write_recipe(tmp_path / "job.toml")], out=tmp_path / "served", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "served").exists()


def test_status_of_nothing_and_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(MalletrainError, match="no manager has worked here"):
        status(tmp_path)
    with Manager(tmp_path, quick(nmax=2)) as manager:
        manager.submit(admitted([write_recipe(tmp_path / "job.toml")]))
    status(tmp_path)
    assert "waiting" in capsys.readouterr().out
    assert read_state(tmp_path)["jobs"][0]["name"] == "job"
    assert signal.getsignal(signal.SIGTERM) is before

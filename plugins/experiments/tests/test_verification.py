"""Verification from end to end on tiny runs: cache, tuning, failures, crashes, kills, and Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from claims_book import book

import plait
from plait.declare.options import Options
from plait.errors import BadInput
from plait.hooks import hookimpl
from plait.planning import discovery
from plait.plugin import Plugin
from plait_experiments import tables
from plait_experiments.cells import Cache
from plait_experiments.experiment import Experiment
from plait_experiments.results import Verification
from plait_experiments.verdicts import Verdict
from plait_experiments.verification import verify

HERE = {"workers": 0}
ONE_SEED = {"scales__laptop__seeds": [0]}


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Verification]:
    """A cache in which every cell of `book` is done, and what came of it; not to be changed."""
    cache = tmp_path_factory.mktemp("verified")
    return cache, verify(book(), cache=cache, **HERE)


@pytest.fixture
def cache(verified: tuple[Path, Verification], tmp_path: Path) -> Path:
    """A copy of the cache of `verified`."""
    return shutil.copytree(verified[0], tmp_path / "cache")


def only(verification: Verification) -> Any:
    assert len(verification.claims) == 1
    return verification.claims[0]


@pytest.mark.smoke
def test_a_true_claim_holds_and_a_false_one_fails(cache: Path) -> None:
    false = {
        "id": "false",
        "sentence": "Training does harm.",
        "source": "nowhere",
        "expect": ["untrained.accuracy - trained.accuracy > 0"],
        "minutes": {"laptop": 0.1},
    }
    both = book()
    both = both.model_copy(update={"claims": (*both.claims, type(both.claims[0])(**false))})
    verification = verify(both, cache=cache, **HERE)
    assert [r.verdict for r in verification.claims] == [Verdict.HOLDS, Verdict.FAILS]
    assert not verification.holds
    assert (verification.ran, verification.cached) == (0, 6)  # both claims share their cells
    assert verify(both, only=["learns"], cache=cache, **HERE).holds


def test_the_second_time_nothing_runs_and_the_answer_is_the_same(
    verified: tuple[Path, Verification], cache: Path
) -> None:
    first = verified[1]
    assert (first.ran, first.cached) == (6, 0)
    start = time.monotonic()
    second = verify(book(), cache=cache, **HERE)
    assert time.monotonic() - start < 2
    assert (second.ran, second.cached) == (0, 6)
    assert second.as_dict()["claims"] == first.as_dict()["claims"]
    assert verify(book(), cache=cache, fresh=True, **HERE).ran == 6


def test_cells_are_ordinary_runs(verified: tuple[Path, Verification]) -> None:
    runs = [p.parent for p in verified[0].glob("*/recipe.toml")]
    assert len(runs) == 6
    assert all(plait.load_run(path).finished for path in runs)


def test_an_option_or_the_expectation(cache: Path) -> None:
    changed = verify(book(arms__trained__set={"train.steps": 41}), cache=cache, **HERE)
    assert (changed.ran, changed.cached) == (3, 3)
    stricter = verify(book(claims__0__expect=["trained.accuracy >= 101"]), cache=cache, **HERE)
    assert (stricter.ran, stricter.cached, only(stricter).verdict) == (0, 3, Verdict.FAILS)


class Quiet(Plugin):
    """Does nothing, but has a version."""

    name = "quiet"
    contract = 1

    class Options(Options):
        strength: float = 1.0


def test_a_plugins_version_or_option(tmp_path: Path, install: Callable[..., None]) -> None:
    install(Quiet)
    arms: dict[str, Any] = {"arms__trained": {"plugins": {"quiet": {}}, "set": {"train.steps": 0}}, **ONE_SEED}
    assert verify(book(**arms), cache=tmp_path, **HERE).ran == 2
    assert verify(book(**arms), cache=tmp_path, **HERE).ran == 0
    next(item for item in discovery.installed() if item.name == "quiet").version = "1.1"
    assert verify(book(**arms), cache=tmp_path, **HERE).ran == 1  # the arm without the plugin is as it was
    assert verify(book(**arms, arms__trained__plugins={"quiet": {"strength": 2.0}}), cache=tmp_path, **HERE).ran == 1
    assert verify(book(**arms), cache=tmp_path, **HERE).ran == 0


def test_other_sources_of_the_same_version_are_said(cache: Path) -> None:
    for path in cache.glob("*/cell.json"):
        stored = json.loads(path.read_text())
        stored["sources"] = {"plait-core": "other"}
        path.write_text(json.dumps(stored))
    verification = verify(book(), cache=cache, **HERE)
    claims = book()
    (job, *_) = Experiment(claims, "laptop", list(claims.claims), Cache(cache)).final("trained", ())
    editable = bool(job.sources)
    assert bool(verification.notes) == editable
    assert verification.ran == 0


def test_damaged_results_are_read_anew_from_their_runs(cache: Path) -> None:
    cells = sorted(cache.glob("*/cell.json"))
    cells[0].write_text("{")
    cells[1].write_text(json.dumps({"key": "x", "status": "done"}))
    cells[2].unlink()
    assert verify(book(), cache=cache, **HERE).ran == 3


def test_a_run_with_a_damaged_checkpoint_begins_again(verified: tuple[Path, Verification], cache: Path) -> None:
    for cell in cache.glob("*/cell.json"):
        cell.unlink()
        run = cell.parent
        events = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"result"' not in line]
        (run / "metrics.jsonl").write_text("\n".join(events) + "\n")
        for checkpoint in (run / "checkpoints").iterdir():
            checkpoint.write_bytes(b"torn")
    again = verify(book(), cache=cache, **HERE)
    assert again.ran == 6
    assert again.as_dict()["claims"] == verified[1].as_dict()["claims"]


# ---- arms --------------------------------------------------------------------------------------------------------
TUNED = {"arms__trained__grid": {"optimizer.lr": [1e-6, 0.2]}, "arms__trained__choose": "task/accuracy@validation"}


def test_a_grid_is_chosen_on_validation_with_seeds_of_its_own(cache: Path) -> None:
    verification = verify(book(**TUNED), cache=cache, **HERE)
    arm = only(verification).arms[0]
    assert (verification.ran, verification.cached) == (2 * 2 + 3, 3)
    assert arm.point == {"optimizer.lr": 0.2}
    assert [set(t.scores) for t in arm.tuning] == [{100, 101}] * 2
    assert set(arm.values["accuracy"]) == {0, 1, 2}
    assert verify(book(**TUNED), cache=cache, **HERE).ran == 0
    lower = verify(book(**TUNED, arms__trained__choose_better="lower"), cache=cache, **HERE)
    assert lower.ran == 3
    assert only(lower).arms[0].point == {"optimizer.lr": 1e-6}
    unknown = only(verify(book(**{**TUNED, "arms__trained__choose": "no/such@validation"}), cache=cache, **HERE))
    assert unknown.verdict is Verdict.NOT_RUN
    assert "no grid point has a validation score" in unknown.reason


def noisy(grid: list[float], **arm: Any) -> dict[str, Any]:
    by = {"function": "claims_book:noisy", "choose": "task/accuracy@validation", "grid": {"options.gain": grid}}
    return {"arms__trained": {**by, **arm}}


def test_a_best_point_within_the_standard_error_is_a_tie_and_the_default_is_taken(cache: Path) -> None:
    result = only(verify(book(**noisy([0.0, 2.0, 1.0])), cache=cache, **HERE))
    arm = result.arms[0]
    assert arm.point == {"options.gain": 1.0}  # what the function does by itself
    assert arm.values["accuracy"] == {0: 51.0, 1: 52.0, 2: 53.0}
    assert arm.tie is arm.tuning[1] and [t.default for t in arm.tuning] == [False, False, True]
    assert (arm.tie.gain.mean, arm.tie.gain.standard_error) == (1.0, 2.0)
    (said,) = tables.ties(result)
    assert said.startswith(
        "Arm trained, a tie on validation: options.gain=2.0 minus the default options.gain=1.0 is 1 ±"
    )
    assert said.endswith("the default is taken.") and said in tables.remarks(result)
    assert arm.as_dict()["tie"] and arm.as_dict()["tuning"][1]["gain"]["standard_error"] == 2.0
    clear = only(verify(book(**noisy([0.0, 3.0, 1.0])), cache=cache, **HERE)).arms[0]
    assert clear.point == {"options.gain": 3.0} and clear.tie is None
    one = {**noisy([0.0, 3.0, 1.0]), "scales__laptop__tuning_seeds": [100]}
    result = only(verify(book(**one), cache=cache, **HERE))
    assert result.arms[0].point == {"options.gain": 1.0} and "one tuning seed has no" in tables.ties(result)[0]


@pytest.mark.parametrize(
    ("arm", "default"),
    [
        ({"grid": {"optimizer.lr": [0.2, 0.05]}}, {"optimizer.lr": 0.05}),  # the recipe's own
        ({"grid": {"optimizer.lr": [0.2, 0.05]}, "set": {"optimizer.lr": 0.2}}, {"optimizer.lr": 0.2}),
        ({"grid": {"optimizer.lr": [0.3, 0.2]}}, {"optimizer.lr": 0.3}),  # not in the grid: the first
        ({"grid": {"model.width": [2, 4]}}, {"model.width": 4}),
        ({"grid": {"quiet.strength": [0.5, 1.0]}, "plugins": {"quiet": {}}}, {"quiet.strength": 1.0}),
        ({"grid": {"quiet.strength": [0.5, 1.0]}, "plugins": {"quiet": {"strength": 0.5}}}, {"quiet.strength": 0.5}),
        ({**noisy([2.0, 1.0])["arms__trained"]}, {"options.gain": 1.0}),
        ({**noisy([2.0, 1.0], options={"gain": 2.0})["arms__trained"]}, {"options.gain": 2.0}),
        (
            {"grid": {"optimizer.lr": [0.2, 0.05], "model.width": [8, 4]}},
            {"optimizer.lr": 0.05, "model.width": 4},
        ),
    ],
)
def test_the_default_of_a_grid(
    arm: dict[str, Any], default: dict[str, Any], install: Callable[..., None], tmp_path: Path
) -> None:
    install(Quiet)
    claims = book(arms__trained={"choose": "task/accuracy@validation", **arm})
    experiment = Experiment(claims, "laptop", list(claims.claims), Cache(tmp_path))
    assert dict(experiment.default("trained")) == default and experiment.default("trained") in experiment.points(
        "trained"
    )


def test_a_pilot_runs_three_seeds_takes_what_is_kept_and_judges_nothing(cache: Path) -> None:
    many = {"scales__laptop__seeds": list(range(8)), "arms__trained": {"function": "claims_book:fine"}}
    many |= {"arms__untrained": {"function": "claims_book:noisy"}}
    pilot = verify(book(**many), pilot=True, cache=cache, **HERE)
    result = only(pilot)
    assert pilot.ran == 6 and result.verdict is Verdict.PILOT and result.seeds == (0, 1, 2)
    (judgement,) = result.judgements
    assert judgement.verdict is Verdict.PILOT and judgement.n == 3 and judgement.power is not None
    assert (judgement.power.deviation, judgement.power.margin) == (0.0, 1.0)
    five = verify(book(**many), seeds=5, pilot=True, cache=cache, **HERE)
    assert five.ran == 4 and only(five).seeds == (0, 1, 2, 3, 4)
    again = verify(book(**many), pilot=True, cache=cache, **HERE)
    assert (
        again.ran == 0
        and only(again).judgements[0].n == 5
        and set(only(again).arms[0].values["accuracy"]) == {*range(5)}
    )
    assert only(verify(book(**many), seeds=2, pilot=True, fresh=True, cache=cache, **HERE)).seeds == (0, 1)
    assert (
        only(verify(book(), seeds=1, pilot=True, cache=cache, **HERE)).judgements[0].power is not None
    )  # all three kept
    nothing = only(verify(book(arms__trained={"function": "claims_book:undefined"}), pilot=True, cache=cache, **HERE))
    assert nothing.verdict is Verdict.PILOT and nothing.judgements[0].n == 2


def test_functions_and_their_options(cache: Path) -> None:
    changes: dict[str, Any] = {
        "arms__trained": {
            "function": "claims_book:fine",
            "grid": {"options.bonus": [1.0, 2.0]},
            "choose": "task/accuracy@validation",
        }
    }
    result = only(verify(book(**changes), cache=cache, **HERE))
    assert result.arms[0].values["accuracy"] == {0: 52.0, 1: 53.0, 2: 54.0}


def test_measures_after_a_run(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "arms__trained": {"measure": "claims_book:measured", "set": {"train.steps": 0}},
        "claims__0__expect": ["max(trained.other) == 2"],
    }
    result = only(verify(book(**changes), cache=tmp_path, **HERE))
    assert result.arms[0].values["other"] == {0: 0.0, 1: 1.0, 2: 2.0}


def test_undefined_values_are_said(cache: Path) -> None:
    result = only(verify(book(arms__trained={"function": "claims_book:undefined"}), cache=cache, **HERE))
    assert result.verdict is Verdict.UNDECIDED
    assert result.judgements[0].missing == {"trained.accuracy": [2]}
    json.dumps(result.as_dict(), allow_nan=False)


def test_one_arms_crash_is_shown_and_the_others_survive(cache: Path) -> None:
    result = only(verify(book(arms__trained={"function": "claims_book:crash"}), cache=cache, **HERE))
    trained, untrained = result.arms
    assert set(trained.failures) == {1}
    assert "ZeroDivisionError: a bug in the arm (claims_book.py" in trained.failures[1]
    assert set(trained.values["accuracy"]) == {0, 2} and set(untrained.values["accuracy"]) == {0, 1, 2}
    assert result.verdict in (Verdict.UNDECIDED, Verdict.FAILS)
    (error,) = cache.glob("*.failed/error.txt")
    assert "Traceback" in error.read_text()
    assert verify(book(arms__trained={"function": "claims_book:crash"}), cache=cache, **HERE).ran == 1


def test_a_run_that_fails_is_shown(tmp_path: Path) -> None:
    steep = {"train.steps": 60, "optimizer.lr": 1000.0, "optimizer.momentum": 0.99}
    result = only(verify(book(arms__trained__set=steep, scales__laptop__seeds=[0]), cache=tmp_path, **HERE))
    assert result.verdict is Verdict.NOT_RUN
    assert result.arms[0].failures[0].startswith("step ")


# ---- what is not here --------------------------------------------------------------------------------------------
def test_data_that_is_not_here_is_not_run_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "absent_data.py").write_text(
        "from plait.errors import BadInput\ndef load(seed):\n    raise BadInput('data absent: get it from somewhere')\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        changes = {"scales__laptop__recipe__data": {"name": "absent_data:load"}}
        result = only(verify(book(**changes, arms__trained__set={}), cache=tmp_path / "cache", **HERE))
    finally:
        sys.path.remove(str(tmp_path))
    assert result.verdict is Verdict.NOT_RUN and "get it from somewhere" in result.reason
    assert not result.arms[0].failures


def test_packages_and_environment_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = only(verify(book(scales__laptop__recipe__data={"name": "nowhere"}, arms__trained__set={}), cache=tmp_path))
    assert absent.verdict is Verdict.NOT_RUN and "no data source named 'nowhere'" in absent.reason
    changes: dict[str, Any] = {
        "scales__laptop__environment": {"PLAIT_TEST_SIZE": "the side of the images"},
        "scales__laptop__recipe__data__size": "$PLAIT_TEST_SIZE",
        "arms__trained__set": {"train.steps": 1},
        **ONE_SEED,
    }
    unset = only(verify(book(**changes), cache=tmp_path))
    assert unset.verdict is Verdict.NOT_RUN and "PLAIT_TEST_SIZE is not set; it names the side" in unset.reason
    monkeypatch.setenv("PLAIT_TEST_SIZE", "10")
    assert only(verify(book(**changes), cache=tmp_path, **HERE)).verdict is not Verdict.NOT_RUN


def test_an_arm_may_need_data_that_others_do_not(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {
        "scales__laptop__environment": {"PLAIT_TEST_SIZE": "the side of the images"},
        "arms__other": {"set": {"train.steps": 1, "data.size": "$PLAIT_TEST_SIZE"}},
    }
    claims = book(**changes)
    other = claims.claims[0].model_copy(update={"id": "other", "expect": ("other.accuracy - untrained.accuracy > 0",)})
    claims = claims.model_copy(update={"claims": (*claims.claims, other)})
    results = {r.claim.id: r for r in verify(claims, cache=cache, **HERE).claims}
    assert results["learns"].verdict is Verdict.HOLDS and results["other"].verdict is Verdict.NOT_RUN
    assert "PLAIT_TEST_SIZE is not set" in results["other"].reason
    monkeypatch.setenv("PLAIT_TEST_SIZE", "10")
    assert only(verify(claims, cache=cache, only=["other"], **HERE)).verdict is not Verdict.NOT_RUN


def test_a_scale_that_a_claim_has_not(tmp_path: Path) -> None:
    result = only(verify(book(), scale="paper", cache=tmp_path))
    assert result.verdict is Verdict.NOT_RUN and "no experiment at the scale paper" in result.reason


def test_an_extra_runs_only_when_it_is_asked_for(cache: Path) -> None:
    claims = book()
    long = claims.claims[0].model_copy(update={"id": "long", "extra": True, "gate": False, "minutes": {"laptop": 90}})
    claims = claims.model_copy(update={"claims": (*claims.claims, long)})
    plain = {r.claim.id: r for r in verify(claims, cache=cache, **HERE).claims}
    assert plain["learns"].verdict is Verdict.HOLDS and plain["long"].verdict is Verdict.NOT_RUN
    assert "about 90 minutes" in plain["long"].reason and "--claim long" in plain["long"].reason
    for asked in ({"extra": True}, {"only": ["long"]}):
        answered = {r.claim.id: r.verdict for r in verify(claims, cache=cache, **HERE, **asked).claims}
        assert answered["long"] is Verdict.HOLDS


def test_plugins_that_cannot_work_together(tmp_path: Path, install: Callable[..., None]) -> None:
    class Needy(Plugin):
        """Needs what nobody has."""

        name = "needy"
        contract = 1

        def needs(self) -> frozenset[str]:
            return frozenset({"field:nothing"})

        @hookimpl
        def update_masks(self) -> None:
            return

    install(Needy)
    result = only(verify(book(arms__trained__plugins={"needy": {}}), cache=tmp_path, **HERE))
    assert result.verdict is Verdict.NOT_RUN and "cannot work together" in result.reason


# ---- seeds, settings, arguments ----------------------------------------------------------------------------------
def test_more_and_fewer_seeds(cache: Path) -> None:
    assert only(verify(book(), seeds=1, cache=cache, **HERE)).seeds == (0,)
    more = verify(book(scales__laptop__tuning_seeds=[3]), seeds=4, cache=cache, **HERE)
    assert only(more).seeds == (0, 1, 2, 4)  # never a tuning seed
    assert more.cached == 6


def test_settings_change_every_arm_and_are_said(tmp_path: Path) -> None:
    small = verify(book(**ONE_SEED), settings={"train.batch_size": 16}, cache=tmp_path, **HERE)
    assert small.ran == 2
    assert small.as_dict()["settings"] == {"train.batch_size": 16}
    with pytest.raises(BadInput, match=r"--set chase\.density"):
        verify(book(), settings={"chase.density": 1}, cache=tmp_path, **HERE)
    epochs = verify(book(**ONE_SEED), settings={"train.epochs": 1}, cache=tmp_path, **HERE)
    assert epochs.ran == 1  # in the arms' budget of steps lay the only difference
    assert not only(epochs).reason


@pytest.mark.parametrize("bad", [{"seeds": 0}, {"workers": -1}, {"only": ["larns"]}])
def test_bad_arguments(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        verify(book(), cache=tmp_path, **bad)
    with pytest.raises(BadInput, match=r"brings no claims\.toml"):
        verify("task", cache=tmp_path)


# ---- processes ---------------------------------------------------------------------------------------------------
def test_workers_give_the_same_bits_and_a_killed_one_loses_no_other(
    verified: tuple[Path, Verification], tmp_path: Path
) -> None:
    claims = book(arms__dies={"function": "claims_book:die"})
    dies = claims.claims[0].model_copy(update={"id": "dies", "expect": ("dies.accuracy > 0",)})
    claims = claims.model_copy(update={"claims": (*claims.claims, dies)})
    learns, killed = verify(claims, cache=tmp_path, workers=2).claims
    assert learns.as_dict() == only(verified[1]).as_dict()
    (arm,) = killed.arms
    assert set(arm.failures) == {1}
    assert "its process died twice" in arm.failures[1]
    assert set(arm.values["accuracy"]) == {0, 2}


LONGER: dict[str, Any] = {"arms__trained__set": {"train.steps": 250}}
SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from claims_book import book
from plait_experiments.verification import verify
if __name__ == "__main__":
    verify(book(**{changes!r}), cache={cache!r}, workers={workers})
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Verification:
    return verify(book(**LONGER), cache=tmp_path_factory.mktemp("unbroken"), **HERE)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGKILL, 1), (signal.SIGINT, 2)])
def test_stopped_while_verifying(tmp_path: Path, number: int, workers: int, unbroken: Verification) -> None:
    cache = tmp_path / "cache"
    script = tmp_path / "long.py"
    tests = str(Path(__file__).parent)
    script.write_text(SCRIPT.format(tests=tests, cache=str(cache), changes=LONGER, workers=workers))
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background of a shell ignores Ctrl-C, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not list(cache.glob("*/cell.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = _children(process.pid)
    os.kill(process.pid, number)
    _, complaint = process.communicate(timeout=200)
    done = len(list(cache.glob("*/cell.json")))
    assert 1 <= done < 6
    if number == signal.SIGINT:
        assert "Interrupted: stopped; every finished cell is kept" in complaint
    for _ in range(400):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            break
        time.sleep(0.05)
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)  # nobody goes on unseen
    kept = len(list(cache.glob("*/cell.json")))
    again = verify(book(**LONGER), cache=cache, **HERE)
    assert again.cached == kept >= done
    assert again.ran == 6 - kept
    assert again.as_dict()["claims"] == unbroken.as_dict()["claims"]


def _children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children}
    return [int(child) for child, command in commands.items() if "spawn_main" in command]


def test_a_real_local_ray(verified: tuple[Path, Verification], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # its 15 starves on a machine that runs other tests
    one_seed = book(**ONE_SEED)
    on_ray = verify(one_seed, cache=tmp_path, workers=1, ray="local")
    assert on_ray.ran == 2
    assert only(on_ray).as_dict() == only(verify(one_seed, cache=verified[0], **HERE)).as_dict()
    assert verify(one_seed, cache=tmp_path, **HERE).ran == 0  # what the cluster ran is kept here


def test_no_ray_there(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(BadInput, match="--ray"):
        verify(book(), cache=tmp_path, ray="nonsense://address")

"""The simulator against numbers by hand, its invariants, and the generator and readers of traces."""

from __future__ import annotations

import gzip
import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plait_malletrain.comparison import compare, scenario
from plait_malletrain.errors import MalletrainError
from plait_malletrain.generator import summit_like
from plait_malletrain.options import POLICIES, MalletrainOptions
from plait_malletrain.simulation import simulate
from plait_malletrain.traces import (
    Trace,
    from_changes,
    from_fragments,
    read_trace,
    static_trace,
    unpickled,
    without_maintenance,
    write_changes,
)
from plait_malletrain.workloads import Workload, workload

THETA = Path(__file__).parents[4] / "shared/data/swf/theta_2023.swf.gz"


def one_job(work: float, rate: float = 10.0, most: int = 4, arrival: float = 0.0) -> Workload:
    """A job of linear scaling; grows in 18 s, shrinks in 12 s."""
    rates = rate * np.arange(most + 1.0)[None]
    column = np.ones(1)
    return Workload("one", rates, work * column, arrival * column, 18 * column, 12 * column, nmax=most)


# ---- by hand -------------------------------------------------------------------------------------------------------
def test_a_job_on_dedicated_nodes() -> None:
    """4 nodes for 118 s, 18 s to start: 100 s at 40 samples/s."""
    outcome = simulate(static_trace(4, 118.0), one_job(1e9), "oracle")
    assert outcome.samples.tolist() == [4000.0]
    assert outcome.throughput == pytest.approx(4000 / 118) and outcome.normalised == pytest.approx(400 / 118)
    assert outcome.stall_share == pytest.approx(18 / 118) and outcome.utilisation == 1.0


def test_a_job_ends_when_its_work_is_done() -> None:
    outcome = simulate(static_trace(4, 200.0), one_job(2000.0), "oracle")
    assert outcome.done == 1 and outcome.samples.tolist() == [2000.0]
    assert outcome.times[-1] == pytest.approx(18 + 50) and outcome.used[-1] == 0
    assert outcome.utilisation == pytest.approx(68 / 200)


def test_a_node_that_vanishes_costs_the_step_under_way() -> None:
    """Node 1 of 2 leaves at 30.3 s: started at 18, 24 whole steps of 0.5 s are kept, then 12 s stall, then one node."""
    trace = from_fragments(2, 100.0, [0, 1], [0, 0], [100, 30.3], "by hand")
    outcome = simulate(trace, one_job(1e9), "oracle")
    assert outcome.lost == pytest.approx(20 * 0.3)
    assert outcome.samples[0] == pytest.approx(20 * 12 + 10 * (100 - 42.3))
    assert outcome.main_queue_delay == 0


def test_a_job_below_nmin_waits_with_its_state_kept() -> None:
    """The only node is gone from 50 to 60 s: every start stalls 18 s."""
    trace = from_fragments(1, 100.0, [0, 0], [0, 60], [50, 100], "by hand")
    outcome = simulate(trace, one_job(1e9), "oracle")
    assert outcome.samples[0] == pytest.approx(10 * 32 + 10 * 22)


def test_a_new_stall_never_shortens_a_running_one() -> None:
    """Started at 0 (until 18 s); a node leaves at 1 s, which alone would stall until 13 s."""
    trace = from_fragments(2, 100.0, [0, 1], [0, 0], [100, 1], "by hand")
    assert simulate(trace, one_job(1e9), "oracle").samples[0] == pytest.approx(10 * 82)


def test_a_job_that_comes_later_and_a_machine_without_jobs_or_nodes() -> None:
    assert simulate(static_trace(1, 100.0), one_job(1e9, arrival=40.0), "oracle").samples[0] == pytest.approx(420)
    none = workload("nas", 0, 0)
    for policy in POLICIES:
        assert simulate(static_trace(3, 10.0), none, policy).throughput == 0
        empty = simulate(from_fragments(3, 10.0, [], [], [], "empty"), one_job(1.0), policy)
        assert empty.utilisation is None and empty.normalised == 0


def test_the_stalls_of_a_profile() -> None:
    """Sizes 16, 8, 4, 2, 1: up once and down four times; ascending five times up."""
    options = MalletrainOptions(profile="always")
    jobs = workload("hpo", 1, 0)
    stalls = {}
    for policy in ("malletrain", "malletrain-ascending"):
        outcome = simulate(static_trace(16, 3600.0), jobs, policy, options)
        assert outcome.profiles == 1
        stalls[policy] = outcome.profile_stall
    assert stalls == {"malletrain": pytest.approx(18 + 4 * 12), "malletrain-ascending": pytest.approx(5 * 18)}


# ---- invariants ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_bits_twice_and_nothing_impossible(policy: str) -> None:
    options = MalletrainOptions(hours=3, nodes=128)
    trace, jobs = scenario(options, 3)
    first, second = (simulate(trace, jobs, policy, options) for _ in range(2))
    left_out = {"solver_ms", "samples"}
    assert {k: v for k, v in vars(first).items() if k not in left_out} == {
        k: v for k, v in vars(second).items() if k not in left_out
    }
    assert np.array_equal(first.samples, second.samples)
    assert np.all(first.samples >= 0) and np.all(first.samples <= jobs.work)
    assert all(0 <= used <= pool for used, pool in zip(first.used, first.pool, strict=True))
    assert first.utilisation is not None and 0.9 < first.utilisation <= 1 + 1e-12


def test_what_profiling_learns_is_true_and_worth_it() -> None:
    result = compare(MalletrainOptions(hours=8, nodes=256), (101, 102), ("equal", "malletrain", "oracle"))
    assert min(result.ratios("malletrain", "equal")) > 1.0
    assert max(result.ratios("malletrain", "oracle")) <= 1.005
    assert all(o.curve_error is not None and o.curve_error < 0.01 for o in result.outcomes["malletrain"])
    assert "1 seed" not in result.table().title and len(result.table().rows) == 3
    assert result.metrics()["over_equal"].value > 1 and {"pool", "oracle"} <= set(result.plots())


def test_the_simulator_needs_no_torch() -> None:
    code = "import sys, plait_malletrain.comparison, plait_malletrain.commands, plait_malletrain.manager; "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- traces --------------------------------------------------------------------------------------------------------
def test_the_generator_is_as_the_card_says() -> None:
    trace = summit_like(1024, 240.0, 7)
    length = trace.end - trace.start
    assert np.percentile(length, [5, 25, 50, 75, 95]) == pytest.approx([81, 162, 475, 1397, 4723], rel=0.15)
    assert trace.node_seconds / trace.duration / 1024 == pytest.approx(0.09, abs=0.015)
    _, pool = trace.pool
    # the real pool varies far more (p95 over median: 21): this is what the recipe does not give
    assert np.percentile(pool, 95) / np.median(pool) < 4
    assert np.array_equal(trace.start, summit_like(1024, 240.0, 7).start)
    order = np.lexsort((trace.start, trace.node))
    same = trace.node[order][1:] == trace.node[order][:-1]
    assert np.all(trace.start[order][1:][same] >= trace.end[order][:-1][same])  # no node is idle twice at once


def test_changes_with_nonsense_are_mended_and_said() -> None:
    trace = from_changes([0, 1, 1, 2, 5], [0, 0, 1, 1, 0], [1, 1, 0, 1, 0], 2, 10.0, "x")
    assert sorted(zip(trace.node.tolist(), trace.start, trace.end, strict=True)) == [(0, 0.0, 5.0), (1, 2.0, 10.0)]
    assert "1 joins of nodes already there ignored" in trace.notes[0] and "1 leaves of absent nodes" in trace.notes[1]
    for arguments, said in (
        (([], [], []), "the trace is empty"),
        (([0, 3, 2], [0, 0, 0], [1, 0, 1]), "change 3: time = 2 is before 3"),
        (([0], [7], [1]), "there is no node 7"),
        (([np.nan], [0], [1]), "change 1: the time is no number"),
    ):
        with pytest.raises(MalletrainError, match=said):
            from_changes(*arguments, 2, 10.0, "x")


SWF = """; MaxNodes: 4
1 0 0 100 2 -1 -1 2 -1 -1 1
2 10 5.0 50 4 -1 -1 4 -1 -1 1
3 60 0 -1 1 -1 -1 1 -1 -1 1
4 120 0 30 -1 -1 -1 3 -1 -1 1
"""


def test_a_job_log_by_hand(tmp_path: Path) -> None:
    """Job 2 wants 4 nodes and 2 are left: clipped. Job 3 never ran. Job 4 says only what it wanted."""
    file = tmp_path / "log.swf.gz"
    file.write_bytes(gzip.compress(SWF.encode()))
    trace = read_trace(file, "swf", skip_maintenance=False)
    idle = sorted(zip(trace.node.tolist(), trace.start, trace.end, strict=True))
    assert idle == [
        (0, 100.0, 120.0),
        (1, 100.0, 120.0),
        (2, 0.0, 15.0),
        (2, 65.0, 120.0),
        (3, 0.0, 15.0),
        (3, 65.0, 150.0),
    ]
    assert "1 of 3 jobs clipped" in trace.notes[0] and trace.duration == 150.0
    times, pool = trace.pool
    assert dict(zip(times.tolist(), pool.tolist(), strict=True)) == {0: 2, 15: 0, 65: 2, 100: 4, 120: 1, 150: 0}
    shorter = without_maintenance(trace)  # from 100 to 120 all is idle
    assert shorter.duration == 130.0 and "left out" in shorter.notes[-1]
    assert shorter.node_seconds == trace.node_seconds - 4 * 20
    assert read_trace(file, "swf", start=65, seconds=10, skip_maintenance=False).node_seconds == 20.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 2 3\n", "line 1: 3 fields"),
        ("; MaxNodes: 4\n", "the trace is empty"),
        ("1 0 0 ten 2 -1 -1 2 -1 -1 1\n", "line 1: .*a field is no number"),
        ("1 0 0 -1 2 -1 -1 2 -1 -1 1\n", "no job of it ran"),
    ],
)
def test_bad_job_logs(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "log.swf").write_text(text)
    with pytest.raises(MalletrainError, match=said):
        read_trace(tmp_path / "log.swf", "swf")


def test_tables_come_back_as_they_were(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    trace = summit_like(64, 2.0, 0)
    for name in ("changes.csv", "changes.parquet"):
        write_changes(trace, tmp_path / name)
        again = read_trace(tmp_path / name, "table")
        assert again.node_seconds == pytest.approx(trace.node_seconds) and again.duration == trace.duration
    (tmp_path / "bad.csv").write_text("time,node\n0,1\n")
    with pytest.raises(MalletrainError, match="no column 'idle'"):
        read_trace(tmp_path / "bad.csv", "table")


def test_replayer_pickles_are_read_only_on_request_and_never_run(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    stamps = pandas.to_datetime(["2021-02-10 00:00:00", "2021-02-10 00:01:00", "2021-02-10 00:03:00"])
    frame = pandas.DataFrame(
        [[1, 0], [1, 1], [0, 1]], index=stamps, columns=pandas.Index(["n1", "n10"], dtype=object), dtype="int8"
    )
    file = tmp_path / "ndstat-x.pkl"
    frame.to_pickle(file)
    with pytest.raises(MalletrainError, match="only with --allow-pickle"):
        read_trace(file, "replayer")
    trace = read_trace(file, "replayer", allow_pickle=True)
    assert sorted(zip(trace.node.tolist(), trace.start, trace.end, strict=True)) == [(0, 0.0, 180.0), (1, 60.0, 180.0)]

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {tmp_path / 'owned'}",)

    for content in (pickle.dumps(Evil()), b"junk", pickle.dumps([np.load])):
        with pytest.raises(MalletrainError, match="refused"):
            unpickled(io.BytesIO(content), "evil.pkl")
    assert not (tmp_path / "owned").exists()


def test_slices_and_every_nth_node() -> None:
    trace = static_trace(8, 100.0)
    assert trace.thinned(3).nodes == 3 and trace.thinned(3).node_seconds == 300
    assert trace.slice(90, 50).duration == 10
    with pytest.raises(MalletrainError, match="from"):
        trace.slice(100, 1)


def test_the_log_of_theta() -> None:
    if not THETA.exists():
        pytest.skip(f"{THETA} is not here")
    trace = read_trace(THETA, "swf")
    assert trace.nodes == 4360 and len(trace.notes) == 3
    assert trace.node_seconds / trace.duration / trace.nodes == pytest.approx(0.075, abs=0.002)
    assert np.percentile(trace.pool[1], 50) < 400


def test_an_outcome_depends_on_nothing_but_its_arguments() -> None:
    """Fragments in another order are the same trace."""
    trace, jobs = scenario(MalletrainOptions(hours=1, nodes=64), 0)
    order = np.random.default_rng(0).permutation(len(trace.node))
    shuffled = Trace(trace.nodes, trace.duration, trace.node[order], trace.start[order], trace.end[order], trace.name)
    assert simulate(shuffled, jobs, "malletrain").throughput == simulate(trace, jobs, "malletrain").throughput

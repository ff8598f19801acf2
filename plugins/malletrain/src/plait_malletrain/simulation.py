"""The discrete-event simulator: a trace of idle nodes, a list of jobs and a policy give samples, stalls and re-plans.

Between two events rates are constant, so progress is exact. At an event, in this order: progress is settled, lost nodes
leave their jobs, ended jobs leave, queued ones are admitted, the JPA decides, the policy allocates, the map changes.
The same arguments give the same bits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .curves import CurveTable
from .options import MalletrainOptions
from .policies import POLICY, Standing, decide
from .profiling import Profile, begun, worthwhile
from .traces import Trace
from .workloads import Workload

__all__ = ["Outcome", "simulate"]

Floats = NDArray[np.float64]
BUSY, FREE = -2, -1
DONE = 1e-9
"""Part of a job's work below which it is done: what adding up rounds."""


@dataclass
class Outcome:
    """What came of a simulation.

    Attributes:
        policy: who decided.
        throughput: samples committed over duration, samples/s.
        normalised: the same in one-node equivalents: sum of samples_j / rate_j(1) over duration.
        utilisation: used over idle node-seconds, 0..1; None where the pool was empty.
        stall_share: stalled over used node-seconds.
        profile_overhead: node-seconds stalled in profiling over all that profiled jobs held.
        profile_stall: mean stalled seconds of a complete profile of at least 4 sizes; None where there was none.
        curve_error: mean relative error of the believed speedup, weighted by the time at each size; None without one.
        main_queue_delay: longest wait of the batch system for a node, seconds.
        lost: samples that were done and not committed when a node vanished.
        done: jobs that ended; ``profiles`` that were complete.
        resizes, replans, events: counts; ``nodes_per_job`` the mean pool over the jobs that run.
        equivalent_nodes: mean idle nodes.
        times, pool, used: series: seconds, idle nodes, nodes in use from then on.
        samples: committed by each job [M].
        solver_ms: wall time of each re-plan; the only thing here that differs from run to run.
    """

    policy: str
    duration: float
    throughput: float = 0.0
    normalised: float = 0.0
    utilisation: float | None = None
    stall_share: float = 0.0
    profile_overhead: float = 0.0
    profile_stall: float | None = None
    curve_error: float | None = None
    main_queue_delay: float = 0.0
    lost: float = 0.0
    done: int = 0
    profiles: int = 0
    resizes: int = 0
    replans: int = 0
    events: int = 0
    nodes_per_job: float = 0.0
    equivalent_nodes: float = 0.0
    times: list[float] = field(default_factory=list)
    pool: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    samples: Floats = field(default_factory=lambda: np.zeros(0))
    solver_ms: list[float] = field(default_factory=list)


class _Simulation:
    """The state between two events. M jobs, N nodes."""

    def __init__(self, trace: Trace, jobs: Workload, policy: str, options: MalletrainOptions) -> None:
        self.trace, self.jobs, self.options, self.policy = trace, jobs, options, POLICY[policy]
        count = len(jobs)
        exponent = self.policy.exponent or options.prior
        self.tables = [CurveTable(jobs.nmax, jobs.up[j], jobs.down[j], exponent) for j in range(count)]
        self.left = jobs.work.copy()
        self.held = np.zeros(count, dtype=np.int64)
        self.stalled = np.zeros(count)  # until when it stands still
        self.changed = np.zeros(count)  # when its size changed last
        self.known = np.zeros(count, dtype=bool)  # whether its present stay is measured
        self.owner = np.full(trace.nodes, BUSY, dtype=np.int64)
        self.since = np.zeros(trace.nodes, dtype=np.int64)  # the how-many-th taking of a node this was
        self.taken = 0
        self.active: list[int] = []
        self.queue = 0  # the next job to come
        self.profile: Profile[int] | None = None
        self.profiled = np.zeros(count, dtype=bool)
        self.now = 0.0
        self.used_s = self.stalled_s = self.profile_s = self.profiled_s = self.jobs_s = 0.0
        self.at_size = np.zeros((count, jobs.nmax + 1))
        self.stalls: dict[int, float] = {}
        self.finished_stalls: list[float] = []
        self.outcome = Outcome(policy, trace.duration)
        speedups = jobs.rates / jobs.rates[:, 1:2] if count else jobs.rates
        believed = {
            "equal": speedups,
            "linear": np.tile(np.arange(jobs.nmax + 1.0), (count, 1)),
            "mean": np.tile(speedups.mean(0), (count, 1)) if count else speedups,
            "wrong": np.roll(speedups, -1, axis=0),
            "true": speedups,
        }
        self.believed = believed.get(self.policy.knows)
        self.speedups = speedups

    # ---- between two events ----------------------------------------------------------------------------------------
    def next_event(self, change: float) -> float:
        """When something happens next, the trace's next change at ``change``."""
        times = [change, self.trace.duration]
        if self.queue < len(self.jobs) and len(self.active) < self.options.max_parallel:
            times.append(max(self.now, float(self.jobs.arrival[self.queue])))
        if self.active:
            running = np.array(self.active)
            rate = self.jobs.rates[running, self.held[running]]
            moving = rate > 0
            if moving.any():
                start = np.maximum(self.now, self.stalled[running][moving])
                times.append(float((start + self.left[running][moving] / rate[moving]).min()))
            if self.policy.knows == "table" and (new := self.unmeasured()):
                ready = np.maximum(self.changed[new], self.stalled[new]) + self.options.measurement
                times.append(max(self.now, float(ready.min())))
        if self.profile is not None and self.profile.due is not None:
            times.append(self.profile.due)
        return min(times)

    def unmeasured(self) -> list[int]:
        """Running jobs whose present size is a new one, which their stay will measure."""
        return [
            j for j in self.active if self.held[j] and not self.known[j] and self.held[j] not in self.tables[j].rates
        ]

    def settle(self, to: float) -> None:
        """Let the running jobs work until ``to``."""
        span = to - self.now
        if span > 0 and self.active:
            running = np.array(self.active)
            held = self.held[running]
            still = np.clip(self.stalled[running] - self.now, 0.0, span)
            done = self.jobs.rates[running, held] * (span - still)
            self.left[running] -= np.minimum(done, self.left[running])
            self.used_s += float(held.sum()) * span
            self.stalled_s += float((held * still).sum())
            self.jobs_s += len(running) * span
            self.at_size[running, held] += span
            if self.profile is not None:
                at = self.active.index(self.profile.job)
                self.profile_s += float(held[at] * still[at])
                self.stalls[self.profile.job] = self.stalls.get(self.profile.job, 0.0) + float(still[at])
        self.now = to

    def learn(self) -> None:
        """Passive learning: a stay that was long enough is a measurement."""
        if self.policy.knows != "table":
            return
        for job in self.active:
            if self.held[job] and not self.known[job]:
                stay = self.now - max(self.changed[job], self.stalled[job])
                if stay >= self.options.measurement - 1e-9:
                    rate = float(self.jobs.rates[job, self.held[job]])
                    self.tables[job].record(int(self.held[job]), rate * stay, stay)
                    self.known[job] = True

    # ---- at an event -----------------------------------------------------------------------------------------------
    def change_nodes(self, nodes: NDArray[np.int64], joins: NDArray[np.bool_]) -> None:
        """Nodes vanish from their jobs, then others join the pool."""
        gone, come = nodes[~joins], nodes[joins]
        losers = self.owner[gone]
        self.owner[gone] = BUSY
        for job in np.unique(losers[losers >= 0]).tolist():
            before = int(self.held[job])
            self.held[job] -= int((losers == job).sum())
            run = self.now - max(self.changed[job], self.stalled[job])
            if run > 0:  # the step that was under way
                lost = float(self.jobs.rates[job, before]) * (run % self.options.step_seconds)
                lost = min(lost, float(self.jobs.work[job] - self.left[job]))
                self.left[job] += lost
                self.outcome.lost += lost
            if self.held[job] < self.jobs.nmin:
                self.release(job, int(self.held[job]))
                self.held[job] = 0
                if self.profile is not None and self.profile.job == job:
                    self.profile = None
            elif self.profile is not None and self.profile.job == job:
                self.profile.lost(int(self.held[job]))
            self.stand_still(job, float(self.jobs.down[job]) if self.held[job] else 0.0)
        self.owner[come] = FREE

    def stand_still(self, job: int, seconds: float) -> None:
        """Its size has changed; a new stall never shortens a running one."""
        self.stalled[job] = max(self.stalled[job], self.now + seconds)
        self.changed[job], self.known[job] = self.now, False
        self.outcome.resizes += 1

    def release(self, job: int, count: int) -> None:
        """Give back so many nodes, the newest first."""
        if count:
            own = np.flatnonzero(self.owner == job)
            self.owner[own[np.argsort(-self.since[own], kind="stable")[:count]]] = FREE

    def acquire(self, job: int, count: int) -> None:
        """Take so many free nodes, the lowest first."""
        free = np.flatnonzero(self.owner == FREE)[:count]
        self.owner[free], self.since[free] = job, self.taken
        self.taken += 1

    def end_jobs(self) -> None:
        """Jobs whose work is done leave."""
        for job in list(self.active):
            if self.left[job] <= DONE * self.jobs.work[job]:
                self.left[job] = 0.0
                self.release(job, int(self.held[job]))
                self.held[job] = 0
                self.active.remove(job)
                self.outcome.done += 1
                if self.profile is not None and self.profile.job == job:
                    self.profile = None

    def admit(self) -> None:
        """Jobs that have come start to wait for nodes, as many as may run."""
        while (
            self.queue < len(self.jobs)
            and len(self.active) < self.options.max_parallel
            and self.jobs.arrival[self.queue] <= self.now
        ):
            self.active.append(self.queue)
            self.queue += 1

    def advise(self, nodes: int) -> None:
        """The JPA: end the measurement that is due, go to the next size, or begin with the next job."""
        if not self.policy.profiles:
            return
        profile = self.profile
        if profile is not None and profile.due is not None and self.now >= profile.due:
            job = profile.job
            stay = self.now - max(self.changed[job], self.stalled[job])
            self.tables[job].record(profile.size, float(self.jobs.rates[job, profile.size]) * stay, stay)
            self.known[job] = True
            if profile.step_done():
                self.profile = None
                self.profiled[job] = True
                self.outcome.profiles += 1
                if len(profile.measured) >= 4:
                    self.finished_stalls.append(self.stalls[job])
        if self.profile is None:
            self.begin_profile(nodes)

    def begin_profile(self, nodes: int) -> None:
        """Profile the first job that needs it, if every other running one can keep nmin nodes."""
        others = {j: self.jobs.nmin for j in self.active if self.held[j]}
        for job in self.active:
            if self.profiled[job]:
                continue
            rest = [nmin for other, nmin in others.items() if other != job]
            most = min(self.jobs.nmax, self.options.profile_max)
            shares, ascending = self.options.profile_shares, self.policy.ascending
            profile = begun(job, nodes, most, self.jobs.nmin, rest, shares, ascending)
            if profile is None:
                return
            table = self.tables[job]
            if self.options.profile == "auto":
                if not table.rates or not self.held[job]:  # how long it will run is not known yet
                    continue
                remaining = float(self.left[job] / table.curve[self.held[job]])
                if not worthwhile(remaining, len(profile.sizes), table.up, table.down):
                    self.profiled[job] = True
                    continue
            self.profile, self.stalls[job] = profile, 0.0
            return

    def values(self, job: int) -> Floats:
        """What the policy believes a job to be worth at every size."""
        if self.believed is not None:
            factor = self.jobs.rates[job, 1] if self.options.objective == "throughput" else 1.0
            worth: Floats = self.believed[job] * factor
            return worth
        table = self.tables[job]
        if self.options.objective == "speedup":
            return table.speedup
        if table.rates:
            return table.curve
        known = [t.curve[1] for t in (self.tables[j] for j in self.active) if t.rates]
        guess: Floats = table.speedup * (float(np.mean(known)) if known else 1.0)
        return guess

    def replan(self, nodes: int) -> None:
        """Allocate, and apply the difference."""
        measured = self.profile.job if self.profile is not None else None
        size = self.profile.size if self.profile is not None else None
        began = time.perf_counter()
        standings = [
            Standing(
                self.values(job),
                int(self.held[job]),
                self.jobs.nmin,
                self.jobs.nmax,
                float(self.jobs.up[job]),
                float(self.jobs.down[job]),
                size if job == measured else None,
            )
            for job in self.active
        ]
        counts = decide(self.policy, standings, nodes, self.options.horizon)
        self.outcome.solver_ms.append(1e3 * (time.perf_counter() - began))
        self.outcome.replans += 1
        pairs = [(j, n, n - int(self.held[j])) for j, n in zip(self.active, counts, strict=True)]
        for job, count, more in pairs:
            if more < 0:
                self.release(job, -more)
                self.held[job] = count
                self.stand_still(job, float(self.jobs.down[job]) if count else 0.0)
        for job, count, more in pairs:
            if more > 0:
                self.acquire(job, more)
                self.held[job] = count
                self.stand_still(job, float(self.jobs.up[job]))
        if self.profile is not None and self.profile.due is None:
            job = self.profile.job
            if self.held[job] == self.profile.size:
                self.profile.due = max(self.now, float(self.stalled[job])) + self.options.measurement

    def run(self) -> Outcome:
        """All events."""
        times, first, nodes, joins = self.trace.events
        change, here, outcome = 0, 0, self.outcome
        duration = self.trace.duration
        while True:
            at = self.next_event(float(times[change]) if change < len(times) else duration)
            self.settle(at)
            if self.now >= duration:
                break
            self.learn()
            if change < len(times) and times[change] <= self.now:
                part = slice(first[change], first[change + 1])
                self.change_nodes(nodes[part], joins[part])
                here += int(2 * joins[part].sum() - (part.stop - part.start))
                change += 1
            self.end_jobs()
            self.admit()
            self.advise(here)
            self.check(here)
            self.replan(here)
            outcome.events += 1
            outcome.times.append(self.now)
            outcome.pool.append(here)
            outcome.used.append(int(self.held.sum()))
        return self.summary()

    def check(self, nodes: int) -> None:
        """A profile that no longer fits the pool is given up."""
        profile = self.profile
        if profile is not None:
            room = nodes - sum(self.jobs.nmin for j in self.active if self.held[j] and j != profile.job)
            if profile.size > room and (not profile.fits(room) or not self.held[profile.job]):
                self.profile = None

    def summary(self) -> Outcome:
        """The figures at the end."""
        outcome, jobs, duration = self.outcome, self.jobs, self.trace.duration
        outcome.samples = jobs.work - self.left
        outcome.throughput = float(outcome.samples.sum() / duration)
        if len(jobs):
            outcome.normalised = float((outcome.samples / jobs.rates[:, 1]).sum() / duration)
        whole = self.trace.node_seconds
        outcome.equivalent_nodes = whole / duration
        outcome.utilisation = self.used_s / whole if whole else None
        outcome.stall_share = self.stalled_s / self.used_s if self.used_s else 0.0
        outcome.nodes_per_job = whole / self.jobs_s if self.jobs_s else 0.0
        if self.policy.profiles:
            touched = np.array(sorted(self.stalls), dtype=np.int64)
            held = float((self.at_size[touched] * np.arange(jobs.nmax + 1)).sum())
            outcome.profile_overhead = self.profile_s / held if held else 0.0
            stalls = self.finished_stalls
            outcome.profile_stall = float(np.mean(stalls)) if stalls else None
        weight = self.at_size[:, 1:]
        if weight.sum() and self.policy.knows != "equal":
            worked = np.flatnonzero(weight.sum(1))
            believed = (
                self.believed[worked, 1:]
                if self.believed is not None
                else np.array([self.tables[j].speedup[1:] for j in worked])
            )
            true = self.speedups[worked, 1:]
            error = np.abs(believed - true) / true
            outcome.curve_error = float((error * weight[worked]).sum() / weight.sum())
        return outcome


def simulate(
    trace: Trace,
    jobs: Workload,
    policy: str,
    options: MalletrainOptions | None = None,
) -> Outcome:
    """Run a list of jobs on a trace of idle nodes.

    Args:
        trace: which nodes are idle when.
        jobs: what there is to do.
        policy: one of `plait_malletrain.policies.POLICY`.
        options: default the defaults; those of trace and jobs are not looked at.
    """
    return _Simulation(trace, jobs, policy, options or MalletrainOptions()).run()

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
Integers = NDArray[np.int64]
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
        shape = jobs.rates.shape
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
        self.used_s = self.stalled_s = self.profile_s = self.jobs_s = 0.0
        self.at_size = np.zeros(shape)
        self.stalls: dict[int, float] = {}  # seconds that a job stood still in profiles
        self.finished_stalls: list[float] = []
        self.outcome = Outcome(policy, trace.duration)
        self.speedups = jobs.rates / jobs.rates[:, 1:2]
        believed = {
            "equal": self.speedups,
            "linear": np.broadcast_to(np.arange(shape[1], dtype=np.float64), shape),
            "mean": np.broadcast_to(self.speedups.sum(0) / max(1, count), shape),
            "wrong": np.roll(self.speedups, -1, axis=0),
            "true": self.speedups,
        }
        self.believed = believed.get(self.policy.knows)

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
                self.stalls[self.profile.job] += float(still[at])
        self.now = to

    def stay(self, job: int) -> float:
        """Seconds that a job has run at its present size; negative while it stands still."""
        return float(self.now - max(self.changed[job], self.stalled[job]))

    def measure(self, job: int) -> None:
        """What a stay has shown."""
        seconds, size = self.stay(job), int(self.held[job])
        self.tables[job].record(size, float(self.jobs.rates[job, size]) * seconds, seconds)
        self.known[job] = True

    def learn(self) -> None:
        """Passive learning: a stay that was long enough is a measurement."""
        if self.policy.knows == "table":
            for job in self.active:
                if self.held[job] and not self.known[job] and self.stay(job) >= self.options.measurement - 1e-9:
                    self.measure(job)

    # ---- at an event -----------------------------------------------------------------------------------------------
    def change_nodes(self, nodes: Integers, joins: NDArray[np.bool_]) -> None:
        """Nodes vanish from their jobs, then others join the pool."""
        gone, come = nodes[~joins], nodes[joins]
        losers = self.owner[gone]
        self.owner[gone] = BUSY
        for job in np.unique(losers[losers >= 0]).tolist():
            run = self.stay(job)
            if run > 0:  # the step that was under way
                lost = float(self.jobs.rates[job, self.held[job]]) * (run % self.options.step_seconds)
                lost = min(lost, float(self.jobs.work[job] - self.left[job]))
                self.left[job] += lost
                self.outcome.lost += lost
            self.held[job] -= int((losers == job).sum())
            if self.held[job] < self.jobs.nmin:
                self.stop(job)
            elif self.profile is not None and self.profile.job == job:
                self.profile.lost(int(self.held[job]))
            self.resized(job)
        self.owner[come] = FREE

    def resized(self, job: int, grew: bool = False) -> None:
        """Its size has changed, so it stands still, unless it has no node; a new stall never shortens a running one."""
        seconds = self.jobs.up[job] if grew else self.jobs.down[job] if self.held[job] else 0.0
        self.stalled[job] = max(self.stalled[job], self.now + seconds)
        self.changed[job], self.known[job] = self.now, False
        self.outcome.resizes += 1

    def release(self, job: int, count: int) -> None:
        """Give back so many nodes, the newest first."""
        if count:
            own = np.flatnonzero(self.owner == job)
            self.owner[own[np.argsort(-self.since[own], kind="stable")[:count]]] = FREE
            self.held[job] -= count

    def acquire(self, job: int, count: int) -> None:
        """Take so many free nodes, the lowest first."""
        free = np.flatnonzero(self.owner == FREE)[:count]
        self.owner[free], self.since[free] = job, self.taken
        self.taken += 1
        self.held[job] += count

    def stop(self, job: int) -> None:
        """It gives back all its nodes, and its profile ends."""
        self.release(job, int(self.held[job]))
        if self.profile is not None and self.profile.job == job:
            self.profile = None

    def end_jobs(self) -> None:
        """Jobs whose work is done leave."""
        for job in list(self.active):
            if self.left[job] <= DONE * self.jobs.work[job]:
                self.left[job] = 0.0
                self.stop(job)
                self.active.remove(job)
                self.outcome.done += 1

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
            self.measure(profile.job)
            if profile.step_done():
                self.profile = None
                self.profiled[profile.job] = True
                self.outcome.profiles += 1
                if len(profile.measured) >= 4:
                    self.finished_stalls.append(self.stalls[profile.job])
        if self.profile is None:
            self.begin_profile(nodes)
        if (profile := self.profile) is not None:  # one that no longer fits the pool is given up
            room = nodes - sum(self.jobs.nmin for j in self.active if self.held[j] and j != profile.job)
            if profile.size > room and (not profile.fits(room) or not self.held[profile.job]):
                self.profile = None

    def begin_profile(self, nodes: int) -> None:
        """Profile the first job that needs it, if every other running one can keep nmin nodes."""
        options, nmin = self.options, self.jobs.nmin
        for job in self.active:
            if self.profiled[job]:
                continue
            others = [nmin for other in self.active if self.held[other] and other != job]
            most = min(self.jobs.nmax, options.profile_max)
            profile = begun(job, nodes, most, nmin, others, options.profile_shares, self.policy.ascending)
            if profile is None:
                return
            table = self.tables[job]
            if options.profile == "auto":
                if not table.rates or not self.held[job]:  # how long it will run is not known yet
                    continue
                remaining = float(self.left[job] / table.curve[self.held[job]])
                if not worthwhile(remaining, len(profile.sizes), table.up, table.down):
                    self.profiled[job] = True
                    continue
            self.profile, self.stalls[job] = profile, 0.0
            return

    def values(self, running: Integers) -> Floats:
        """What the policy believes each running job to be worth at every size [J, nmax + 1]."""
        scaled = self.options.objective == "throughput"
        if self.believed is not None:
            believed: Floats = self.believed[running]
            return believed * self.jobs.rates[running, 1:2] if scaled else believed
        tables = [self.tables[job] for job in running]
        known = [table.curve[1] for table in tables if table.rates]
        if not scaled or not known:
            return np.array([table.speedup for table in tables])
        mean = float(np.mean(known))
        return np.array([table.curve if table.rates else table.speedup * mean for table in tables])

    def replan(self, nodes: int) -> None:
        """Allocate, and apply the difference: who shrinks leaves nodes for who grows."""
        profile, jobs, running = self.profile, self.jobs, np.array(self.active, dtype=np.int64)
        began, counts = time.perf_counter(), []
        if self.active:
            fixed = np.full(len(running), -1) if profile is None else np.where(running == profile.job, profile.size, -1)
            values, held, up, down = self.values(running), self.held[running], jobs.up[running], jobs.down[running]
            standing = Standing(values, held, up, down, fixed, jobs.nmin)
            counts = decide(self.policy, standing, nodes, self.options.horizon)
        self.outcome.solver_ms.append(1e3 * (time.perf_counter() - began))
        changes = [(j, n - int(self.held[j])) for j, n in zip(self.active, counts, strict=True)]
        for job, more in changes:
            if more < 0:
                self.release(job, -more)
                self.resized(job)
        for job, more in changes:
            if more > 0:
                self.acquire(job, more)
                self.resized(job, grew=True)
        if profile is not None and profile.due is None and self.held[profile.job] == profile.size:
            profile.due = max(self.now, float(self.stalled[profile.job])) + self.options.measurement

    def run(self) -> Outcome:
        """All events."""
        times, first, nodes, joins = self.trace.events
        change, here, outcome = 0, 0, self.outcome
        duration = self.trace.duration
        while True:
            self.settle(self.next_event(float(times[change]) if change < len(times) else duration))
            if self.now >= duration:
                return self.summary()
            self.learn()
            if change < len(times) and times[change] <= self.now:
                part = slice(first[change], first[change + 1])
                self.change_nodes(nodes[part], joins[part])
                here += int(2 * joins[part].sum() - (part.stop - part.start))
                change += 1
            self.end_jobs()
            self.admit()
            self.advise(here)
            self.replan(here)
            outcome.times.append(self.now)
            outcome.pool.append(here)
            outcome.used.append(int(self.held[self.active].sum()))

    def summary(self) -> Outcome:
        """The figures at the end."""
        outcome, jobs, duration = self.outcome, self.jobs, self.trace.duration
        outcome.events = outcome.replans = len(outcome.times)
        outcome.samples = jobs.work - self.left
        outcome.throughput = float(outcome.samples.sum() / duration)
        outcome.normalised = float((outcome.samples / jobs.rates[:, 1]).sum() / duration)
        whole = self.trace.node_seconds
        outcome.equivalent_nodes = whole / duration
        outcome.utilisation = self.used_s / whole if whole else None
        outcome.stall_share = self.stalled_s / self.used_s if self.used_s else 0.0
        outcome.nodes_per_job = whole / self.jobs_s if self.jobs_s else 0.0
        if self.policy.profiles:
            held = float((self.at_size[sorted(self.stalls)] * np.arange(jobs.nmax + 1)).sum())
            outcome.profile_overhead = self.profile_s / held if held else 0.0
            outcome.profile_stall = float(np.mean(self.finished_stalls)) if self.finished_stalls else None
        worked = np.flatnonzero(self.at_size[:, 1:].sum(1))
        if len(worked) and self.policy.knows != "equal":
            tables = [self.tables[j].speedup for j in worked] if self.believed is None else self.believed[worked]
            weight, true = self.at_size[worked, 1:], self.speedups[worked, 1:]
            error = np.abs(np.asarray(tables)[:, 1:] - true) / true
            outcome.curve_error = float((error * weight).sum() / self.at_size[:, 1:].sum())
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

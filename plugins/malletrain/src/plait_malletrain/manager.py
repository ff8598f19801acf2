"""The manager of real jobs: gives every recipe as many of the present nodes as the policy says, and resizes them.

One process, one loop. A job is a `plait run` directory. To resize it, its processes write a checkpoint at a step
boundary and end, and others go on from there (`plait_malletrain.worker` keeps plait imported, so that this is quick).
A node that vanishes costs the steps since the last checkpoint, which are done again; what was committed is kept.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from plait.declare.recipe import Recipe
from plait.errors import BadInput, PlaitError, Refusal, Refused, RunLocked
from plait.planning.plan import make_plan
from plait.storage import files
from plait.storage.directory import RunDirectory

from .channel import Channel, ChannelError, Ended, Leave, Progress, Stop, Work, new_token, welcome
from .curves import CurveTable
from .errors import MalletrainError
from .launchers import Launcher
from .options import MalletrainOptions
from .policies import POLICY, Standing, decide
from .profiling import Profile, ceiling, profile_sizes

__all__ = ["Job", "Manager", "Order", "admit", "read_script", "read_state"]

TICK = 0.05
"""Seconds between two looks at what is due."""
BUFFER = 100
"""Reports of a job that are kept for its rate (authors' code)."""
COMMON_PORTS = range(20000, 30000)


@dataclass(frozen=True)
class Order:
    """A line of a script: at ``time`` seconds a slot joins, is asked back (leave), or is killed."""

    time: float
    action: str
    slot: str


@dataclass
class Job:
    """A recipe and what has become of it.

    Attributes:
        name: of the recipe's file, and of the run's folder.
        state: waiting, starting, running, stopping, done or failed.
        slots: the nodes that it has, the newest last.
        generation: how often it was started.
        step, total: of training; ``batch`` samples a step.
        restarts: after nodes were lost or processes failed, since it last made progress.
        redone: steps that were done again after nodes were lost.
        rescales: seconds from the last step before to the first after each planned resize, less a step.
        sizes: (seconds since the manager began, nodes) at each start.
        why: of a failure.
    """

    name: str
    recipe: str
    directory: str
    batch: int
    state: str = "waiting"
    slots: list[str] = field(default_factory=list)
    generation: int = 0
    step: int = 0
    total: int = 0
    restarts: int = 0
    redone: int = 0
    rescales: list[float] = field(default_factory=list)
    sizes: list[tuple[float, int]] = field(default_factory=list)
    table: dict[str, Any] = field(default_factory=dict)
    profiled: bool = False
    why: str = ""

    @property
    def live(self) -> bool:
        """Whether it is neither done nor failed."""
        return self.state not in ("done", "failed")


@dataclass
class _Now:
    """What the manager knows of a job's present generation, and does not keep."""

    waiting_for: set[int] = field(default_factory=set)
    ends: list[Ended] = field(default_factory=list)
    reports: list[tuple[float, int]] = field(default_factory=list)
    lost_node: bool = False
    told: float = 0.0
    before: tuple[float, float, int] | None = None
    killed: bool = False


def admit(recipe: Recipe, name: str) -> None:
    """Refuse a recipe that cannot be resized.

    Raises:
        Refused: its plugins cannot work together, or train a network for each participant.
        BadInput: unknown names or bad options.
    """
    plan = make_plan(recipe)
    plan.raise_if_refused()
    for plugin in plan.plugins.values():
        if "parameters:single" in plugin.breaks():
            what = f"{name}: {plugin.name} trains a network of its own for each participant"
            why = "Participants are places with private data; they cannot be spread over another number of nodes."
            fix = f"Run it without malletrain: plait run, or take {plugin.name} out of the recipe."
            raise Refused([Refusal("malletrain:participants", (plugin.name,), f"{what}. {why}", fix)])


def read_script(path: Path) -> list[Order]:
    """Lines ``SECONDS join|leave|kill SLOT``; ``#`` begins a comment.

    Raises:
        MalletrainError: with the line.
    """
    orders: list[Order] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MalletrainError(f"{path}: cannot be read: {error}.") from None
    for number, line in enumerate(lines, 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        try:
            seconds, action, slot = float(fields[0]), fields[1], fields[2]
        except (ValueError, IndexError):
            seconds, action, slot = -1.0, "", ""
        if action not in ("join", "leave", "kill") or not 0 <= seconds < 1e9 or len(fields) != 3:
            raise MalletrainError(f"{path}: line {number}: {line.strip()!r}: write SECONDS join|leave|kill SLOT.")
        if orders and seconds < orders[-1].time:
            raise MalletrainError(f"{path}: line {number}: {seconds:g} s is before {orders[-1].time:g} s.")
        orders.append(Order(seconds, action, slot))
    if not orders:
        raise MalletrainError(f"{path}: the script is empty.")
    return orders


def read_state(folder: Path) -> dict[str, Any]:
    """What a manager has written down.

    Raises:
        MalletrainError: nothing is there.
    """
    try:
        state: dict[str, Any] = json.loads((folder / "manager.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise MalletrainError(f"{folder}: no manager has worked here; it has no manager.json.") from None
    return state


class Manager:
    """The manager of the jobs in a folder; a context manager that holds the folder's lock.

    Args:
        folder: runs, recipes, ``manager.json``, ``token``.
        options: policy, horizon, profiling.
        nmax: most nodes of a job.
        exact: every job always runs as ``nmax`` processes, spread over its nodes, so that its result does not depend on
            the resizes; else as one process a node, equal up to rounding.
        restarts: how often a job is started again without progress in between.
        report_timeout: seconds without a step after which a job has failed.
        grace: seconds that a job has to write a checkpoint when its node is asked back.
        host: where workers connect; loopback unless told.
        say: shows a line.

    Raises:
        RunLocked: another manager works here.
    """

    def __init__(
        self,
        folder: Path,
        options: MalletrainOptions,
        *,
        nmax: int,
        exact: bool = True,
        restarts: int = 3,
        report_timeout: float = 300.0,
        grace: float = 1.5,
        host: str = "127.0.0.1",
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.options, self.nmax, self.exact = folder, options, nmax, exact
        self.restarts, self.report_timeout, self.grace, self.say = restarts, report_timeout, grace, say
        self.policy = POLICY[options.policy]
        if self.policy.knows not in ("equal", "table", "linear"):
            raise MalletrainError(f"policy = {options.policy!r}: of real jobs nobody knows the true curves.")
        self.jobs: dict[str, Job] = {}
        self.now: dict[str, _Now] = {}
        self.tables: dict[str, CurveTable] = {}
        self.nodes: dict[str, Channel] = {}
        self.leaving: dict[str, float] = {}
        self.parted: set[str] = set()
        self.taken: set[str] = set()
        self.known: set[str] = set()
        self.delays: list[float] = []
        self.profile: Profile | None = None
        self.replans = 0
        self.ports = 0
        self.changed = True
        self.script: list[Order] = []
        self.expected: set[str] = set()
        self.script_began: float | None = None
        self.launcher: Launcher | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / ".lock", timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            raise RunLocked(f"{folder}: another manager works here; wait for it or choose another --out.") from None
        self.token = new_token(folder / "token")
        self.listener = socket.create_server((host, 0))
        self.listener.settimeout(10)
        self.address = f"{host}:{self.listener.getsockname()[1]}"
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.began = time.monotonic()
        self.saved = 0.0

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self.nodes.values():
            with contextlib.suppress(OSError):
                channel.send(Leave())
        if self.launcher is not None:
            self.launcher.close()
        for channel in self.nodes.values():
            channel.close()
        self.listener.close()
        self.selector.close()
        self.save(force=True)
        self.lock.release()

    # ---- jobs ------------------------------------------------------------------------------------------------------
    def submit(self, recipes: Sequence[Path]) -> None:
        """Take the jobs that are here already, and new ones, all or none.

        Raises:
            Refused, BadInput: a recipe that cannot be used, naming it.
        """
        known: dict[str, Job] = {}
        if (self.folder / "manager.json").exists():
            for entry in read_state(self.folder)["jobs"]:
                job = Job(**{**entry, "sizes": [tuple(size) for size in entry["sizes"]]})
                job.slots, job.state = [], job.state if not job.live else "waiting"
                known[job.name] = job
        texts: dict[str, str] = {}
        for path in recipes:
            recipe = Recipe.load(path)
            name = path.stem
            if name in texts:
                raise BadInput(f"{path}: another recipe is named {name}, too; names of files are names of jobs.")
            try:
                admit(recipe, str(path))
            except BadInput as error:
                raise BadInput(f"{path}: {error}") from None
            if self.exact:  # without this DDP sums in another order after the first step than in a resumed one's
                recipe = recipe.merged({"distributed.unused_parameters": True})
            texts[name] = recipe.to_toml()
            file = self.folder / "recipes" / f"{name}.toml"
            if name in known and file.exists() and file.read_text(encoding="utf-8") != texts[name]:
                raise BadInput(f"{path}: {self.folder} has a job {name} of another recipe; rename one of them.")
        for name, text in texts.items():
            if name not in known:
                file = self.folder / "recipes" / f"{name}.toml"
                files.write_text(file, text)
                batch = Recipe.load(file).train.batch_size
                known[name] = Job(name, str(file.resolve()), str((self.folder / name).resolve()), batch)
        for name, job in known.items():
            self.jobs[name], self.now[name] = job, _Now()
            self.tables[name] = CurveTable(self.nmax, 1.0, 1.0, self.policy.exponent or self.options.prior)
            if job.table:
                self.tables[name].load_state_dict(job.table)
            if job.live and RunDirectory(job.directory).result() is not None:
                self.finish(job)
        self.changed = True

    @property
    def over(self) -> bool:
        """Whether every job is done or failed."""
        return not any(job.live for job in self.jobs.values())

    def finish(self, job: Job) -> None:
        """It is done."""
        job.state, job.slots, job.step = "done", [], job.total or job.step
        if self.profile is not None and self.name_of(self.profile) == job.name:
            self.profile = None
        self.changed = True

    def fail(self, job: Job, why: str) -> None:
        """It is given up; its nodes are free."""
        job.state, job.slots, job.why = "failed", [], why
        self.say(f"{job.name} failed: {why}")
        if self.profile is not None and self.name_of(self.profile) == job.name:
            self.profile = None
        self.changed = True

    def name_of(self, profile: Profile) -> str:
        """The job of a profile."""
        return list(self.jobs)[profile.job]

    # ---- the loop --------------------------------------------------------------------------------------------------
    def run(self, launcher: Launcher, slots: Sequence[str], script: Sequence[Order] = ()) -> None:
        """Work until every job is done or failed.

        Args:
            launcher: where workers come from.
            slots: their names; those whose first line in the script is a join come then.
            script: what happens to the slots, for tests and demonstrations; its time begins when they are there.
        """
        self.launcher, self.script = launcher, list(script)
        first: dict[str, str] = {}
        for order in script:
            first.setdefault(order.slot, order.action)
        for name in slots:
            if first.get(name) != "join":
                self.expected.add(name)
                launcher.start(name)
        watched = 0.0
        while not self.over:
            self.turn()
            if time.monotonic() - watched > 1:
                watched = time.monotonic()
                launcher.watch()

    def turn(self) -> None:
        """Hear what has come, do what is due, and re-plan if something has changed."""
        for key, _ in self.selector.select(TICK):
            if key.data is None:
                self.join()
            else:
                self.hear(key.data)
        self.follow_script()
        self.look()
        self.advise()
        if self.changed:
            self.replan()
        self.save()

    @property
    def clock(self) -> float:
        """Seconds since the manager began."""
        return time.monotonic() - self.began

    def follow_script(self) -> None:
        """Do what the script says by now; its time begins when the slots of the beginning are there."""
        if self.script_began is None:
            if not self.expected <= set(self.nodes):
                return
            self.script_began = time.monotonic()
        passed = time.monotonic() - self.script_began
        while self.script and self.script[0].time <= passed and self.launcher is not None:
            order = self.script.pop(0)
            self.say(f"{passed:6.1f} s  {order.action} {order.slot}")
            if order.action == "join":
                if order.slot in self.nodes:
                    self.say(f"{order.slot} is there already: ignored")
                    continue
                self.launcher.start(order.slot)
            elif order.slot not in self.nodes:
                self.say(f"{order.slot} is not in the pool: ignored")
            elif order.action == "kill":
                self.launcher.kill(order.slot)
            else:
                self.ask_back(order.slot)

    def ask_back(self, name: str) -> None:
        """The batch system wants a node: its job stops at a step boundary, or is killed after the grace."""
        self.leaving[name] = time.monotonic()
        owner = self.owner(name)
        if owner is not None and owner.state == "waiting":
            owner.slots.remove(name)
        elif owner is not None and owner.state in ("starting", "running"):
            self.stop(owner)

    def owner(self, name: str) -> Job | None:
        """The job that has a node."""
        return next((job for job in self.jobs.values() if name in job.slots), None)

    # ---- workers ---------------------------------------------------------------------------------------------------
    def join(self) -> None:
        """A worker greets."""
        connection, peer = self.listener.accept()
        try:
            name, channel = welcome(connection, self.token)
        except ChannelError as error:
            connection.close()
            self.say(f"{peer[0]}: turned away: {error}")
            return
        if name in self.nodes:
            self.say(f"{name} is there already: ignored")
            channel.close()
            return
        self.nodes[name] = channel
        self.selector.register(channel, selectors.EVENT_READ, name)
        self.changed = True

    def hear(self, name: str) -> None:
        """A worker has said something, or is gone."""
        try:  # nothing comes with a greeting: a worker is asked first
            for message in self.nodes[name].receive():
                if isinstance(message, Progress):
                    self.progressed(message)
                elif isinstance(message, Ended):
                    self.ended(message)
        except (ChannelError, EOFError, OSError) as error:
            if isinstance(error, ChannelError):
                self.say(f"{name}: turned away: {error}")
            self.lose(name)

    def lose(self, name: str) -> None:
        """A node is gone, and with it the processes there."""
        channel = self.nodes.pop(name)
        self.selector.unregister(channel)
        channel.close()
        if name in self.leaving:
            self.delays.append(time.monotonic() - self.leaving.pop(name))
            self.parted.discard(name)
            self.taken.discard(name)
        self.changed = True
        job = self.owner(name)
        if job is None:
            return
        now = self.now[job.name]
        if job.state != "waiting":
            now.waiting_for -= set(self.ranks(job)[name])
            now.lost_node = True
            self.kill(job)
        job.slots.remove(name)
        if self.profile is not None and self.name_of(self.profile) == job.name:
            if job.slots:
                self.profile.lost(len(job.slots))
            else:
                self.profile = None
        self.settle(job)

    def ranks(self, job: Job) -> dict[str, tuple[int, ...]]:
        """Which ranks of a job run on which of its nodes."""
        world = self.world(job)
        cuts = [round(i * world / len(job.slots)) for i in range(len(job.slots) + 1)] if job.slots else []
        return {name: tuple(range(cuts[i], cuts[i + 1])) for i, name in enumerate(job.slots)}

    def world(self, job: Job) -> int:
        """How many processes make the job's present generation."""
        return self.nmax if self.exact else len(job.slots)

    # ---- a job's generations ---------------------------------------------------------------------------------------
    def launch(self, job: Job) -> None:
        """Start it on its nodes; nothing while an earlier process of it may still write."""
        if RunDirectory(job.directory).is_being_written():
            self.changed = True
            return
        now, before = _Now(told=time.monotonic()), self.now[job.name].before
        now.before = before
        self.now[job.name] = now
        job.generation += 1
        self.known.discard(job.name)
        job.state = "starting"
        job.sizes.append((round(self.clock, 2), len(job.slots)))
        host = self.nodes[job.slots[0]].connection.getpeername()[0]
        self.ports += 1
        port = _free_port() if host.startswith("127.") else COMMON_PORTS[self.ports % len(COMMON_PORTS)]
        now.waiting_for = set(range(self.world(job)))
        for name, ranks in self.ranks(job).items():
            order = Work(
                job=job.name,
                generation=job.generation,
                recipe=job.recipe,
                directory=job.directory,
                ranks=ranks,
                world=self.world(job),
                address=host,
                port=port,
            )
            with contextlib.suppress(OSError):  # a node that is gone is seen as such in a moment
                self.nodes[name].send(order)

    def stop(self, job: Job) -> None:
        """Ask for a checkpoint at the next step boundary."""
        job.state = "stopping"
        self.now[job.name].told = time.monotonic()
        self.tell(job, now=False)

    def kill(self, job: Job) -> None:
        """End the present generation at once."""
        self.now[job.name].killed = True
        self.tell(job, now=True)

    def tell(self, job: Job, now: bool) -> None:
        for name in job.slots:
            if name in self.nodes:
                with contextlib.suppress(OSError):
                    self.nodes[name].send(Stop(job=job.name, generation=job.generation, now=now))

    def progressed(self, message: Progress) -> None:
        """A job has done steps."""
        job = self.jobs.get(message.job)
        if job is None or message.generation != job.generation or not job.live:
            return
        now = self.now[job.name]
        now.told = time.monotonic()
        if job.state == "starting":
            job.state = "running"
            job.redone += max(0, job.step - message.step)
            self.changed = True
        elif now.before is not None and now.reports:
            at, step, size = now.before
            self.rescaled(job, message.time - at - step, size)
            now.before = None
        if now.reports and message.step > now.reports[-1][1]:
            job.restarts = 0
        job.step, job.total = message.step, message.total
        now.reports = [*now.reports[-BUFFER:], (message.time, message.step)]

    def rescaled(self, job: Job, seconds: float, before: int) -> None:
        """A planned resize is over."""
        if seconds >= 0:
            job.rescales.append(round(seconds, 3))
            self.tables[job.name].rescaled(len(job.slots) > before, seconds)

    def ended(self, message: Ended) -> None:
        """A rank has ended."""
        job = self.jobs.get(message.job)
        if job is None or message.generation != job.generation or not job.live:
            return
        now = self.now[job.name]
        now.waiting_for.discard(message.rank)
        now.ends.append(message)
        if message.outcome in ("failed", "lost") and not now.killed:
            self.kill(job)
        self.settle(job)

    def settle(self, job: Job) -> None:
        """When all ranks of a generation have ended: what that means."""
        now = self.now[job.name]
        if now.waiting_for or job.state == "waiting" or not job.live:
            return
        outcomes = {end.outcome for end in now.ends}
        self.changed = True
        if "finished" in outcomes and RunDirectory(job.directory).result() is not None:
            self.finish(job)
        else:
            failures = [end for end in now.ends if end.outcome == "failed"]
            self.measure(job)
            if outcomes == {"stopped"} and not now.lost_node and len(now.reports) > 1:
                (start, first), (last, step) = now.reports[0], now.reports[-1]
                a_step = (last - start) / max(1, step - first)
                now.before = (last, a_step, self.size_before(job))
            elif not now.lost_node and outcomes != {"stopped"}:
                job.restarts += 1
                told = next((end.text for end in failures if end.code in (2, 3)), "")
                if told or job.restarts > self.restarts:
                    self.fail(job, told or (failures[0].text if failures else "its processes were killed, repeatedly"))
                    return
            job.state = "waiting"
        job.slots = [name for name in job.slots if name not in self.leaving]

    def size_before(self, job: Job) -> int:
        """Nodes of the generation that has ended."""
        return job.sizes[-1][1]

    def look(self) -> None:
        """Jobs that do not report have failed; nodes that were asked back and are still there are taken."""
        moment = time.monotonic()
        for job in self.jobs.values():
            if job.state == "running" and job.name not in self.known and self.measure(job) is not None:
                self.known.add(job.name)  # passive learning: once a stay
                self.changed = True
            if job.live and job.state != "waiting" and moment - self.now[job.name].told > self.report_timeout:
                self.kill(job)
                self.fail(job, f"no step for {self.report_timeout:g} s (--report-timeout)")
        for name, since in self.leaving.items():
            if moment - since > 2 * self.grace and name not in self.taken and self.launcher is not None:
                self.taken.add(name)  # a worker that is busy with something else does not keep the node
                self.launcher.kill(name)
            owner = self.owner(name)
            if owner is None and name not in self.parted:
                self.parted.add(name)
                with contextlib.suppress(OSError):
                    self.nodes[name].send(Leave())
            elif owner is not None and moment - since > self.grace and not self.now[owner.name].killed:
                self.now[owner.name].lost_node = True
                self.kill(owner)

    # ---- decisions -------------------------------------------------------------------------------------------------
    def measure(self, job: Job) -> float | None:
        """Record the rate of the present stay, if it was long enough: total samples over total time."""
        reports = self.now[job.name].reports
        settled = [r for r in reports if r[1] >= reports[0][1] + self.options.warmup_steps] if reports else []
        if len(settled) < 2:
            return None
        (start, first), (end, last) = settled[0], settled[-1]
        if end - start < self.options.measure_seconds or last - first < self.options.measure_steps:
            return None
        samples = (last - first) * job.batch
        self.tables[job.name].record(len(job.slots), samples, end - start)
        return samples / (end - start)

    def advise(self) -> None:
        """The JPA: measure the next size, or begin with the next job."""
        if not self.policy.profiles:
            return
        if self.profile is not None:
            job = self.jobs[self.name_of(self.profile)]
            if job.state == "running" and len(job.slots) == self.profile.size and self.measure(job) is not None:
                if self.profile.step_done():
                    job.profiled, self.profile = True, None
                self.changed = True
            return
        for index, job in enumerate(self.jobs.values()):
            if not job.live or job.profiled or not self.present():
                continue
            others = [1 for other in self.jobs.values() if other is not job and other.live and other.slots]
            most = ceiling(
                len(self.present()), self.nmax, self.options.profile_max, others, self.options.profile_shares
            )
            sizes = profile_sizes(most, 1, self.policy.ascending)
            if most >= 2 and len(sizes) > 1:
                self.profile = Profile(index, sizes, self.clock)
                self.changed = True
            return

    def present(self) -> list[str]:
        """The nodes that may be used, in the order of their names."""
        return sorted((name for name in self.nodes if name not in self.leaving), key=lambda n: (len(n), n))

    def replan(self) -> None:
        """Ask the policy, and begin with what it wants: shrink first; grow when nodes are free."""
        self.changed = False
        self.replans += 1
        live = [job for job in self.jobs.values() if job.live][: self.options.max_parallel]
        pool = self.present()
        measured = self.name_of(self.profile) if self.profile is not None else None
        if self.profile is not None:
            others = sum(1 for job in live if job.slots and job.name != measured)
            fits = [size for size in self.profile.sizes if size <= len(pool) - others]
            self.profile.sizes = fits
            if not fits:
                self.profile, measured = None, None
        standings = []
        for job in live:
            table = self.tables[job.name]
            values = table.speedup if self.options.objective == "speedup" else table.curve
            fixed = len(job.slots) if job.state in ("starting", "stopping") else None
            if fixed is None and job.name == measured and self.profile is not None:
                fixed = self.profile.size
            standings.append(Standing(values, len(job.slots), 1, self.nmax, table.up, table.down, fixed))
        wanted = decide(self.policy, standings, len(pool), self.options.horizon)
        free = [name for name in pool if self.owner(name) is None]
        for job, count in zip(live, wanted, strict=True):
            if job.state == "waiting":
                if not count:
                    self.now[job.name].before = None  # what follows is no resize
                while len(job.slots) > count:
                    free.append(job.slots.pop())
        for job, count in zip(live, wanted, strict=True):
            more = count - len(job.slots)
            if job.state == "waiting" and count:
                job.slots += free[: max(0, more)]
                free = free[max(0, more) :]
                if job.slots:
                    self.launch(job)
            elif job.state == "running" and more and (more < 0 or more <= len(free)):
                self.stop(job)
                free = free[max(0, more) :]

    # ---- written down ----------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """What `status` shows and a new manager goes on from."""
        jobs = []
        for name, job in self.jobs.items():
            job.table = self.tables[name].state_dict()
            jobs.append(asdict(job))
        return {
            "time": time.time(),
            "running": not self.over,
            "exact": self.exact,
            "nmax": self.nmax,
            "policy": self.policy.name,
            "nodes": self.present(),
            "leaving": sorted(self.leaving),
            "replans": self.replans,
            "release_s": [round(delay, 3) for delay in self.delays],
            "profiling": self.name_of(self.profile) if self.profile is not None else None,
            "jobs": jobs,
        }

    def save(self, force: bool = False) -> None:
        """Write it down, once a second; a full disk is said, and tried again."""
        if not force and time.monotonic() - self.saved < 1:
            return
        self.saved = time.monotonic()
        try:
            files.write_text(self.folder / "manager.json", json.dumps(self.state_dict(), indent=1))
        except PlaitError as error:
            self.say(f"not written down: {error}")

    @property
    def median_rescale(self) -> float | None:
        """Seconds of a planned resize."""
        known = [seconds for job in self.jobs.values() for seconds in job.rescales]
        return statistics.median(known) if known else None


def _free_port() -> int:
    """A port of this machine that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port

"""The manager of real jobs: gives every recipe as many of the present nodes as the policy says, and resizes them.

One process, one loop. A job is a `plait run` directory. To resize it, its processes write a checkpoint at a step
boundary and end, and others, forked from workers that are warm, meet in a new process group and go on from there
(`plait_malletrain.worker`). A node that vanishes costs the steps since the last checkpoint, which are done again; what
was committed is kept.
"""

from __future__ import annotations

import contextlib
import json
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from plait.declare.recipe import Recipe
from plait.errors import BadInput, PlaitError, RunLocked
from plait.storage import files
from plait.storage.directory import RunDirectory

from .channel import Channel, ChannelError, Ended, Imports, Leave, Message, Progress, Stop, Work, new_token, welcome
from .curves import CurveTable
from .errors import MalletrainError
from .jobs import Generation, Job, spread
from .launchers import Launcher
from .options import ServeOptions
from .policies import POLICY, Standing, decide
from .profiling import Profile, begun
from .script import Order

__all__ = ["Manager", "read_state"]

TICK = 0.05
"""Seconds between two looks at what is due."""
BUFFER = 100
"""Reports of a job that are kept for its rate (authors' code)."""
COMMON_PORTS = range(20000, 30000)


def read_state(folder: Path) -> dict[str, Any]:
    """What a manager has written down.

    Raises:
        MalletrainError: nothing is there, or something else.
    """
    file = folder / "manager.json"
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for job in state["jobs"]:
            Job.of(job, 1, 1.0)
        if not {"running", "policy", "nodes", "release_s"} <= state.keys():
            raise KeyError
    except OSError:
        raise MalletrainError(f"{folder}: no manager has worked here; it has no manager.json.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MalletrainError(f"{file}: not the state of a manager; move it away to begin anew.") from None
    return state


class Manager:
    """The manager of the jobs in a folder; a context manager that holds the folder's lock.

    Args:
        folder: runs, recipes, ``manager.json``, ``token``.
        options: policy, horizon, profiling, patience.
        say: shows a line.

    Raises:
        RunLocked: another manager works here.
    """

    def __init__(self, folder: Path, options: ServeOptions, say: Callable[[str], None] = print) -> None:
        self.folder, self.options, self.say = folder, options, say
        self.nmax = options.nmax or options.slots
        self.policy = POLICY[options.policy]
        self.jobs: dict[str, Job] = {}
        self.nodes: dict[str, Channel] = {}
        self.imports: list[Imports] = []  # what jobs have imported, for workers that come later
        self.leaving: dict[str, float] = {}  # nodes that were asked back -> since when
        self.parted: set[str] = set()  # of these, told to leave
        self.taken: set[str] = set()  # of these, killed
        self.delays: list[float] = []
        self.profile: Profile[str] | None = None
        self.replans = self.ports = 0
        self.changed = True
        self.script: list[Order] = []
        self.script_began: float | None = None
        self.expected: set[str] = set()
        self.launcher: Launcher | None = None
        self.greeted: queue.SimpleQueue[tuple[str, Channel] | str] = queue.SimpleQueue()
        self.lock = FileLock(folder / ".lock", timeout=0)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except Timeout:
            raise RunLocked(f"{folder}: another manager works here; wait for it or choose another --out.") from None
        except OSError as error:
            raise MalletrainError(f"{folder}: cannot be used: {error.strerror}; choose another --out.") from None
        try:
            self.listener = socket.create_server((options.host, 0))
        except OSError as error:
            self.lock.release()
            raise MalletrainError(
                f"host = {options.host!r}: {error.strerror}; give an address of this machine."
            ) from None
        self.token = new_token(folder / "token")
        self.address = f"{options.host}:{self.listener.getsockname()[1]}"
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.began, self.saved = time.monotonic(), 0.0

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.tell(self.nodes, Leave())
        if self.launcher is not None:
            self.launcher.close()
        for channel in self.nodes.values():
            channel.close()
        self.listener.close()
        self.selector.close()
        self.save(force=True)
        self.lock.release()

    # ---- jobs ------------------------------------------------------------------------------------------------------
    def submit(self, recipes: Mapping[str, Recipe]) -> None:
        """Take the jobs that are here already, and new ones (of `plait_malletrain.jobs.admitted`), all or none.

        Raises:
            BadInput: a job of that name has another recipe.
        """
        exponent = self.policy.exponent or 0.9
        entries = read_state(self.folder)["jobs"] if (self.folder / "manager.json").exists() else []
        known = {entry["name"]: Job.of(entry, self.nmax, exponent) for entry in entries}
        texts: dict[str, str] = {}
        folder = self.folder.resolve()
        for name, given in recipes.items():
            # without this DDP sums in another order after the first step than when resumed
            recipe = given.merged({"distributed.unused_parameters": True}) if self.options.exact else given
            texts[name] = recipe.to_toml()
            file = folder / "recipes" / f"{name}.toml"
            if name not in known:
                table = CurveTable(self.nmax, 1.0, 1.0, exponent)
                known[name] = Job(name, str(file), str(folder / name), recipe.train.batch_size, table)
            elif file.exists() and file.read_text(encoding="utf-8") != texts[name]:
                raise BadInput(f"{name}: {self.folder} has a job of that name of another recipe; rename one of them.")
        for name, text in texts.items():
            files.write_text(Path(known[name].recipe), text)
        self.jobs |= known
        for job in known.values():
            if job.live and RunDirectory(job.directory).result() is not None:
                self.finish(job)
        self.changed = True

    @property
    def over(self) -> bool:
        """Whether every job is done or failed."""
        return not any(job.live for job in self.jobs.values())

    def finish(self, job: Job, failure: str = "") -> None:
        """It is done, or given up; its nodes are free."""
        job.state, job.slots, job.why = "failed" if failure else "done", [], failure
        if failure:
            self.say(f"{job.name} failed: {failure}")
        else:
            job.step = job.total or job.step
        self.drop_profile(job)
        self.changed = True

    # ---- the loop --------------------------------------------------------------------------------------------------
    def run(self, launcher: Launcher, slots: Sequence[str], script: Sequence[Order] = ()) -> None:
        """Work until every job is done or failed.

        Args:
            launcher: where workers come from.
            slots: their names; those whose first line in the script is a join come then.
            script: what happens to the slots, for tests and demonstrations; its time begins when they are there.
        """
        self.launcher, self.script = launcher, list(script)
        if self.over:  # nothing is left to do: no worker is needed
            return
        joining = {order.slot: order.action == "join" for order in reversed(script)}
        self.expected = {name for name in slots if not joining.get(name)}
        for name in slots:
            if name in self.expected:
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
                connection, (peer, *_) = self.listener.accept()
                threading.Thread(target=self.greet, args=(connection, peer), daemon=True).start()
            else:
                self.hear(key.data)
        while not self.greeted.empty():
            self.join(self.greeted.get())
        self.follow_script()
        self.look()
        self.advise()
        if self.changed:
            self.replan()
        self.save()

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
            if (order.action == "join") == (order.slot in self.nodes):
                self.say(f"{order.slot} is {'there already' if order.action == 'join' else 'not in the pool'}: ignored")
            elif order.action == "join":
                self.launcher.start(order.slot)
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
    def greet(self, connection: socket.socket, peer: str) -> None:
        """In a thread of its own: a stranger who says nothing keeps nobody waiting."""
        try:
            self.greeted.put(welcome(connection, self.token))
        except ChannelError as error:
            connection.close()
            self.greeted.put(f"{peer}: turned away: {error}")

    def join(self, greeted: tuple[str, Channel] | str) -> None:
        """A worker has come, or a stranger was turned away."""
        if isinstance(greeted, str):
            self.say(greeted)
        elif greeted[0] in self.nodes:
            self.say(f"{greeted[0]} is there already: ignored")
            greeted[1].close()
        else:
            name, channel = greeted
            self.nodes[name] = channel
            self.selector.register(channel, selectors.EVENT_READ, name)
            for imports in self.imports:
                self.tell([name], imports)
            self.changed = True

    def tell(self, names: Iterable[str], message: Message) -> None:
        """Send it to workers; one that is gone is seen as such in a moment."""
        for name in names:
            if name in self.nodes:
                with contextlib.suppress(OSError):
                    self.nodes[name].send(message)

    def hear(self, name: str) -> None:
        """A worker has said something, or is gone."""
        try:  # nothing comes with a greeting: a worker is asked first
            for message in self.nodes[name].receive():
                if isinstance(message, Imports):
                    if message not in self.imports:
                        self.imports.append(message)
                        self.tell(self.nodes.keys() - {name}, message)
                elif isinstance(message, (Progress, Ended)):
                    job = self.jobs.get(message.job)
                    if job is not None and message.generation == job.generation and job.live:
                        if isinstance(message, Progress):
                            self.progressed(job, message)
                        else:
                            self.ended(job, message)
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
        if (job := self.owner(name)) is not None:
            if job.state != "waiting":
                job.now.waiting_for -= set(job.now.ranks.get(name, ()))
                job.now.lost_node = True
                self.kill(job)
            job.slots.remove(name)
            if not job.slots:
                self.drop_profile(job)
            elif self.profile is not None and self.profile.job == job.name:
                self.profile.lost(len(job.slots))
            self.settle(job)

    def drop_profile(self, job: Job) -> None:
        """It cannot be measured any more."""
        if self.profile is not None and self.profile.job == job.name:
            self.profile = None

    # ---- a job's generations ---------------------------------------------------------------------------------------
    def launch(self, job: Job) -> None:
        """Start it on its nodes; nothing while an earlier process of it may still write."""
        if RunDirectory(job.directory).is_being_written():
            self.changed = True
            return
        world = self.nmax if self.options.exact else len(job.slots)
        ranks = spread(job.slots, world)
        job.now = Generation(ranks, set(range(world)), told=time.monotonic(), before=job.now.before)
        job.generation += 1
        job.state = "starting"
        job.sizes.append((round(time.monotonic() - self.began, 2), len(job.slots)))
        host = self.nodes[job.slots[0]].connection.getpeername()[0]
        self.ports += 1
        port = COMMON_PORTS[self.ports % len(COMMON_PORTS)]
        if host.startswith("127."):
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
        what: dict[str, Any] = {"job": job.name, "generation": job.generation, "recipe": job.recipe}
        what |= {"directory": job.directory, "world": world, "address": host, "port": port}
        for name, own in ranks.items():
            self.tell([name], Work(**what, ranks=own))

    def stop(self, job: Job) -> None:
        """Ask for a checkpoint at the next step boundary."""
        job.state = "stopping"
        job.now.told = time.monotonic()
        self.tell(job.slots, Stop(job=job.name, generation=job.generation))

    def kill(self, job: Job) -> None:
        """End the present generation at once."""
        job.now.killed = True
        self.tell(job.slots, Stop(job=job.name, generation=job.generation, now=True))

    def progressed(self, job: Job, message: Progress) -> None:
        """A job has done steps."""
        now = job.now
        now.told = time.monotonic()
        if job.state == "starting":
            job.state = "running"
            job.redone += max(0, job.step - message.step)
            self.changed = True
        elif now.before is not None and now.reports:
            at, step, size = now.before
            now.before, seconds = None, message.time - at - step
            if seconds >= 0:
                job.rescales.append(round(seconds, 3))
                job.table.rescaled(len(job.slots) > size, seconds)
        if now.reports and message.step > now.reports[-1][1]:
            job.restarts = 0
        job.step, job.total = message.step, message.total
        now.reports = [*now.reports[-BUFFER:], (message.time, message.step)]

    def ended(self, job: Job, message: Ended) -> None:
        """A rank has ended."""
        job.now.waiting_for.discard(message.rank)
        job.now.ends.append(message)
        if message.outcome in ("failed", "lost") and not job.now.killed:
            self.kill(job)
        self.settle(job)

    def settle(self, job: Job) -> None:
        """When all ranks of a generation have ended: what that means."""
        now = job.now
        if now.waiting_for or job.state == "waiting" or not job.live:
            return
        outcomes = {end.outcome for end in now.ends}
        self.changed = True
        if "finished" in outcomes and RunDirectory(job.directory).result() is not None:
            self.finish(job)
            return
        job.measure(self.options)
        if outcomes == {"stopped"} and not now.lost_node and len(now.reports) > 1:
            (start, first), (last, step) = now.reports[0], now.reports[-1]
            now.before = (last, (last - start) / max(1, step - first), job.sizes[-1][1])
        elif not now.lost_node and outcomes != {"stopped"}:
            job.restarts += 1
            failures = [end for end in now.ends if end.outcome == "failed"]
            told = next((end.text for end in failures if end.code in (2, 3)), "")
            if told or job.restarts > self.options.restarts:
                said = failures[0].text if failures else "its processes were killed, repeatedly"
                self.finish(job, failure=told or said)
                return
        job.state = "waiting"
        job.slots = [name for name in job.slots if name not in self.leaving]

    def look(self) -> None:
        """Jobs that do not report have failed; nodes that were asked back and are still there are taken."""
        moment, patience, grace = time.monotonic(), self.options.report_timeout, self.options.grace
        for job in self.jobs.values():
            if job.state == "running" and not job.now.measured and job.measure(self.options):
                job.now.measured = self.changed = True  # passive learning: once a stay
            if job.live and job.state != "waiting" and moment - job.now.told > patience:
                self.kill(job)
                self.finish(job, failure=f"no step for {patience:g} s (--report-timeout)")
        for name, since in self.leaving.items():
            if moment - since > 2 * grace and name not in self.taken and self.launcher is not None:
                self.taken.add(name)  # a worker that is busy with something else does not keep the node
                self.launcher.kill(name)
            owner = self.owner(name)
            if owner is None and name not in self.parted:
                self.parted.add(name)
                self.tell([name], Leave())
            elif owner is not None and moment - since > grace and not owner.now.killed:
                owner.now.lost_node = True
                self.kill(owner)

    # ---- decisions -------------------------------------------------------------------------------------------------
    def advise(self) -> None:
        """The JPA: measure the next size, or begin with the next job."""
        if self.profile is not None:
            job = self.jobs[self.profile.job]
            if job.state == "running" and len(job.slots) == self.profile.size and job.measure(self.options):
                if self.profile.step_done():
                    job.profiled, self.profile = True, None
                self.changed = True
            return
        job = next((job for job in self.jobs.values() if job.live and not job.profiled), None)  # type: ignore[assignment]
        if self.policy.profiles and job is not None:
            others = [1 for other in self.jobs.values() if other is not job and other.live and other.slots]
            most = min(self.nmax, self.options.profile_max)
            self.profile = begun(job.name, len(self.present()), most, 1, others, ascending=self.policy.ascending)
            self.changed |= self.profile is not None

    def present(self) -> list[str]:
        """The nodes that may be used, in the order of their names."""
        return sorted((name for name in self.nodes if name not in self.leaving), key=lambda n: (len(n), n))

    def replan(self) -> None:
        """Ask the policy, and begin with what it wants: shrink first; grow when nodes are free."""
        self.changed = False
        self.replans += 1
        live = [job for job in self.jobs.values() if job.live][: self.options.max_parallel]
        pool, profile = self.present(), self.profile
        if profile is not None:
            others = sum(1 for job in live if job.slots and job.name != profile.job)
            if not profile.fits(len(pool) - others):
                profile = self.profile = None
        if not live:
            return
        held = np.array([len(job.slots) for job in live])
        fixed = np.where([job.state in ("starting", "stopping") for job in live], held, -1)
        if profile is not None:
            fixed = np.where((fixed < 0) & [job.name == profile.job for job in live], profile.size, fixed)
        values = np.array([job.table.speedup for job in live])
        up, down = np.array([job.table.up for job in live]), np.array([job.table.down for job in live])
        standing = Standing(values, held, up, down, fixed)
        wanted = decide(self.policy, standing, len(pool), self.options.horizon)
        free = [name for name in pool if self.owner(name) is None]
        for job, count in zip(live, wanted, strict=True):
            if job.state == "waiting":
                if not count:
                    job.now.before = None  # what follows is no resize
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
        return {
            "time": time.time(),
            "running": not self.over,
            "exact": self.options.exact,
            "nmax": self.nmax,
            "policy": self.policy.name,
            "nodes": self.present(),
            "leaving": sorted(self.leaving),
            "replans": self.replans,
            "release_s": [round(delay, 3) for delay in self.delays],
            "profiling": self.profile.job if self.profile is not None else None,
            "jobs": [job.state_dict() for job in self.jobs.values()],
        }

    def save(self, force: bool = False) -> None:
        """Write it down, once a second; a full disk is said, and tried again.

        Without jobs there is nothing to write: what an earlier manager has written stays.
        """
        if not self.jobs or (not force and time.monotonic() - self.saved < 1):
            return
        self.saved = time.monotonic()
        try:
            files.write_text(self.folder / "manager.json", json.dumps(self.state_dict(), indent=1))
        except PlaitError as error:
            self.say(f"not written down: {error}")

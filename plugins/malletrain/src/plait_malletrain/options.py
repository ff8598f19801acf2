"""Options of the library, the simulator and the plugin: bounds, units and a description each. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from plait.declare.options import Options

PolicyName = Literal[
    "equal",
    "freetrain-linear",
    "freetrain-mean",
    "freetrain-wrong",
    "passive",
    "malletrain",
    "malletrain-ascending",
    "oracle",
]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
WorkloadName = Literal["nas", "nas-mild", "nas-off", "imagenet", "hpo"]


class MalletrainOptions(Options):
    """The machine and its holes, the jobs, who decides, and how jobs are profiled."""

    trace: str = Field(
        "summit-like",
        pattern=r"^(summit-like|static|(swf|replayer|table):.+)$",
        description="idle nodes: summit-like (generated), static (all, always), swf:FILE, replayer:FILE or table:FILE",
    )
    nodes: int = Field(512, ge=6, le=100_000, description="size of the machine, where the trace is generated")
    hours: float = Field(24.0, gt=0, le=24 * 366, description="length of the simulation, hours")
    start: float = Field(0.0, ge=0, le=24 * 3660, description="where in a trace of a file it begins, hours")
    part: int = Field(1, ge=1, le=10_000, description="only every so many-th node of the trace: a scarce pool")
    keep_maintenance: bool = Field(False, description="swf: keep the times in which more than 60 % is idle")
    allow_pickle: bool = Field(False, description="replayer: read pickles, by an unpickler that knows tables only")

    workload: WorkloadName = Field("nas", description="the jobs")
    jobs: int | None = Field(None, ge=0, le=100_000, description="how many there are; default: more than can be done")
    max_parallel: int = Field(10, ge=1, le=1000, description="jobs that run at a time; the others wait in a queue")

    policy: PolicyName = Field("malletrain", description="who decides, in a run of one policy")
    policies: tuple[PolicyName, ...] = Field(
        ("equal", "freetrain-linear", "freetrain-mean", "passive", "malletrain", "oracle"),
        min_length=1,
        description="who decides, where policies are compared on the same trace and jobs",
    )
    objective: Literal["speedup", "throughput"] = Field(
        "speedup", description="what a node is worth: samples/s over the rate on one node, or samples/s"
    )
    horizon: float = Field(120.0, ge=0, le=86_400, description="T_fwd, seconds that a resize has to pay within")

    profile: Literal["auto", "always"] = Field(
        "auto", description="profile every job, or only jobs that will run 20 times as long as profiling stalls them"
    )
    profile_max: int = Field(16, ge=2, le=4096, description="largest size of a profile, nodes")
    profile_shares: float = Field(
        1.0, gt=0, le=1e6, description="largest size of a profile in fair shares of the pool, N / J; at least 2 nodes"
    )
    warmup_steps: int = Field(10, ge=0, le=10_000, description="steps that a measurement leaves out after a resize")
    measure_seconds: float = Field(10.0, gt=0, le=3600, description="shortest measurement, seconds")
    measure_steps: int = Field(20, ge=1, le=10_000, description="fewest steps of a measurement; the later one counts")
    step_seconds: float = Field(0.5, gt=0, le=3600, description="simulated: length of a step; one is lost with a node")
    prior: float = Field(0.9, gt=0, le=1, description="exponent of the speedup that is expected before measurements")

    @field_validator("policies", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        """A text with commas, as a command line gives it."""
        return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _check(self) -> MalletrainOptions:
        if len(set(self.policies)) < len(self.policies):
            raise ValueError(f"policies = {list(self.policies)}: one is given twice")
        return self

    @property
    def measurement(self) -> float:
        """Seconds from the end of a stall to the end of a simulated measurement."""
        steps = self.step_seconds * self.measure_steps
        return self.warmup_steps * self.step_seconds + max(self.measure_seconds, steps)


class ServeOptions(Options):
    """How real jobs are resized: what `plait malletrain serve` takes."""

    slots: int = Field(2, ge=1, le=1024, description="how many workers")
    policy: Literal["equal", "passive", "malletrain", "malletrain-ascending", "freetrain-linear"] = Field(
        "malletrain", description="who decides"
    )
    nmax: int | None = Field(None, ge=1, description="most slots of a job; default all")
    max_parallel: int = Field(10, ge=1, le=1000, description="jobs that run at a time; the others wait in a queue")
    exact: bool = Field(
        True,
        description="each job always runs as nmax processes, spread over its slots: the bits of a run that nothing "
        "disturbed; else one process a slot, equal up to rounding",
    )
    horizon: float = Field(10.0, ge=0, le=86_400, description="T_fwd, seconds that a resize has to pay within")
    profile_max: int = Field(4, ge=2, le=4096, description="largest size of a profile, slots")
    measure_seconds: float = Field(10.0, gt=0, le=3600, description="shortest measurement, seconds")
    measure_steps: int = Field(5, ge=1, le=10_000, description="fewest steps of a measurement")
    warmup_steps: int = Field(10, ge=0, le=10_000, description="steps that a measurement leaves out after a resize")
    restarts: int = Field(3, ge=0, description="how often a job that fails is started again without progress")
    report_timeout: float = Field(300.0, gt=0, le=1e6, description="seconds without a step: the job has failed")
    grace: float = Field(1.5, gt=0, le=1e6, description="seconds for a checkpoint when a slot is asked back")
    host: str = Field("127.0.0.1", description="where workers connect; other machines need another than loopback")
    slurm: bool = Field(False, description="workers are Slurm jobs")
    slurm_options: str = Field("", description="further options of sbatch")
    ray: str | None = Field(None, description="workers are tasks of the Ray cluster at this address")

    @model_validator(mode="after")
    def _check(self) -> ServeOptions:
        if self.nmax is not None and self.nmax > self.slots:
            raise ValueError(f"nmax = {self.nmax}: give 1 to slots, which is {self.slots}")
        if self.slurm and self.ray is not None:
            raise ValueError("slurm and ray: choose one")
        return self

"""Start the processes of a run on this machine with torch.distributed's elastic agent.

The agent is torchrun's own: it gives every process its rank, waits for all of them, ends the others when one is lost,
and starts all of them again as often as it is told to.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from plait.errors import BadInput, Interrupted, PlaitError, RunFailed

MOST = 1024
"""More processes than this on one machine are a typing error."""


def check_count(processes: int, restarts: int = 0) -> None:
    """Refuse numbers that make no sense.

    Raises:
        BadInput: naming the option.
    """
    if not 1 <= processes <= MOST:
        raise BadInput(f"--nproc {processes}: give a number of processes from 1 to {MOST}.")
    if restarts < 0:
        raise BadInput(f"--restarts {restarts}: give 0 or more.")


def launch(module: str, arguments: Sequence[str], processes: int, *, restarts: int = 0, go_on: str = "") -> None:
    """Run ``python -P -m module arguments`` in ``processes`` processes and wait for all of them.

    With ``-P`` the user's folder does not come before Python's own modules.

    Args:
        module: what each process runs; it reads its place from the environment (`plait.distributed.processes.current`).
        arguments: the same for each.
        processes: how many.
        restarts: how often all are started again after one was lost.
        go_on: the command that goes on with the work, for messages.

    Raises:
        RunFailed: a process was lost; or with the exit code of the process that failed first, which has told why.
        Interrupted: this process was asked to stop.
    """
    check_count(processes, restarts)
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):  # each of them has a level of its own; the messages are ours
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",  # the system chooses a free port
        local_addr="127.0.0.1",
        max_restarts=restarts,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-P", "-m", module, *arguments)
    except ChildFailedError as error:
        raise reason(error.failures, processes, restarts, go_on) from None
    except SignalException as error:
        again = f" Go on with: {go_on}" if go_on else ""
        raise Interrupted(f"stopped by {signal.Signals(error.sigval).name}.{again}") from None


def reason(failures: Mapping[int, Any], processes: int, restarts: int, go_on: str) -> PlaitError:
    """What the processes' exit codes say."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    again = f" Go on with: {go_on}" if go_on else ""
    if killed:
        rank, number = next(iter(sorted(killed.items())))
        why = " (out of memory?)" if number == signal.SIGKILL else ""
        tried = f", also after {restarts} restart(s)" if restarts else ""
        return RunFailed(
            f"process {rank} of {processes} was ended by {signal.Signals(number).name}{why}{tried}. "
            f"The last checkpoint is kept.{again}"
        )
    told = [code for code in codes.values() if code > 0]
    failed = RunFailed(f"a process ended with exit code {max(told, default=1)}.{again}")
    failed.exit_code = 130 if 130 in told else max(told, default=1)
    failed.shown = bool(told)
    return failed

"""Which of how many processes this one is, from the environment that launchers set. No torch here."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """This process among the processes of a run.

    Attributes:
        rank, world: of all processes; 0 of 1 without a launcher.
        local: of the processes on this machine.
        restart: how often the elastic agent has started the processes again.
        launch: the name that the launcher gave this launch; empty when it gave none.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    restart: int = 0
    launch: str = ""

    @property
    def alone(self) -> bool:
        """Whether there is only this process."""
        return self.world == 1


def current() -> Place:
    """The place of this process, as torchrun, ``accelerate launch`` and ``plait run --nproc`` set it."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Place()
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return Place(
        rank=_number("RANK"),
        world=max(1, _number("WORLD_SIZE")),
        local=_number("LOCAL_RANK"),
        restart=_number("TORCHELASTIC_RESTART_COUNT"),
        launch="" if launch == "none" else launch,  # torchrun's name for a launch without one
    )


def _number(name: str) -> int:
    try:
        return int(os.environ.get(name, "0"))
    except ValueError:
        return 0

"""Options of the plugin. Imports no torch."""

from pydantic import Field

from plait import Options


class EMAOptions(Options):
    """How fast old weights are forgotten."""

    decay: float = Field(0.999, ge=0, lt=1, description="share of the average that each step keeps")
    warmup: bool = Field(True, description="keep at most (1 + t) / (10 + t) of it after t steps")

"""Options of the plugin. Imports no torch."""

from pydantic import Field

from plait import Options


class LabelSmoothingOptions(Options):
    """How much of the target is taken from the label."""

    epsilon: float = Field(0.1, ge=0, le=1, description="share of the target that is spread evenly over all classes")

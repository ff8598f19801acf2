"""What a search has found so far: plain JSON that can be stored at any point and gone on from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from plait.errors import first_line

from .errors import CdmoeError
from .gates import GateStats
from .layers import Beam

__all__ = ["SearchState"]


@dataclass
class SearchState:
    """Everything a search has found so far; layers are mixture-of-experts layers, counted from 0.

    Attributes:
        identity: what it belongs to: calibration texts, model, and the options that matter.
        gates: statistics of the layers surveyed so far.
        keep: of each layer the kept experts in their order.
        traces: of each layer the distance after each of them.
        similarity: mean cosine between the residual stream and itself plus the layer's output (layer trimming).
        block_similarity: of each decoder layer between its input and its output (block trimming).
        beams: ways to choose layers, the best first.
        seconds: spent in each part.
        skipped: empty texts, left out.
    """

    identity: dict[str, Any]
    gates: GateStats = field(default_factory=GateStats)
    keep: list[list[int]] = field(default_factory=list)
    traces: list[list[float]] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)
    block_similarity: list[float] = field(default_factory=list)
    beams: list[Beam] = field(default_factory=lambda: [Beam()])
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: int = 0

    VERSION: ClassVar[int] = 1

    @property
    def order(self) -> list[int]:
        """Layers in the order in which they were chosen."""
        return list(self.beams[0].order)

    @property
    def distances(self) -> list[float]:
        """Distance of the final states after each of them."""
        return list(self.beams[0].distances)

    def weights(self, layer: int, conditional: bool = True) -> list[float]:
        """w of the kept experts of a layer, in their order."""
        return self.gates.weights(layer, conditional=conditional)[self.keep[layer]].tolist()

    def dump(self) -> dict[str, Any]:
        """As JSON can hold it; numbers come back as they were."""
        return {"version": self.VERSION, **asdict(self)}

    @classmethod
    def read(cls, stored: Any, where: str) -> SearchState:
        """The state from `dump`.

        Raises:
            CdmoeError: it is no state of a search, or of another release.
        """
        try:
            if stored["version"] != cls.VERSION:
                raise CdmoeError(f"{where}: a search of another release (format {stored['version']}); begin anew")
            values = {entry.name: stored[entry.name] for entry in fields(cls)}
            values["gates"] = GateStats(**values["gates"])
            values["beams"] = [Beam(tuple(b["order"]), tuple(b["distances"])) for b in values["beams"]]
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise CdmoeError(f"{where}: this is no state of a search") from error

    @classmethod
    def load(cls, file: Path) -> SearchState:
        """The state that was stored as JSON.

        Raises:
            CdmoeError: the file cannot be read, or as `read`.
        """
        try:
            return cls.read(json.loads(file.read_text(encoding="utf-8")), str(file))
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CdmoeError(f"{file} cannot be read: {first_line(error)}") from error

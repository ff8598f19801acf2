"""What every benchmark says of the machine it ran on."""

from __future__ import annotations

from typing import Any

from plait.storage.environment import describe


def machine() -> dict[str, Any]:
    """Processor, cores, threads, versions, commit."""
    described = describe(
        "cpu", [f"plait-{part}" for part in ("core", "chase", "dbadfl", "fairprune", "fairsam", "glt", "zoo")]
    )
    return {key: described[key] for key in ("device_name", "cores", "torch_threads", "python", "versions", "commit")}

"""The plugin against every rule of the hook contract."""

from __future__ import annotations

import pytest

from plait_authoring import plait_plugin_suite

pytestmark = pytest.mark.smoke

TestConformance = plait_plugin_suite(
    "cdmoe",
    settings={
        "data.characters": 12000,
        "data.vocab": 280,
        "data.length": 16,
        "data.domains": ["code", "docs"],
        "model.hidden": 32,
        "model.layers": 3,
        "model.config": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    },
)

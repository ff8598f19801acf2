"""The plugin against every rule of the hook contract."""

from __future__ import annotations

import pytest

from plait_authoring import plait_plugin_suite

pytestmark = pytest.mark.smoke

SMALL = {
    "data.train": 60,
    "data.validation": 12,
    "data.test": 16,
    "data.voxels": 60,
    "model.hidden": 8,
    "model.depth": 1,
}

TestConformance = plait_plugin_suite("brainot", settings=SMALL)

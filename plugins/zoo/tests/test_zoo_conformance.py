"""The plugin against every rule of the hook contract, on data and a model of its own."""

from __future__ import annotations

import pytest

from plait_authoring import plait_plugin_suite

pytestmark = pytest.mark.smoke

TestConformance = plait_plugin_suite("zoo", data="digits", model="cnn", settings={"model.width": 4})

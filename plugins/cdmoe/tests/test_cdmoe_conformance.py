"""The plugin against every rule of the hook contract."""

from __future__ import annotations

import pytest

from plait_authoring import plait_plugin_suite

pytestmark = pytest.mark.smoke

TestConformance = plait_plugin_suite("cdmoe")

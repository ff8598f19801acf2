"""The rules that every plugin keeps."""

from __future__ import annotations

import pytest

from plait_authoring import plait_plugin_suite

pytestmark = pytest.mark.smoke

TestConformance = plait_plugin_suite("glt", data="karate", model="gcn")

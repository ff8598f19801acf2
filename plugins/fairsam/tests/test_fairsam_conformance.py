"""The plugin against every rule of the hook contract."""

from __future__ import annotations

from plait_authoring import plait_plugin_suite

TestConformance = plait_plugin_suite("fairsam")

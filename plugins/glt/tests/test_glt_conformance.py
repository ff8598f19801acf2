"""The rules that every plugin keeps."""

from __future__ import annotations

from plait_authoring import plait_plugin_suite

TestConformance = plait_plugin_suite("glt", data="karate", model="gcn")

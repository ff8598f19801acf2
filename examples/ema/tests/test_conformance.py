"""The plugin against plait's hook contract, one test a rule."""

from plait_authoring import plait_plugin_suite

TestConformance = plait_plugin_suite("ema")

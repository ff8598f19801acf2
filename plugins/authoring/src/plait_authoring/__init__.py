"""For authors of plugins: ``plait new``, a conformance kit for pytest, and the composition matrix.

``plait_plugin_suite`` makes a class of tests from a plugin's name, one test for each check of the contract. Importing
this imports neither pytest nor torch.
"""

from plait_authoring.suite import plait_plugin_suite

__all__ = ["plait_plugin_suite"]

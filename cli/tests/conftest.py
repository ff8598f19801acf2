"""Ways to call the command line: in this process (fast) and as a program (real signals, real entry points)."""

from plait_authoring.fixtures import call, caller, environment, install, package, program

__all__ = ["call", "caller", "environment", "install", "package", "program"]

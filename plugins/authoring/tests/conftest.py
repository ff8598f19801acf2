"""Fixtures of these tests: the command line, in this process and as a program."""

import sys
from pathlib import Path

import torch

from plait_authoring.fixtures import call, environment, install, package, program

__all__ = ["call", "environment", "install", "package", "program"]

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))  # for good_plugin and its broken variants, which tests import by name

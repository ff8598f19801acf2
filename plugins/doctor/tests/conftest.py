"""Fixtures of the doctor's tests."""

from __future__ import annotations

import sys
from pathlib import Path

from plait_authoring.fixtures import call, package, program  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))  # for doctor_site

"""`plait doctor`: what is installed, on what machine, what is out of date or broken, and what to type.

Importing this imports no torch; torch is imported in a process of its own.
"""

from plait_doctor.examination import EXAMINERS, PARTS, document, examine, sound
from plait_doctor.finding import Case, Finding

__all__ = ["EXAMINERS", "PARTS", "Case", "Finding", "document", "examine", "sound"]

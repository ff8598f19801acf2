"""The table of `make test-times`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("times.py")
REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_docs" name="a" time="1.5" />
<testcase classname="plugins.glt.tests.test_glt.TestConformance" name="b" time="2" />
<testcase classname="plugins.glt.tests.test_glt" name="c" time="3.25" />
</testsuite></testsuites>"""


def test_files_and_packages_are_added_up_and_the_slowest_comes_first(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(REPORT)
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "tests.xml"], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines() if line]
    assert rows == [
        ["5.2", "s", "2", "tests", "plugins/glt"],
        ["1.5", "s", "1", "tests", "tests"],
        ["5.2", "s", "2", "tests", "plugins/glt/tests/test_glt.py"],
        ["1.5", "s", "1", "tests", "tests/test_docs.py"],
        ["6.8", "s", "3", "tests", "all,", "over", "all", "workers"],
    ]


def test_without_a_run_it_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "tests.xml"], capture_output=True, text=True)
    assert done.returncode == 1 and "make test writes one" in done.stderr

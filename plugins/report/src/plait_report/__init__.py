"""The HTML report of a run: one self-contained file, built from the run directory alone. No torch here.

`plait_report.page.write` writes it. `plait_report.charts`, `plait_report.figures` and `plait_report.formatting` are
public too: pages of other packages use them to look alike.
"""

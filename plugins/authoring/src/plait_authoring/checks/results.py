"""Checks of what hooks return: losses, figures, and the exported model."""

from __future__ import annotations

import plait
from plait_authoring.conformance import Stage, check
from plait_authoring.subject import Subject
from plait_authoring.verdicts import DoesNotApply, expect_none


def _called(subject: Subject, *hooks: str) -> None:
    if not any(subject.observed.watch.called[hook] for hook in hooks):
        raise DoesNotApply(f"the tiny run called no {' or '.join(hooks)} of this plugin")


@check(Stage.RUN)
def loss_shapes(subject: Subject) -> None:
    """`objective` and `example_weights` give one finite number an example, `loss_terms` finite scalars."""
    _called(subject, "objective", "example_weights", "loss_terms")
    problems = subject.findings("loss_shapes")
    expect_none(problems, "return tensors of these shapes; the core multiplies, averages and adds them.")


@check(Stage.RUN)
def metrics_described(subject: Subject) -> None:
    """Metrics are numbers with a unit and a direction, NaN only with a note, and have the same names in every run."""
    _called(subject, "evaluate", "views")
    problems = list(subject.findings("metrics_described"))
    run = subject.observed.run
    if not problems and run is not None:
        from plait_authoring.kill import first_difference

        other = subject.run("other-seed", seed=run.recipe.seed + 1)
        names = dict.fromkeys(plait.load_run(other.path).details) if not other.code else {}
        difference = first_difference(dict.fromkeys(run.details), names)
        if difference is not None and names:
            problems = [f"A run of another seed has metrics of other names{difference}."]
    expect_none(problems, 'write plait.Metric(float(value), unit="%", better="higher"), and constant names.')


@check(Stage.RUN)
def export_alike(subject: Subject) -> None:
    """`export` returns a model that gives outputs of the same type and shape as the trained one."""
    _called(subject, "export")
    problems = subject.findings("export_alike")
    expect_none(problems, "return a torch.nn.Module that is called as the trained model is and gives what it gives.")

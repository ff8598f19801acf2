"""One of the processes of ``plait run --nproc`` and ``plait resume --nproc``; the command that started them shows the
result."""

from __future__ import annotations

import json
import sys
from typing import Any

from plait_cli import errors, output


def main(arguments: list[str]) -> int:
    """Run or resume, as the one argument says in JSON; the exit code, as of the command line."""
    from plait.distributed.processes import current

    output.open_streams()
    sys.stdout = sys.stderr  # the answer is for the command that started this process to give
    order: dict[str, Any] = json.loads(arguments[0])
    try:
        import plait

        shown = current().rank == 0
        if "resume" in order:
            chosen = {name: order[name] for name in ("checkpoint", "device", "anyway")}
            plait.resume(order["resume"], **chosen, progress=shown)
        else:
            plait.run(order["recipe"], out=order["out"], go_on=order["go_on"], progress=shown)
    except (Exception, KeyboardInterrupt) as error:
        return errors.report(error, as_json=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

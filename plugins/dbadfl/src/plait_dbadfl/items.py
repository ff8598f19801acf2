"""The runs that are compared in one evaluation, as short texts. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from plait_dbadfl.names import ARMS, BUDGETS, CLUSTERED, DEFENCES, PLACEMENTS, SCANNING

USUAL_DEFENCES = ("median", "clipping")
"""What defends beside an attack when the user names no defence."""

_FORM = re.compile(
    r"^(?P<arm>[a-z0-9-]*)(?::(?P<option>\w+)=(?P<value>[a-z0-9.]+))?"
    r"(?:\+(?P<defence>[a-z-]+))?(?:@(?P<place>[a-z-]+))?(?:/(?P<budget>[a-z]+))?$"
)
VARIED = ("tau", "n_clusters", "distance_noise")
"""Options of the clusters that one run may have otherwise than the whole evaluation."""


@dataclass(frozen=True)
class Item:
    """One run: an arm under an aggregation rule, with the attackers somewhere and a budget.

    Args:
        arm: of `ARMS`. defence: of `DEFENCES`, or None for the mean.
        placement, budget: None: as the whole evaluation has it.
        text: how it was written; its name in tables.
        change: an option of `VARIED` and its value in this run; None: as the whole evaluation has it.
    """

    arm: str
    defence: str | None = None
    placement: str | None = None
    budget: str | None = None
    text: str = ""
    change: tuple[str, str] | None = None

    @property
    def attack(self) -> str:
        """The arm, with what is otherwise in it."""
        return self.arm if self.change is None else f"{self.arm}:{'='.join(self.change)}"

    @property
    def slug(self) -> str:
        """Its name in metrics: letters, digits and underscores."""
        return re.sub(r"\W", "_", self.text.lstrip("+").replace("@", "_at_").replace("/", "_by_"))

    @property
    def unaware(self) -> str:
        """What must be said beside the figures of a defended run that is attacked with distances, or nothing: the scan
        and the shadows know nothing of the defence."""
        defended = self.scans and self.defence not in (None, "mean")
        return "attacked with distances that were learnt without the defence" if defended else ""

    @property
    def scans(self) -> bool:
        """Whether it needs predicted distances."""
        return self.arm in SCANNING


def parse_item(text: str, arm: str) -> Item:
    """Read ``arm:option=value+defence@placement/budget``; all parts but one may be missing, a missing arm is ``arm``.

    Raises:
        ValueError: another form, or an unknown name.
    """
    parts = _FORM.match(text)
    if not parts or not text:
        raise ValueError(
            f"{text!r} is not of the form arm:option=value+defence@placement/budget, e.g. naive+median, naive@spread "
            "or clusters-predicted:tau=2"
        )
    change = (parts["option"], parts["value"]) if parts["option"] else None
    item = Item(parts["arm"] or arm, parts["defence"], parts["place"], parts["budget"], text, change)
    chosen = {
        "option": (parts["option"], VARIED),
        "arm": (item.arm, ARMS),
        "defence": (item.defence, DEFENCES),
        "placement": (item.placement, PLACEMENTS),
        "budget": (item.budget, BUDGETS),
    }
    for what, (value, known) in chosen.items():
        if value is not None and value not in known:
            raise ValueError(f"{text!r}: {what} {value!r} is unknown; choose one of {', '.join(known)}")
    if item.scans and item.placement is not None:
        raise ValueError(f"{text!r}: an arm that scans has the attackers where the evaluation has them")
    if item.change is not None and item.arm not in CLUSTERED:
        raise ValueError(f"{text!r}: {parts['option']} is of clusters, which {', '.join(CLUSTERED)} have")
    return item


def companions(wanted: tuple[str, ...], arm: str, defence: str | None) -> tuple[Item, ...]:
    """The runs beside the main one: those wanted, the clean one, and at least two defended ones.

    An attack is never reported without them; a clean evaluation needs none.
    """
    runs = [parse_item(text, arm) for text in wanted]
    if arm != "none" and not any(item == replace(Item("none"), text=item.text) for item in runs):
        runs.insert(0, Item("none", text="none"))
    if arm != "none":
        for name in USUAL_DEFENCES:
            defended = {
                (i.defence, i.arm) for i in runs if i.defence not in (None, "mean") and i.arm == arm and not i.change
            }
            if len(defended) < 2 and (name, arm) not in defended:
                runs.append(Item(arm, name, text=f"+{name}"))
    kept: dict[Item, Item] = {}
    for item in runs:
        kept.setdefault(replace(item, text=""), item)
    kept.pop(Item(arm, defence), None)
    return tuple(kept.values())

"""What is wrong with a data set, by kind: how often, and one example of each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

ERROR, WARNING = "error", "warning"


@dataclass
class Finding:
    """One kind of fault."""

    severity: str
    what: str
    example: str = ""
    count: int = 1

    def __str__(self) -> str:
        times = f" ({self.count})" if self.count > 1 else ""
        first = f"; first: {self.example}" if self.count > 1 else f": {self.example}"
        return f"{self.severity}: {self.what}{times}{first if self.example else ''}"


class Findings:
    """Faults in the order in which their kinds were met."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Finding] = {}

    def note(self, severity: str, what: str, example: str = "", count: int = 1) -> None:
        """Count a fault; the example of the first one is kept."""
        known = self._found.get((severity, what))
        if known is None:
            self._found[severity, what] = Finding(severity, what, example, count)
        else:
            known.count += count

    def all(self) -> list[Finding]:
        """Errors first."""
        return sorted(self._found.values(), key=lambda finding: finding.severity != ERROR)

    def as_json(self) -> list[dict[str, Any]]:
        """All, as objects with `severity`, `what`, `example` and `count`."""
        return [dataclasses.asdict(finding) for finding in self.all()]

    @property
    def has_errors(self) -> bool:
        """Whether one of them is more than a warning."""
        return any(finding.severity == ERROR for finding in self._found.values())

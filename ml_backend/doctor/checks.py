"""What a check is, and how checks are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ml_backend.errors import BackendError
from ml_backend.settings import Settings

Status = Literal["ok", "note", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One result.

    Attributes:
        check: what was looked at.
        status: ``note`` works, but should be known; ``skipped`` could not be looked at because of another failure.
        found: what was found.
        cure: what to do about it, empty where nothing needs to be done.
    """

    check: str
    status: Status
    found: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What is examined: the settings in force and where the backend should answer."""

    settings: Settings
    backend_url: str


@dataclass(frozen=True, slots=True)
class Check:
    """A named examination; it yields findings and may raise BackendError, which becomes a failed finding."""

    name: str
    title: str
    examine: Callable[[Target], Iterator[Finding]]

    def run(self, target: Target) -> list[Finding]:
        """All findings; an error ends the check, never the doctor."""
        findings: list[Finding] = []
        try:
            findings.extend(self.examine(target))
        except BackendError as error:
            findings.append(Finding(self.title, "failed", error.message, error.cure))
        return findings

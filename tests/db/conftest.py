"""Tests of the database migrate each new one."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _new_databases_are_copies() -> None:
    """Leave databases empty, unlike the fixture of this name for all other tests."""

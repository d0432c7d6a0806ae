"""Kinds of suspicious moments."""

from __future__ import annotations

from typing import Literal, get_args

MomentKind = Literal[
    "identity_jump",
    "broken_life",
    "label",
    "jump",
    "jitter",
    "duplicate",
    "no_object",
    "no_box",
    "frozen",
    "overstay",
    "geometry",
    "disputed",
]
MOMENT_KINDS: tuple[MomentKind, ...] = get_args(MomentKind)

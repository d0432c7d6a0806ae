"""Repairs of Label Studio's regions as plain JSON, and other names that the web process needs. Imports no library."""

from __future__ import annotations

import hashlib
import json
from typing import Any

#: ``do``, ``region``, and depending on that ``other``, ``frame``, ``first``, ``last``, ``label``, ``fill``, ``blend``,
#: ``sequence``, ``global_id``; or ``add`` with the whole region as ``added``. Frames are 1-based, on Label Studio's
#: timeline.
RepairJson = dict[str, Any]
#: Answers that change no region. A skipped moment stays in the queue, at its end; a rejected track is not found again.
SKIP, DISMISS, REJECT = UNCHANGING = ("skip", "dismiss", "reject")
ACCEPT = "accept"
#: A decision that gives a track's object a number. Boxes and labels stay as they are.
IDENTIFY = "identify"
#: Signature of such decisions that a search for the same objects has made, not a person.
FOUND = "found"
#: A decision that wrote an annotation of its own, which is nobody's.
CONSENSUS = "consensus"


def digest(*facts: Any) -> str:
    """Return a digest of plain JSON, 16 hex digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def describe_json(repair: RepairJson) -> str:
    """Return a sentence about what a repair does; frames as in Label Studio."""
    match repair["do"]:
        case "split":
            return f"Split at frame {repair['frame']}."
        case "join":
            return "Joined two tracks."
        case "swap":
            return f"Exchanged with another track from frame {repair['frame']} on."
        case "relabel":
            return f"Labelled {repair['label']}." if repair["label"] else "Label removed."
        case "identify":
            return f"Global id {repair['global_id']}."
        case "end":
            return f"Kept from frame {repair['first']} to {repair['last']} only."
        case "add":
            return f"Added a track of {repair['label']} from frame {repair['first']} on."
        case "boxes":
            return f"Boxes corrected from frame {repair['first']} to {repair['last']}."
        case _:
            return "Deleted."


def clip_name(project_id: int, moment_id: str) -> str:
    """Return the name of a moment's clip among the artifacts."""
    return f"projects/{project_id}/moments/{moment_id}.mp4"


#: Folder of the frames of videos among the artifacts, and how many are rendered together.
FRAMES_FOLDER, FRAMES_AT_ONCE = "frames", 32


def frames_key(uri: str, frame_rate: float | None) -> str:
    """Return what the frames of a task's video depend on, 16 hex digits."""
    return digest(uri, frame_rate)


def frames_name(project_id: int, task_id: int, key: str, first: int) -> str:
    """Return the name of an archive of frames, ``first`` and those after it, among the artifacts."""
    return f"{FRAMES_FOLDER}/{project_id}/{task_id}-{key}-{first}.zip"

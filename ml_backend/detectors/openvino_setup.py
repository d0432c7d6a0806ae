"""Set-up before OpenVINO is imported."""

from __future__ import annotations

import sys


def setup_openvino() -> None:
    """Disable OpenVINO's telemetry, which sends an event to a web service on import.

    Makes ``openvino_telemetry`` appear not to be installed, which OpenVINO allows for. Its official opt-out is a file
    in the home directory, which we leave alone.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not to be imported

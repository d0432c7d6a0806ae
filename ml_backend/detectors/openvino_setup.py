"""What must have been done before OpenVINO is imported."""

from __future__ import annotations

import sys


def setup_openvino() -> None:
    """Keep OpenVINO from reporting its use: unless told otherwise, its import alone sends an event to a web service.

    To it, ``openvino_telemetry`` is then not installed, a case that it provides for. Its switch for that is a file in
    the home directory, where nothing of ours belongs.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not to be imported

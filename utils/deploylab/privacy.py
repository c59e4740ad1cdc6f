"""Keep the engines from phoning home. Must run before any of them is imported.

* onnxruntime >= 1.29 writes a device id at import and reports usage unless ``ORT_DISABLE_TELEMETRY=1`` is set first.
* ``import openvino`` sends an event through the package ``openvino_telemetry``; without that package a stub is used.
* Ray reports usage from every cluster it starts unless ``RAY_USAGE_STATS_ENABLED=0``.
* MNN's console scripts install an uploader with pip; :mod:`deploylab.engines.mnn` never calls them.
"""

from __future__ import annotations

import os
import sys


def switch_telemetry_off() -> None:
    """Disable vendors' telemetry in this process and in the processes it starts. Idempotent."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # None makes `import openvino_telemetry` raise ImportError, and openvino falls back to its own no-op stub.
    sys.modules.setdefault("openvino_telemetry", None)

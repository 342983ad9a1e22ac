"""Latency tables: small graphs timed once for each signature on a device, and kept in one SQLite file.

``signature`` names what is timed, ``standalone`` copies a graph without its host, ``devices`` run it, ``timing`` times it in turn
with a reference graph, ``store`` is the file, ``table`` holds them together, and ``network`` cuts a model into its ops.
"""

from .devices import DEVICES, Device, device
from .signature import signature
from .table import Latency, LatencyTable, default_path, paired

__all__ = [
    "DEVICES",
    "Device",
    "Latency",
    "LatencyTable",
    "default_path",
    "device",
    "paired",
    "signature",
]

"""Latency tables: small graphs are timed once for each signature on a device, and the latencies are kept in one SQLite file.

``signature`` computes the key of a measurement, ``standalone`` copies a graph without its host, ``devices`` run it, ``timing``
times it in turn with a reference graph, ``store`` is the file, ``table`` combines these, and ``network`` splits a model into its ops.
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

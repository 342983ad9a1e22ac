"""Advice: what each capability could gain for one model, without data, and the command for it.

``advice`` is the result and its table, ``adviser`` makes it, ``examine`` has a function for each capability, ``commands`` writes the commands,
``timing`` looks latencies up or measures them.
"""

from .advice import GAINS, Advice, Finding
from .adviser import advise

__all__ = ["GAINS", "Advice", "Finding", "advise"]

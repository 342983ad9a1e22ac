"""Repair: the layers of a planned network are corrected in closed form, and the whole network judges each correction.

Behind a replaced region all layers read values that have changed: usually they shrink, and with them the outputs. In topological
order each layer gets a chance to compute what it computed in the original network, from what it reads now.

- :mod:`.refits` has the algebra.
- :mod:`.pairs` finds the value of the original network that a layer's result corresponds to.
- :mod:`.walk` runs a network piece by piece.
- :mod:`.joint` finds the amounts of many small moves together.
- :mod:`.repairer` goes through the layers.
"""

from .repairer import Repair, Repairer, Repairs

__all__ = ["Repair", "Repairer", "Repairs"]

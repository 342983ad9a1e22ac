"""The modules that gated, scaled and masked networks are made of; :mod:`graphshrink.nn` hands them on."""

from .gates import BETA, GAMMA, LIMIT, MARGIN, RANDOM, ZETA, Gate, Switch
from .masks import Mask, check_masks, fold_masks, mask_of, mask_weight, masks, rewind
from .scale import Scale

__all__ = [
    "BETA", "GAMMA", "LIMIT", "MARGIN", "RANDOM", "ZETA", "Gate", "Mask", "Scale", "Switch", "check_masks",
    "fold_masks", "mask_of", "mask_weight", "masks", "rewind",
]  # fmt: skip

"""How each op is written in TFLite; one file a family of ops."""

from . import (  # noqa: F401 - their rules register themselves
    activations,
    arithmetic,
    convolutions,
    functions,
    indexing,
    linear,
    padding,
    pools,
    quantize,
    quantized,
    recurrent,
    reductions,
    resample,
    shapes,
    slices,
)

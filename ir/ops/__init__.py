"""The canonical ops: every name in the ``__all__`` of a module of this folder."""

from .arithmetic import *
from .base import *
from .elementwise import *
from .indexing import *
from .linear import *
from .norm import *
from .opaque import *
from .quantize import *
from .quantized import *
from .recurrent import *
from .resample import *
from .shape import *

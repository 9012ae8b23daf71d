"""Who takes part: one file a library."""

from benchmarks.contestants.cudnn import CUDNN
from benchmarks.contestants.equinox_ import EQUINOX
from benchmarks.contestants.flax_linen import LINEN
from benchmarks.contestants.flax_nnx import NNX
from benchmarks.contestants.haiku_ import HAIKU
from benchmarks.contestants.keras_ import KERAS
from benchmarks.contestants.ours import AGAIN, LOW_MEMORY, NAMES as NAMES, OURS, named as named
from benchmarks.contestants.scan import SCAN
from benchmarks.contestants.torch_ import TORCH

#: Always there: ours, ours once more, ours with little memory, and the loop one writes by hand.
HOUSE = (OURS, AGAIN, LOW_MEMORY, SCAN)
#: Other libraries on JAX, the best of which is to be beaten.
LIBRARIES = (*LINEN, *NNX, HAIKU, EQUINOX, KERAS)
#: What ``--peers`` takes.
PEERS = {
    "linen": LINEN,
    "nnx": NNX,
    "haiku": (HAIKU,),
    "equinox": (EQUINOX,),
    "keras": (KERAS,),
    "torch": (TORCH,),
    "cudnn": (CUDNN,),
}

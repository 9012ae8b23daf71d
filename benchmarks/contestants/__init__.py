"""The contestants, one module for each library."""

from benchmarks.contestants.cudnn import CUDNN
from benchmarks.contestants.equinox_ import EQUINOX
from benchmarks.contestants.flax_linen import LINEN
from benchmarks.contestants.flax_nnx import NNX
from benchmarks.contestants.haiku_ import HAIKU
from benchmarks.contestants.keras_ import KERAS
from benchmarks.contestants.lstm_jax_ import AGAIN, LOW_MEMORY, LSTM_JAX, NAMES as NAMES, named as named
from benchmarks.contestants.scan import SCAN
from benchmarks.contestants.torch_ import TORCH

#: Always measured: lstm_jax, twice (the noise) and with low memory, and a scan written by hand.
ALWAYS_MEASURED = (LSTM_JAX, AGAIN, LOW_MEMORY, SCAN)
#: Other JAX libraries. The summary compares lstm_jax with the fastest of them.
LIBRARIES = (*LINEN, *NNX, HAIKU, EQUINOX, KERAS)
#: Names that ``--peers`` accepts.
PEERS = {
    "linen": LINEN,
    "nnx": NNX,
    "haiku": (HAIKU,),
    "equinox": (EQUINOX,),
    "keras": (KERAS,),
    "torch": (TORCH,),
    "cudnn": (CUDNN,),
}

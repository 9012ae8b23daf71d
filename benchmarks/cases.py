"""Benchmark cases: sizes, options, and the arrays that all contestants receive."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax


class Case(NamedTuple):
    """Sizes and options of one problem."""

    B: int  # batch size
    T: int  # steps
    D: int  # input features
    H: int  # hidden units
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False  # sequences of different lengths, from 1 to T
    ensemble: int = 0  # number of networks, each with its own weights and inputs; 0: one, without an axis
    streaming: bool = False  # one step from a given carry, to measure latency
    cell: str = "LSTM"  # or "GRU", "RNN", "MLSTM"
    resets: float = 0.0  # fraction of the steps at which the carry is reset

    def __str__(self) -> str:
        words = [f"{self.B},{self.T},{self.D},{self.H}"]
        words += [self.cell] if self.cell != "LSTM" else []
        words += [f"{self.layers} layers"] if self.layers > 1 else []
        words += [name for name in ("bidirectional", "ragged", "streaming") if getattr(self, name)]
        words += [f"ensemble of {self.ensemble}"] if self.ensemble else []
        words += [f"resets at {self.resets:.0%}"] if self.resets else []
        return " ".join(words)

    def as_json(self) -> dict[str, Any]:
        """The sizes, and the options that do not have their default."""
        return {
            n: a
            for n, a in self._asdict().items()
            if n not in self._field_defaults or a != self._field_defaults[n]
        }

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes to measure. A streaming case has no backward pass."""
        return MODES[:1] if self.streaming else MODES

    @property
    def output_size(self) -> int:
        """Features of the output."""
        return self.H * (2 if self.bidirectional else 1)


#: What is computed: the outputs, or the gradients of a loss with respect to weights and inputs.
MODES = ("forward", "forward+backward")

CORE = (
    Case(1, 100, 128, 128),
    Case(32, 100, 128, 128),
    Case(20, 35, 200, 200),
    Case(64, 128, 256, 256),
    Case(32, 128, 512, 512),
    Case(20, 35, 650, 650),
    Case(128, 28, 28, 128),
    Case(8, 1000, 64, 64),
)
STACK = (Case(32, 100, 128, 128, layers=2), Case(32, 100, 128, 128, layers=4))
BIDIRECTIONAL = (Case(32, 100, 128, 128, bidirectional=True),)
RAGGED = (Case(32, 100, 128, 128, ragged=True),)
ENSEMBLE = (Case(16, 50, 32, 64, ensemble=8),)
STREAMING = (Case(1, 1, 128, 128, streaming=True), Case(32, 1, 128, 128, streaming=True))
#: Sizes that are not used while the library is tuned: odd ones, extreme ones, and the other two cells.
OTHER = (
    Case(1, 2000, 32, 64),
    Case(7, 5, 100, 1024),
    Case(16, 300, 40, 32),
    Case(48, 61, 37, 75),
    Case(256, 20, 50, 96),
    Case(32, 100, 128, 128, cell="GRU"),
    Case(1, 500, 80, 256, cell="GRU"),
    Case(100, 33, 45, 333, cell="GRU"),
    Case(32, 100, 128, 128, cell="RNN"),
    Case(256, 50, 64, 64, cell="RNN"),
)
#: Computed in chunks of time by default. No other library has the cell.
MLSTM = (Case(8, 1024, 256, 256, cell="MLSTM"),)

#: Groups of cases that ``--cases`` accepts in addition to sizes.
NAMED = {
    "core": CORE,
    "stack": STACK,
    "bidirectional": BIDIRECTIONAL,
    "ragged": RAGGED,
    "ensemble": ENSEMBLE,
    "streaming": STREAMING,
    "other": OTHER,
    "mlstm": MLSTM,
    "all": CORE + STACK + BIDIRECTIONAL + RAGGED + ENSEMBLE + STREAMING + OTHER + MLSTM,
}
#: Tiny cases that use every option.
QUICK = (
    Case(2, 5, 3, 4),
    Case(2, 5, 3, 4, layers=2, bidirectional=True),
    Case(3, 5, 3, 4, ragged=True),
    Case(2, 5, 3, 4, ensemble=2),
    Case(2, 1, 3, 4, streaming=True),
    Case(2, 5, 3, 4, cell="GRU"),
    Case(2, 5, 3, 4, cell="RNN"),
    Case(2, 5, 3, 8, cell="MLSTM"),
)
#: Heads of an MLSTM.
HEADS = 4


class Curve(NamedTuple):
    """Cases that differ from ``base`` in one size."""

    letter: str
    sizes: tuple[int, ...]
    base: Case

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases, in increasing order of size."""
        return tuple(self._at(size) for size in self.sizes)

    def _at(self, size: int) -> Case:
        inputs = {"D": size} if self.letter == "H" else {}  # D equals H
        return self.base._replace(**{self.letter: size}, **inputs)


BASE = Case(32, 100, 128, 128)
CURVES = (
    Curve("T", (25, 50, 100, 200, 400, 800), BASE),
    Curve("B", (1, 4, 16, 32, 64, 128, 256), BASE),
    Curve("H", (32, 64, 128, 256, 512, 1024), BASE),
)
QUICK_CURVES = tuple(Curve(letter, (3, 6), Case(3, 3, 3, 3)) for letter in "TBH")


class Setting(NamedTuple):
    """Platform and precision of a measurement."""

    platform: str = "cpu"  # JAX's name for it: cpu, gpu or tpu
    dtype: str = "float32"  # of the inputs and the matrix products
    tf32: bool = False  # whether a GPU may use TF32 for float32 products

    def __str__(self) -> str:
        return "TF32" if self.tf32 else self.dtype


def precision(setting: Setting) -> Any:
    """A context with the matrix product precision of ``setting``. CPUs always compute in full precision."""
    if setting.platform == "cpu" or setting.dtype != "float32":
        return contextlib.nullcontext()
    return jax.default_matmul_precision("tensorfloat32" if setting.tf32 else "highest")


Layers = tuple[tuple[Any, ...], ...]  # for each layer, its directions


class Problem(NamedTuple):
    """The arrays of a case. In an ensemble, all arrays but the lengths have one more leading axis."""

    params: Layers  # float32
    xs: jax.Array  # (T, B, D), or (B, D) when streaming
    more: Any  # None, lengths (B,), resets (T, B), or when streaming the carry (h, c), each (B, H)
    weights: jax.Array  # (T, B, output_size); the loss is the sum of weights * outputs
    valid: np.ndarray  # (T, B, 1), or (B, 1) when streaming: which outputs are compared


@lru_cache(maxsize=4)  # a case is measured in two modes, and on a device in several dtypes
def make_problem(case: Case, setting: Setting) -> Problem:
    """Random weights and biases, inputs, lengths, and a linear loss that ignores padding."""
    params, xs, weights, carry = jax.jit(_draw, static_argnums=(0, 1))(case, setting.dtype)
    valid = np.ones((*xs.shape[bool(case.ensemble) : -1], 1), bool)
    more = carry if case.streaming else None
    if case.resets:
        more = jax.random.bernoulli(jax.random.key(1), case.resets, (case.T, case.B))
    if case.ragged:
        lengths = np.linspace(case.T, 1, case.B).astype(np.int32)  # longest first
        valid = (np.arange(case.T)[:, None] < lengths)[..., None]
        weights = np.where(valid, np.asarray(weights), np.zeros((), weights.dtype))
        more, weights = jnp.asarray(lengths), jnp.asarray(weights)
    return Problem(params, xs, more, weights, valid)


def _draw(case: Case, dtype: str) -> tuple[Layers, jax.Array, jax.Array, Any]:
    keys = jax.random.split(jax.random.key(0), 4)
    many = (case.ensemble,) if case.ensemble else ()
    steps = () if case.streaming else (case.T,)

    def init(key: jax.Array) -> Layers:
        network = make_network(case)
        params = network.init(key) if case.cell == "MLSTM" else lstm_jax.torch_init(network, key)
        return as_layers(case, params)

    params = jax.vmap(init)(jax.random.split(keys[0], case.ensemble)) if many else init(keys[0])
    xs = jax.random.normal(keys[1], (*many, *steps, case.B, case.D))
    weights = jax.random.normal(keys[2], (*many, *steps, case.B, case.output_size))
    h, c = jax.random.normal(keys[3], (2, case.B, case.H)) / 2
    return params, xs.astype(dtype), weights.astype(dtype), (h.astype(dtype), c)


def make_cell(case: Case, input_size: int, dtype: str | None = None) -> Any:
    """The cell of one layer."""
    options = {"heads": HEADS} if case.cell == "MLSTM" else {}
    return getattr(lstm_jax, case.cell)(input_size, case.H, dtype=dtype, **options)


def make_network(case: Case, dtype: str | None = None) -> Any:
    """The case as a cell or network of this library."""

    def layer(size: int) -> Any:
        cell = make_cell(case, size, dtype)
        return lstm_jax.Bidirectional(cell) if case.bidirectional else cell

    layers = (layer(case.D), *(layer(case.output_size) for _ in range(case.layers - 1)))
    return layers[0] if case.layers == 1 else lstm_jax.Stack(layers)


def as_layers(case: Case, params: Any) -> Layers:
    """A network's parameters as a tuple of layers, each a tuple of directions."""
    layers = (params,) if case.layers == 1 else params
    return tuple(tuple(layer) if case.bidirectional else (layer,) for layer in layers)


def as_network(case: Case, layers: Layers) -> Any:
    """The inverse of :func:`as_layers`."""
    params = tuple(
        lstm_jax.BidirectionalParams(*layer) if case.bidirectional else layer[0] for layer in layers
    )
    return params[0] if case.layers == 1 else params


def flops(case: Case, mode: str, valid_steps: int) -> int:
    """Operations in matrix products: two per weight and valid step, and three times as many with the
    backward pass, which adds products for the weights and for the states and inputs."""
    directions = 2 if case.bidirectional else 1
    inputs = case.D + (case.layers - 1) * case.output_size
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1, "MLSTM": 4}[case.cell]
    recurrent = gates * case.H**2
    if case.cell == "MLSTM":  # no recurrent weights; C is updated with v k and multiplied with q, per head
        recurrent = 2 * case.H**2 // HEADS
    weights = directions * (gates * case.H * inputs + case.layers * recurrent)
    forward = 2 * weights * valid_steps * max(1, case.ensemble)
    return forward * (1 if mode == MODES[0] else 3)

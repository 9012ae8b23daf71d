"""The library for models written in Flax Linen: cells for ``nn.RNN``, and modules for whole sequences.

====================================  ==========================================================
Name                                  What it is
====================================  ==========================================================
`LSTMCell`, `GRUCell`, `SimpleCell`   in the place of Flax's cells: one step a call
`Cell`                                any cell of the library, or a stack of them, as one
`LSTM`, `GRU`, `RNN`                  layers over a whole sequence, in ``unroll``'s time contract
`Recurrent`                           any network of the library, over a whole sequence
`to_variables`, `from_variables`      parameters into the collection ``params``, and out of it
====================================  ==========================================================

Flax's way, as in :mod:`lstm_jax.nnx`, are the batch before time, outputs without the carry, and the
carry of an LSTM or a ConvLSTM as ``(c, h)``. Initial weights are the library's. Every array of
the parameters is one of the module's, named after its field: ``w_ih``, or ``1.forward.w_hh`` in a
stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import jax
import jax.numpy as jnp

try:
    from flax import linen as nn
except ImportError as error:
    raise ImportError('lstm_jax.linen needs Flax: pip install "lstm_jax[flax]"', name="flax") from error

import lstm_jax
from lstm_jax._errors import value_error
from lstm_jax._flax import check_quiet, initial, is_random, layers, name_of, named, step, unroll_module
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import as_base_cell
from lstm_jax.unrolling.validation import check_cell


def to_variables(params: Params) -> dict[str, Array]:
    """Parameters as the collection ``params`` of a module here.

    >>> params = lstm_jax.LSTM(3, 8).init(jax.random.key(0))
    >>> ys = LSTM(8).apply({"params": to_variables(params)}, jnp.ones((4, 10, 3)))
    """
    return {name: jnp.asarray(value) for name, value in named(params).items()}


def from_variables(network: Any, variables: Mapping[str, Any]) -> Params:
    """Parameters as :func:`lstm_jax.unroll` takes them, out of the collection ``params`` of a module here.

    Raises:
        ValueError: they are not those of ``network``.

    >>> variables = LSTM(8).init(jax.random.key(0), jnp.ones((4, 10, 3)))
    >>> type(from_variables(lstm_jax.LSTM(3, 8), variables["params"])).__name__
    'LSTMParams'
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    names = list(named(shapes))
    if sorted(names) != sorted(variables):
        raise value_error(
            f"from_variables got {', '.join(sorted(variables))}",
            f"the parameters of the network, {', '.join(sorted(names))}",
            'Take the inner mapping, variables["params"], and the network that the module has.',
        )
    return jax.tree.unflatten(jax.tree.structure(shapes), [variables[name] for name in names])


def _params(module: nn.Module, network: Any) -> Params:
    """Each array by ``module.param``; all are drawn together, as the network draws them."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    fresh = network.init(module.make_rng("params")) if module.is_initializing() else None

    def param(path: Any, shape: Any, drawn: Array | None = None) -> Array:
        def init(key: Array) -> Array:
            return jnp.zeros(shape.shape, shape.dtype) if drawn is None else drawn

        return module.param(name_of(path), init)

    return jax.tree.map_with_path(param, shapes, *(() if fresh is None else (fresh,)))


class Cell(nn.RNNCellBase):
    """Any cell of the library as a cell of Flax Linen: ``(carry, x) -> (carry, y)``.

    Attributes:
        network: a cell, or a :class:`lstm_jax.Stack` of cells. One with noise is refused: a single
            step does not draw (:class:`Recurrent` does).

    >>> model = nn.RNN(Cell(lstm_jax.LSTMVariant(3, 8, peepholes=True)))
    >>> ys, variables = model.init_with_output(jax.random.key(0), jnp.ones((4, 10, 3)))
    >>> ys.shape, variables["params"]["cell"]["peepholes"].shape
    ((4, 10, 8), (24,))
    """

    network: Any

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """One step; an LSTM's carry is (c, h)."""
        return _step(self, self.network, carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """The carry before the first step: zeros, or what was learned; ``rng`` is for Flax's sake."""
        return _initialize_carry(self, self.network, input_shape)

    @property
    def num_feature_axes(self) -> int:
        """How many trailing axes of an input are features: 1, but for ConvLSTM."""
        return as_base_cell(self.network).event_ndim


def _step(module: nn.Module, network: Any, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
    owner = type(module).__name__
    check_cell(owner, network)
    check_quiet(owner, network)
    return step(owner, network, _params(module, network), carry, inputs)


def _initialize_carry(module: nn.Module, network: Any, input_shape: tuple[int, ...]) -> Carry:
    params = None
    if module.scope is not None:  # inside a model, whose parameters may hold what was learned
        variables = module.variables.get("params")
        params = network.init(jax.random.key(0)) if not variables else from_variables(network, variables)
    return initial(network, input_shape, params)


class Recurrent(nn.Module):
    """Any network of the library over a whole sequence, by :func:`lstm_jax.unroll`.

    It can be called as ``nn.RNN`` is, and stand in ``nn.Bidirectional``. A network with noise draws
    from the stream ``dropout`` unless ``deterministic``, which must then be said, here or in the call.

    Attributes:
        network: a cell, :class:`lstm_jax.Stack` or :class:`lstm_jax.Bidirectional`.
        time_major: sequences are (T, *batch, D) rather than (*batch, T, D).
        return_carry: return ``(carry, ys)`` rather than ys.
        reverse: run from the last valid step to the first.
        deterministic: no noise, as with ``nn.Dropout``.

    >>> network = lstm_jax.Stack((lstm_jax.MinGRU(3, 8), lstm_jax.LSTM(8, 8)), dropout=0.5)
    >>> model, xs = Recurrent(network, return_carry=True), jnp.ones((4, 10, 3))
    >>> variables = model.init(jax.random.key(0), xs, deterministic=True)
    >>> noise = {"dropout": jax.random.key(1)}
    >>> carry, ys = model.apply(variables, xs, seq_lengths=[10, 5, 1, 0], deterministic=False, rngs=noise)
    >>> ys.shape, float(jnp.abs(ys[1, 5:]).max())
    ((4, 10, 8), 0.0)
    """

    network: Any
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, inputs: Array, **options: Any) -> Any:
        """The network over a sequence; what is not given is as the module was made.

        Args:
            inputs: (*batch, T, D), or (T, *batch, D) with ``time_major``.
            options: ``initial_carry``, ``seq_lengths``, ``mask``, ``resets``, ``reverse``, ``keep_order``,
                ``checkpoint``, ``truncate``, ``start``, ``time_major``, ``return_carry``,
                ``return_carries``, ``implementation``, ``deterministic``: as in :mod:`lstm_jax.nnx`.
                ``init_key`` is for Flax's sake and has no effect.
        """
        return _walk(self, self.network, inputs, **options)


def _walk(
    module: Any,
    network: Any,
    inputs: Array,
    *,
    initial_carry: Carry | None = None,
    init_key: Array | None = None,
    deterministic: bool | None = None,
    **options: Any,
) -> Any:
    owner = type(module).__name__
    check_cell(owner, network)
    for name in ("time_major", "return_carry", "reverse"):
        if options.get(name) is None:
            options[name] = getattr(module, name)
    params = _params(module, network)
    key = _key(module, deterministic) if is_random(network) else None
    return unroll_module(owner, network, params, inputs, initial_carry, key=key, **options)


def _key(module: Any, deterministic: bool | None) -> Array | None:
    """A key for this call. Initialising needs none: what is computed then is thrown away."""
    if deterministic is None:
        deterministic = module.deterministic
    owner = type(module).__name__
    if deterministic is None:
        raise value_error(
            f"{owner} has noise, and deterministic=None",
            "True for evaluation or False for training",
            "Say it when making the module, or when calling it.",
        )
    if deterministic or (module.is_initializing() and not module.has_rng("dropout")):
        return None
    if not module.has_rng("dropout"):
        raise value_error(
            f"{owner} has noise, but no stream to draw it from",
            "the stream dropout",
            'Call apply(..., rngs={"dropout": key}), or deterministic=True for no noise.',
        )
    return module.make_rng("dropout")


# --- by name ------------------------------------------------------------------------------------

_SIZES = ("input_size", "hidden_size")


def _options(kind: Any) -> dict[str, Any]:
    """A cell's options and what they are by default."""
    return {f.name: f.default for f in fields(kind) if f.name not in _SIZES and f.default is not MISSING}


def _module(
    name: str, base: type, body: dict[str, Any], attributes: dict[str, Any], options: Any, doc: str
) -> Any:
    """A module with ``features``, some attributes, and the options of a cell as attributes."""
    annotations = {"features": int} | dict.fromkeys([*attributes, *options], Any)
    names = {"__module__": __name__, "__qualname__": name, "__doc__": doc, "__annotations__": annotations}
    return type(name, (base,), names | body | attributes | options)


def _cell_module(name: str, kind: Any, doc: str) -> Any:
    options = _options(kind)

    def network(self: Any, input_size: int) -> Any:
        return kind(input_size, self.features, **{option: getattr(self, option) for option in options})

    def __call__(self: Any, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """One step; an LSTM's carry is (c, h)."""
        return _step(self, network(self, inputs.shape[-1]), carry, inputs)

    def initialize_carry(self: Any, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """The carry before the first step: zeros, or what was learned; ``rng`` is for Flax's sake."""
        return _initialize_carry(self, network(self, input_shape[-1]), input_shape)

    body = {
        "__call__": nn.compact(__call__),
        "initialize_carry": nn.nowrap(initialize_carry),
        "num_feature_axes": property(lambda self: 1),
    }
    return _module(name, nn.RNNCellBase, body, {}, options, doc)


def _sequence_module(name: str, kind: Any, doc: str) -> Any:
    options = _options(kind)
    unrolling = {f.name: f.default for f in fields(Recurrent) if f.name in _UNROLL_FIELDS}
    shape = {"num_layers": 1, "bidirectional": False, "dropout": 0.0}

    def __call__(self: Any, inputs: Array, **call: Any) -> Any:
        """The layers over a sequence; arguments as :class:`Recurrent`'s."""
        names = {option: getattr(self, option) for option in (*shape, *options)}
        return _walk(self, layers(kind, inputs.shape[-1], self.features, **names), inputs, **call)

    return _module(name, nn.Module, {"__call__": nn.compact(__call__)}, shape | unrolling, options, doc)


_UNROLL_FIELDS = ("time_major", "return_carry", "reverse", "deterministic")

LSTMCell = _cell_module(
    "LSTMCell",
    lstm_jax.LSTM,
    """:class:`lstm_jax.LSTM` in the place of ``nn.LSTMCell``; its options are attributes.

    >>> cell, x = LSTMCell(features=8, forget_bias=0.0), jnp.ones((4, 3))
    >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
    >>> ((c, h), y), variables = cell.init_with_output(jax.random.key(1), carry, x)
    >>> bool(jnp.all(h == y))
    True
    """,
)

GRUCell = _cell_module(
    "GRUCell",
    lstm_jax.GRU,
    """:class:`lstm_jax.GRU` in the place of ``nn.GRUCell``; its options are attributes.

    >>> ys, variables = nn.RNN(GRUCell(8)).init_with_output(jax.random.key(0), jnp.ones((4, 10, 3)))
    >>> ys.shape
    (4, 10, 8)
    """,
)

SimpleCell = _cell_module(
    "SimpleCell",
    lstm_jax.RNN,
    """:class:`lstm_jax.RNN` in the place of ``nn.SimpleCell``; its options are attributes.

    >>> model = nn.RNN(SimpleCell(8, activation=jax.nn.relu))
    >>> model.init_with_output(jax.random.key(0), jnp.ones((4, 10, 3)))[0].shape
    (4, 10, 8)
    """,
)

LSTM = _sequence_module(
    "LSTM",
    lstm_jax.LSTM,
    """Layers of :class:`lstm_jax.LSTM` over a whole sequence, called as :class:`Recurrent` is.

    Attributes:
        features: H, of each direction.
        num_layers: layers one upon the other.
        bidirectional: each layer runs in both directions; outputs have 2H features.
        dropout: share of the features dropped between two layers.
        time_major, return_carry, reverse, deterministic: as in :class:`Recurrent`.

    The others are the options of the cell.

    >>> model = LSTM(8, num_layers=2, bidirectional=True)
    >>> ys, variables = model.init_with_output(jax.random.key(0), jnp.ones((4, 10, 3)))
    >>> ys.shape, variables["params"]["1.forward.w_ih"].shape
    ((4, 10, 16), (16, 32))
    """,
)

GRU = _sequence_module(
    "GRU",
    lstm_jax.GRU,
    """Layers of :class:`lstm_jax.GRU` over a whole sequence; attributes as :class:`LSTM`'s.

    >>> GRU(8).init_with_output(jax.random.key(0), jnp.ones((4, 10, 3)))[0].shape
    (4, 10, 8)
    """,
)

RNN = _sequence_module(
    "RNN",
    lstm_jax.RNN,
    """Layers of :class:`lstm_jax.RNN` over a whole sequence; attributes as :class:`LSTM`'s.

    (Flax's ``nn.RNN`` is something else, the loop over a cell; :class:`Recurrent` corresponds to it.)

    >>> RNN(8, time_major=True).init_with_output(jax.random.key(0), jnp.ones((10, 4, 3)))[0].shape
    (10, 4, 8)
    """,
)

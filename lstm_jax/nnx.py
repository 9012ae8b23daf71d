"""The library for models written in Flax NNX: cells for ``nnx.RNN``, and modules for whole sequences.

====================================  ==========================================================
Name                                  What it is
====================================  ==========================================================
`LSTMCell`, `GRUCell`, `SimpleCell`   in the place of Flax's cells: one step a call
`Cell`                                any cell of the library, or a stack of them, as one
`LSTM`, `GRU`, `RNN`                  layers over a whole sequence, in ``unroll``'s time contract
`Recurrent`                           any network of the library, over a whole sequence
====================================  ==========================================================

Three things are Flax's way and not the library's: sequences are (..., T, D) unless
``time_major``; what is returned is the outputs alone unless ``return_carry``; and the carry of an
LSTM or a ConvLSTM is ``(c, h)``, in stacks, wrappers and both directions too. All other carries are
the library's. Initial weights are the library's: Glorot-uniform where Flax has LeCun-normal, and a
forget gate's bias of 1 where Flax has 0 (``forget_bias=0.0``).

Every array of the parameters is an ``nnx.Param`` of its own, found under ``params``:
``model.params.w_ih``, or ``model.params[1].forward.w_hh`` in a stack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

try:
    from flax import nnx
except ImportError as error:
    raise ImportError('lstm_jax.nnx needs Flax: pip install "lstm_jax[flax]"', name="flax") from error

import lstm_jax
from lstm_jax._errors import value_error
from lstm_jax._flax import (
    check_cell_options,
    check_quiet,
    initial,
    is_random,
    layers,
    named,
    step,
    unroll_module,
)
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import as_base_cell
from lstm_jax.unrolling.validation import check_cell


class Parameters(nnx.Module):
    """A network and its parameters, each array an ``nnx.Param``: what all modules here share."""

    def __init__(self, network: Any, *, params: Params | None = None, rngs: Any = None) -> None:
        owner = type(self).__name__
        check_cell(owner, network)
        if rngs is not None and not isinstance(rngs, nnx.Rngs):
            raise value_error(
                f"{owner} got rngs of type {type(rngs).__name__}", "nnx.Rngs", "Pass rngs=nnx.Rngs(0)."
            )
        if params is not None:
            fresh = jax.eval_shape(network.init, jax.random.key(0))
            _check_params(owner, fresh, params, all_of_them=False)
            params = jax.tree.map(jnp.asarray, params)
        elif rngs is not None and _has(rngs, "params"):
            params = network.init(rngs.params())
        else:
            raise value_error(
                f"{owner} got " + ("neither rngs nor params" if rngs is None else "rngs without params"),
                "one of them: where to draw the weights from, or the weights",
                "Pass rngs=nnx.Rngs(0).",
            )
        self.network = nnx.static(network)
        self.params = nnx.data(jax.tree.map(nnx.Param, params))

    def values(self) -> Params:
        """The parameters as arrays, as :func:`lstm_jax.unroll` takes them.

        >>> model = LSTM(3, 8, rngs=nnx.Rngs(0))
        >>> type(model.values()).__name__, model.values().w_ih.shape
        ('LSTMParams', (3, 32))
        """
        return jax.tree.map(lambda variable: variable[...], self.params, is_leaf=_is_variable)

    def load(self, params: Params) -> None:
        """Take over the values of ``params``, in place and in the dtype the parameters have.

        Raises:
            ValueError: structure or shapes are not those of the network.

        >>> model = LSTM(3, 8, rngs=nnx.Rngs(0))
        >>> model.load(model.network.init(jax.random.key(1)))
        """
        _check_params(type(self).__name__, self.values(), params, all_of_them=True)
        mine = jax.tree.leaves(self.params, is_leaf=_is_variable)
        for variable, value in zip(mine, jax.tree.leaves(params), strict=True):
            variable[...] = jnp.asarray(value, variable.dtype)


class Cell(Parameters, nnx.RNNCellBase):
    """Any cell of the library as a cell of Flax NNX: ``(carry, x) -> (carry, y)``.

    Args:
        network: a cell, or a :class:`lstm_jax.Stack` of cells. One with noise is refused: a single
            step does not draw (:class:`Recurrent` does).
        params: what to begin with, for instance weights that were read; None draws from ``rngs``.
        rngs: the stream ``params`` is drawn from.

    Raises:
        ValueError: neither ``rngs`` nor ``params`` were given, or they do not fit.

    >>> import lstm_jax
    >>> cell = Cell(lstm_jax.LSTMVariant(3, 8, peepholes=True), rngs=nnx.Rngs(0))
    >>> carry, ys = nnx.RNN(cell)(jnp.ones((4, 10, 3)), return_carry=True)
    >>> ys.shape, cell.params.peepholes.shape
    ((4, 10, 8), (24,))
    """

    def __init__(self, network: Any, *, params: Params | None = None, rngs: Any = None) -> None:
        super().__init__(network, params=params, rngs=rngs)
        check_quiet(type(self).__name__, network)

    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """One step; an LSTM's carry is (c, h)."""
        return step(type(self).__name__, self.network, self.values(), carry, inputs)

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Callable[..., Array] | None = None
    ) -> Carry:
        """The carry before the first step, zeros or what was learned; ``carry_init`` draws it from ``rngs``.

        >>> [a.shape for a in LSTMCell(3, 8, rngs=nnx.Rngs(0)).initialize_carry((4, 3))]
        [(4, 8), (4, 8)]
        """
        carry = initial(self.network, input_shape, self.values())
        if carry_init is None:
            return carry
        if rngs is None:
            raise value_error(
                "initialize_carry got carry_init without rngs", "something to draw from", "Pass nnx.Rngs(0)."
            )
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        return jax.tree.map(lambda a: carry_init(stream(), a.shape, a.dtype), carry)

    @property
    def num_feature_axes(self) -> int:
        """How many trailing axes of an input are features: 1, but for ConvLSTM."""
        return as_base_cell(self.network).event_ndim

    @property
    def in_features(self) -> int:
        """Features of one input."""
        return self.network.input_size

    @property
    def hidden_features(self) -> int:
        """Hidden units of a cell."""
        return self.network.hidden_size


class LSTMCell(Cell):
    """:class:`lstm_jax.LSTM` in the place of ``nnx.LSTMCell``; ``options`` are its options.

    >>> cell = LSTMCell(3, 8, forget_bias=0.0, rngs=nnx.Rngs(0))
    >>> (c, h), y = cell(cell.initialize_carry((4, 3)), jnp.ones((4, 3)))
    >>> bool(jnp.all(h == y))
    True
    """

    def __init__(self, in_features: int, hidden_features: int, *, rngs: Any = None, **options: Any) -> None:
        check_cell_options("LSTMCell", lstm_jax.LSTM, options, "Cell")
        super().__init__(lstm_jax.LSTM(in_features, hidden_features, **options), rngs=rngs)


class GRUCell(Cell):
    """:class:`lstm_jax.GRU` in the place of ``nnx.GRUCell``; ``options`` are its options.

    >>> nnx.RNN(GRUCell(3, 8, rngs=nnx.Rngs(0)))(jnp.ones((4, 10, 3))).shape
    (4, 10, 8)
    """

    def __init__(self, in_features: int, hidden_features: int, *, rngs: Any = None, **options: Any) -> None:
        check_cell_options("GRUCell", lstm_jax.GRU, options, "Cell")
        super().__init__(lstm_jax.GRU(in_features, hidden_features, **options), rngs=rngs)


class SimpleCell(Cell):
    """:class:`lstm_jax.RNN` in the place of ``nnx.SimpleCell``; ``options`` are its options.

    >>> cell = SimpleCell(3, 8, activation=jax.nn.relu, rngs=nnx.Rngs(0))
    >>> nnx.RNN(cell)(jnp.ones((4, 10, 3))).shape
    (4, 10, 8)
    """

    def __init__(self, in_features: int, hidden_features: int, *, rngs: Any = None, **options: Any) -> None:
        check_cell_options("SimpleCell", lstm_jax.RNN, options, "Cell")
        super().__init__(lstm_jax.RNN(in_features, hidden_features, **options), rngs=rngs)


class Recurrent(Parameters):
    """Any network of the library over a whole sequence, by :func:`lstm_jax.unroll`.

    It can be called as ``nnx.RNN`` is, and stand in ``nnx.Bidirectional``. Under ``train()`` a
    network with noise draws from the stream ``dropout``, under ``eval()`` it does not.

    Args:
        network: a cell, :class:`lstm_jax.Stack` or :class:`lstm_jax.Bidirectional`.
        params: what to begin with, for instance weights that were read; None draws from ``rngs``.
        time_major: sequences are (T, *batch, D) rather than (*batch, T, D).
        return_carry: return ``(carry, ys)`` rather than ys.
        reverse: run from the last valid step to the first.
        deterministic: no noise, as with ``nnx.Dropout``.
        rngs: the streams ``params`` and ``dropout``.

    Raises:
        ValueError: neither ``rngs`` nor ``params`` were given, or they do not fit.

    >>> import lstm_jax
    >>> network = lstm_jax.Stack((lstm_jax.MinGRU(3, 8), lstm_jax.LSTM(8, 8)), dropout=0.5)
    >>> model = Recurrent(network, rngs=nnx.Rngs(0))
    >>> model.eval()
    >>> carry, ys = model(jnp.ones((4, 10, 3)), seq_lengths=[10, 5, 1, 0], return_carry=True)
    >>> ys.shape, float(jnp.abs(ys[1, 5:]).max())
    ((4, 10, 8), 0.0)
    """

    def __init__(
        self,
        network: Any,
        *,
        params: Params | None = None,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        deterministic: bool = False,
        rngs: Any = None,
    ) -> None:
        super().__init__(network, params=params, rngs=rngs)
        self.time_major, self.return_carry, self.reverse = time_major, return_carry, reverse
        self.deterministic = deterministic
        draws = is_random(network) and rngs is not None and _has(rngs, "dropout")
        self.rngs = rngs.dropout.fork() if draws else nnx.data(None)

    def set_view(self, deterministic: bool | None = None) -> None:
        """What ``nnx.view`` may change: whether there is noise.

        Args:
            deterministic: True switches it off.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: Any = None,
        mask: Array | None = None,
        resets: Array | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        checkpoint: str | int | None = None,
        truncate: int | None = None,
        start: int | Array = 0,
        time_major: bool | None = None,
        return_carry: bool | None = None,
        return_carries: bool = False,
        implementation: str = "auto",
        deterministic: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """The network over a sequence. What is None is as the module was made.

        Args:
            inputs: (*batch, T, D), or (T, *batch, D) with ``time_major``.
            initial_carry: what to begin with; an LSTM's is (c, h).
            seq_lengths, mask, resets, checkpoint, truncate, start, return_carries, implementation:
                as :func:`lstm_jax.unroll` has them (``lengths``), mask and resets shaped like
                inputs without features.
            reverse: run from the last valid step to the first; outputs stay aligned with the inputs.
            keep_order: only for Flax's sake; False, Flax's default, is refused in reverse.
            rngs: ``nnx.Rngs``, one stream or one key for the noise, instead of the module's stream.

        Returns:
            ys (*batch, T, H); with ``return_carry``, ``(carry, ys)``; with ``return_carries``,
            ``(carry, (ys, carries))``.

        Raises:
            ValueError: a shape, dtype or option does not fit, or noise has nothing to draw from.
        """
        return unroll_module(
            type(self).__name__,
            self.network,
            self.values(),
            inputs,
            initial_carry,
            time_major=self.time_major if time_major is None else time_major,
            return_carry=self.return_carry if return_carry is None else return_carry,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=keep_order,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            checkpoint=checkpoint,
            truncate=truncate,
            start=start,
            return_carries=return_carries,
            implementation=implementation,
            key=self._key(self.deterministic if deterministic is None else deterministic, rngs),
        )

    def _key(self, deterministic: bool, rngs: Any) -> Array | None:
        """A key for this call, where there is something to draw."""
        if deterministic or not is_random(self.network):
            return None
        if isinstance(rngs, nnx.RngStream) and rngs.tag == "carry":
            rngs = None  # nnx.Bidirectional hands it on, for initial carries
        if rngs is None:
            rngs = self.rngs
        if rngs is None or (isinstance(rngs, nnx.Rngs) and not _has(rngs, "dropout")):
            raise value_error(
                f"{type(self).__name__} has noise, but no stream to draw it from",
                "the stream dropout",
                "Make the module with rngs=nnx.Rngs(0, dropout=1), or call eval() for no noise.",
            )
        if isinstance(rngs, nnx.Rngs):
            return rngs.dropout()
        return rngs() if isinstance(rngs, nnx.RngStream) else rngs


class LSTM(Recurrent):
    """Layers of :class:`lstm_jax.LSTM` over a whole sequence.

    Args:
        in_features: D.
        hidden_features: H, of each direction.
        num_layers: layers one upon the other.
        bidirectional: each layer runs in both directions; outputs have 2H features.
        dropout: share of the features dropped between two layers.
        time_major, return_carry, reverse, deterministic, rngs: as in :class:`Recurrent`.
        options: those of the cell.

    >>> model = LSTM(3, 8, num_layers=2, bidirectional=True, dropout=0.1, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((4, 10, 3)), seq_lengths=[10, 5, 1, 0]).shape
    (4, 10, 16)
    """

    def __init__(self, in_features: int, hidden_features: int, *, rngs: Any = None, **options: Any) -> None:
        _recurrent(self, lstm_jax.LSTM, in_features, hidden_features, rngs, **options)


class GRU(Recurrent):
    """Layers of :class:`lstm_jax.GRU` over a whole sequence; arguments as :class:`LSTM`'s.

    >>> carry, ys = GRU(3, 8, return_carry=True, rngs=nnx.Rngs(0))(jnp.ones((4, 10, 3)))
    >>> carry.shape, ys.shape
    ((4, 8), (4, 10, 8))
    """

    def __init__(self, in_features: int, hidden_features: int, *, rngs: Any = None, **options: Any) -> None:
        _recurrent(self, lstm_jax.GRU, in_features, hidden_features, rngs, **options)


class RNN(Recurrent):
    """Layers of :class:`lstm_jax.RNN` over a whole sequence; arguments as :class:`LSTM`'s.

    (Flax's ``nnx.RNN`` is something else, the loop over a cell; :class:`Recurrent` corresponds to it.)

    >>> RNN(3, 8, time_major=True, rngs=nnx.Rngs(0))(jnp.ones((10, 4, 3))).shape
    (10, 4, 8)
    """

    def __init__(self, in_features: int, hidden_features: int, *, rngs: Any = None, **options: Any) -> None:
        _recurrent(self, lstm_jax.RNN, in_features, hidden_features, rngs, **options)


def _recurrent(
    module: Recurrent,
    kind: Any,
    in_features: int,
    hidden_features: int,
    rngs: Any,
    *,
    time_major: bool = False,
    return_carry: bool = False,
    reverse: bool = False,
    deterministic: bool = False,
    **options: Any,
) -> None:
    """Sort the options of the module from those of its layers."""
    Recurrent.__init__(
        module,
        layers(kind, in_features, hidden_features, **options),
        time_major=time_major,
        return_carry=return_carry,
        reverse=reverse,
        deterministic=deterministic,
        rngs=rngs,
    )


def _has(rngs: Any, stream: str) -> bool:
    return stream in rngs or "default" in rngs


def _is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)


def _check_params(owner: str, mine: Params, given: Params, *, all_of_them: bool) -> None:
    """Given parameters fit; some cells go without one that they would draw, and say so when they run."""
    wanted, got = named(mine), named(given)
    if not set(got) <= set(wanted) or (all_of_them and set(got) != set(wanted)):
        raise value_error(
            f"{owner} got parameters {', '.join(sorted(got))}",
            f"those of the network, {', '.join(sorted(wanted))}",
            "Give the cell the options that the parameters were made with.",
        )
    for name, value in got.items():
        if jnp.shape(value) != wanted[name].shape:
            raise value_error(
                f"{owner} got {name} of shape {jnp.shape(value)}",
                f"shape {wanted[name].shape}",
                "Give the cell the sizes that the parameters were made with.",
            )

"""The library for models written in Flax NNX: cells for ``nnx.RNN``, and modules for whole sequences.

====================================  ==========================================================
Name                                  What it is
====================================  ==========================================================
`LSTMCell`, `GRUCell`, `SimpleCell`   replacements for Flax's cells: one step per call
`Cell`                                any cell of the library, or a stack of them, as a cell
`LSTM`, `GRU`, `RNN`                  layers over a whole sequence, in ``unroll``'s time contract
`Recurrent`                           any network of the library, over a whole sequence
====================================  ==========================================================

Three things follow Flax rather than the library: sequences are (..., T, D) unless ``time_major``; modules
return the outputs alone unless ``return_carry``; and the carry of an LSTM or a ConvLSTM is ``(c, h)``, also
in stacks, wrappers and both directions. All other carries are the library's. Initial weights are the
library's: Glorot-uniform where Flax has LeCun-normal, and a forget gate's bias of 1 where Flax has 0
(``forget_bias=0.0``). Options have the library's names or Flax's: ``kernel_init`` is ``w_ih_init``,
``recurrent_kernel_init`` is ``w_hh_init``, ``activation_fn`` is ``activation``, ``gate_fn`` is
``recurrent_activation``.

Every array of the parameters is an ``nnx.Param``, found under ``params``: ``model.params.w_ih``, or
``model.params[1].forward.w_hh`` in a stack. Initialisers made by ``nnx.with_partitioning`` annotate it; the
names are those of its axes, so they do not depend on the number of gates.

A module's ``network`` describes the computation alone: fields that matter to ``init`` only (initialisers,
``forget_bias``) have their defaults, so that modules that differ in nothing else have equal graph definitions
and share one compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

try:
    from flax import nnx
    from flax.nnx.nn.dtypes import promote_dtype as flax_promote_dtype
except ImportError as error:
    raise ImportError('lstm_jax.nnx needs Flax: pip install "lstm_jax[flax]"', name="flax") from error

import lstm_jax
from lstm_jax._errors import value_error
from lstm_jax._flax import (
    check_without_noise,
    draw_params,
    initial_carry,
    make_cell,
    make_layers,
    step,
    unroll_module,
)
from lstm_jax._types import Array, Carry, Initializer, Params
from lstm_jax.cells._base import as_base_cell, compute_form
from lstm_jax.cells._named import flatten_params, leaf_name, unflatten_params
from lstm_jax.unrolling.validation import check_cell


class Parameters(nnx.Module):
    """Base class of all modules here: a network and its parameters, each array an ``nnx.Param``."""

    def __init__(self, network: Any, *, params: Params | None = None, rngs: Any = None) -> None:
        owner = type(self).__name__
        check_cell(owner, network)
        if rngs is not None and not isinstance(rngs, nnx.Rngs):
            raise value_error(
                f"{owner} got rngs of type {type(rngs).__name__}", "nnx.Rngs", "Pass rngs=nnx.Rngs(0)."
            )
        if params is not None:
            params = unflatten_params(compute_form(network), flatten_params(params))
            boxes = _boxes(network)
        elif rngs is not None and _has_stream(rngs, "params"):
            params, boxes = draw_params(network, rngs.params(), _unbox)
        else:
            raise value_error(
                f"{owner} got " + ("neither rngs nor params" if rngs is None else "rngs without params"),
                "rngs to draw the weights from, or params",
                "Pass rngs=nnx.Rngs(0).",
            )

        def param(path: Any, value: Array) -> Any:
            box = boxes.get(leaf_name(path))
            return nnx.Param(value if box is None else dataclasses.replace(box, raw_value=value))

        self.network = nnx.static(compute_form(network))
        self.params = nnx.data(jax.tree.map_with_path(param, params))

    def values(self) -> Params:
        """The parameters as arrays, as :func:`lstm_jax.unroll` takes them.

        >>> model = LSTM(3, 8, rngs=nnx.Rngs(0))
        >>> type(model.values()).__name__, model.values().w_ih.shape
        ('LSTMParams', (3, 32))
        """
        return jax.tree.map(lambda variable: variable[...], self.params, is_leaf=_is_variable)

    def load(self, params: Params) -> None:
        """Set the parameters to the values of ``params``, in place, in the dtypes that they have.

        Raises:
            ValueError: structure or shapes are not those of the network.

        >>> model = LSTM(3, 8, rngs=nnx.Rngs(0))
        >>> model.load(lstm_jax.LSTM(3, 8).init(jax.random.key(1)))
        """
        arrays = {name: jnp.asarray(value) for name, value in flatten_params(params).items()}
        values = jax.tree.leaves(unflatten_params(self.values(), arrays))
        variables = jax.tree.leaves(self.params, is_leaf=_is_variable)
        for variable, value in zip(variables, values, strict=True):
            variable[...] = value.astype(variable.dtype)


class Cell(Parameters, nnx.RNNCellBase):
    """Any cell of the library as a cell of Flax NNX: ``(carry, x) -> (carry, y)``.

    Args:
        network: a cell without noise, or a :class:`lstm_jax.Stack` of such cells. (A single step does not
            draw noise; :class:`Recurrent` does.)
        params: initial parameters, for instance weights read from a file; None draws them from ``rngs``.
        carry_init: initialiser of the carry; None: the network's own initial carry.
        keep_rngs: keep a fork of the stream ``carry`` for ``carry_init`` (deprecated in Flax).
        rngs: the streams ``params`` and ``carry``.

    Raises:
        ValueError: neither ``rngs`` nor ``params`` were given, or they do not fit.

    >>> cell = Cell(lstm_jax.LSTMVariant(3, 8, peepholes=True), rngs=nnx.Rngs(0))
    >>> carry, ys = nnx.RNN(cell)(jnp.ones((4, 10, 3)), return_carry=True)
    >>> ys.shape, cell.params.peepholes.shape
    ((4, 10, 8), (24,))
    """

    def __init__(
        self,
        network: Any,
        *,
        params: Params | None = None,
        carry_init: Initializer | None = None,
        keep_rngs: bool = False,
        rngs: Any = None,
    ) -> None:
        super().__init__(network, params=params, rngs=rngs)
        check_without_noise(type(self).__name__, network)
        if keep_rngs and (rngs is None or not _has_stream(rngs, "carry")):
            raise value_error(
                f"{type(self).__name__} got keep_rngs=True and no stream to keep",
                "rngs with the stream carry",
                "Pass rngs=nnx.Rngs(0), or give rngs to initialize_carry.",
            )
        self.carry_init = carry_init
        self.rngs = rngs.carry.fork() if keep_rngs else nnx.data(None)

    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """One step; the carry of an LSTM is (c, h)."""
        return step(type(self).__name__, self.network, self.values(), carry, inputs)

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Callable[..., Array] | None = None
    ) -> Carry:
        """The carry before the first step.

        Args:
            input_shape: the shape of one input, (*batch, D).
            rngs: ``nnx.Rngs`` or one stream, for ``carry_init``; None: the stream that ``keep_rngs`` kept.
            carry_init: initialiser of each array; None: that of the module, or else zeros or the learned
                carry.

        >>> [a.shape for a in LSTMCell(3, 8, rngs=nnx.Rngs(0)).initialize_carry((4, 3))]
        [(4, 8), (4, 8)]
        """
        carry = initial_carry(self.network, input_shape, self.values())
        carry_init = self.carry_init if carry_init is None else carry_init
        if carry_init is None:
            return carry
        rngs = self.rngs if rngs is None else rngs
        if rngs is None:
            raise value_error(
                "initialize_carry got carry_init without rngs", "a stream to draw from", "Pass nnx.Rngs(0)."
            )
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        return jax.tree.map(lambda a: carry_init(stream(), a.shape, a.dtype), carry)

    @property
    def num_feature_axes(self) -> int:
        """The number of trailing axes that are features. It is 1, or 3 for a ConvLSTM over images."""
        return as_base_cell(self.network).event_ndim

    @property
    def in_features(self) -> int:
        """Features of one input."""
        return self.network.input_size

    @property
    def hidden_features(self) -> int:
        """Hidden units of a cell."""
        return self.network.hidden_size


class _NamedCell(Cell):
    """Base class of the replacements for Flax's cells."""

    #: The class of the library's cell.
    cell_class: Any = None

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        carry_init: Initializer | None = None,
        keep_rngs: bool = False,
        rngs: Any = None,
        **options: Any,
    ) -> None:
        cell = make_cell(
            type(self).__name__, self.cell_class, in_features, hidden_features, _cell_options(options)
        )
        super().__init__(cell, carry_init=carry_init, keep_rngs=keep_rngs, rngs=rngs)


class LSTMCell(_NamedCell):
    """:class:`lstm_jax.LSTM` as a replacement for ``nnx.LSTMCell``.

    Args:
        in_features: D, the features of one input.
        hidden_features: H, the units of h and c.
        carry_init, keep_rngs, rngs: as in :class:`Cell`.
        options: those of :class:`lstm_jax.LSTM`, and Flax's ``kernel_init``, ``recurrent_kernel_init``,
            ``gate_fn``, ``activation_fn``, ``kernel_metadata``, ``recurrent_kernel_metadata`` and
            ``bias_metadata``. With other activations the cell is a :class:`lstm_jax.LSTMVariant`.

    >>> cell = LSTMCell(3, 8, forget_bias=0.0, rngs=nnx.Rngs(0))
    >>> (c, h), y = cell(cell.initialize_carry((4, 3)), jnp.ones((4, 3)))
    >>> bool(jnp.all(h == y))
    True
    """

    cell_class = lstm_jax.LSTM


class GRUCell(_NamedCell):
    """:class:`lstm_jax.GRU` as a replacement for ``nnx.GRUCell``; arguments as for :class:`LSTMCell`.

    >>> nnx.RNN(GRUCell(3, 8, rngs=nnx.Rngs(0)))(jnp.ones((4, 10, 3))).shape
    (4, 10, 8)
    """

    cell_class = lstm_jax.GRU


class SimpleCell(_NamedCell):
    """:class:`lstm_jax.RNN` as a replacement for ``nnx.SimpleCell``; arguments as for :class:`LSTMCell`.

    There is no ``gate_fn``.

    >>> cell = SimpleCell(3, 8, activation_fn=jax.nn.relu, rngs=nnx.Rngs(0))
    >>> nnx.RNN(cell)(jnp.ones((4, 10, 3))).shape
    (4, 10, 8)
    """

    cell_class = lstm_jax.RNN


class Recurrent(Parameters):
    """Any network of the library over a whole sequence, by :func:`lstm_jax.unroll`.

    It is called as ``nnx.RNN`` is, and works in ``nnx.Bidirectional``. Under ``train()`` a network with noise
    draws from the stream ``dropout``; under ``eval()`` there is no noise.

    Args:
        network: a cell, :class:`lstm_jax.Stack` or :class:`lstm_jax.Bidirectional`.
        params: initial parameters, for instance weights read from a file; None draws them from ``rngs``.
        time_major: sequences are (T, *batch, D) instead of (*batch, T, D).
        return_carry: return ``(carry, ys)`` instead of ys.
        reverse: run from the last valid step to the first.
        keep_order: outputs of a reverse run stay aligned with the inputs. False, Flax's default, is an error
            with ``reverse``.
        unroll: accepted as in Flax's RNN, where it changes the compiled loop and not the results; it has no
            effect.
        deterministic: no noise, as with ``nnx.Dropout``.
        rngs: the streams ``params`` and ``dropout``.

    Raises:
        ValueError: neither ``rngs`` nor ``params`` were given, or they do not fit.

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
        keep_order: bool | None = None,
        unroll: int = 1,
        deterministic: bool = False,
        rngs: Any = None,
    ) -> None:
        super().__init__(network, params=params, rngs=rngs)
        self.time_major, self.return_carry, self.reverse = time_major, return_carry, reverse
        self.keep_order, self.deterministic = keep_order, deterministic
        draws = self._has_noise and rngs is not None and _has_stream(rngs, "dropout")
        self.rngs = rngs.dropout.fork() if draws else nnx.data(None)

    @property
    def _has_noise(self) -> bool:
        return as_base_cell(self.network).has_noise

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
        reset_to: Carry | None = None,
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
        """Run the network over a sequence. Where an argument is None, the module's own value applies.

        Args:
            inputs: (*batch, T, D), or (T, *batch, D) with ``time_major``.
            initial_carry: the first carry; that of an LSTM is (c, h).
            seq_lengths, mask, resets, checkpoint, truncate, start, return_carries, implementation:
                as in :func:`lstm_jax.unroll` (``lengths``). ``mask`` and ``resets`` have the shape of
                ``inputs`` without features.
            reset_to: what a restart goes back to: carries with the time axis of ``inputs``, as
                ``return_carries`` returns them. With both directions, a pair.
            reverse: run from the last valid step to the first; outputs stay aligned with the inputs.
            keep_order: as in :class:`Recurrent`.
            rngs: ``nnx.Rngs``, one stream or one key for the noise, instead of the module's stream.

        Returns:
            ys (*batch, T, H); with ``return_carry``, ``(carry, ys)``; with ``return_carries``,
            ``(carry, (ys, carries))``.

        Raises:
            ValueError: a shape, dtype or option does not fit, or noise has no stream to be drawn from.
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
            keep_order=self.keep_order if keep_order is None else keep_order,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            reset_to=reset_to,
            checkpoint=checkpoint,
            truncate=truncate,
            start=start,
            return_carries=return_carries,
            implementation=implementation,
            key=self._key(self.deterministic if deterministic is None else deterministic, rngs),
        )

    def _key(self, deterministic: bool, rngs: Any) -> Array | None:
        """The key of this call, for a network with noise."""
        if deterministic or not self._has_noise:
            return None
        if isinstance(rngs, nnx.RngStream) and rngs.tag == "carry":
            rngs = None  # nnx.Bidirectional passes its stream for initial carries
        if rngs is None:
            rngs = self.rngs
        if rngs is None or (isinstance(rngs, nnx.Rngs) and not _has_stream(rngs, "dropout")):
            raise value_error(
                f"{type(self).__name__} has noise, but no stream to draw it from",
                "the stream dropout",
                "Make the module with rngs=nnx.Rngs(0, dropout=1), or call eval() for no noise.",
            )
        if isinstance(rngs, nnx.Rngs):
            return rngs.dropout()
        return rngs() if isinstance(rngs, nnx.RngStream) else rngs


class _Layers(Recurrent):
    """Base class of layers with equal options over a whole sequence."""

    #: The class of the library's cell.
    cell_class: Any = None

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool | None = None,
        unroll: int = 1,
        deterministic: bool = False,
        rngs: Any = None,
        **options: Any,
    ) -> None:
        network = make_layers(
            type(self).__name__,
            self.cell_class,
            in_features,
            hidden_features,
            _cell_options(options),
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
        )
        super().__init__(
            network,
            time_major=time_major,
            return_carry=return_carry,
            reverse=reverse,
            keep_order=keep_order,
            unroll=unroll,
            deterministic=deterministic,
            rngs=rngs,
        )


class LSTM(_Layers):
    """Layers of :class:`lstm_jax.LSTM` over a whole sequence.

    Args:
        in_features: D, the features of one input.
        hidden_features: H, of each direction.
        num_layers: layers, each over the outputs of the one below.
        bidirectional: each layer runs in both directions; outputs have 2H features.
        dropout: rate at which features between two layers are dropped.
        time_major, return_carry, reverse, keep_order, unroll, deterministic, rngs: as in :class:`Recurrent`.
        options: those of the cell, as in :class:`LSTMCell`.

    >>> model = LSTM(3, 8, num_layers=2, bidirectional=True, dropout=0.1, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((4, 10, 3)), seq_lengths=[10, 5, 1, 0]).shape
    (4, 10, 16)
    """

    cell_class = lstm_jax.LSTM


class GRU(_Layers):
    """Layers of :class:`lstm_jax.GRU` over a whole sequence; arguments as for :class:`LSTM`.

    >>> carry, ys = GRU(3, 8, return_carry=True, rngs=nnx.Rngs(0))(jnp.ones((4, 10, 3)))
    >>> carry.shape, ys.shape
    ((4, 8), (4, 10, 8))
    """

    cell_class = lstm_jax.GRU


class RNN(_Layers):
    """Layers of :class:`lstm_jax.RNN` over a whole sequence; arguments as for :class:`LSTM`.

    (Flax's ``nnx.RNN`` is the loop over a cell; :class:`Recurrent` corresponds to it.)

    >>> RNN(3, 8, time_major=True, rngs=nnx.Rngs(0))(jnp.ones((10, 4, 3))).shape
    (10, 4, 8)
    """

    cell_class = lstm_jax.RNN


def _cell_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the cell, with NNX's metadata of parameters moved into the initialisers."""
    options = dict(options)
    if options.get("promote_dtype") is flax_promote_dtype:
        del options["promote_dtype"]
    for metadata, names in (
        ("kernel_metadata", ("kernel_init", "w_ih_init")),
        ("recurrent_kernel_metadata", ("recurrent_kernel_init", "w_hh_init")),
        ("bias_metadata", ("bias_init",)),
    ):
        added = options.pop(metadata, None)
        if added:
            name = next((name for name in names if options.get(name) is not None), names[-1])
            initializer = options.get(name) or getattr(lstm_jax.LSTM, name)
            options[name] = _with_metadata(initializer, added)
    return options


def _with_metadata(initializer: Initializer, metadata: Mapping[str, Any]) -> Initializer:
    def annotated(*args: Any) -> Any:
        array, box = _unbox(initializer(*args))
        box = nnx.VariableMetadata(array) if box is None else box
        return dataclasses.replace(box, metadata={**box.metadata, **metadata})

    return annotated


def _unbox(value: Any) -> tuple[Array, Any]:
    """An initialiser's array, and the metadata for its ``nnx.Param``."""
    return (value.raw_value, value) if isinstance(value, nnx.VariableMetadata) else (value, None)


def _boxes(network: Any) -> dict[str, Any]:
    """The metadata of the network's parameters by name, without drawing them."""
    found: dict[str, Any] = {}
    jax.eval_shape(lambda key: found.update(draw_params(network, key, _unbox)[1]), jax.random.key(0))
    return found


def _has_stream(rngs: Any, stream: str) -> bool:
    return stream in rngs or "default" in rngs


def _is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)

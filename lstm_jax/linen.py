"""The library for models written in Flax Linen: cells for ``nn.RNN``, and modules for whole sequences.

====================================  ==========================================================
Name                                  What it is
====================================  ==========================================================
`LSTMCell`, `GRUCell`, `SimpleCell`   replacements for Flax's cells: one step per call
`Cell`                                any cell of the library, or a stack of them, as a cell
`LSTM`, `GRU`, `RNN`                  layers over a whole sequence, in ``unroll``'s time contract
`Recurrent`                           any network of the library, over a whole sequence
`to_variables`, `from_variables`      parameters as the collection ``params``, and back
====================================  ==========================================================

As in :mod:`lstm_jax.nnx`, three things follow Flax: the batch comes before time, modules return the outputs
without the carry, and the carry of an LSTM or a ConvLSTM is ``(c, h)``. Initial weights are the library's.
Options have the library's names or Flax's.

The collection ``params`` has one entry for each array, named after its field: ``w_ih``. In a network the
entries are nested: ``params["1"]["forward"]["w_ih"]``. Initialisers made by ``nn.with_partitioning`` annotate
an array; the names are those of its axes, so they do not depend on the number of gates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

try:
    from flax import linen as nn
except ImportError as error:
    raise ImportError('lstm_jax.linen needs Flax: pip install "lstm_jax[flax]"', name="flax") from error

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
from lstm_jax._types import Array, Carry, DType, Initializer, Params
from lstm_jax.cells._base import as_base_cell, compute_form
from lstm_jax.cells._named import flatten_params, unflatten_params
from lstm_jax.cells.activations import Activation
from lstm_jax.unrolling.validation import check_cell

# --- parameters ----------------------------------------------------------------------------------


def to_variables(params: Params) -> dict[str, Any]:
    """Convert parameters to the collection ``params`` of a module of this file.

    >>> params = lstm_jax.LSTM(3, 8).init(jax.random.key(0))
    >>> ys = LSTM(8).apply({"params": to_variables(params)}, jnp.ones((4, 10, 3)))
    """
    return _nested({name: jnp.asarray(value) for name, value in flatten_params(params).items()})


def from_variables(network: Any, variables: Mapping[str, Any]) -> Params:
    """Convert the collection ``params`` of a module of this file to parameters for :func:`lstm_jax.unroll`.

    Args:
        network: the cell or network of the module.
        variables: the collection; arrays in boxes (``nn.Partitioned``) are taken out of them.

    Raises:
        ValueError: the names or shapes are not those of ``network``.

    >>> variables = LSTM(8).init(jax.random.key(0), jnp.ones((4, 10, 3)))
    >>> type(from_variables(lstm_jax.LSTM(3, 8), variables["params"])).__name__
    'LSTMParams'
    """
    check_cell("from_variables", network)
    return unflatten_params(compute_form(network), flatten_params(nn.meta.unbox(variables)))


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested dicts, because tools for Flax's variables join keys with "." or "/"."""
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def _params(module: nn.Module, network: Any) -> Params:
    """The module's parameters; created if they do not exist yet."""
    variables = _variables(module, network)
    if variables or not module.is_mutable_collection("params"):
        return from_variables(network, variables)
    params, boxes = draw_params(network, module.make_rng("params"), _unbox)
    arrays = {
        name: boxes[name].replace_boxed(value) if name in boxes else value
        for name, value in flatten_params(params).items()
    }
    for name, value in _nested(arrays).items():
        module.param(name, lambda key, value=value: value)
    return params


def _variables(module: nn.Module, network: Any) -> dict[str, Any]:
    """The entries of the collection ``params`` that belong to the network; a shared scope may have others."""
    variables = module.variables.get("params", {})
    return {name: variables[name] for name in _entries(compute_form(network)) if name in variables}


@lru_cache(maxsize=1024)
def _entries(network: Any) -> tuple[str, ...]:
    """The names of the network's entries in the collection ``params``."""
    names = flatten_params(jax.eval_shape(network.init, jax.random.key(0)))
    return tuple(dict.fromkeys(name.split(".")[0] for name in names))


def _unbox(value: Any) -> tuple[Array, Any]:
    """An initialiser's array and its box. The array is not sharded, because it is that of one gate."""
    if not isinstance(value, nn.meta.AxisMetadata):
        return value, None
    (array,) = jax.tree.leaves(value)
    return array, value


# --- what a module runs --------------------------------------------------------------------------


class _NetworkAttribute(nn.Module):
    """Base class of modules that are given a network."""

    network: Any

    @nn.nowrap
    def _network(self, input_shape: tuple[int, ...]) -> Any:
        check_cell(type(self).__name__, self.network)
        return self.network


class _CellAttributes(nn.Module):
    """Base class of modules that are named after a cell; None: the cell's default.

    Two names mean the same: ``kernel_init`` and ``w_ih_init``, ``recurrent_kernel_init`` and ``w_hh_init``,
    ``activation_fn`` and ``activation``, ``gate_fn`` and ``recurrent_activation``.
    """

    features: int
    use_bias: bool = True
    learn_initial_carry: bool = False
    kernel_init: Initializer | None = None
    recurrent_kernel_init: Initializer | None = None
    w_ih_init: Initializer | None = None
    w_hh_init: Initializer | None = None
    bias_init: Initializer | None = None
    activation_fn: Activation | str | None = None
    activation: Activation | str | None = None
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    @nn.nowrap
    def _options(self) -> dict[str, Any]:
        """The options of the cell that were given."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in _NOT_CELL_OPTIONS]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def _features(shape: tuple[int, ...]) -> int:
    """The size of the last axis; 1 for the shape (), for which the check of the inputs raises."""
    return shape[-1] if shape else 1


class _LSTMAttributes(_CellAttributes):
    """Attributes of modules named after :class:`lstm_jax.LSTM`."""

    cell_class = lstm_jax.LSTM

    forget_bias: float = 1.0
    gate_fn: Activation | str | None = None
    recurrent_activation: Activation | str | None = None


class _GRUAttributes(_CellAttributes):
    """Attributes of modules named after :class:`lstm_jax.GRU`."""

    cell_class = lstm_jax.GRU

    gate_fn: Activation | str | None = None
    recurrent_activation: Activation | str | None = None


class _RNNAttributes(_CellAttributes):
    """Attributes of modules named after :class:`lstm_jax.RNN`."""

    cell_class = lstm_jax.RNN

    heads: int = 1
    residual: bool = False


# --- one step ------------------------------------------------------------------------------------


class _CellBase(nn.RNNCellBase):
    """Base class of cells."""

    carry_init: Initializer | None = None

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """One step; the carry of an LSTM is (c, h)."""
        owner, network = type(self).__name__, self._network(jnp.shape(inputs))
        check_without_noise(owner, network)
        return step(owner, network, _params(self, network), carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """The first carry: ``carry_init`` from ``rng``, or else zeros or the learned carry."""
        network, params = self._network(input_shape), None
        if self.scope is not None:  # bound to variables, which may hold a learned carry
            variables = _variables(self, network)
            if variables:
                params = from_variables(network, variables)
            else:
                params, _ = draw_params(network, jax.random.key(0), _unbox)
        carry = initial_carry(network, input_shape, params)
        if self.carry_init is None:
            return carry
        leaves, structure = jax.tree.flatten(carry)
        keys = [rng] if len(leaves) == 1 else jax.random.split(rng, len(leaves))
        drawn = [self.carry_init(key, a.shape, a.dtype) for key, a in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, drawn)

    @property
    def num_feature_axes(self) -> int:
        """The number of trailing axes that are features."""
        return 1


class Cell(_CellBase, _NetworkAttribute):
    """Any cell of the library as a cell of Flax Linen: ``(carry, x) -> (carry, y)``.

    Attributes:
        network: a cell without noise, or a :class:`lstm_jax.Stack` of such cells. (A single step does not
            draw noise; :class:`Recurrent` does.)
        carry_init: initialiser of the carry; None: the network's own initial carry.

    >>> model = nn.RNN(Cell(lstm_jax.LSTMVariant(3, 8, peepholes=True)))
    >>> ys, variables = model.init_with_output(jax.random.key(0), jnp.ones((4, 10, 3)))
    >>> ys.shape, variables["params"]["cell"]["peepholes"].shape
    ((4, 10, 8), (24,))
    """

    @property
    def num_feature_axes(self) -> int:
        """The number of trailing axes that are features. It is 1, or 3 for a ConvLSTM over images."""
        return as_base_cell(self.network).event_ndim


class _NamedCellBase(_CellBase):
    """Base class of the replacements for Flax's cells."""

    @nn.nowrap
    def _network(self, input_shape: tuple[int, ...]) -> Any:
        return make_cell(
            type(self).__name__, self.cell_class, _features(input_shape), self.features, self._options()
        )


class LSTMCell(_NamedCellBase, _LSTMAttributes):
    """:class:`lstm_jax.LSTM` as a replacement for ``nn.LSTMCell``; its options are attributes.

    Attributes:
        features: H, the units of h and c.
        carry_init: initialiser of the carry; None: zeros or the learned carry.
        use_bias, forget_bias, learn_initial_carry, w_ih_init, w_hh_init, bias_init, param_dtype, dtype: as in
            :class:`lstm_jax.LSTM`.
        kernel_init, recurrent_kernel_init: Flax's names for ``w_ih_init`` and ``w_hh_init``.
        activation, recurrent_activation: as in :class:`lstm_jax.LSTMVariant`.
        activation_fn, gate_fn: Flax's names for ``activation`` and ``recurrent_activation``.

    >>> cell, x = LSTMCell(features=8, forget_bias=0.0), jnp.ones((4, 3))
    >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
    >>> ((c, h), y), variables = cell.init_with_output(jax.random.key(1), carry, x)
    >>> bool(jnp.all(h == y))
    True
    """


class GRUCell(_NamedCellBase, _GRUAttributes):
    """:class:`lstm_jax.GRU` as a replacement for ``nn.GRUCell``; attributes as for :class:`LSTMCell`.

    >>> ys, variables = nn.RNN(GRUCell(8)).init_with_output(jax.random.key(0), jnp.ones((4, 10, 3)))
    >>> ys.shape
    (4, 10, 8)
    """


class SimpleCell(_NamedCellBase, _RNNAttributes):
    """:class:`lstm_jax.RNN` as a replacement for ``nn.SimpleCell``; attributes as for :class:`LSTMCell`.

    There is no ``gate_fn``.

    >>> model = nn.RNN(SimpleCell(8, activation_fn=jax.nn.relu))
    >>> model.init_with_output(jax.random.key(0), jnp.ones((4, 10, 3)))[0].shape
    (4, 10, 8)
    """


# --- whole sequences -----------------------------------------------------------------------------


class _SequenceBase(nn.Module):
    """Base class of modules over a whole sequence."""

    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool | None = None
    unroll: int = 1
    deterministic: bool | None = None

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        init_key: Array | None = None,
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
    ) -> Any:
        """Run the network over a sequence. Where an argument is None, the module's attribute applies.

        Args:
            inputs: (*batch, T, D), or (T, *batch, D) with ``time_major``.
            initial_carry: the first carry; that of an LSTM is (c, h).
            init_key: accepted as in ``nn.RNN``; it has no effect.
            seq_lengths, mask, resets, checkpoint, truncate, start, return_carries, implementation:
                as in :func:`lstm_jax.unroll` (``lengths``). ``mask`` and ``resets`` have the shape of
                ``inputs`` without features.
            reset_to: what a restart goes back to: carries with the time axis of ``inputs``, as
                ``return_carries`` returns them. With both directions, a pair.
            reverse: run from the last valid step to the first; outputs stay aligned with the inputs.
            keep_order: as in :class:`Recurrent`.
            deterministic: True: no noise.

        Returns:
            ys (*batch, T, H); with ``return_carry``, ``(carry, ys)``; with ``return_carries``,
            ``(carry, (ys, carries))``.

        Raises:
            ValueError: a shape, dtype or option does not fit, or noise has no stream to be drawn from.
        """
        network = self._network(jnp.shape(inputs))
        params = _params(self, network)
        key = None
        if as_base_cell(network).has_noise:
            key = self._key(self.deterministic if deterministic is None else deterministic)
        return unroll_module(
            type(self).__name__,
            network,
            params,
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
            key=key,
        )

    @nn.nowrap
    def _key(self, deterministic: bool | None) -> Array | None:
        """The key of this call. ``init`` needs none, because its outputs are not used."""
        owner = type(self).__name__
        if deterministic is None:
            raise value_error(
                f"{owner} has noise, and deterministic=None",
                "True for evaluation or False for training",
                "Set it as an attribute or pass it in the call.",
            )
        if deterministic or (self.is_initializing() and not self.has_rng("dropout")):
            return None
        if not self.has_rng("dropout"):
            raise value_error(
                f"{owner} has noise, but no stream to draw it from",
                "the stream dropout",
                'Call apply(..., rngs={"dropout": key}), or deterministic=True for no noise.',
            )
        return self.make_rng("dropout")


class Recurrent(_SequenceBase, _NetworkAttribute):
    """Any network of the library over a whole sequence, by :func:`lstm_jax.unroll`.

    It is called as ``nn.RNN`` is, and works in ``nn.Bidirectional``. A network with noise draws from the
    stream ``dropout`` unless ``deterministic``, which it then requires, as an attribute or in the call.

    Attributes:
        network: a cell, :class:`lstm_jax.Stack` or :class:`lstm_jax.Bidirectional`.
        time_major: sequences are (T, *batch, D) instead of (*batch, T, D).
        return_carry: return ``(carry, ys)`` instead of ys.
        reverse: run from the last valid step to the first.
        keep_order: outputs of a reverse run stay aligned with the inputs. False, Flax's default, is an error
            with ``reverse``.
        unroll: accepted as in Flax's RNN, where it changes the compiled loop and not the results; it has no
            effect.
        deterministic: no noise, as with ``nn.Dropout``.

    >>> network = lstm_jax.Stack((lstm_jax.MinGRU(3, 8), lstm_jax.LSTM(8, 8)), dropout=0.5)
    >>> model, xs = Recurrent(network, return_carry=True), jnp.ones((4, 10, 3))
    >>> variables = model.init(jax.random.key(0), xs, deterministic=True)
    >>> noise = {"dropout": jax.random.key(1)}
    >>> carry, ys = model.apply(variables, xs, seq_lengths=[10, 5, 1, 0], deterministic=False, rngs=noise)
    >>> ys.shape, float(jnp.abs(ys[1, 5:]).max())
    ((4, 10, 8), 0.0)
    """


class _LayersBase(_SequenceBase):
    """Base class of layers with equal options."""

    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0

    @nn.nowrap
    def _network(self, input_shape: tuple[int, ...]) -> Any:
        return make_layers(
            type(self).__name__,
            self.cell_class,
            _features(input_shape),
            self.features,
            self._options(),
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
        )


class LSTM(_LayersBase, _LSTMAttributes):
    """Layers of :class:`lstm_jax.LSTM` over a whole sequence, called as :class:`Recurrent` is.

    Attributes:
        features: H, of each direction.
        num_layers: layers, each over the outputs of the one below.
        bidirectional: each layer runs in both directions; outputs have 2H features.
        dropout: rate at which features between two layers are dropped.
        time_major, return_carry, reverse, keep_order, unroll, deterministic: as in :class:`Recurrent`.

    The other attributes are the options of the cell, as in :class:`LSTMCell`.

    >>> model = LSTM(8, num_layers=2, bidirectional=True)
    >>> ys, variables = model.init_with_output(jax.random.key(0), jnp.ones((4, 10, 3)))
    >>> ys.shape, variables["params"]["1"]["forward"]["w_ih"].shape
    ((4, 10, 16), (16, 32))
    """


class GRU(_LayersBase, _GRUAttributes):
    """Layers of :class:`lstm_jax.GRU` over a whole sequence; attributes as for :class:`LSTM`.

    >>> GRU(8).init_with_output(jax.random.key(0), jnp.ones((4, 10, 3)))[0].shape
    (4, 10, 8)
    """


class RNN(_LayersBase, _RNNAttributes):
    """Layers of :class:`lstm_jax.RNN` over a whole sequence; attributes as for :class:`LSTM`.

    (Flax's ``nn.RNN`` is the loop over a cell; :class:`Recurrent` corresponds to it.)

    >>> RNN(8, time_major=True).init_with_output(jax.random.key(0), jnp.ones((10, 4, 3)))[0].shape
    (10, 4, 8)
    """


#: Attributes that are not options of a cell.
_NOT_CELL_OPTIONS = {"features"} | {
    f.name for base in (_CellBase, _LayersBase) for f in dataclasses.fields(base)
}

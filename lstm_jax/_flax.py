"""Shared code of the modules for Flax: Flax's layout, carry order and option names.

Shared by :mod:`lstm_jax.nnx` and :mod:`lstm_jax.linen`; this module does not import Flax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_size, check_tuple, listing, value_error
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import BaseCell, as_base_cell
from lstm_jax.cells._named import flatten_params
from lstm_jax.cells.conv_lstm import ConvLSTM
from lstm_jax.cells.gru import GRU
from lstm_jax.cells.gru_variant import GRUVariant
from lstm_jax.cells.lstm import LSTM
from lstm_jax.cells.lstm_variant import LSTMVariant
from lstm_jax.networks.bidirectional import Bidirectional, BidirectionalParams
from lstm_jax.networks.stack import Stack
from lstm_jax.regularizers._wrapper import Wrapper
from lstm_jax.sharding.cell import Sharded
from lstm_jax.unrolling.api import unroll
from lstm_jax.unrolling.validation import carry_like, check_inputs

# --- options -------------------------------------------------------------------------------------

#: Flax's names of options, and the fields of the library's cells with the same meaning.
FIELD_OF = {
    "kernel_init": "w_ih_init",
    "recurrent_kernel_init": "w_hh_init",
    "activation_fn": "activation",
    "gate_fn": "recurrent_activation",
}
#: Options of Flax without a counterpart here; None, False and Flax's default are accepted.
UNSUPPORTED = {
    "residual": "Add the identity to the recurrent weights, in recurrent_kernel_init; that is equal.",
    "promote_dtype": "Choose the dtype of the products with dtype=.",
    "carry_init": "Pass initial_carry=... in the call, or learn_initial_carry=True.",
    "keep_rngs": "The module keeps the stream dropout, if it draws from one; pass another with rngs=.",
}
VARIANTS: dict[Any, Any] = {LSTM: LSTMVariant, GRU: GRUVariant}
ACTIVATIONS = ("activation", "recurrent_activation")


def make_cell(
    owner: str,
    cell_class: Any,
    input_size: int,
    hidden_size: int,
    options: Mapping[str, Any],
    module: str = "Cell",
) -> Any:
    """A cell from the options of its class, or from Flax's names for them.

    An LSTM or GRU with an activation other than the default is an :class:`lstm_jax.LSTMVariant` or
    :class:`lstm_jax.GRUVariant`.

    Args:
        owner: the module to name in messages.
        cell_class: ``LSTM``, ``GRU`` or ``RNN``.
        input_size: D, the features of one input.
        hidden_size: H, the units.
        options: by name.
        module: the module that takes a variant, for messages.

    >>> make_cell("LSTMCell", LSTM, 3, 8, {"gate_fn": jax.nn.sigmoid, "bias_init": jax.nn.initializers.ones})
    LSTM(input_size=3, hidden_size=8, bias_init=ones)
    >>> make_cell("LSTMCell", LSTM, 3, 8, {"gate_fn": jax.nn.hard_sigmoid})
    LSTMVariant(input_size=3, hidden_size=8, recurrent_activation=hard_sigmoid)
    """
    variant = VARIANTS.get(cell_class)
    known = [field.name for field in dataclasses.fields(cell_class)[2:]] + list(
        ACTIVATIONS if variant else ()
    )
    chosen: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in options.items():
        field = FIELD_OF.get(name, name)
        if name in UNSUPPORTED and (value is None or value is False):
            continue
        if field in chosen:
            names = [given for given in options if FIELD_OF.get(given, given) == field]
            raise value_error(f"{owner} got {' and '.join(names)}", "one of them", "They mean the same.")
        chosen[field] = value
        if field not in known:
            unknown.append(name)
    if unknown:
        names = sorted({*known, *(name for name, field in FIELD_OF.items() if field in known)})
        hint = f"The options are {', '.join(names)}."
        if unknown[0] in UNSUPPORTED:
            hint = UNSUPPORTED[unknown[0]]
        elif variant and unknown[0] in {field.name for field in dataclasses.fields(variant)[2:]}:
            hint = f"Use {module}(lstm_jax.{variant.__name__}({unknown[0]}=...)), which has it."
        raise value_error(
            f"{owner} got {listing(unknown)}", f"options of lstm_jax.{cell_class.__name__}", hint
        )
    activations = {name: chosen.pop(name) for name in ACTIVATIONS if variant and name in chosen}
    if variant and activations:
        cell = variant(input_size, hidden_size, **chosen, **activations)
        if cell != variant(input_size, hidden_size, **chosen):
            return cell
    return cell_class(input_size, hidden_size, **chosen)


def make_layers(
    owner: str,
    cell_class: Any,
    input_size: int,
    hidden_size: int,
    options: Mapping[str, Any],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
) -> Any:
    """Layers with equal options, each over the outputs of the one below.

    >>> make_layers("GRU", GRU, 3, 8, {}, num_layers=2, bidirectional=True).layers[1].input_size
    16
    """
    check_size(owner, "num_layers", num_layers)
    layers: list[Any] = []
    for _ in range(num_layers):
        cell = make_cell(owner, cell_class, input_size, hidden_size, options, "Recurrent")
        layers.append(Bidirectional(cell) if bidirectional else cell)
        input_size = layers[-1].output_size
    return Stack(tuple(layers), dropout=dropout) if num_layers > 1 or dropout else layers[0]


# --- parameters ----------------------------------------------------------------------------------


def draw_params(
    network: Any, key: Array, unbox: Callable[[Any], tuple[Array, Any]]
) -> tuple[Params, dict[str, Any]]:
    """``network.init(key)`` with initialisers that may return boxes, and the box of each parameter.

    A box holds an array and metadata such as the names of its axes (``with_partitioning``). A cell joins what
    an initialiser returns for each gate, so the arrays are taken out of their boxes first. The metadata
    describes the axes of the whole parameter.

    Args:
        network: a cell or network.
        key: PRNG key.
        unbox: returns the array and its box, None for a bare array.

    Returns:
        The parameters, and the boxes by dotted name. A box still holds the array of one gate.
    """
    boxes: dict[str, Any] = {}
    params = _with_plain_initializers(network, ("",), unbox, boxes).init(key)
    found = {name: boxes.get(_initializer_of(name)) for name in flatten_params(params)}
    return params, {name: box for name, box in found.items() if box is not None}


def _initializer_of(name: str) -> str:
    """The dotted name of the initialiser that draws a parameter."""
    for field, source in (("bias_hn", "bias"), ("w_hr", "w_ih")):
        if name.split(".")[-1] == field:
            name = name.removesuffix(field) + source
    return name + "_init"


def _with_plain_initializers(
    network: Any, prefixes: tuple[str, ...], unbox: Callable[[Any], tuple[Array, Any]], boxes: dict[str, Any]
) -> Any:
    """The network with initialisers that return bare arrays and record the boxes by dotted name."""
    if isinstance(network, Stack):
        layers = (
            _with_plain_initializers(layer, tuple(f"{p}{index}." for p in prefixes), unbox, boxes)
            for index, layer in enumerate(network.layers)
        )
        return dataclasses.replace(network, layers=tuple(layers))
    if isinstance(network, (Bidirectional, Wrapper, Sharded)):
        if isinstance(network, Bidirectional):
            prefixes = tuple(f"{p}{way}." for p in prefixes for way in BidirectionalParams._fields)
        return dataclasses.replace(  # type: ignore[type-var]
            network, cell=_with_plain_initializers(network.cell, prefixes, unbox, boxes)
        )
    if not isinstance(network, BaseCell):
        return network

    def recorded(name: str, initializer: Callable[..., Any]) -> Callable[..., Array]:
        def draw(*args: Any) -> Array:
            array, box = unbox(initializer(*args))
            boxes.update({prefix + name: box for prefix in prefixes})
            return array

        return draw

    names = [field.name for field in dataclasses.fields(network) if field.name.endswith("_init")]  # type: ignore[arg-type]
    return dataclasses.replace(network, **{name: recorded(name, getattr(network, name)) for name in names})  # type: ignore[type-var]


# --- carries -------------------------------------------------------------------------------------


def swap_carry_order(network: Any, carry: Carry) -> Carry:
    """Exchange h and c in the carries of all LSTMs and ConvLSTMs of a network.

    Every other carry stays as it is, also that of :class:`lstm_jax.FullGateLSTM` and
    :class:`lstm_jax.SLSTM`, which have more states than Flax's cells.

    >>> import lstm_jax
    >>> swap_carry_order(lstm_jax.Stack((lstm_jax.LSTM(3, 8), lstm_jax.GRU(8, 8))), (("h", "c"), "s"))
    (('c', 'h'), 's')
    """
    if isinstance(network, (LSTM, LSTMVariant, ConvLSTM)):
        check_tuple(type(network).__name__, carry, 2, "a carry")
        return carry[1], carry[0]
    if isinstance(network, (Wrapper, Sharded)):
        return swap_carry_order(network.cell, carry)
    if isinstance(network, Bidirectional):
        check_tuple("Bidirectional", carry, 2, "a carry")
        return tuple(map(swap_carry_order, network.cells, carry))
    if isinstance(network, Stack):
        check_tuple("Stack", carry, len(network.layers), "a carry")
        return tuple(map(swap_carry_order, network.layers, carry))
    return carry


def initial_carry(network: Any, input_shape: tuple[int, ...], params: Params | None) -> Carry:
    """The initial carry for inputs of this shape, which has no time axis, in Flax's order."""
    batch = tuple(input_shape[: len(input_shape) - as_base_cell(network).event_ndim])
    return swap_carry_order(network, network.initial_carry(batch, params))


# --- running -------------------------------------------------------------------------------------


def step(owner: str, network: Any, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
    """One step, with the carry in Flax's order."""
    check_inputs(owner, "inputs", network, x, "*batch")
    own = _carry_shapes(network, params, tuple(x.shape[: x.ndim - as_base_cell(network).event_ndim]))
    hint = "Make one with initialize_carry; the carry of an LSTM is (c, h), as in Flax."
    carry = swap_carry_order(network, carry_like(owner, network, "carry", carry, own, hint))
    carry, y = network.step(params, carry, x)
    return swap_carry_order(network, carry), y


def _carry_shapes(network: Any, params: Params, batch: tuple[int, ...]) -> Carry:
    """Shapes and dtypes of the network's initial carry, in Flax's order."""
    return jax.eval_shape(lambda p: swap_carry_order(network, network.initial_carry(batch, p)), params)


def check_without_noise(owner: str, network: Any) -> None:
    """Check that the network has no noise: a single step has neither a time index nor a key."""
    if as_base_cell(network).has_noise:
        raise value_error(
            f"{owner} got a {type(network).__name__} with noise",
            "a network without noise: a single step does not draw",
            "Give it to Recurrent, which unrolls it over time.",
        )


def unroll_module(
    owner: str,
    network: Any,
    params: Params,
    inputs: Array,
    carry: Carry | None = None,
    *,
    time_major: bool = False,
    return_carry: bool = False,
    keep_order: bool | None = None,
    seq_lengths: Any = None,
    mask: Array | None = None,
    resets: Array | None = None,
    reset_to: Carry | None = None,
    return_carries: bool = False,
    **options: Any,
) -> Any:
    """:func:`lstm_jax.unroll` of inputs (*batch, T, D), with carries in Flax's order.

    Returns:
        ys (*batch, T, H); with ``return_carry``, ``(carry, ys)``; with ``return_carries``,
        ``(carry, (ys, carries))``, with time on the same axis as in ys.
    """
    check_inputs(owner, "inputs", network, inputs, "T, *batch" if time_major else "*batch, T")
    if keep_order is False and options.get("reverse"):
        raise value_error(
            f"{owner} got reverse=True and keep_order=False",
            "keep_order=True: outputs stay aligned with the inputs",
            "Flip the outputs (jnp.flip along the time axis) where you need them in reversed order.",
        )
    steps_shape = tuple(inputs.shape[: inputs.ndim - as_base_cell(network).event_ndim])
    for name, flags in (("mask", mask), ("resets", resets)):
        if flags is not None and tuple(jnp.shape(flags)) != steps_shape:
            raise value_error(
                f"{owner} got {name} of shape {tuple(jnp.shape(flags))} with inputs of shape "
                f"{tuple(inputs.shape)}",
                f"one flag for each step and row: shape {steps_shape}",
                f"Transpose it, or broadcast it: jnp.broadcast_to({name}, ...).",
            )
    axis = 0 if time_major else len(steps_shape) - 1
    batch = steps_shape[:axis] + steps_shape[axis + 1 :]

    def time_first(tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.moveaxis(a, axis, 0), tree) if axis else tree

    def time_back(tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, axis), tree) if axis else tree

    own = _carry_shapes(network, params, batch)
    if carry is not None:
        hint = "Pass on what return_carry=True returned; the carry of an LSTM is (c, h), as in Flax."
        carry = swap_carry_order(network, carry_like(owner, network, "initial_carry", carry, own, hint))
    if reset_to is not None:
        own = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((*a.shape[:axis], steps_shape[axis], *a.shape[axis:]), a.dtype),
            own,
        )
        hint = "Give carries as return_carries=True returns them; those of an LSTM are (c, h), as in Flax."
        reset_to = swap_carry_order(network, carry_like(owner, network, "reset_to", reset_to, own, hint))
    carry, ys = unroll(
        network,
        params,
        time_first(inputs),
        carry,
        lengths=seq_lengths,
        mask=time_first(mask),
        resets=time_first(resets),
        reset_to=time_first(reset_to),
        return_carries=return_carries,
        **options,
    )
    carry = swap_carry_order(network, carry)
    if return_carries:
        ys, carries = ys
        return carry, (time_back(ys), swap_carry_order(network, time_back(carries)))
    return (carry, time_back(ys)) if return_carry else time_back(ys)

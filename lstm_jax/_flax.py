"""What Flax's users expect and :func:`lstm_jax.unroll` has otherwise: the batch first, carries as (c, h).

Shared by :mod:`lstm_jax.nnx` and :mod:`lstm_jax.linen`; it needs neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_size, check_structure, check_tuple, value_error
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import as_base_cell
from lstm_jax.cells.conv_lstm import ConvLSTM
from lstm_jax.cells.gru import GRU
from lstm_jax.cells.gru_variant import GRUVariant
from lstm_jax.cells.lstm import LSTM
from lstm_jax.cells.lstm_variant import LSTMVariant
from lstm_jax.networks.bidirectional import Bidirectional
from lstm_jax.networks.stack import Stack
from lstm_jax.regularizers._wrapper import Wrapper
from lstm_jax.sharding.cell import Sharded
from lstm_jax.unrolling.api import unroll
from lstm_jax.unrolling.validation import check_inputs


def swap_carry_order(network: Any, carry: Carry) -> Carry:
    """``(h, c)`` as ``(c, h)``, and back: the carries of LSTM and ConvLSTM, wherever in a network.

    Every other carry is handed on as it is, that of :class:`lstm_jax.FullGateLSTM` and
    :class:`lstm_jax.SLSTM` too, which have more states than Flax knows of.

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


def named(params: Params) -> dict[str, Any]:
    """Each array under its field's name, or the path to it.

    >>> list(named({"norm": {"x": 1.0}, "w": 2.0})), list(named(1.0))
    (['norm.x', 'w'], ['value'])
    """
    return {name_of(path): value for path, value in jax.tree.leaves_with_path(params)}


def name_of(path: Any) -> str:
    """``1.forward.w_hh``, say."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"


def is_random(network: Any) -> bool:
    """Whether a key changes what the network does."""
    return as_base_cell(network).has_noise


def check_cell_options(owner: str, kind: Any, options: Mapping[str, Any], module: str) -> None:
    """Options are fields of the cell; for those of its variant, the message names ``module``."""
    unknown = sorted(set(options) - {field.name for field in dataclasses.fields(kind)})
    if not unknown:
        return
    variant = {LSTM: LSTMVariant, GRU: GRUVariant}.get(kind)
    hint = f"The options are {', '.join(field.name for field in dataclasses.fields(kind)[2:])}."
    if variant is not None and set(unknown) & {field.name for field in dataclasses.fields(variant)}:
        hint = f"Use {module}(lstm_jax.{variant.__name__}({unknown[0]}=...)), which has it."
    raise value_error(f"{owner} got {', '.join(unknown)}", f"options of lstm_jax.{kind.__name__}", hint)


def layers(
    kind: Any,
    input_size: int,
    hidden_size: int,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    **options: Any,
) -> Any:
    """Equal layers one upon the other, all of one kind of cell.

    >>> import lstm_jax
    >>> layers(lstm_jax.GRU, 3, 8, num_layers=2, bidirectional=True).layers[1].input_size
    16
    """
    check_size(kind.__name__, "num_layers", num_layers)
    check_cell_options(kind.__name__, kind, options, "Recurrent")
    if dropout and num_layers == 1:
        raise value_error(
            f"{kind.__name__} got dropout={dropout!r} and num_layers=1",
            "two layers or more, because dropout is between layers",
            "Leave it out, or wrap a cell in lstm_jax.VariationalDropout and give it to Recurrent.",
        )
    members = []
    for _ in range(num_layers):
        cell = kind(input_size, hidden_size, **options)
        members.append(Bidirectional(cell) if bidirectional else cell)
        input_size = members[-1].output_size
    return Stack(tuple(members), dropout=dropout) if num_layers > 1 else members[0]


def initial(network: Any, input_shape: tuple[int, ...], params: Params | None) -> Carry:
    """The initial carry for inputs of this shape, without time, in Flax's order."""
    batch = tuple(input_shape[: len(input_shape) - as_base_cell(network).event_ndim])
    return swap_carry_order(network, network.initial_carry(batch, params))


def step(owner: str, network: Any, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
    """One step, with the carry in Flax's order."""
    check_inputs(owner, "inputs", network, x, "*batch")
    after, y = network.step(params, swap_carry_order(network, carry), x)
    return swap_carry_order(network, after), y


def check_quiet(owner: str, network: Any) -> None:
    """A step alone knows neither its time nor a key, so noise would be missing from training."""
    if is_random(network):
        raise value_error(
            f"{owner} got a {type(network).__name__} with noise",
            "a network without: a single step does not draw",
            "Give it to Recurrent, which unrolls it over time.",
        )


def unroll_module(
    owner: str,
    network: Any,
    params: Params,
    inputs: Array,
    initial_carry: Carry | None = None,
    *,
    time_major: bool = False,
    return_carry: bool = False,
    keep_order: bool | None = None,
    seq_lengths: Any = None,
    mask: Array | None = None,
    resets: Array | None = None,
    return_carries: bool = False,
    **options: Any,
) -> Any:
    """:func:`lstm_jax.unroll` of inputs (*batch, T, D), with the carry in Flax's order.

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
    events = as_base_cell(network).event_ndim
    flags_shape = tuple(inputs.shape[:-events])
    for name, flags in (("mask", mask), ("resets", resets)):
        if flags is not None and tuple(jnp.shape(flags)) != flags_shape:
            raise value_error(
                f"{owner} got {name} of shape {tuple(jnp.shape(flags))} with inputs of shape "
                f"{tuple(inputs.shape)}",
                f"one flag a step and row: shape {flags_shape}",
                f"Transpose it, or broadcast it: jnp.broadcast_to({name}, ...).",
            )
    time_axis = 0 if time_major else len(flags_shape) - 1

    def time_first(a: Any) -> Any:
        return a if a is None or time_axis == 0 else jnp.moveaxis(a, time_axis, 0)

    def time_back(a: Array) -> Array:
        return a if time_axis == 0 else jnp.moveaxis(a, 0, time_axis)

    xs = time_first(inputs)
    if initial_carry is not None:
        _check_carry(owner, network, params, initial_carry, tuple(xs.shape[1 : xs.ndim - events]))
        initial_carry = swap_carry_order(network, initial_carry)
    carry, ys = unroll(
        network,
        params,
        xs,
        initial_carry,
        lengths=seq_lengths,
        mask=time_first(mask),
        resets=time_first(resets),
        return_carries=return_carries,
        **options,
    )
    carry = swap_carry_order(network, carry)
    if return_carries:
        ys, carries = ys
        return carry, (time_back(ys), swap_carry_order(network, jax.tree.map(time_back, carries)))
    return (carry, time_back(ys)) if return_carry else time_back(ys)


def _check_carry(owner: str, network: Any, params: Params, carry: Carry, batch: tuple[int, ...]) -> None:
    expected = jax.eval_shape(lambda p: swap_carry_order(network, network.initial_carry(batch, p)), params)
    hint = "Hand on what return_carry=True gave; an LSTM's carry is (c, h) here, as in Flax."
    check_structure(owner, carry, expected, "the network's", hint)
    for (path, want), have in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(carry), strict=True):
        if tuple(have.shape) != tuple(want.shape):
            name = "initial_carry" + jax.tree_util.keystr(path)
            raise value_error(
                f"{owner} got {name} of shape {tuple(have.shape)}", f"shape {tuple(want.shape)}", hint
            )

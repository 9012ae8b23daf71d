"""The first NaN or infinity of a run."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import value_error
from lstm_jax._types import Array, Carry, Params, is_float
from lstm_jax.cells._named import flatten_params
from lstm_jax.diagnostics._gates import layer_gates
from lstm_jax.diagnostics._layers import Layer, Sequence, per_layer, state_names
from lstm_jax.unrolling.steps import mask_out


class NonFinite(NamedTuple):
    """Where the first NaN or infinity is; the result of :func:`first_nonfinite`. It prints as a sentence."""

    kind: str  # "parameter", "input", "carry", "preactivation", "gate", "state" or "output"
    name: str  # of the parameter, gate or state: "1.w_hh", "f", "c"; "" for inputs and outputs
    layer: str  # name of the layer, "" for a cell and for parameters
    step: int | None  # t; None for parameters
    row: tuple[int, ...]  # index in the batch axes; () for parameters
    value: float  # nan, inf or -inf

    def __str__(self) -> str:
        where = [f"layer {self.layer}"] if self.layer else []
        if self.step is not None:
            where.append(f"step {self.step}")
        if self.row:
            where.append(f"row {', '.join(map(str, self.row))}")
        what = f"{self.kind} {self.name}".rstrip()
        return f"{what} is {self.value}" + (f" ({', '.join(where)})" if where else "")


def first_nonfinite(
    cell: Any,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    lengths: Any = None,
    mask: Array | None = None,
    resets: Array | None = None,
    reset_to: Carry | None = None,
    reverse: bool = False,
) -> NonFinite | None:
    """Where the first NaN or infinity of a run appears, in the order of the computation.

    First the parameters are searched, then the layers in the order in which they run, and in each layer the
    steps in the order of its loop. At the first step at which the input, the carry, a state or the output is
    not finite, the quantities are searched in the order input, carry before the step, pre-activations,
    gates, states after it, output. Invalid steps are not searched.

    This function cannot be compiled with ``jax.jit``, because it returns names and Python numbers.

    Args:
        cell: a cell or a network.
        params, xs, carry, lengths, mask, resets, reset_to, reverse: as in :func:`lstm_jax.unroll`.

    Returns:
        :class:`NonFinite`, or None if everything is finite.

    Raises:
        ValueError: an array is traced, or ``unroll`` would raise.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> cell = lstm_jax.RNN(1, 1, activation=jnp.exp, use_bias=False)
    >>> params = lstm_jax.RNNParams(jnp.ones((1, 1)), jnp.ones((1, 1)))
    >>> print(diagnostics.first_nonfinite(cell, params, jnp.ones((9, 2, 1))))
    state h is inf (step 3, row 0)
    """
    arrays = jax.tree.leaves((params, xs, carry, lengths, mask, resets, reset_to))
    if any(isinstance(a, jax.core.Tracer) for a in arrays):
        raise value_error(
            "first_nonfinite got a traced array",
            "concrete arrays, because it returns names and Python numbers",
            "Call it outside of jax.jit, jax.vmap and jax.grad.",
        )
    for name, a in flatten_params(params).items():
        code = int(np.max(_codes(jnp.asarray(a), 0), initial=0))
        if code:
            return NonFinite("parameter", name, "", None, (), VALUES[code])
    sequence = Sequence(xs, carry, lengths, mask, resets, reset_to)
    found = per_layer("first_nonfinite", _layer_codes, _any_cell, "", cell, params, sequence, reverse)
    for layer, codes in (found if isinstance(found, OrderedDict) else {"": found}).items():
        first = _first(jax.device_get(codes))
        if first is not None:
            (kind, name), step, row, code = first
            return NonFinite(kind, name, layer, step, row, VALUES[code])
    return None


#: The value of each code; 0 stands for finite numbers.
VALUES = (0.0, -math.inf, math.inf, math.nan)


def _codes(a: Array, leading: int) -> Array:
    """The largest code of each entry of the leading axes."""
    if not is_float(a.dtype):
        return jnp.zeros(a.shape[:leading], jnp.int32)
    code = jnp.where(jnp.isnan(a), 3, jnp.where(jnp.isposinf(a), 2, jnp.where(jnp.isneginf(a), 1, 0)))
    return jnp.max(code, axis=tuple(range(leading, a.ndim)), initial=0)


class Codes(NamedTuple):
    """Codes of all quantities of a layer, each (T, *batch), 0 at invalid steps."""

    input: Array
    carry: dict[str, Array]
    preactivation: dict[str, Array]
    gate: dict[str, Array]
    state: dict[str, Array]
    output: Array
    order: Array  # (T,) the steps in the order of the layer's loop


def _any_cell(cell: Any) -> bool:
    return True


def _layer_codes(layer: Layer) -> Codes:
    names = state_names(layer.cell, layer.after) if layer.cell.has_state else []
    before, after = (dict(zip(names, jax.tree.leaves(c), strict=True)) for c in (layer.before, layer.after))
    z, gates = {}, {}
    if layer.cell.has_gates:
        found = layer_gates(layer)
        gates = found.gates._asdict()
        z = {name: a for name, a in found.preactivations._asdict().items() if a is not None}

    def codes(a: Array) -> Array:
        return mask_out(layer.valid, _codes(a, layer.valid.ndim))

    order = jnp.arange(len(layer.xs))
    quantities = jax.tree.map(codes, (layer.xs, before, z, gates, after, layer.ys))
    return Codes._make((*quantities, jnp.flip(order) if layer.reverse else order))


def _first(codes: Codes) -> tuple[tuple[str, str], int, tuple[int, ...], int] | None:
    """Kind and name, step, row and code of the first quantity that is not finite."""
    quantities = {("input", ""): codes.input}
    for kind in ("carry", "preactivation", "gate", "state"):
        quantities |= {(kind, name): a for name, a in getattr(codes, kind).items()}
    quantities["output", ""] = codes.output
    searched = [a for (kind, _), a in quantities.items() if kind in ("input", "carry", "state", "output")]
    bad = np.max(searched, axis=0) > 0
    for step in codes.order:
        if not bad[step].any():
            continue
        row = tuple(int(i) for i in np.argwhere(bad[step])[0])
        for name, a in quantities.items():
            if a[step][row]:
                return name, int(step), row, int(a[step][row])
    return None

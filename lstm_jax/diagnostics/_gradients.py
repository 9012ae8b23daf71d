"""Gradients with respect to states and inputs, and the additive decomposition of an LSTM's output."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import check_size, tree_text, value_error
from lstm_jax._types import Array, Carry, Params, is_float, state_dtype
from lstm_jax.cells._base import compute_form
from lstm_jax.cells.lstm_variant import LSTMVariant
from lstm_jax.diagnostics._layers import (
    Layer,
    Sequence,
    has_state,
    layers,
    per_layer,
    result_of,
    start,
    state_names,
    unwrapped,
    visit_cells,
    wrappers,
)
from lstm_jax.diagnostics._memory import LSTMS, has_memory, scan_terms
from lstm_jax.regularizers._wrapper import Wrapper
from lstm_jax.regularizers.zoneout import Zoneout
from lstm_jax.unrolling import validation
from lstm_jax.unrolling.api import unroll
from lstm_jax.unrolling.run import Options, Unrolled, run
from lstm_jax.unrolling.steps import mask_out, select

#: A function of the outputs (T, *batch, H) that returns one number.
Score = Callable[[Array], Array]


class GradientFlow(NamedTuple):
    """Gradients of a loss with respect to the states; the result of :func:`gradient_flow`."""

    gradients: dict[str, Array]  # by state ("h", "c"), each (T, *batch, H); zeros at invalid steps
    norms: dict[str, Array]  # by state, the Euclidean norm over units, (T, *batch)
    lag: Array  # (T, *batch) int, the number of valid steps that the layer runs after this one
    valid: Array  # (T, *batch) bool


class Attribution(NamedTuple):
    """What each input feature contributes to a score."""

    values: Array  # (T, *batch, D), zeros at invalid steps
    valid: Array  # (T, *batch) bool


class Decomposition(NamedTuple):
    """The last output of an LSTM as a sum over steps; the result of :func:`decomposition`."""

    parts: Array  # (T, *batch, H) the part of each step, zeros at invalid steps
    initial: Array  # (*batch, H) the part of the initial carry
    valid: Array  # (T, *batch) bool


# --- states -------------------------------------------------------------------------------------


def gradient_flow(
    loss: Score,
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
) -> Any:
    r"""The gradient of a loss with respect to every state of every layer, from one backward pass.

    The norm of :math:`\partial L / \partial h_t` against the lag shows whether gradients vanish or explode
    (Pascanu et al. 2013).

    The derivative is with respect to the carry after step t, whose parts are independent variables: the
    gradient of c_t contains the paths through the steps after t, and the gradient of h_t also the path
    through output t, where the output is h.

    Args:
        loss: a function of the outputs (T, *batch, H) of the network that returns one number. Invalid
            outputs are zeros.
        cell: a cell or a network.
        params, xs, carry, lengths, mask, resets, reset_to, reverse: as in :func:`lstm_jax.unroll`.

    Returns:
        :class:`GradientFlow` for a cell, or an ``OrderedDict`` from names of layers to them for a network.

    Raises:
        ValueError: the loss is not one number, no layer has a state, or ``unroll`` would raise.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> cell = lstm_jax.LSTM(3, 2)
    >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 4, 3))
    >>> flow = diagnostics.gradient_flow(lambda ys: jnp.sum(ys[-1]), cell, params, xs)
    >>> flow.gradients["c"].shape, flow.norms["h"].shape, flow.lag[:, 0].tolist()
    ((5, 4, 2), (5, 4), [4, 3, 2, 1, 0])
    >>> flow.gradients["h"][-1, 0].tolist()
    [1.0, 1.0]
    """
    _check_callable("gradient_flow", "loss", loss)
    lengths = validation.check_static("gradient_flow", cell, Options(), xs, lengths, 0)
    sequence = Sequence(xs, carry, lengths, mask, resets, reset_to)
    return _gradient_flow(loss, compute_form(cell), bool(reverse), params, sequence)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _gradient_flow(loss: Score, network: Any, reverse: bool, params: Params, sequence: Sequence) -> Any:
    found = layers(network, params, sequence, reverse)
    zeros = {
        name: [jnp.zeros_like(a) for a in jax.tree.leaves(layer.after) if is_float(a.dtype)]
        for name, layer in found.items()
    }

    def perturbed_loss(additions: dict[str, list[Array]]) -> Array:
        def visit(name: str, cell: Any, options: Options, params: Params, xs: Array, *rest: Any) -> Unrolled:
            if not has_state(cell):
                return run(cell, options, params, xs, *rest)
            options = options._replace(implementation="scan")
            return run(AddToCarry(cell), options, params, (xs, additions[name]), *rest)

        out = visit_cells(visit, "", network, *start(network, params, sequence, reverse))
        return _one_number("gradient_flow", "loss", loss(out.ys))

    gradients = jax.grad(perturbed_loss)(zeros)
    results = ((name, _flow(layer, gradients[name])) for name, layer in found.items() if zeros[name])
    return result_of("gradient_flow", network, OrderedDict(results), "a cell with a state")


def _flow(layer: Layer, gradients: list[Array]) -> GradientFlow:
    names = zip(state_names(layer.cell, layer.after), jax.tree.leaves(layer.after), strict=True)
    by_state = dict(zip([name for name, a in names if is_float(a.dtype)], gradients, strict=True))
    axes = layer.valid.ndim

    def norm(a: Array) -> Array:
        squares = jnp.square(a.astype(state_dtype(a.dtype)))
        return jnp.sqrt(jnp.sum(squares, axis=tuple(range(axes, a.ndim))))

    norms = {name: norm(a) for name, a in by_state.items()}
    return GradientFlow(by_state, norms, mask_out(layer.valid, layer.count_valid(after=True)), layer.valid)


@dataclass(frozen=True)
class AddToCarry(Wrapper):
    """A cell whose inputs are ``(x, additions)``; the additions are added to the states after the step."""

    cell: Any

    splits = False

    def fused_unsupported(self) -> str:
        """The fused scan has no additions."""
        return "additions to the carry"

    def step(self, params: Params, carry: Carry, x: Any, noise: Any = None) -> tuple[Carry, Array]:
        """One step of the cell; an output that is a state changes with it."""
        x, additions = x
        new, y = Wrapper.step(self, params, carry, x)
        leaves, structure = jax.tree.flatten(new)
        remaining = iter(additions)
        sums = [a + next(remaining).astype(a.dtype) if is_float(a.dtype) else a for a in leaves]
        outputs = [total for total, a in zip(sums, leaves, strict=True) if a is y]
        return jax.tree.unflatten(structure, sums), outputs[0] if outputs else y


def _check_callable(owner: str, name: str, value: Any) -> None:
    if not callable(value):
        raise value_error(
            f"{owner} got {name}={value!r}",
            "a function of the outputs",
            f"Give the function first: {name}=lambda ys: ys[-1].sum().",
        )


def _one_number(owner: str, name: str, value: Any) -> Array:
    if getattr(value, "shape", None) != () or not is_float(value.dtype):
        raise value_error(
            f"{owner} got a {name} that returns {tree_text(value)}",
            "one floating number",
            f"Sum over rows, or choose an output: {name}=lambda ys: ys[-1, 0, 0].",
        )
    return value


# --- inputs -------------------------------------------------------------------------------------


def gradient_times_input(
    score: Score,
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
) -> Attribution:
    r"""Each input times the gradient of a score with respect to it (Simonyan et al. 2014).

    .. math:: a_{t,d} = x_{t,d} \, \partial S / \partial x_{t,d}

    Args:
        score: a function of the outputs (T, *batch, H) of the network that returns one number.
        cell: a cell or a network.
        params, xs, carry, lengths, mask, resets, reset_to, reverse: as in :func:`lstm_jax.unroll`.

    Returns:
        :class:`Attribution`; its values are zeros at invalid steps.

    Raises:
        ValueError: the score is not one number, or ``unroll`` would raise.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> cell = lstm_jax.GRU(3, 2)
    >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 4, 3))
    >>> diagnostics.gradient_times_input(lambda ys: jnp.sum(ys[-1]), cell, params, xs).values.shape
    (5, 4, 3)
    """
    _check_callable("gradient_times_input", "score", score)
    lengths = validation.check_static("gradient_times_input", cell, Options(), xs, lengths, 0)
    sequence = Sequence(xs, carry, lengths, mask, resets, reset_to)
    return _gradient_times_input(score, compute_form(cell), bool(reverse), params, sequence)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _gradient_times_input(
    score: Score, network: Any, reverse: bool, params: Params, sequence: Sequence
) -> Attribution:
    xs, valid = _valid_inputs(network, params, sequence, reverse)
    scored = _scored("gradient_times_input", score, network, params, sequence, reverse)
    return Attribution(xs * jax.grad(scored)(xs), valid)


def integrated_gradients(
    score: Score,
    cell: Any,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    baseline: Array | None = None,
    nodes: int = 32,
    lengths: Any = None,
    mask: Array | None = None,
    resets: Array | None = None,
    reset_to: Carry | None = None,
    reverse: bool = False,
) -> Attribution:
    r"""Integrated gradients from a baseline b to the inputs (Sundararajan et al. 2017).

    .. math::
        a_{t,d} = (x_{t,d} - b_{t,d}) \int_0^1
            \frac{\partial S}{\partial x_{t,d}} \big( b + \alpha (x - b) \big) \, d\alpha

    The values add up to the score of the inputs minus the score of the baseline. The integral is a
    Gauss-Legendre sum; if the values do not add up, use more nodes.

    Args:
        score: a function of the outputs (T, *batch, H) of the network that returns one number.
        cell: a cell or a network.
        baseline: inputs without information, in the shape of ``xs``; None: zeros.
        nodes: number of gradients in the sum.
        params, xs, carry, lengths, mask, resets, reset_to, reverse: as in :func:`lstm_jax.unroll`.

    Returns:
        :class:`Attribution`; its values are zeros at invalid steps.

    Raises:
        ValueError: the score is not one number, the baseline has another shape, or ``unroll`` would raise.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> cell = lstm_jax.GRU(3, 2)
    >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 4, 3))
    >>> score = lambda ys: jnp.sum(ys[-1])
    >>> found = diagnostics.integrated_gradients(score, cell, params, xs)
    >>> difference = score(lstm_jax.unroll(cell, params, xs)[1]) - 0  # zeros stay zeros in this GRU
    >>> bool(jnp.allclose(jnp.sum(found.values), difference, rtol=1e-4))
    True
    """
    owner = "integrated_gradients"
    _check_callable(owner, "score", score)
    check_size(owner, "nodes", nodes)
    lengths = validation.check_static(owner, cell, Options(), xs, lengths, 0)
    if baseline is not None and getattr(baseline, "shape", None) != xs.shape:
        raise value_error(
            f"{owner} got a baseline of shape {getattr(baseline, 'shape', None)}",
            f"the shape of xs, {tuple(xs.shape)}",
            "Use jnp.broadcast_to(baseline, xs.shape).",
        )
    sequence = Sequence(xs, carry, lengths, mask, resets, reset_to)
    static = score, compute_form(cell), bool(reverse), int(nodes)
    return _integrated_gradients(*static, params, sequence, baseline)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _integrated_gradients(
    score: Score,
    network: Any,
    reverse: bool,
    nodes: int,
    params: Params,
    sequence: Sequence,
    baseline: Array | None,
) -> Attribution:
    xs, valid = _valid_inputs(network, params, sequence, reverse)
    first = jnp.zeros_like(xs) if baseline is None else mask_out(valid, baseline.astype(xs.dtype))
    scored = _scored("integrated_gradients", score, network, params, sequence, reverse)
    positions, weights = np.polynomial.legendre.leggauss(nodes)

    def add(total: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        position, weight = at
        return total + weight * jax.grad(scored)(first + position * (xs - first)), None

    at = jnp.asarray((positions + 1) / 2, xs.dtype), jnp.asarray(weights / 2, xs.dtype)
    integral, _ = jax.lax.scan(add, jnp.zeros_like(xs), at)
    return Attribution((xs - first) * integral, valid)


def _scored(
    owner: str, score: Score, network: Any, params: Params, sequence: Sequence, reverse: bool
) -> Callable[[Array], Array]:
    """The score as a function of the inputs."""
    _, carry, *flags = sequence
    options = dict(zip(Sequence._fields[2:], flags, strict=True))

    def scored(xs: Array) -> Array:
        _, ys = unroll(network, params, xs, carry, reverse=reverse, **options)
        return _one_number(owner, "score", score(ys))

    return scored


def _valid_inputs(network: Any, params: Params, sequence: Sequence, reverse: bool) -> tuple[Array, Array]:
    """The inputs, zeros at invalid steps, and the valid steps."""
    _, _, xs, *_, steps = start(network, params, sequence, reverse)
    T, batch = xs.shape[0], validation.check_sequence(network, xs)
    return xs, jnp.ones((T, *batch), bool) if steps.valid is None else steps.valid


# --- decomposition ------------------------------------------------------------------------------


def decomposition(
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
) -> Any:
    r"""The last output of an LSTM as a sum of one part per step (Murdoch & Szlam 2017).

    With T the last valid step and e_s the part of c_T that step s added (:func:`memory`),

    .. math::
        e_s &= \Big( \prod_{k=s+1}^{T} f_k \Big) \odot i_s \odot g_s \\
        \text{part}_s &= o_T \odot \Big( \tanh \sum_{r \le s} e_r - \tanh \sum_{r < s} e_r \Big)

    This is the paper's decomposition that takes forgetting into account. The sums begin with the part of the
    initial cell state. The parts and the initial part add up to h_T, so their products with the weights of
    a linear readout add up to its logits without the bias.

    Args:
        cell: an LSTM, or a network with one.
        params, xs, carry, lengths, mask, resets, reset_to, reverse: as in :func:`lstm_jax.unroll`.

    Returns:
        :class:`Decomposition` for a cell. For a network an ``OrderedDict`` from names of layers to them,
        without layers that have no such decomposition. Rows without valid steps are zeros.

    Raises:
        ValueError: no layer has such a decomposition, or ``unroll`` would raise.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> network = lstm_jax.Stack((lstm_jax.LSTM(3, 8), lstm_jax.Readout(8, 2, use_bias=False)))
    >>> params, xs = network.init(jax.random.key(0)), jnp.ones((5, 4, 3))
    >>> found = diagnostics.decomposition(network, params, xs)["0"]
    >>> scores = found.parts @ params[1].w  # (5, 4, 2), what each step adds to each logit
    >>> logits = scores.sum(axis=0) + found.initial @ params[1].w
    >>> bool(jnp.allclose(logits, lstm_jax.unroll(network, params, xs)[1][-1], atol=1e-6))
    True
    """
    sequence = Sequence(xs, carry, lengths, mask, resets, reset_to)
    expected = "an LSTM with h = o tanh(c), or a network with one"
    return per_layer(
        "decomposition", _decomposition, _is_plain_output, expected, cell, params, sequence, reverse
    )


def _is_plain_output(cell: Any) -> bool:
    """Whether the output is o tanh(c) of the cell's memory."""
    if any(isinstance(wrapper, Zoneout) for wrapper in wrappers(cell)):
        return False
    inner = unwrapped(cell)
    if isinstance(inner, LSTMVariant):
        changed = inner.layer_norm or inner.proj_size or inner.ablation == "no_output_activation"
        return not changed and inner.activation is jnp.tanh and has_memory(inner)
    return isinstance(inner, LSTMS)


def _decomposition(layer: Layer) -> Decomposition:
    (terms, initial), _ = scan_terms(layer, lambda terms, initial: None)
    gates = layer.cell.gates(layer.params, layer.before, layer.xs)

    def last_valid(o: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        return select(at[0], at[1], o), None

    o, _ = layer.scan(last_valid, jnp.zeros_like(initial), (layer.valid, gates.o.astype(initial.dtype)))

    def in_order(a: Array) -> Array:
        return jnp.flip(a, 0) if layer.reverse else a

    sums = jnp.cumsum(jnp.concatenate([initial[None], in_order(terms)]), axis=0)
    parts = in_order(o[None] * jnp.diff(jnp.tanh(sums), axis=0))
    return Decomposition(parts, o * jnp.tanh(initial), layer.valid)

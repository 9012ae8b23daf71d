"""A network as a dynamical system: Jacobians, Lyapunov exponents, fixed points."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import check_key, check_size, value_error
from lstm_jax._types import Array, Carry, Params, is_float, promote, state_dtype
from lstm_jax.cells._base import compute_form
from lstm_jax.diagnostics._layers import Layer, Sequence, has_state, numbers, per_layer
from lstm_jax.unrolling import validation
from lstm_jax.unrolling.steps import expand_flag, mask_out, one_step, select

WITH_STATE = "a cell with a state, or a network with one"


class Jacobians(NamedTuple):
    """Derivatives of the state by the state before; the result of :func:`jacobians`.

    S numbers are the float states of one row side by side, in the order of the carry: (h, c) for an LSTM.
    """

    jacobians: Array  # (T, *batch, S, S): [i, j] is d new_i / d old_j; the identity at invalid steps
    singular_values: Array  # (T, *batch, S), in descending order
    eigenvalues: Array  # (T, *batch, S) complex, in no particular order
    valid: Array  # (T, *batch) bool


class Lyapunov(NamedTuple):
    """Lyapunov exponents of a trajectory; the result of :func:`lyapunov_exponents`."""

    exponents: Array  # (*batch, k) per step, natural logarithm, the largest first
    growth: Array  # (T, *batch, k) the logarithm of each direction's growth in each step; invalid: 0
    valid: Array  # (T, *batch) bool: the steps that the exponents average


class FixedPoints(NamedTuple):
    """Fixed and slow points; the result of :func:`fixed_points`. N is the number of candidates."""

    carry: Carry  # the points, a carry with the batch axis (N,)
    speed: Array  # (N,) half the squared norm of F(s) - s at the point
    fixed: Array  # (N,) bool: the speed is below the tolerance; the others are slow points
    eigenvalues: Array  # (N, S) complex, of the Jacobian of F at the point
    stable: Array  # (N,) bool: all eigenvalues are inside the unit circle
    distinct: Array  # (N,) bool: False where a point before this one is the same within ``distance``


class System(NamedTuple):
    """One row of a cell or network as a map of vectors."""

    state: Array  # (S,) the float states of the given carry
    step: Callable[[Array], Array]  # (S,) -> (S,): one step with the given input
    carry: Callable[[Array], Carry]  # (S,) -> carry


def system(cell: Any, params: Params, carry: Carry, x: Array) -> System:
    """The map of the float states of one row; other states keep their value."""
    leaves, structure = jax.tree.flatten(carry)
    floats = [a for a in leaves if is_float(a.dtype)]
    dtype = promote(*(state_dtype(a.dtype) for a in floats))
    ends = np.cumsum([a.size for a in floats])[:-1]

    def to_vector(carry: Carry) -> Array:
        parts = (a.astype(dtype).reshape(-1) for a in jax.tree.leaves(carry) if is_float(a.dtype))
        return jnp.concatenate(list(parts))

    def to_carry(vector: Array) -> Carry:
        parts = iter(jnp.split(vector, ends))
        return jax.tree.unflatten(
            structure,
            [next(parts).reshape(a.shape).astype(a.dtype) if is_float(a.dtype) else a for a in leaves],
        )

    def step(vector: Array) -> Array:
        return to_vector(cell.step(params, to_carry(vector), x)[0])

    return System(to_vector(carry), step, to_carry)


def over_axes(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """``function`` mapped over ``count`` leading axes of its arguments."""
    for _ in range(count):
        function = jax.vmap(function)
    return function


# --- Jacobians ----------------------------------------------------------------------------------


def jacobians(
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
    r"""The derivative of each layer's state by its state before, at every step of a sequence.

    .. math:: J_t = \partial s_t / \partial s_{t-1}

    Gradients through time are products of these matrices: they vanish if the singular values are below 1, and
    explode if products have singular values far above 1 (Pascanu et al. 2013). The derivative is with respect
    to the carry that the step reads, which after a restart is the one that the restart goes back to.

    The eigenvalues take most of the time: seconds per step for an LSTM of 500 units. Inside ``jax.jit``,
    results that are not used are not computed.

    Args:
        cell: a cell or a network.
        params, xs, carry, lengths, mask, resets, reset_to, reverse: as in :func:`lstm_jax.unroll`.

    Returns:
        :class:`Jacobians` for a cell, or an ``OrderedDict`` from names of layers to them for a network.

    Raises:
        ValueError: no layer has a state, or ``unroll`` would raise.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> cell = lstm_jax.LSTM(3, 2)
    >>> found = diagnostics.jacobians(cell, cell.init(jax.random.key(0)), jnp.ones((5, 4, 3)))
    >>> found.jacobians.shape, found.singular_values.shape
    ((5, 4, 4, 4), (5, 4, 4))
    """
    sequence = Sequence(xs, carry, lengths, mask, resets, reset_to)
    return per_layer("jacobians", _jacobians, has_state, WITH_STATE, cell, params, sequence, reverse)


def _jacobians(layer: Layer) -> Jacobians:
    def one(carry: Carry, x: Array) -> Array:
        row = system(layer.cell, layer.params, carry, x)
        return jax.jacfwd(row.step)(row.state)

    found = over_axes(one, layer.valid.ndim)(layer.before, layer.xs)
    identity = jnp.broadcast_to(jnp.eye(found.shape[-1], dtype=found.dtype), found.shape)
    found = select(layer.valid, found, identity)
    return Jacobians(found, jnp.linalg.svd(found, compute_uv=False), jnp.linalg.eigvals(found), layer.valid)


# --- Lyapunov exponents -------------------------------------------------------------------------


def lyapunov_exponents(
    cell: Any,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    count: int | None = None,
    transient: int = 0,
    key: Array | None = None,
    lengths: Any = None,
    mask: Array | None = None,
    reverse: bool = False,
) -> Any:
    r"""The Lyapunov exponents of each layer along the trajectory that the inputs produce.

    k orthonormal directions Q are pushed through the Jacobians and orthonormalised again after every step
    (Benettin et al. 1980; for recurrent networks Engelken et al. 2023):

    .. math::
        J_t Q_{t-1} &= Q_t R_t \\
        \lambda_j &= \frac{1}{T} \sum_t \log |R_{t,jj}|

    A positive exponent means that small differences grow (chaos). Exponents far below 0 mean that the layer
    forgets quickly. The product :math:`J_t Q` uses k forward-mode derivatives, not the matrix J. The
    exponents of a stack are those of all its layers together.

    Args:
        cell: a cell or a network.
        count: k, the number of exponents, the largest ones; None: all S. Few of them suffice for large H.
        transient: the number of valid steps at the start of each row that update Q but are not averaged.
        key: PRNG key of the first directions; None: ``jax.random.key(0)``.
        params, xs, carry, lengths, mask, reverse: as in :func:`lstm_jax.unroll`.

    Returns:
        :class:`Lyapunov` for a cell, or an ``OrderedDict`` from names of layers to them for a network.

    Raises:
        ValueError: ``count`` is larger than S, no layer has a state, or ``unroll`` would raise.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> from lstm_jax.cells.activations import identity
    >>> cell = lstm_jax.RNN(1, 2, activation=identity, use_bias=False)
    >>> params = lstm_jax.RNNParams(jnp.ones((1, 2)), jnp.diag(jnp.array([0.5, 2.0])))
    >>> found = diagnostics.lyapunov_exponents(cell, params, jnp.zeros((200, 1)), transient=50)
    >>> [f"{float(exponent):.3f}" for exponent in found.exponents]  # log 2 and log 0.5
    ['0.693', '-0.693']
    """
    owner = "lyapunov_exponents"
    if count is not None:
        check_size(owner, "count", count)
    check_size(owner, "transient", transient, least=0)
    key = jax.random.key(0) if key is None else key
    check_key(owner, key)
    sequence = Sequence(xs, carry, lengths, mask)
    arguments = cell, params, sequence, reverse
    options = {"count": count, "transient": int(transient)}
    return per_layer(owner, _lyapunov, has_state, WITH_STATE, *arguments, (key,), options)


def _lyapunov(layer: Layer, key: Array, count: int | None, transient: int) -> Lyapunov:
    counted = layer.valid & (layer.count_valid(after=False) >= transient)

    def start(carry: Carry, x: Array) -> Array:
        state = system(layer.cell, layer.params, carry, x).state
        k = len(state) if count is None else count
        if k > len(state):
            raise value_error(
                f"lyapunov_exponents got count={count} for a layer with {len(state)} state variables",
                f"at most {len(state)}",
                "Use a smaller count, or None for all exponents.",
            )
        return jnp.linalg.qr(jax.random.normal(key, (len(state), k), state.dtype))[0]

    def push(carry: Carry, x: Array, q: Array) -> tuple[Array, Array]:
        row = system(layer.cell, layer.params, carry, x)
        columns = jax.vmap(lambda v: jax.jvp(row.step, (row.state,), (v,))[1], 1, 1)(q)
        q, r = jnp.linalg.qr(columns)
        return q, jnp.log(jnp.abs(jnp.diagonal(r)))

    axes = layer.valid.ndim - 1

    def body(q: Array, at: Any) -> tuple[Array, Array]:
        valid, carry, x = at
        new, growth = over_axes(push, axes)(carry, x, q)
        return select(valid, new, q), mask_out(valid, growth)

    first = jax.tree.map(one_step, (layer.before, layer.xs))
    q = over_axes(start, axes)(*first)
    _, growth = layer.scan(body, q, (layer.valid, layer.before, layer.xs))
    steps = jnp.maximum(jnp.sum(counted, axis=0), 1).astype(growth.dtype)
    total = jnp.sum(mask_out(counted, growth), axis=0)
    exponents = jnp.sort(total / expand_flag(steps, total), axis=-1, descending=True)
    return Lyapunov(exponents, growth, counted)


# --- fixed points -------------------------------------------------------------------------------


def fixed_points(
    cell: Any,
    params: Params,
    x: Array,
    candidates: Carry,
    *,
    iterations: int = 100,
    tolerance: float = 1e-10,
    distance: float = 1e-3,
) -> FixedPoints:
    r"""Fixed and slow points of a network under a constant input (Sussillo & Barak 2013).

    Each candidate moves to a local minimum of the speed

    .. math:: q(s) = \tfrac{1}{2} |F(s, x) - s|^2

    where F is one step of the cell or of the whole network. A minimum with q = 0 is a fixed point; other
    minima are slow points, near which the state changes little. The minimisation is that of Levenberg and
    Marquardt, in which each iteration solves one system of S equations per candidate.

    Use states that the network visits as candidates: the carries of
    ``lstm_jax.unroll(..., return_carries=True)``, reshaped to one batch axis.

    Args:
        cell: a cell, or a network without :class:`lstm_jax.Bidirectional`, which has no ``step``.
        params: its parameters.
        x: the constant input, (D,).
        candidates: a carry with one batch axis (N,).
        iterations: the largest number of iterations of the minimisation.
        tolerance: a point with q below this is a fixed point.
        distance: points whose states differ by at most this are the same.

    Returns:
        :class:`FixedPoints`, with one entry for each candidate.

    Raises:
        ValueError: the network has no ``step``, or x or the candidates do not fit the cell.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> cell = lstm_jax.RNN(1, 1, use_bias=False)  # h = tanh(2 h) has the fixed points 0 and +-0.9575
    >>> params = lstm_jax.RNNParams(jnp.zeros((1, 1)), jnp.full((1, 1), 2.0))
    >>> found = diagnostics.fixed_points(cell, params, jnp.zeros(1), jnp.array([[-0.9], [0.1], [0.8]]))
    >>> [f"{float(h):.4f}" for h in found.carry[:, 0]], found.stable.tolist()
    (['-0.9575', '0.0000', '0.9575'], [True, False, True])
    """
    owner = "fixed_points"
    validation.check_cell(owner, cell)
    check_size(owner, "iterations", iterations)
    limits = numbers(owner, tolerance=tolerance, distance=distance)
    validation.check_inputs(owner, "x", cell, x, "")
    rows = next((np.shape(a)[:1] for a in jax.tree.leaves(candidates)), (1,))
    own = jax.eval_shape(lambda p: cell.initial_carry(rows, p), params)
    if not jax.tree.leaves(own):
        raise value_error(f"{owner} got {cell!r}", WITH_STATE, "A cell without a state has no fixed points.")
    candidates = validation.carry_like(owner, cell, "candidates", candidates, own, CANDIDATES_HINT)
    return _fixed_points(compute_form(cell), int(iterations), params, x, candidates, **limits)


#: Values of the S x S matrices of the candidates that are minimised at the same time.
MATRIX_VALUES = 2**22
CANDIDATES_HINT = "Give states of N rows: reshape what unroll(..., return_carries=True) returns."


@partial(jax.jit, static_argnums=(0, 1))
def _fixed_points(
    cell: Any, iterations: int, params: Params, x: Array, candidates: Carry, tolerance: Any, distance: Any
) -> FixedPoints:
    def one(carry: Carry) -> tuple[Array, Array, Array, Carry]:
        row = system(cell, params, carry, x)
        state = minimise(lambda s: row.step(s) - s, row.state, iterations)
        speed = jnp.sum(jnp.square(row.step(state) - state)) / 2
        return state, speed, jnp.linalg.eigvals(jax.jacfwd(row.step)(state)), row.carry(state)

    size = sum(math.prod(a.shape[1:]) for a in jax.tree.leaves(candidates))
    at_once = max(1, MATRIX_VALUES // size**2)  # bounds the memory; a batch ends once all of it has converged
    states, speed, eigenvalues, carry = jax.lax.map(one, candidates, batch_size=at_once)
    stable = jnp.max(jnp.abs(eigenvalues), axis=-1) < 1

    indices = jnp.arange(len(states))

    def is_new(at: tuple[Array, Array]) -> Array:
        index, state = at
        same = jnp.max(jnp.abs(states - state[None]), axis=-1) <= distance.astype(states.dtype)
        return ~jnp.any(same & (indices < index))

    distinct = jax.lax.map(is_new, (indices, states))
    fixed = speed < tolerance.astype(speed.dtype)
    return FixedPoints(carry, speed, fixed, eigenvalues, stable, distinct)


def minimise(residual: Callable[[Array], Array], state: Array, iterations: int) -> Array:
    """A local minimum of |residual|^2 by the method of Levenberg and Marquardt.

    It ends after ``iterations``, or once the change is within the rounding error of the state.
    """
    rounding = 10 * jnp.finfo(state.dtype).eps

    def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
        count, converged, _, _ = carry
        return (count < iterations) & ~converged

    def iterate(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        count, _, state, damping = carry
        r, jacobian = residual(state), jax.jacfwd(residual)(state)
        matrix = jacobian.T @ jacobian + damping * jnp.eye(len(state), dtype=state.dtype)
        change = jnp.linalg.solve(matrix, jacobian.T @ r)
        new = state - change
        better = jnp.sum(jnp.square(residual(new))) < jnp.sum(jnp.square(r))  # False if new is not finite
        damping = jnp.clip(jnp.where(better, damping / 4, damping * 4), 1e-12, 1e12)
        converged = jnp.max(jnp.abs(change)) <= rounding * jnp.maximum(1, jnp.max(jnp.abs(state)))
        return count + 1, converged, jnp.where(better, new, state), damping

    first = jnp.zeros((), jnp.int32), jnp.zeros((), bool), state, jnp.ones((), state.dtype)
    return jax.lax.while_loop(unfinished, iterate, first)[2]

"""The forward and backward functions of ``kernels.engine`` in NumPy's float64, and random inputs for them."""

import jax.numpy as jnp
import numpy as np

from lstm_jax.unrolling.kernels.engine import ForwardOutput, Inputs, Tangents, residuals_of


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def to_float64(a):
    return None if a is None else np.asarray(a, np.float64)


def broadcast_valid(valid, shape):
    return np.broadcast_to(True if valid is None else np.asarray(valid)[..., None], shape)


def lstm_step(u, recurrent, h, c):
    i, f, g, o = np.split(u + recurrent, 4, axis=-1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c + i * g
    return (o * np.tanh(c), c), (i, f, g, o)


def gru_step(u, recurrent, h):
    (u_r, u_z, u_q, u_n), (r, z, q) = np.split(u, 4, axis=-1), np.split(recurrent, 3, axis=-1)
    r, z, q = sigmoid(u_r + r), sigmoid(u_z + z), u_q + q
    n = np.tanh(u_n + r * q)
    return ((1 - z) * n + z * h,), (r, z, q, n)


def lstm_backward_step(gates, c, c_t, dh, dc):
    (i, f, g, o), tanh_c = gates, np.tanh(c_t)
    dc = dc + dh * o * (1 - tanh_c**2)
    dz = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)
    return dz, (0, dc * f)


def gru_backward_step(gates, h, h_t, dh):
    r, z, q, n = gates
    dn = dh * (1 - z) * (1 - n**2)
    return (dn * q * r * (1 - r), dh * (h - n) * z * (1 - z), dn * r, dn), (dh * z,)


def reference_forward(formula, inputs):
    u, w, bias = map(to_float64, inputs[:3])
    states, H = [to_float64(a) for a in inputs.carry], len(w)
    if formula.name == "GRU":  # the third of the four columns has no input weights
        u = np.insert(u, [2 * H] * H, 0, axis=-1)
    out = []
    for t, valid in enumerate(broadcast_valid(inputs.valid, (*u.shape[:2], H))):
        z = u[t] if bias is None else u[t] + bias
        new, gates = (lstm_step if formula.name == "LSTM" else gru_step)(z, states[0] @ w, *states)
        states = [np.where(valid, a, b) for a, b in zip(new, states, strict=True)]
        out.append((*states, np.concatenate(gates, axis=-1)))
    *states, gates = map(np.stack, zip(*out, strict=True))
    return ForwardOutput(tuple(states), gates)


def reference_backward(formula, residuals, cotangents):
    w, gates, cell_states, initial = map(to_float64, residuals[:4])
    cotangents, H = [to_float64(a) for a in cotangents], len(w)
    state_cotangents, zs = [np.zeros_like(initial) for _ in cotangents], np.zeros_like(gates)
    valid = broadcast_valid(residuals.valid, cell_states.shape)
    for t in reversed(range(len(cell_states))):
        previous = cell_states[t - 1] if t else initial
        state_cotangents = [a + b[t] for a, b in zip(state_cotangents, cotangents, strict=True)]
        backward_step = lstm_backward_step if formula.name == "LSTM" else gru_backward_step
        z, direct = backward_step(np.split(gates[t], 4, axis=-1), previous, cell_states[t], *state_cotangents)
        zs[t] = np.where(valid[t][:, :1], np.concatenate(z, axis=-1), 0)
        h_bar = zs[t][:, : w.shape[1]] @ w.T
        new_cotangents = h_bar + direct[0], *direct[1:]
        state_cotangents = [
            np.where(valid[t], a, b) for a, b in zip(new_cotangents, state_cotangents, strict=True)
        ]
    assert H == initial.shape[-1]
    return Tangents(zs, tuple(state_cotangents))


def problem(formula, T, B, H, dtype, *, masked=True, bias=True, seed=0):
    """Inputs of forward and cotangents of its states."""
    rng = np.random.default_rng([seed, T, B, H])
    valid = rng.random((T, B)) < 0.7 if masked else None

    def normal(*shape, dtype=dtype):
        return jnp.asarray(rng.normal(size=shape), dtype)

    u = normal(T, B, len(formula.input_columns) * H)
    if valid is not None:
        u = jnp.where(jnp.asarray(valid)[..., None], u, jnp.zeros_like(u))
    w = jnp.asarray(rng.normal(size=(H, len(formula.recurrent_columns) * H)) / np.sqrt(H), dtype)
    b = normal(4 * H, dtype="float32") if bias else None
    dtypes = (dtype, "float32")[: formula.num_states]
    carry = tuple(normal(B, H, dtype=state_dtype) for state_dtype in dtypes)
    carry = jnp.tanh(carry[0]), *carry[1:]
    inputs = Inputs(u, w, b, carry, None if valid is None else jnp.asarray(valid))
    return inputs, tuple(normal(T, B, H, dtype=state_dtype) for state_dtype in dtypes)


def residuals_for(inputs, output):
    """Residuals for backward, from the result of :func:`reference_forward`."""
    cell_states = jnp.asarray(output.states[-1], inputs.carry[-1].dtype)
    gates = jnp.asarray(output.gates, jnp.float32)
    return residuals_of(inputs, ForwardOutput((cell_states,), gates))

"""What the walks of ``kernels.engine`` compute, in NumPy's float64, and problems for them."""

import jax.numpy as jnp
import numpy as np

from lstm_jax.unrolling.kernels.engine import Inputs, Tangents, Walk, saved_of


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def double(a):
    return None if a is None else np.asarray(a, np.float64)


def flags(valid, shape):
    return np.broadcast_to(True if valid is None else np.asarray(valid)[..., None], shape)


def lstm_step(u, heard, h, c):
    i, f, g, o = np.split(u + heard, 4, axis=-1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c + i * g
    return (o * np.tanh(c), c), (i, f, g, o)


def gru_step(u, heard, h):
    (u_r, u_z, u_q, u_n), (r, z, q) = np.split(u, 4, axis=-1), np.split(heard, 3, axis=-1)
    r, z, q = sigmoid(u_r + r), sigmoid(u_z + z), u_q + q
    n = np.tanh(u_n + r * q)
    return ((1 - z) * n + z * h,), (r, z, q, n)


def lstm_back(gates, c, c_t, dh, dc):
    (i, f, g, o), shown = gates, np.tanh(c_t)
    dc = dc + dh * o * (1 - shown**2)
    dz = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2), dh * shown * o * (1 - o)
    return dz, (0, dc * f)


def gru_back(gates, h, h_t, dh):
    r, z, q, n = gates
    dn = dh * (1 - z) * (1 - n**2)
    return (dn * q * r * (1 - r), dh * (h - n) * z * (1 - z), dn * r, dn), (dh * z,)


def walk(kind, inputs):
    u, w, bias = map(double, inputs[:3])
    states, H = [double(a) for a in inputs.carry], len(w)
    if kind.name == "GRU":  # the input is not heard by the third of its four columns
        u = np.insert(u, [2 * H] * H, 0, axis=-1)
    out = []
    for t, there in enumerate(flags(inputs.valid, (*u.shape[:2], H))):
        z = u[t] if bias is None else u[t] + bias
        new, gates = (lstm_step if kind.name == "LSTM" else gru_step)(z, states[0] @ w, *states)
        states = [np.where(there, a, b) for a, b in zip(new, states, strict=True)]
        out.append((*states, np.concatenate(gates, axis=-1)))
    *states, gates = map(np.stack, zip(*out, strict=True))
    return Walk(tuple(states), gates)


def walk_back(kind, saved, wanted):
    w, gates, memory, first = map(double, saved[:4])
    wanted, H = [double(a) for a in wanted], len(w)
    bars, zs = [np.zeros_like(first) for _ in wanted], np.zeros_like(gates)
    there = flags(saved.valid, memory.shape)
    for t in reversed(range(len(memory))):
        before = memory[t - 1] if t else first
        bars = [a + b[t] for a, b in zip(bars, wanted, strict=True)]
        back = lstm_back if kind.name == "LSTM" else gru_back
        z, passed = back(np.split(gates[t], 4, axis=-1), before, memory[t], *bars)
        zs[t] = np.where(there[t][:, :1], np.concatenate(z, axis=-1), 0)
        of_h = zs[t][:, : w.shape[1]] @ w.T
        passed = of_h + passed[0], *passed[1:]
        bars = [np.where(there[t], a, b) for a, b in zip(passed, bars, strict=True)]
    assert H == first.shape[-1]
    return Tangents(zs, tuple(bars))


def problem(kind, T, B, H, dtype, *, masked=True, bias=True, seed=0):
    """Inputs of forward, and what backward is asked for."""
    rng = np.random.default_rng([seed, T, B, H])
    valid = rng.random((T, B)) < 0.7 if masked else None

    def normal(*shape, dtype=dtype):
        return jnp.asarray(rng.normal(size=shape), dtype)

    u = normal(T, B, len(kind.of_x) * H)
    if valid is not None:
        u = jnp.where(jnp.asarray(valid)[..., None], u, jnp.zeros_like(u))
    w = jnp.asarray(rng.normal(size=(H, len(kind.of_h) * H)) / np.sqrt(H), dtype)
    b = normal(4 * H, dtype="float32") if bias else None
    dtypes = (dtype, "float32")[: kind.count]
    carry = tuple(normal(B, H, dtype=one) for one in dtypes)
    carry = jnp.tanh(carry[0]), *carry[1:]
    inputs = Inputs(u, w, b, carry, None if valid is None else jnp.asarray(valid))
    return inputs, tuple(normal(T, B, H, dtype=one) for one in dtypes)


def saved_for(inputs, scanned):
    """What backward reads, of this oracle's results."""
    memory = jnp.asarray(scanned.states[-1], inputs.carry[-1].dtype)
    gates = jnp.asarray(scanned.gates, jnp.float32)
    return saved_of(inputs, Walk((memory,), gates))

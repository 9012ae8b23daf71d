"""The leaky recurrent network for one row, unit by unit."""

import math

import numpy as np


def alpha(params, unit, tau, dt, integration):
    """The fraction of the old state that a step forgets."""
    if params.log_tau is not None:
        return 1 - math.exp(-dt / math.exp(params.log_tau[unit]))
    return {"euler": dt / tau, "exponential": 1 - math.exp(-dt / tau)}[integration]


def preactivation(params, unit, r, x):
    """x W + r R + b of one unit."""
    total = 0.0 if params.bias is None else params.bias[unit]
    total += sum(x[d] * params.w_ih[d, unit] for d in range(len(x)))
    return total + sum(r[k] * params.w_hh[k, unit] for k in range(len(r)))


def current(params, carry, x, tau=100.0, dt=20.0, sigma=0.0, integration="euler", f=np.tanh, noise=None):
    v, r = carry
    new = np.zeros_like(v)
    for unit in range(len(v)):
        a = alpha(params, unit, tau, dt, integration)
        new[unit] = v[unit] + a * (preactivation(params, unit, r, x) - v[unit])
        if noise is not None:
            new[unit] += math.sqrt(2 * a) * sigma * noise[unit]
    return (new, f(new)), f(new)


def rate(params, r, x, tau=100.0, dt=20.0, sigma=0.0, integration="euler", f=np.tanh, noise=None):
    new = np.zeros_like(r)
    for unit in range(len(r)):
        a = alpha(params, unit, tau, dt, integration)
        z = preactivation(params, unit, r, x)
        if noise is not None:
            z += math.sqrt(2 / a) * sigma * noise[unit]
        new[unit] = r[unit] + a * (f(z) - r[unit])
    return new, new


def current_initial(f=np.tanh):
    """The initial v, zero or learned, and its rates."""

    def initial(params):
        v = np.zeros(len(params.w_hh)) if params.initial is None else params.initial
        return v, f(v)

    return initial


def rate_initial(params):
    return np.zeros(len(params.w_hh)) if params.initial is None else params.initial

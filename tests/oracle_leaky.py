"""The leaky recurrent network for one row, unit by unit."""

import math

import numpy as np


def share(params, unit, tau, dt, integration):
    """How much of the old state a step forgets."""
    if params.log_tau is not None:
        return 1 - math.exp(-dt / math.exp(params.log_tau[unit]))
    return {"euler": dt / tau, "exponential": 1 - math.exp(-dt / tau)}[integration]


def hears(params, unit, r, x):
    """What comes in from outside and from the other units."""
    total = 0.0 if params.bias is None else params.bias[unit]
    total += sum(x[d] * params.w_ih[d, unit] for d in range(len(x)))
    return total + sum(r[k] * params.w_hh[k, unit] for k in range(len(r)))


def current(params, carry, x, tau=100.0, dt=20.0, sigma=0.0, integration="euler", f=np.tanh, noise=None):
    v, r = carry
    new = np.zeros_like(v)
    for unit in range(len(v)):
        a = share(params, unit, tau, dt, integration)
        new[unit] = v[unit] + a * (hears(params, unit, r, x) - v[unit])
        if noise is not None:
            new[unit] += math.sqrt(2 * a) * sigma * noise[unit]
    return (new, f(new)), f(new)


def rate(params, r, x, tau=100.0, dt=20.0, sigma=0.0, integration="euler", f=np.tanh, noise=None):
    new = np.zeros_like(r)
    for unit in range(len(r)):
        a = share(params, unit, tau, dt, integration)
        z = hears(params, unit, r, x)
        if noise is not None:
            z += math.sqrt(2 / a) * sigma * noise[unit]
        new[unit] = r[unit] + a * (f(z) - r[unit])
    return new, new


def current_at_rest(f=np.tanh):
    """v = 0, or what was learned, and the rates that belong to it."""

    def initial(params):
        v = np.zeros(len(params.w_hh)) if params.initial is None else params.initial
        return v, f(v)

    return initial


def rate_at_rest(params):
    return np.zeros(len(params.w_hh)) if params.initial is None else params.initial

"""The choice of kernels: unsupported calls, ``interpret`` and ``explain``."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_case import D, H
from helpers import several_devices
from jax.sharding import AxisType, PartitionSpec as P
from kernel_cases import unroll

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, GRUVariant, LSTMVariant
from lstm_jax.unrolling.kernels import select

CELL = LSTM(D, H)
XS = jax.ShapeDtypeStruct((5, 3, D), "float32")


def plan(cell=CELL, xs=XS, **options):
    params = jax.eval_shape(cell.init, jax.random.key(0))
    return lstm_jax.explain(cell, params, xs, implementation="pallas", **options)


UNSUPPORTED = {
    "cell": (lambda: plan(RNN(D, H)), "the kernels support LSTM and GRU, got RNN"),
    "options": (
        lambda: plan(LSTMVariant(D, H, peepholes=True, clip=3.0)),
        "the kernels support LSTM and GRU, got LSTMVariant",
    ),
    "reset before": (lambda: plan(GRUVariant(D, H, reset_after=False)), "LSTM and GRU, got GRUVariant"),
    "resets": (lambda: plan(resets=jax.ShapeDtypeStruct((5, 3), bool)), "the kernels do not support resets"),
    "truncate": (lambda: plan(truncate=2), "the kernels do not support truncate"),
    "carry": (
        lambda: plan(LSTM(D, H, dtype="bfloat16"), carry=(jnp.zeros((3, H), "float32"),) * 2),
        "of dtypes bfloat16, float32, got float32, float32",
    ),
    "carry of a GRU": (
        lambda: plan(GRU(D, H, dtype="bfloat16"), carry=jnp.zeros((3, H), "float32")),
        "a carry h of dtype bfloat16, got float32",
    ),
    "dtype": (lambda: plan(LSTM(D, H, dtype="float16")), "in float32 or bfloat16, got float16"),
    "VMEM": (lambda: plan(LSTM(D, 2000)), "2000 units in float32 need 69.3 MiB of VMEM"),
}


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("case", UNSUPPORTED)
def test_errors_give_the_reason(case):
    call, reason = UNSUPPORTED[case]
    with pytest.raises(ValueError, match=r"implementation='pallas' for .*" + reason):
        call()


@pytest.mark.usefixtures("interpreted")
def test_symbolic_sizes_are_unsupported():
    T = jax.export.symbolic_shape("T")[0]
    with pytest.raises(ValueError, match="require static sizes"):
        plan(xs=jax.ShapeDtypeStruct((T, 3, D), "float32"))


@several_devices
@pytest.mark.usefixtures("reference")
@pytest.mark.slow
def test_an_explicit_mesh_is_unsupported():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="explicit mesh"):
        xs = jax.device_put(np.ones((5, 4, D), np.float32), jax.NamedSharding(mesh, P(None, "data")))
        unroll("pallas", CELL, CELL.init(jax.random.key(0)), xs)


def test_without_a_device_it_raises_and_interpret_has_no_effect_outside_its_context():
    """The context is part of the jit cache key."""
    params, xs = CELL.init(jax.random.key(0)), jnp.ones((5, 3, D))
    run = jax.jit(partial(unroll, "pallas", CELL))
    for call in (run, partial(unroll, "pallas", CELL)):
        with pytest.raises(ValueError, match="require a TPU or a Hopper GPU"):
            call(params, xs)
        with select.interpret("reference"):
            call(params, xs)
        with pytest.raises(ValueError, match="require a TPU or a Hopper GPU"):
            call(params, xs)
    with pytest.raises(ValueError, match="interpret got platform='cpu'"):
        select.interpret("cpu")


def test_explain_names_the_kernel():
    with select.interpret("tpu"):
        explanation = plan(lengths=[5, 3, 1], checkpoint=2)
        assert "TPU kernel, interpreted" in explanation.layers[0].reason
    assert explanation.implementation == "pallas"
    assert auto_implementation() == "fused"  # auto does not choose kernels that are not measured


def auto_implementation():
    with select.interpret("reference"):
        params = jax.eval_shape(CELL.init, jax.random.key(0))
        return lstm_jax.explain(CELL, params, XS).implementation

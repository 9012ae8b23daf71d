"""One suite for every implementation of the walk: what the oracle gives, and by the one that was named.

What cannot run on this machine is skipped with its own reason. With ``--device gpu`` (or tpu) the machine is
expected to be one, and what belongs there and is skipped is a failure.
"""

import contextlib
import re
from importlib import import_module
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_minimal
import pytest
from against_oracle import B, D, H, T, assert_agrees, problem

import lstm_jax
from lstm_jax import (
    GRU,
    LSTM,
    Bidirectional,
    GRUVariant,
    MinGRU,
    Readout,
    Stack,
    explain,
    implementations,
    unroll,
)
from lstm_jax.unrolling.kernels import select
from lstm_jax.unrolling.registry import AUTO, COLUMNS, IMPLEMENTATIONS, NAMED

#: Each on the cell it is there for; all others on the LSTM.
CELLS = {"parallel": (MinGRU, oracle_minimal.MIN_GRU)}
#: Whose kernels "pallas" runs: the machine's own or, on a CPU, those of each device in its interpreter.
PLATFORMS = tuple(select.MODULES) if jax.default_backend() == "cpu" else (jax.default_backend(),)
#: In which dtype, where it is not float32.
DTYPES = {("pallas", "gpu"): "bfloat16"}
#: What a program of each has inside, so that it is known which one ran.
INSIDE = {
    "scan": "scan",
    "fused": "custom_jvp_call",
    "parallel": "associative_scan|slice",
    "pallas": "kernel_scan",
    "cudnn": "rnn_fwd",
}
SITUATIONS = {
    "own_carry": {"given": False},
    "lengths": {"lengths": [T, 3, 0, 1]},
    "reverse": {"lengths": [2, T, 0, 5], "reverse": True},
    "bfloat16": {"dtype": "bfloat16"},
    "gru": {"kind": GRU, "lengths": [2, T, 0, 5], "reverse": True},
}
#: What an implementation declines wherever it runs.
DECLINES = {
    ("cudnn", "bfloat16"): "computes in float32 alone",
    ("cudnn", "gru"): "GRU",
    ("parallel", "gru"): "GRU",
}
DEVICES = {"gpu": "GPU", "tpu": "TPU"}

NAMES = [row.name for row in implementations()]
RUNS = [
    pytest.param(name, platform, id=name if platform is None else f"{name} of a {platform.upper()}")
    for name in NAMES
    for platform in (PLATFORMS if name == "pallas" else (None,))
]


def made(name, dtype="float32", lengths=None, kind=LSTM, **options):
    same = oracle.Cell(oracle.lstm, oracle.two_zeros)
    if kind is GRU:
        same = oracle.Cell(oracle.gru_reset_after, oracle.zeros)
    else:
        kind, same = CELLS.get(name, (kind, same))
    if lengths is not None:
        options["lengths"] = np.array(lengths)
    return problem(kind(D, H, dtype=dtype), same, dtype, **options)


def belongs(name, device):
    """Whether a test run that expects this device expects the implementation on it."""
    devices = NAMED[name].devices
    return device is not None and (devices == "all" or DEVICES[device] in devices)


def test_what_is_expected_where():
    assert belongs("cudnn", "gpu") and belongs("scan", "gpu") and belongs("scan", "tpu")
    assert not belongs("cudnn", "tpu") and not belongs("scan", None)


@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("situation", helpers.daily(SITUATIONS, "reverse"))
@pytest.mark.parametrize(("name", "platform"), RUNS)
def test_values_and_gradients_are_the_oracles(name, platform, situation, request):
    device = request.config.getoption("device")
    assert device in (None, jax.default_backend()), f"jax runs on {jax.default_backend()}"
    options = {"dtype": DTYPES.get((name, platform), "float32")} | SITUATIONS[situation]
    given = made(name, **options)
    call = given.params, given.xs, given.carry
    elsewhere = platform not in (None, jax.default_backend())
    setting = select.interpret(platform) if elsewhere else contextlib.nullcontext()
    with setting, jax.default_matmul_precision("highest"):
        try:
            plan = explain(given.network, *call, implementation=name, **given.options)
        except ValueError as error:
            if (name, situation) in DECLINES:
                assert DECLINES[name, situation] in str(error)
                return
            (pytest.fail if belongs(name, device) else pytest.skip)(str(error))
        assert (name, situation) not in DECLINES
        assert plan.implementation == name

        def run(params, xs, carry):
            return unroll(given.network, params, xs, carry, implementation=name, **given.options)

        assert re.search(INSIDE[name], str(jax.make_jaxpr(run)(*call)))
        assert_agrees(given, name, atol=2e-5 if options["dtype"] == "float32" else 0.03)


# --- the table ----------------------------------------------------------------------------------


def test_the_readme_has_the_table():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert implementations().markdown in readme


def test_every_row_is_filled_and_can_be_chosen():
    assert IMPLEMENTATIONS == ("auto", *NAMES) and set(AUTO) <= set(NAMES)
    for row in implementations():
        assert all(getattr(row, column) for column in COLUMNS) and row.what
        assert callable(row.why_not) and callable(row.scan)
        assert (row.name in AUTO) != row.auto.startswith("never")
        assert row.name not in AUTO or row.transforms == "all"
    assert str(implementations()).count("transforms:") == len(NAMES)


def test_auto_asks_in_its_order_and_tells_who_passed(monkeypatch):
    """The names in AUTO decide, and each reason is told."""
    module = import_module("lstm_jax.unrolling.registry")
    cell = MinGRU(D, H)
    params, xs = jax.eval_shape(cell.init, jax.random.key(0)), jax.ShapeDtypeStruct((T, B, D), "float32")
    monkeypatch.setattr(module, "AUTO", ("scan", "fused"))
    assert explain(cell, params, xs).implementation == "scan"
    monkeypatch.setattr(module, "AUTO", ("fused", "scan"))
    assert explain(cell, params, xs).implementation == "fused"
    before = GRUVariant(D, H, reset_after=False)
    (layer,) = explain(before, jax.eval_shape(before.init, jax.random.key(0)), xs).layers
    assert (
        layer.implementation == "scan" and "; not fused: " in layer.reason and "parallel" not in layer.reason
    )


def test_auto_never_asks_what_does_not_keep_every_transform(monkeypatch):
    """Not even where a GPU is."""
    monkeypatch.setattr(import_module("lstm_jax.unrolling.cudnn"), "no_device", lambda: None)
    network = Stack((Bidirectional(LSTM(D, H)), Readout(2 * H, 2)))
    params, xs = jax.eval_shape(network.init, jax.random.key(0)), jax.ShapeDtypeStruct((T, B, D), "float32")
    assert "cudnn" not in explain(network, params, xs).implementation


def test_explain_prints_the_rows_of_what_runs():
    network = Stack((LSTM(D, H), GRUVariant(H, 2, reset_after=False), Readout(2, 1)))
    params, xs = jax.eval_shape(network.init, jax.random.key(0)), jax.ShapeDtypeStruct((T, B, D), "float32")
    told = str(explain(network, params, xs))
    assert str(NAMED["fused"]) in told and str(NAMED["scan"]) in told and str(NAMED["parallel"]) not in told


def test_a_name_that_nobody_has_is_refused():
    known = r"implementation='fast'.*'scan', 'fused', 'parallel', 'pallas', 'cudnn'"
    with pytest.raises(ValueError, match=known):
        unroll(LSTM(D, H), LSTM(D, H).init(jax.random.key(0)), jnp.ones((T, B, D)), implementation="fast")


def test_what_the_table_knows_stands_in_unrolls_docstring():
    assert all(f'``"{name}"``' in lstm_jax.unroll.__doc__ for name in NAMES)

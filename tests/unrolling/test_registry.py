"""All implementations against the oracle, and the choice among them.

Implementations that cannot run on this machine are skipped with their reason. With ``--device gpu`` (or tpu),
an implementation for that device that cannot run is a failure.
"""

import contextlib
from functools import partial
from importlib import import_module

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_minimal
import pytest
from against_oracle import B, D, H, T, assert_agrees, problem
from jax import export
from user_cells import Average

import lstm_jax
from lstm_jax import (
    GRU,
    LSTM,
    Bidirectional,
    GRUVariant,
    MinGRU,
    MinLSTM,
    Readout,
    Stack,
    explain,
    implementations,
    unroll,
)
from lstm_jax.unrolling.kernels import select
from lstm_jax.unrolling.registry import AUTO, COLUMNS, IMPLEMENTATIONS, NAMED

#: The cell of an implementation and its oracle; by default the LSTM.
CELLS = {"parallel": (MinGRU, oracle_minimal.MIN_GRU)}
#: The platforms of the kernels of "pallas": this machine's or, on a CPU, all of them in an interpreter.
PLATFORMS = tuple(select.MODULES) if jax.default_backend() == "cpu" else (jax.default_backend(),)
#: The compute dtype, by default float32.
DTYPES = {("pallas", "gpu"): "bfloat16"}
SITUATIONS = {
    "own_carry": {"given": False},
    "lengths": {"lengths": [T, 3, 0, 1]},
    "reverse": {"lengths": [2, T, 0, 5], "reverse": True},
    "bfloat16": {"dtype": "bfloat16"},
    "gru": {"kind": GRU, "lengths": [2, T, 0, 5], "reverse": True},
}
#: Calls that an implementation does not support on any device, with the reason.
UNSUPPORTED = {
    ("cudnn", "bfloat16"): "supports only float32",
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


def case_problem(name, dtype="float32", lengths=None, kind=LSTM, **options):
    equations = oracle.Cell(oracle.lstm, oracle.two_zeros)
    if kind is GRU:
        equations = oracle.Cell(oracle.gru_reset_after, oracle.zeros)
    else:
        kind, equations = CELLS.get(name, (kind, equations))
    if lengths is not None:
        options["lengths"] = np.array(lengths)
    return problem(kind(D, H, dtype=dtype), equations, dtype, **options)


def is_expected(name, device):
    """Whether the implementation must run in a test run with this ``--device``."""
    devices = NAMED[name].devices
    return device is not None and (devices == "all" or DEVICES[device] in devices)


def test_implementations_that_are_expected_on_a_device():
    assert is_expected("cudnn", "gpu") and is_expected("scan", "gpu") and is_expected("scan", "tpu")
    assert not is_expected("cudnn", "tpu") and not is_expected("scan", None)


def ran(jaxpr):
    """The implementations that a program contains, by their primitives."""
    names, inner = set(), set()
    for eqn in jaxpr.eqns:
        primitive = eqn.primitive.name
        names |= {"kernel_scan": {"pallas"}, "cudnn_lstm": {"cudnn"}, "scan": {"scan"}}.get(primitive, set())
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            part = getattr(value, "jaxpr", value)
            if hasattr(part, "eqns"):
                inner = ran(part)
                names |= {"fused"} if primitive == "custom_jvp_call" and "scan" in inner else inner
    return names


@pytest.mark.parametrize("situation", helpers.daily(SITUATIONS, "reverse"))
@pytest.mark.parametrize(("name", "platform"), RUNS)
def test_values_and_gradients_agree_with_the_oracle(name, platform, situation, request):
    device = request.config.getoption("device")
    assert device in (None, jax.default_backend()), f"jax runs on {jax.default_backend()}"
    options = {"dtype": DTYPES.get((name, platform), "float32")} | SITUATIONS[situation]
    given = case_problem(name, **options)
    call = given.params, given.xs, given.carry
    is_interpreted = platform not in (None, jax.default_backend())
    setting = select.interpret(platform) if is_interpreted else contextlib.nullcontext()
    with setting, jax.default_matmul_precision("highest"):
        try:
            plan = explain(given.network, *call, implementation=name, **given.options)
        except ValueError as error:
            if (name, situation) in UNSUPPORTED:
                assert UNSUPPORTED[name, situation] in str(error)
                return
            (pytest.fail if is_expected(name, device) else pytest.skip)(str(error))
        assert (name, situation) not in UNSUPPORTED
        assert plan.implementation == name

        def run(params, xs, carry):
            return unroll(given.network, params, xs, carry, implementation=name, **given.options)

        # The program of the associative scan contains no primitive of its own, and no loop.
        assert ran(jax.make_jaxpr(run)(*call).jaxpr) == ({name} - {"parallel"})
        assert_agrees(given, name, atol=2e-5 if options["dtype"] == "float32" else 0.03)


# --- the table ----------------------------------------------------------------------------------


def test_rows_of_the_table():
    assert IMPLEMENTATIONS == ("auto", *NAMES) and set(AUTO) <= set(NAMES)
    for row in implementations():
        assert all(getattr(row, column) for column in COLUMNS) and row.what
        assert callable(row.why_not) and callable(row.scan)
        assert (row.name in AUTO) != row.auto.startswith("never")
        assert row.name not in AUTO or row.transforms == "all"
    assert str(implementations()).count("transforms:") == len(NAMES)


def test_auto_tries_implementations_in_order_and_explains_why_others_cannot_run(monkeypatch):
    module = import_module("lstm_jax.unrolling.registry")
    cell = MinGRU(D, H)
    params, xs = jax.eval_shape(cell.init, jax.random.key(0)), jax.ShapeDtypeStruct((T, B, D), "float32")
    monkeypatch.setattr(module, "AUTO", ("scan", "fused"))
    assert explain(cell, params, xs).implementation == "scan"
    monkeypatch.setattr(module, "AUTO", ("fused", "scan"))
    assert explain(cell, params, xs).implementation == "fused"
    variant = GRUVariant(D, H, reset_after=False)
    (layer,) = explain(variant, jax.eval_shape(variant.init, jax.random.key(0)), xs).layers
    assert (
        layer.implementation == "scan" and "; not fused: " in layer.reason and "parallel" not in layer.reason
    )


def test_auto_chooses_cudnn_only_with_its_constant(monkeypatch):
    monkeypatch.setattr(import_module("lstm_jax.unrolling.cudnn"), "no_device", lambda: None)
    network = Stack((Bidirectional(LSTM(D, H)), GRU(2 * H, H), LSTM(H, H), Readout(H, 2)))
    params, xs = jax.eval_shape(network.init, jax.random.key(0)), jax.ShapeDtypeStruct((T, B, D), "float32")

    def chosen(**options):
        return [layer.implementation for layer in explain(network, params, xs, **options).layers]

    assert "cudnn" not in chosen()
    monkeypatch.setattr(import_module("lstm_jax.unrolling.registry"), "AUTO_CUDNN", True)
    assert chosen() == ["cudnn", "fused", "cudnn", "vmap"]
    assert "cudnn" not in chosen(truncate=2) and "cudnn" not in chosen(implementation="fused")
    assert "requested" not in str(explain(network, params, xs))


def test_explain_prints_the_rows_of_the_implementations_that_run():
    network = Stack((LSTM(D, H), GRUVariant(H, 2, reset_after=False), Readout(2, 1)))
    params, xs = jax.eval_shape(network.init, jax.random.key(0)), jax.ShapeDtypeStruct((T, B, D), "float32")
    text = str(explain(network, params, xs))
    assert str(NAMED["fused"]) in text and str(NAMED["scan"]) in text and str(NAMED["parallel"]) not in text


def test_unknown_names_raise():
    known = r"implementation='fast'.*'scan', 'fused', 'parallel', 'pallas', 'cudnn'"
    with pytest.raises(ValueError, match=known):
        unroll(LSTM(D, H), LSTM(D, H).init(jax.random.key(0)), jnp.ones((T, B, D)), implementation="fast")


# --- the choice of the associative scan ----------------------------------------------------------


def shapes(cell, *, T=6):
    params = jax.eval_shape(cell.init, jax.random.key(0))
    return params, jax.ShapeDtypeStruct((T, 2, D), jnp.float32)


def test_auto_chooses_a_loop_on_a_cpu():
    (layer,) = explain(MinGRU(D, H), *shapes(MinGRU(D, H))).layers
    assert layer.implementation == "fused" and "not parallel: on CPUs" in layer.reason
    (layer,) = explain(Average(), *shapes(Average())).layers
    assert layer.implementation == "scan" and "not parallel: on CPUs" in layer.reason


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    "cell, options, expected, reason",
    [
        (MinGRU(D, H), {}, ["parallel"], "the recurrence is linear"),
        (MinGRU(D, H), {"checkpoint": 2, "reverse": True}, ["parallel"], "the recurrence is linear"),
        (MinLSTM(D, H), {"truncate": 2}, ["fused"], "not parallel: truncate stops gradients"),
        (MinLSTM(D, H), {"implementation": "fused"}, ["fused"], "splits"),
        (MinLSTM(D, H), {"implementation": "scan"}, ["scan"], "by name"),
        (Average(), {}, ["parallel"], "the recurrence is linear"),
        (Average(wrong=True), {}, ["scan"], "not parallel: Average.coefficients returned shapes"),
        (Bidirectional(MinGRU(D, H)), {}, ["parallel"] * 2, "the recurrence is linear"),
        (Stack((LSTM(D, H), MinGRU(H, H))), {}, ["fused", "parallel"], ""),
    ],
    ids=helpers.brief,
)
def test_auto_chooses_the_associative_scan_on_an_accelerator(cell, options, expected, reason):
    params, xs = shapes(cell)
    plan = explain(cell, params, xs, **options)
    assert [layer.implementation for layer in plan.layers] == expected
    assert all(reason in layer.reason for layer in plan.layers)
    jax.eval_shape(lambda params, xs: lstm_jax.unroll(cell, params, xs, **options), params, xs)
    if expected == ["parallel"]:
        assert plan.layers[0].tiling == ""


@pytest.mark.usefixtures("accelerator")
def test_symbolic_sizes_of_a_parallel_cell():
    """With symbolic T, auto chooses a loop, and the name raises. A symbolic batch is supported."""
    cell = MinGRU(D, H)
    params = cell.init(jax.random.key(0))
    T, B = export.symbolic_shape("T, B")

    def program(shape, how):
        run = jax.jit(lambda xs: lstm_jax.unroll(cell, params, xs, implementation=how))
        return export.export(run)(jax.ShapeDtypeStruct(shape, jnp.float32))

    xs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, D)), jnp.float32)
    expected = lstm_jax.unroll(cell, params, xs, implementation="scan")
    for shape in ((T, B, D), (5, B, D)):
        for a, b in zip(program(shape, "auto").call(xs), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    with pytest.raises(ValueError, match=r"cannot run it.*requires a static number of steps"):
        program((T, B, D), "parallel")


@pytest.mark.parametrize(
    "cell, options, words",
    [
        (LSTM(D, H), {}, ["'parallel' for LSTM", "no coefficients (see lstm_jax.ParallelCell)"]),
        (MinGRU(D, H), {"truncate": 2}, ["'parallel' for MinGRU", "truncate stops gradients"]),
        (Average(wrong=True), {}, ["'parallel' for Average", "shapes [(6, 2, 3), (6, 2, 1)]"]),
        (Stack((MinGRU(D, H), LSTM(H, H))), {}, ["'parallel' for LSTM"]),
        (Bidirectional(LSTM(D, H)), {}, ["cannot run it"]),
    ],
    ids=helpers.brief,
)
def test_the_associative_scan_by_name_raises_if_it_cannot_run(cell, options, words):
    params, xs = shapes(cell)
    for call in (lstm_jax.unroll, explain):
        run = partial(call, cell, implementation="parallel", **options)
        helpers.assert_raises(
            lambda run=run: jax.eval_shape(run, params, xs), *words, "Use implementation='auto'"
        )

"""Compilation: equal calls share one program, and programs do not grow with T."""

import os
import platform
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib.metadata import version

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax
from lstm_jax import (
    GRU,
    LSTM,
    MLSTM,
    RNN,
    SLSTM,
    Bidirectional,
    GRUVariant,
    IndRNN,
    MinGRU,
    MinLSTM,
    Readout,
    Stack,
)

T, B, D, H = 5, 2, 3, 4
NETWORKS = {
    "rnn": lambda: RNN(D, H),
    "lstm": lambda: LSTM(D, H),
    "gru": lambda: GRU(D, H),
    "gru_reset_before": lambda: GRUVariant(D, H, reset_after=False),
    "bidirectional": lambda: Bidirectional(LSTM(D, H)),
    "stack": lambda: Stack([GRU(D, H), LSTM(H, H), Readout(H, 2)], dropout=0.5),
}


@contextmanager
def compilations():
    """Collects the names of jax's compile events: traces, lowerings and compilations."""
    events = []

    def listener(event, duration, **_):
        if "/compile/" in event:
            events.append(event.rsplit("/", 1)[-1])

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_compilations_counts_a_compilation():
    with compilations() as events:
        jax.jit(lambda x: x * 3 + 1)(np.ones(7, np.float32))
    assert "backend_compile_duration" in events


# --- the second call ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", helpers.daily(NETWORKS, "lstm", "gru"))
def test_a_second_eager_call_compiles_nothing(name):
    """The second call has an equal network, other values, and other flags of the same shapes."""
    network = NETWORKS[name]()
    params = network.init(jax.random.key(0))
    xs = jnp.ones((T, B, D))
    keys = [jax.random.key(seed) for seed in range(2)]
    resets = [np.zeros((T, B), bool), np.ones((T, B), bool)]
    first = {"lengths": [T, 2], "resets": resets[0], "key": keys[0], "start": 0, "reverse": True}
    lstm_jax.unroll(network, params, xs, **first)
    others = xs * 2
    with compilations() as events:
        second = {"lengths": (0, 1), "resets": resets[1], "key": keys[1], "start": 7, "reverse": True}
        lstm_jax.unroll(NETWORKS[name](), params, others, **second)
        lstm_jax.unroll(network, params, xs, **first | {"lengths": np.array([1, 3])})
    assert events == []


def test_a_second_eager_gradient_compiles_nothing():
    cell = LSTM(D, H)
    params = cell.init(jax.random.key(0))
    xs = jnp.ones((T, B, D))

    def gradient(cell, xs):
        return jax.grad(lambda p: lstm_jax.unroll(cell, p, xs)[1].sum())(params)

    gradient(cell, xs)
    xs = xs * 2
    with compilations() as events:
        gradient(LSTM(D, H), xs)
    assert "backend_compile_duration" not in events


def test_windows_of_one_size_share_a_program():
    """The carry is passed on and ``start`` advances."""
    cell = GRU(D, H)
    params = cell.init(jax.random.key(0))
    windows = list(jnp.ones((4, 1, B, D)))
    carry, _ = lstm_jax.unroll(cell, params, windows[0], cell.initial_carry((B,)))
    with compilations() as events:
        for start, window in enumerate(windows[1:], 1):
            carry, _ = lstm_jax.unroll(cell, params, window, carry, start=start)
    assert events == []


def test_an_equal_cell_reuses_a_jitted_call():
    run = jax.jit(lstm_jax.unroll, static_argnums=0)
    cell = LSTM(D, H)
    params = cell.init(jax.random.key(0))
    xs = jnp.ones((T, B, D))
    run(cell, params, xs, lengths=jnp.array([1, 2]))
    lengths = jnp.array([5, 0])
    with compilations() as events:
        run(LSTM(D, H, param_dtype="float32"), params, xs, lengths=lengths)
    assert events == []


def test_another_option_compiles_another_program():
    cell = LSTM(D, H)
    params = cell.init(jax.random.key(0))
    xs = jnp.ones((T, B, D))
    lstm_jax.unroll(cell, params, xs)
    for options in ({"reverse": True}, {"implementation": "scan"}, {"checkpoint": 2}):
        with compilations() as events:
            lstm_jax.unroll(cell, params, xs, **options)
        assert events.count("backend_compile_duration") == 1, options


# --- equal hyperparameters ----------------------------------------------------------------------

ONES = jax.nn.initializers.ones
#: A second value for every field of the classes of the library.
MESHES = [jax.make_mesh((1, 1, 1), names) for names in (("rows", "units", "more"), ("more", "units", "rows"))]
OTHERS = {
    **{name: 8 for name in ("input_size", "hidden_size", "output_size", "features")},
    **{name: 2 for name in ("heads", "proj_size")},
    **{name: 0.5 for name in ("forget_bias", "clip", "cell_clip", "dropout", "inputs", "rate", "noise")},
    **{name: ONES for name in ("w_init", "w_ih_init", "w_hh_init", "w_gates_init", "bias_init")},
    **{name: "bfloat16" for name in ("param_dtype", "dtype")},
    **{
        name: True
        for name in ("learn_initial_carry", "learn_tau", "peepholes", "coupled", "residual", "skip")
    },
    **{name: False for name in ("use_bias", "reset_after")},
    "activation": jax.nn.softmax,
    "recurrent_activation": jax.nn.hard_sigmoid,
    "ablation": "no_output_gate",
    "layer_norm": "tfa",
    "forget_gate": "exp",
    "input_shape": (5, 5, D),
    "kernel_size": (2, 2),
    "strides": (2, 2),
    "padding": "VALID",
    "tau": 50.0,
    "dt": 10.0,
    "form": "rate",
    "integration": "exponential",
    "cell": GRU(D, H),
    "merge": "sum",
    "backward": GRU(D, H),
    "layers": (LSTM(D, H),),
    "dropout_mask": "sequence",
    "recurrent": 0.25,
    "weights": ("w_ih",),
    "mask": "sequence",
    "rates": (0.5, 0.25),
    "mesh": MESHES[1],
    "data": "more",
    "model": "more",
}
NETWORKS_BY_KIND = {
    type(network): network
    for network in (
        *(kind(D, H) for kind in (RNN, LSTM, GRU, IndRNN, SLSTM, MLSTM, MinGRU, MinLSTM, Readout)),
        lstm_jax.LSTMVariant(D, H),
        lstm_jax.GRUVariant(D, H),
        lstm_jax.FullGateLSTM(D, H),
        lstm_jax.ConvLSTM((6, 6, D), H, (3, 3)),
        lstm_jax.LeakyRNN(D, H),
        Bidirectional(LSTM(D, H)),
        Stack((LSTM(H, H),)),
        lstm_jax.VariationalDropout(LSTM(D, H)),
        lstm_jax.CandidateDropout(LSTM(D, H), 0.25),
        lstm_jax.Zoneout(LSTM(D, H), 0.25),
        lstm_jax.WeightDrop(LSTM(D, H), 0.25),
        lstm_jax.Sharded(LSTM(D, H), MESHES[0], data="rows", model="units"),
    )
}


def test_all_public_classes_are_tested():
    public = [kind for kind in vars(lstm_jax).values() if isinstance(kind, type) and is_dataclass(kind)]
    assert {kind for kind in public if hasattr(kind, "init")} == set(NETWORKS_BY_KIND)


@pytest.mark.parametrize("kind", NETWORKS_BY_KIND, ids=lambda kind: kind.__name__)
def test_every_field_is_compared(kind):
    network = NETWORKS_BY_KIND[kind]
    assert all(field.compare for field in fields(network))
    assert replace(network) == network and hash(replace(network)) == hash(network)
    for field in fields(network):
        changes = {field.name: OTHERS[field.name]}
        if field.name == "learn_tau":
            changes["integration"] = "exponential"
        if kind is Stack and field.name == "dropout":
            changes["layers"] = (LSTM(H, H), LSTM(H, H))
        changed = replace(network, **changes)
        assert changed != replace(network, **changes | {field.name: getattr(network, field.name)}), field.name
        assert changed == replace(network, **changes) and hash(changed) == hash(replace(changed)), field.name


@pytest.mark.parametrize("kind", [RNN, LSTM, GRU, Readout, IndRNN, SLSTM, MLSTM, MinGRU, MinLSTM])
@pytest.mark.parametrize("field", ["param_dtype", "dtype"])
def test_equal_dtypes_make_equal_cells(kind, field):
    for spellings in (
        ("float32", jnp.float32, np.float32, np.dtype("float32")),
        ("bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")),
    ):
        cells = {kind(D, H, **{field: spelling}) for spelling in spellings}
        assert len(cells) == 1
        assert isinstance(getattr(cells.pop(), field), np.dtype)


def test_lists_and_numpy_numbers_make_equal_cells():
    layers = [LSTM(D, H), GRU(H, H)]
    assert Stack(layers) == Stack(tuple(layers)) and hash(Stack(layers)) == hash(Stack(tuple(layers)))
    assert Stack(layers, dropout=0) == Stack(layers, dropout=0.0)
    assert hash(LSTM(np.int64(D), np.int32(H))) == hash(LSTM(D, H))
    assert type(LSTM(np.int64(D), H).input_size) is int


# --- size of the program ------------------------------------------------------------------------


def program(network, steps, **options):
    """The lowered program of value and gradient, without numbers."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((steps, B, D), jnp.float32)
    lengths = jax.ShapeDtypeStruct((B,), jnp.int32)
    resets = jax.ShapeDtypeStruct((steps, B), jnp.bool_)

    @jax.jit
    def value_and_grad(params, xs, lengths, resets):
        def loss(params):
            flags = {"lengths": lengths, "resets": resets, "key": jax.random.key(0)}
            return lstm_jax.unroll(network, params, xs, **flags, **options)[1].sum()

        return jax.value_and_grad(loss)(params)

    return re.sub(r"\d+", "#", value_and_grad.lower(params, xs, lengths, resets).as_text())


@pytest.mark.parametrize("options", [{}, {"reverse": True, "truncate": 3}, {"checkpoint": "sqrt"}], ids=str)
@pytest.mark.parametrize("name", helpers.daily(NETWORKS, "lstm", "gru"))
@helpers.several_devices  # a single CPU device divides long sequences into chunks
def test_the_program_of_ten_thousand_steps_is_as_long_as_that_of_sixteen(name, options):
    network = NETWORKS[name]()
    short, long = (program(network, steps, **options) for steps in (16, 10_000))
    operations = [sorted(re.findall(r"(?:stablehlo|chlo|func)\.\w+", text)) for text in (short, long)]
    assert operations[0] == operations[1] and len(operations[0]) > 50
    assert len(short.splitlines()) == len(long.splitlines())


# --- products -----------------------------------------------------------------------------------


def products(jaxpr, in_loop=False):
    """``(shape of the result, whether it is in a loop)`` of every matrix product."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield tuple(eqn.outvars[0].aval.shape), in_loop
        inner = in_loop or eqn.primitive.name in ("scan", "while")
        for value in eqn.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    yield from products(part, inner)


@pytest.mark.parametrize(("kind", "gates"), [helpers.slow(RNN, 1), (LSTM, 4), helpers.slow(GRU, 3)])
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_the_recurrent_weights_gradient_is_one_product_after_the_loop(kind, gates, direction):
    steps, rows, hidden = 7, 2, 5
    cell = kind(D, hidden)
    both = direction == "both"
    network = Bidirectional(cell) if both else cell
    params = network.init(jax.random.key(0))
    xs = jnp.ones((steps, rows, D))
    weight = {(hidden, gates * hidden), (gates * hidden, hidden)}
    directions = 2 if both else 1

    def where(implementation):
        def loss(params):
            return lstm_jax.unroll(network, params, xs, implementation=implementation)[1].sum()

        jaxpr = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
        return [in_loop for shape, in_loop in products(jaxpr) if shape in weight]

    assert where("fused") == [False] * directions
    assert where("scan") == [True] * directions


def test_a_backward_step_of_the_fused_lstm_is_one_product():
    """The forward loop has h R, the backward loop dz R^T; other products are outside."""
    cell = LSTM(D, H)
    params = cell.init(jax.random.key(0))
    xs = jnp.ones((T, B, D))

    def loss(params, xs):
        return lstm_jax.unroll(cell, params, xs)[1].sum()

    found = list(products(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, xs).jaxpr))
    assert sorted(shape for shape, in_loop in found if in_loop) == [(B, H), (B, 4 * H)]
    assert len(found) == 2 + 4  # u = x W; dW, dR and dx


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "implementation"),
    [("carry", "fused"), helpers.slow("outputs", "fused"), helpers.slow("carry", "scan")],
)
def test_checkpointed_windows_need_far_less_memory(of, implementation):
    """The gradient of the final carry stores no array with all steps."""
    steps, rows, hidden = 4096, 4, 16
    cell = LSTM(D, hidden)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((steps, rows, D), jnp.float32)

    def temporary(checkpoint):
        options = {"checkpoint": checkpoint, "implementation": implementation}

        @jax.jit
        def gradient(params, xs):
            def loss(params):
                (_, c), ys = lstm_jax.unroll(cell, params, xs, **options)
                return c.sum() if of == "carry" else ys.sum()

            return jax.grad(loss)(params)

        return gradient.lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    everything, windows = temporary(None), temporary("sqrt")
    one_copy = steps * rows * hidden * 4
    assert everything > 4 * one_copy
    assert windows < (one_copy if of == "carry" else 3 * one_copy)
    assert windows < everything / 4


# --- a user's cell ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counter:
    """A cell with three methods that counts how often it is traced."""

    name: str
    input_size: int = D
    output_size: int = 1

    def init(self, key):
        return ()

    def initial_carry(self, batch_shape=(), params=None):
        return jnp.zeros((*batch_shape, 1))

    def step(self, params, carry, x):
        TRACED.append(self.name)
        new = carry + jnp.sum(x, axis=-1, keepdims=True)
        return new, new


TRACED = []


def test_a_users_cell_is_traced_once_for_many_calls():
    xs = jnp.ones((T, B, D))
    lstm_jax.unroll(Counter("first"), (), xs)
    count = len(TRACED)
    for _ in range(3):
        jax.block_until_ready(lstm_jax.unroll(Counter("first"), (), xs))
    assert len(TRACED) == count
    lstm_jax.unroll(Counter("other"), (), xs)
    assert len(TRACED) > count


# --- kernels --------------------------------------------------------------------------------------

GATES = """
import jax, jax.numpy as jnp, lstm_jax
for cell in (lstm_jax.LSTM, lstm_jax.GRU, lstm_jax.LSTMVariant):
    cell = cell(128, 128, **({"peepholes": True} if cell is lstm_jax.LSTMVariant else {}))
    params, xs = jax.eval_shape(cell.init, jax.random.key(0)), jax.ShapeDtypeStruct((100, 32, 128), "float32")

    def gates_forward(params, xs):
        return lstm_jax.unroll(cell, params, xs)[1]

    def gates_backward(params, xs, weights):
        return jax.grad(lambda *args: jnp.sum(gates_forward(*args) * weights), (0, 1))(params, xs)

    jax.jit(gates_forward).lower(params, xs).compile()
    jax.jit(gates_backward).lower(params, xs, xs).compile()
"""


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() != "x86_64" or not version("jaxlib").startswith("0.10."),
    reason="reads the LLVM code for x86, which newer versions of jaxlib do not write",
)
def test_gates_are_computed_by_vector_instructions(tmp_path):
    """XLA computes tanh by a division, which takes several times as long without vector instructions."""
    flags = f"--xla_dump_to={tmp_path} --xla_dump_hlo_module_re=.*gates.*"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", GATES], check=True, env=env)
    kernels = {path.name: path.read_text() for path in tmp_path.glob("*fusion*with-opt.ll")}
    with_division = {name for name, text in kernels.items() if " fdiv " in text}
    assert len(with_division) >= 6
    assert not {name for name in with_division if not re.search(r" fdiv [a-z ]*<", kernels[name])}

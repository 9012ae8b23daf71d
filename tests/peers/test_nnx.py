"""lstm_jax.nnx: replacements for Flax's cells, and modules over whole sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_cases import CELL_CASES
from flax_cases import (
    CALLS,
    CELL_CLASSES,
    F64,
    LENGTHS,
    RESETS,
    XS,
    B,
    D,
    H,
    T,
    assert_close,
    check_documentation,
    fill,
    parameters,
    read_lstm,
    time_first,
    valid,
)

import lstm_jax
from lstm_jax.cells._base import as_base_cell

nnx = pytest.importorskip("flax.nnx", reason="modules for Flax NNX")
import lstm_jax.nnx as modules  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("x64", "default_promotion")]


def module(kind, network, **options):
    return kind(network, params=parameters(network), **options)


def state_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


# --- cells as replacements for Flax's ---------------------------------------------------------------


WITHOUT_NOISE = [
    case
    for case in CELL_CASES
    if case.causal and not as_base_cell(case.build(param_dtype="float32")).has_noise
]


def test_only_regularised_cells_have_noise():
    noisy = [case.name for case in CELL_CASES if case.causal and case not in WITHOUT_NOISE]
    assert set(noisy) == {"zoneout", "zoneout_projected", "regularised"}


@pytest.mark.parametrize("case", WITHOUT_NOISE, ids=lambda case: case.name)
def test_every_cell_runs_in_nnx_rnn(case):
    network = case.build(**F64)
    params, xs = parameters(network), fill(jax.ShapeDtypeStruct((T, B, *case.event), jnp.float64))
    cell = modules.Cell(network, params=params)
    ys = nnx.RNN(cell)(time_first(xs))
    assert_close(ys, time_first(lstm_jax.unroll(network, params, xs)[1]))


@pytest.mark.parametrize("name", CELL_CLASSES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
def test_cells_in_nnx_rnn_agree_with_unroll(name, reverse, time_major):
    network = CELL_CLASSES[name](D, H, **F64)
    cell = module(modules.Cell, network)
    rnn = nnx.RNN(cell, reverse=reverse, keep_order=True, time_major=time_major, return_carry=True)
    xs = time_first(XS)
    carry, ys = rnn(xs if time_major else XS, seq_lengths=jnp.array(LENGTHS))
    last, expected = lstm_jax.unroll(network, cell.values(), xs, lengths=LENGTHS, reverse=reverse)
    assert_close(carry, last[::-1] if name == "lstm" else last)
    assert_close((ys if not time_major else time_first(ys))[valid()], time_first(expected)[valid()])


def test_the_carry_of_an_lstm_is_c_then_h():
    cell = modules.LSTMCell(D, H, rngs=nnx.Rngs(0), **F64)
    first = tuple(fill(cell.initialize_carry((B, D))))
    (c, h), y = cell(first, XS[:, 0])
    carry, _ = cell.network.step(cell.values(), (first[1], first[0]), XS[:, 0])
    assert_close((h, c), carry)
    assert_close(h, y)
    projected = modules.Cell(lstm_jax.LSTMVariant(D, H, proj_size=2), rngs=nnx.Rngs(0))
    assert [a.shape for a in projected.initialize_carry((7, B, D))] == [(7, B, H), (7, B, 2)]


def test_the_carry_of_a_step_may_be_a_list():
    cell = modules.LSTMCell(D, H, rngs=nnx.Rngs(0), **F64)
    c, h = fill(cell.initialize_carry((B, D)))
    assert_close(cell([c, h], XS[:, 0]), cell((c, h), XS[:, 0]))


@pytest.mark.parametrize("whole", [False, True], ids=["cells", "sequences"])
def test_nnx_bidirectional_agrees_with_bidirectional(whole):
    network = lstm_jax.Bidirectional(lstm_jax.LSTM(D, H, **F64))
    params = parameters(network)
    rnns = [
        modules.Recurrent(network.cell, params=p) if whole else nnx.RNN(modules.Cell(network.cell, params=p))
        for p in params
    ]
    carry, ys = nnx.Bidirectional(*rnns)(XS, seq_lengths=jnp.array(LENGTHS), return_carry=True)
    last, expected = lstm_jax.unroll(network, params, time_first(XS), lengths=LENGTHS)
    assert_close(carry, tuple(c[::-1] for c in last))
    assert_close(ys[valid()], time_first(expected)[valid()])


def read_optimized_lstm(flax):
    return lstm_jax.LSTMParams(flax["dense_i"]["kernel"], *(flax["dense_h"][k] for k in ("kernel", "bias")))


def read_dense(kind):
    def read(flax):
        return kind(flax["dense_i"]["kernel"], flax["dense_h"]["kernel"], flax["dense_i"]["bias"])

    return read


FLAX_CELLS = {
    "LSTMCell": (lstm_jax.LSTM, read_lstm),
    "OptimizedLSTMCell": (lstm_jax.LSTM, read_optimized_lstm),
    "GRUCell": (lstm_jax.GRU, read_dense(lstm_jax.GRUParams)),
    "SimpleCell": (lstm_jax.RNN, read_dense(lstm_jax.RNNParams)),
}


@pytest.mark.parametrize("name", FLAX_CELLS)
def test_cells_agree_with_flax_s_on_equal_weights(name):
    """Outputs, carries, and gradients for weights, inputs and the first carry."""
    kind, read = FLAX_CELLS[name]
    options = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    flax = getattr(nnx, name)(D, H, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0), **options)
    cell = modules.Cell(kind(D, H, **options), params=read(state_of(flax)))
    first = fill(flax.initialize_carry((B, D), nnx.Rngs(0)))
    assert jax.tree.map(jnp.shape, cell.initialize_carry((B, D))) == jax.tree.map(jnp.shape, first)

    def loss(cell, xs, carry):
        out = nnx.RNN(cell)(xs, initial_carry=carry, return_carry=True)
        return sum(jnp.sum(jnp.sin((1 + i) * a)) for i, a in enumerate(jax.tree.leaves(out))), out

    actual, expected = (
        nnx.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(module, jnp.asarray(XS), first)
        for module in (cell, flax)
    )
    assert_close(actual[0], expected[0])
    assert_close(actual[1][1:], expected[1][1:])
    weights = read(nnx.to_pure_dict(expected[1][0]))._asdict()
    assert_close(
        nnx.to_pure_dict(actual[1][0])["params"], {k: v for k, v in weights.items() if v is not None}
    )


def test_a_learned_initial_carry_is_learned_in_nnx_rnn():
    network = lstm_jax.LSTM(D, H, learn_initial_carry=True, **F64)
    cell = module(modules.Cell, network)

    def loss(params):
        return jnp.sum(lstm_jax.unroll(network, params, time_first(XS))[1] ** 2)

    grads = nnx.grad(lambda cell: jnp.sum(nnx.RNN(cell)(XS) ** 2))(cell)
    expected = jax.grad(loss)(cell.values())
    assert_close(tuple(grads["params"]["initial"][i][...] for i in (0, 1)), expected.initial)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "SimpleCell"])
def test_drawn_carries_are_those_of_flax(name):
    """``carry_init`` of the call or of the module, with and without ``keep_rngs``."""
    draw = nnx.initializers.normal()
    with pytest.warns(UserWarning):
        flax = getattr(nnx, name)(D, H, carry_init=draw, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    expected = flax.initialize_carry((B, D), nnx.Rngs(1))
    kind = getattr(modules, name)
    cell = kind(D, H, rngs=nnx.Rngs(0), **F64)
    assert_close(cell.initialize_carry((B, D), nnx.Rngs(1), draw), expected)
    assert_close(cell.initialize_carry((B, D), nnx.Rngs(1)), jax.tree.map(jnp.zeros_like, expected))
    cell = kind(D, H, carry_init=draw, rngs=nnx.Rngs(0), **F64)
    assert_close(cell.initialize_carry((B, D), nnx.Rngs(1).carry), expected)
    rnn = nnx.RNN(cell, return_carry=True, rngs=nnx.Rngs(1))
    stream = nnx.Rngs(1).carry.fork()
    assert_close(
        rnn(XS), nnx.RNN(cell, return_carry=True)(XS, initial_carry=cell.initialize_carry((B, D), stream))
    )
    kept = kind(D, H, carry_init=draw, keep_rngs=True, rngs=nnx.Rngs(0), **F64)
    carries = [jax.tree.leaves(kept.initialize_carry((B, D)))[0] for _ in range(2)]
    assert bool(jnp.any(carries[0] != 0)) and bool(jnp.any(carries[0] != carries[1]))


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "SimpleCell"])
def test_steps_in_a_loop_equal_nnx_rnn(name):
    """A Python loop that passes the carry on, and ``nnx.RNN`` with several steps in each iteration."""
    cell = getattr(modules, name)(D, H, rngs=nnx.Rngs(0), **F64)
    carry, ys = cell.initialize_carry((B, D), nnx.Rngs(0)), []
    for t in range(T):
        carry, y = cell(carry, XS[:, t])
        ys.append(y)
    actual = nnx.RNN(cell, unroll=2, return_carry=True)(XS)
    assert_close(actual, (carry, jnp.stack(ys, axis=1)))


def test_sizes_of_a_cell():
    cell = modules.LSTMCell(D, H, rngs=nnx.Rngs(0))
    assert (cell.num_feature_axes, cell.in_features, cell.hidden_features) == (1, D, H)


# --- Flax's options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTMCell", {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.elu}),
        ("OptimizedLSTMCell", {"activation_fn": jax.nn.relu}),
        ("GRUCell", {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.elu}),
        ("SimpleCell", {"activation_fn": jax.nn.relu}),
        ("LSTMCell", {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}),
    ],
)
def test_flax_s_constructor_makes_flax_s_cell(name, options):
    """The same call on both classes; initialisers without randomness give both the same weights."""

    def ramp(scale):
        return lambda key, shape, dtype: (
            scale * jnp.linspace(-1, 1, np.prod(shape), dtype=dtype).reshape(shape)
        )

    options = {"dtype": jnp.float64, "param_dtype": jnp.float64, **options}
    options |= {"kernel_init": ramp(1.0), "recurrent_kernel_init": ramp(0.5), "bias_init": ramp(0.3)}
    dtype, tolerance = options["dtype"], 1e-10 if options["dtype"] == jnp.float64 else 0.02
    flax = getattr(nnx, name)(D, H, **options, rngs=nnx.Rngs(0))
    if "LSTM" in name:
        options["forget_bias"] = 0.0
    cell = getattr(modules, name.replace("Optimized", ""))(D, H, **options, rngs=nnx.Rngs(0))
    if name in ("OptimizedLSTMCell", "GRUCell"):  # Flax draws all gates as one array
        weights = FLAX_CELLS[name][1](state_of(flax))
        cell.load(cell.values()._replace(w_ih=weights.w_ih, w_hh=weights.w_hh, bias=weights.bias))
    if name == "GRUCell":  # NNX's has no second bias
        cell.params.bias_hn[...] = jnp.zeros(H)
    xs = jnp.asarray(XS, dtype)
    ys, expected = nnx.RNN(cell)(xs), nnx.RNN(flax)(xs)
    assert ys.dtype == expected.dtype == dtype
    np.testing.assert_allclose(np.asarray(ys, float), np.asarray(expected, float), atol=tolerance)


def test_initialisers_with_axis_names():
    """Values are those of the plain initialiser. Parameters have the axis names, and are sharded by them."""
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    plain = {"kernel_init": nnx.initializers.lecun_normal(), "bias_init": nnx.initializers.normal()}
    names = {"kernel_init": (None, "model"), "bias_init": ("model",)}
    named = {option: nnx.with_partitioning(plain[option], names[option]) for option in plain}

    def model(inits, **options):
        return modules.LSTM(
            D, 6, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0), **inits, **F64, **options
        )

    with jax.set_mesh(mesh):
        annotated = model(named)
    assert_close(
        jax.tree.map(np.asarray, state_of(annotated)), jax.tree.map(np.asarray, state_of(model(plain)))
    )
    specs = nnx.get_partition_spec(nnx.state(annotated, nnx.Param))
    direction = {"w_ih": jax.P(None, "model"), "w_hh": jax.P(), "bias": jax.P("model")}
    for layer in (0, 1):
        for way in ("forward", "backward"):
            found = specs["params"][layer][way]
            assert {name: found[name].get_value() for name in direction} == direction
    assert annotated.params[0].forward.w_ih.sharding.shard_shape((D, 24)) == (D, 12)
    with jax.set_mesh(mesh):
        assert_close(np.asarray(annotated(jnp.asarray(XS))), np.asarray(model(plain)(XS)))


def test_metadata_of_parameters():
    """``kernel_metadata`` etc., with and without an annotated initialiser, for new and for given weights."""
    kernel = nnx.with_metadata(nnx.initializers.normal(), note="kernel")
    cell = modules.GRUCell(
        D,
        H,
        kernel_init=kernel,
        kernel_metadata={"more": 1},
        recurrent_kernel_metadata={"more": 2},
        bias_metadata={"more": 3},
        rngs=nnx.Rngs(0),
    )
    metadata = {
        name: getattr(cell.params, name).get_metadata() for name in ("w_ih", "w_hh", "bias", "bias_hn")
    }
    assert [metadata[name]["more"] for name in metadata] == [1, 2, 3, 3]
    assert metadata["w_ih"]["note"] == "kernel" and "note" not in metadata["w_hh"]
    network = lstm_jax.RNN(D, H, w_ih_init=kernel)
    given = modules.Cell(network, params=parameters(lstm_jax.RNN(D, H)))
    assert given.params.w_ih.get_metadata()["note"] == "kernel"


def test_options_of_init_are_not_part_of_a_module():
    """Equal graph definitions, so one compiled program."""
    traces = []

    @nnx.jit
    def run(model, xs):
        traces.append(1)
        return model(xs)

    models = [
        modules.LSTM(D, H, num_layers=2, rngs=nnx.Rngs(seed), **options)
        for seed, options in enumerate(
            (
                {},
                {"forget_bias": 0.0},
                {"kernel_init": nnx.initializers.normal(), "bias_init": nnx.initializers.ones},
            )
        )
    ]
    assert len({nnx.graphdef(model) for model in models}) == 1
    outputs = [run(model, jnp.asarray(XS, jnp.float32)) for model in models]
    assert len(traces) == 1 and bool(jnp.any(outputs[0] != outputs[1]))
    assert nnx.graphdef(modules.LSTM(D, H, rngs=nnx.Rngs(0))) != nnx.graphdef(
        modules.GRU(D, H, rngs=nnx.Rngs(0))
    )
    cells = [
        modules.LSTMCell(D, H, rngs=nnx.Rngs(0), **o) for o in ({}, {"kernel_init": nnx.initializers.ones})
    ]
    assert nnx.graphdef(cells[0]) == nnx.graphdef(cells[1])


# --- whole sequences ----------------------------------------------------------------------------

NETWORKS = {
    "lstm": lstm_jax.LSTM(D, H, **F64),
    "stack": lstm_jax.Stack(
        (
            lstm_jax.Bidirectional(lstm_jax.GRU(D, H, **F64)),
            lstm_jax.LSTMVariant(2 * H, 2, proj_size=1, **F64),
        )
    ),
}
FLAX_ORDER = {"lstm": lambda carry: carry[::-1], "stack": lambda carry: (carry[0], carry[1][::-1])}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NETWORKS)
def test_recurrent_is_unroll_with_the_batch_first(name, call):
    """Values, carries after each step, and gradients."""
    network, (flax_options, options) = NETWORKS[name], CALLS[call]
    model = module(modules.Recurrent, network)
    first = fill(jax.eval_shape(lambda: network.initial_carry((B,))), 1)

    @nnx.jit
    def run(model, xs):
        initial = FLAX_ORDER[name](first)
        carry, (ys, carries) = model(xs, initial_carry=initial, return_carries=True, **flax_options)
        return jnp.sum(jnp.sin(ys)), (carry, ys, carries)

    def unrolled(params, xs):
        carry, (ys, carries) = lstm_jax.unroll(
            network, params, time_first(xs), first, return_carries=True, **options
        )
        carry, carries = FLAX_ORDER[name](carry), FLAX_ORDER[name](jax.tree.map(time_first, carries))
        return jnp.sum(jnp.sin(ys)), (carry, time_first(ys), carries)

    xs = jnp.asarray(XS)
    grads, out = nnx.grad(run, argnums=(0, 1), has_aux=True)(model, xs)
    expected_grads, expected = jax.grad(unrolled, argnums=(0, 1), has_aux=True)(model.values(), xs)
    assert_close(out, expected)
    named = state_of(modules.Recurrent(network, params=expected_grads[0]))  # the same names
    assert_close((nnx.to_pure_dict(grads[0]), grads[1]), (named, expected_grads[1]))


@pytest.mark.parametrize("time_major", [False, True])
def test_restarts_go_back_to_given_carries(time_major):
    """``reset_to`` of both directions is a pair; gradients reach it."""
    network = lstm_jax.Bidirectional(lstm_jax.LSTM(D, H, **F64))
    model = module(modules.Recurrent, network, time_major=time_major)
    stored = fill(jax.eval_shape(lambda: network.initial_carry((T, B))), 1)

    def turn(a):
        return a if time_major else time_first(a)

    def run(stored):
        flax = tuple((turn(c), turn(h)) for h, c in stored)
        return turn(model(turn(time_first(XS)), resets=turn(RESETS.T), reset_to=flax))

    def unrolled(stored):
        return lstm_jax.unroll(network, model.values(), time_first(XS), resets=RESETS.T, reset_to=stored)[1]

    def with_gradient(f):
        return f(stored), jax.grad(lambda stored: jnp.sum(jnp.sin(f(stored))))(stored)

    (ys, grad), expected = with_gradient(run), with_gradient(unrolled)
    assert_close((ys, grad), expected)
    assert bool(jnp.any(grad[1][0] != 0))


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_any_number_of_batch_axes(batch):
    network = NETWORKS["stack"]
    model = module(modules.Recurrent, network, return_carry=True)
    xs = fill(jax.ShapeDtypeStruct((T, *batch, D), jnp.float64))
    mask = np.random.default_rng(2).random((T, *batch)) < 0.7
    carry, ys = model(jnp.moveaxis(xs, 0, len(batch)), mask=np.moveaxis(mask, 0, len(batch)))
    last, expected = lstm_jax.unroll(network, model.values(), xs, mask=mask)
    assert_close((carry, jnp.moveaxis(ys, len(batch), 0)), (FLAX_ORDER["stack"](last), expected))
    assert_close(model(xs, mask=mask, time_major=True), (carry, expected))


@pytest.mark.parametrize("name", CELL_CLASSES)
def test_layers_by_name(name):
    kind = {"lstm": modules.LSTM, "gru": modules.GRU, "rnn": modules.RNN}[name]
    model = kind(D, H, num_layers=2, bidirectional=True, dropout=0.2, rngs=nnx.Rngs(0), **F64)
    cells = [lstm_jax.Bidirectional(CELL_CLASSES[name](size, H, **F64)) for size in (D, 2 * H)]
    assert model.network == lstm_jax.Stack(tuple(cells), dropout=0.2)
    model.eval()
    expected = lstm_jax.unroll(model.network, model.values(), time_first(XS), lengths=LENGTHS)[1]
    assert_close(model(XS, seq_lengths=LENGTHS), time_first(expected))
    plain = kind(D, H, use_bias=False, rngs=nnx.Rngs(0), time_major=True, return_carry=True)
    assert plain.network == CELL_CLASSES[name](D, H, use_bias=False)
    assert plain(time_first(XS))[1].shape == (T, B, H)


def test_images():
    network = lstm_jax.ConvLSTM((4, 3, D), H, (3, 3), **F64)
    model, xs = module(modules.Recurrent, network), fill(jnp.zeros((B, T, 4, 3, D)))
    last, expected = lstm_jax.unroll(network, model.values(), time_first(xs), lengths=LENGTHS)
    carry, ys = model(xs, seq_lengths=LENGTHS, return_carry=True)
    assert_close((carry, ys), (last[::-1], time_first(expected)))
    cell = modules.Cell(network, params=model.values())
    assert cell.num_feature_axes == 3
    carry, ys = nnx.RNN(cell)(xs, return_carry=True)
    last, expected = lstm_jax.unroll(network, model.values(), time_first(xs))
    assert_close((carry, ys), (last[::-1], time_first(expected)))


def test_types():
    model = modules.LSTM(D, H, dtype=jnp.bfloat16, return_carry=True, rngs=nnx.Rngs(0))
    (c, h), ys = model(jnp.asarray(XS, jnp.float32))
    assert (c.dtype, h.dtype, ys.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    assert model.params.w_ih.dtype == jnp.float32
    cell = modules.LSTMCell(D, H, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert nnx.RNN(cell)(jnp.asarray(XS, jnp.bfloat16)).dtype == jnp.bfloat16


# --- noise --------------------------------------------------------------------------------------


def noisy(**options):
    network = lstm_jax.Stack((lstm_jax.LSTM(D, H, **F64), lstm_jax.LSTM(H, H, **F64)), dropout=0.5)
    return modules.Recurrent(network, rngs=nnx.Rngs(0, dropout=1), **options)


def test_noise_is_drawn_only_in_training_and_depends_on_the_seed():
    model, again = noisy(), noisy()
    first, second = model(XS), model(XS)
    assert bool(jnp.any(first != second))
    assert_close((again(XS), again(XS)), (first, second))
    model.eval()
    without = lstm_jax.unroll(model.network, model.values(), time_first(XS))[1]
    assert_close(model(XS), time_first(without))
    assert_close(nnx.view(again, deterministic=True)(XS), time_first(without))
    model.train()
    assert bool(jnp.any(model(XS) != time_first(without)))
    assert_close(model(XS, deterministic=True), time_first(without))
    assert_close(noisy(deterministic=True)(XS), time_first(without))


def test_a_given_key_is_that_of_unroll_and_windows_draw_the_noise_of_the_whole():
    model, key = noisy(return_carry=True), jax.random.key(3)
    carry, ys = model(XS, rngs=key)
    assert_close(ys, time_first(lstm_jax.unroll(model.network, model.values(), time_first(XS), key=key)[1]))
    middle, first = model(XS[:, :2], rngs=key)
    last, second = model(XS[:, 2:], initial_carry=middle, start=2, rngs=key)
    assert_close((last, jnp.concatenate([first, second], 1)), (carry, ys))


def test_streams_given_in_the_call_advance():
    model, stream = noisy(), nnx.Rngs(dropout=5).dropout
    expected = [model(XS, rngs=stream()) for _ in range(3)]
    assert bool(jnp.any(expected[0] != expected[1]))
    draws = nnx.Rngs(dropout=5)
    assert_close([model(XS, rngs=draws), model(XS, rngs=draws.dropout), model(XS, rngs=draws)], expected)


def test_noise_in_nnx_bidirectional_is_drawn_from_the_modules_streams():
    cell = lstm_jax.VariationalDropout(lstm_jax.GRU(D, H, **F64), inputs=0.5)
    both = nnx.Bidirectional(*(modules.Recurrent(cell, rngs=nnx.Rngs(seed)) for seed in (0, 1)))
    apart = [modules.Recurrent(cell, rngs=nnx.Rngs(seed)) for seed in (0, 1)]
    assert_close(both(XS), jnp.concatenate([apart[0](XS), apart[1](XS, reverse=True)], -1))
    both.eval()
    assert_close(both(XS), both(XS))


def test_a_module_without_noise_has_no_state_but_parameters():
    model = modules.LSTM(D, H, rngs=nnx.Rngs(0))
    assert jax.tree.leaves(nnx.state(model, nnx.Not(nnx.Param))) == []
    assert len(jax.tree.leaves(nnx.state(noisy(), nnx.RngState))) == 2


# --- training, ensembles, checkpoints -----------------------------------------------------------


class Tagger(nnx.Module):
    """A small model of a user."""

    def __init__(self, rngs):
        self.lstm = modules.LSTM(D, 16, num_layers=2, dropout=0.1, rngs=rngs)
        self.head = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, xs):
        return self.head(self.lstm(xs))


def test_training_lowers_the_loss():
    import optax

    with jax.enable_x64(False):
        xs = jnp.asarray(XS, jnp.float32)
        target = jnp.cumsum(xs[..., :1], axis=1)
        model = Tagger(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

        def loss(model):
            return jnp.mean((model(xs) - target) ** 2)

        @nnx.jit
        def train(model, optimizer):
            value, grads = nnx.value_and_grad(loss)(model)
            optimizer.update(model, grads)
            return value

        losses = [train(model, optimizer) for _ in range(120)]
        model.eval()
        assert loss(model) < 0.2 * losses[0]


def test_an_ensemble_equals_single_models():
    @nnx.vmap
    def make(key):
        return modules.LSTM(D, H, num_layers=2, rngs=nnx.Rngs(key), **F64)

    keys = jax.random.split(jax.random.key(0), 3)
    ys = nnx.vmap(lambda model, xs: model(xs), in_axes=(0, None))(make(keys), jnp.asarray(XS))
    for i, key in enumerate(keys):
        single = modules.LSTM(D, H, num_layers=2, rngs=nnx.Rngs(key), **F64)
        assert_close(ys[i], single(XS))


def test_split_and_merge():
    model = noisy()
    names = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert names == {f"params.{i}.{name}" for i in (0, 1) for name in ("w_ih", "w_hh", "bias")}
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    assert hash(graph) == hash(nnx.split(noisy(), nnx.Param, ...)[0])
    assert_close(nnx.merge(graph, params, rest)(XS), noisy()(XS))
    assert isinstance(nnx.clone(model).params[0], lstm_jax.LSTMParams)


NORMALISED = lstm_jax.Stack(
    tuple(lstm_jax.Bidirectional(lstm_jax.LSTMVariant(size, H, layer_norm="tfa")) for size in (D, 2 * H))
)


def test_a_checkpoint_by_orbax_is_exact(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason="checkpoints of Flax modules")
    model = modules.Recurrent(NORMALISED, rngs=nnx.Rngs(0))
    other = modules.Recurrent(NORMALISED, rngs=nnx.Rngs(1))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", nnx.state(model))
        checkpointer.wait_until_finished()
        nnx.update(other, checkpointer.restore(tmp_path / "model", nnx.state(other)))
    for a, b in zip(jax.tree.leaves(model.values()), jax.tree.leaves(other.values()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_in_and_out():
    model = modules.LSTM(D, H, rngs=nnx.Rngs(0), **F64)
    variable, params = model.params.w_ih, parameters(model.network, 3)
    model.load(jax.tree.map(np.asarray, params))
    assert model.params.w_ih is variable
    assert_close(model.values(), params)
    gru = lstm_jax.GRU(D, H)  # without the second bias, which NNX's GRUCell does not have
    cell = modules.Cell(gru, params=gru.init(jax.random.key(0))._replace(bias_hn=None))
    assert cell.params.bias_hn is None and nnx.RNN(cell)(XS).shape == (B, T, H)


def test_unroll_is_accepted():
    model = modules.GRU(D, H, num_layers=2, unroll=4, rngs=nnx.Rngs(0))
    assert_close(model(XS), modules.GRU(D, H, num_layers=2, rngs=nnx.Rngs(0))(XS))


# --- errors -------------------------------------------------------------------------------------


def lstm(**options):
    return modules.LSTM(D, H, rngs=nnx.Rngs(0), **options)


ERRORS = {
    "no rngs": (lambda: modules.LSTM(D, H), "neither rngs nor params"),
    "no stream for weights": (lambda: modules.LSTM(D, H, rngs=nnx.Rngs(dropout=0)), "rngs without params"),
    "an int": (lambda: modules.LSTM(D, H, rngs=0), "rngs of type int"),
    "no network": (lambda: modules.Recurrent(lstm_jax.LSTM, rngs=nnx.Rngs(0)), "the class LSTM"),
    "no stream": (
        lambda: modules.LSTM(D, H, num_layers=2, dropout=0.5, rngs=nnx.Rngs(params=0))(XS),
        "no stream to draw it from",
    ),
    "dropout in one layer": (lambda: lstm(dropout=0.5), "between layers"),
    "no layers": (lambda: lstm(num_layers=0), "num_layers=0"),
    "noise in a step": (
        lambda: modules.Cell(lstm_jax.Zoneout(lstm_jax.LSTM(D, H), 0.5), rngs=nnx.Rngs(0)),
        "a single step does not draw",
    ),
    "noise of a cell that may have it": (
        lambda: modules.Cell(lstm_jax.LeakyRNN(D, H, noise=0.1), rngs=nnx.Rngs(0)),
        "a single step does not draw",
    ),
    "features": (lambda: lstm()(XS[..., 1:]), r"inputs of shape \(3, 6, 3\); expected \(\*batch, T, 4\)"),
    "features of a step": (
        lambda: modules.LSTMCell(D, H, rngs=nnx.Rngs(0))((jnp.zeros(H), jnp.zeros(H)), jnp.zeros(3)),
        r"inputs of shape \(3,\); expected \(\*batch, 4\)",
    ),
    "carry of a step": (
        lambda: modules.LSTMCell(D, H, rngs=nnx.Rngs(0))(jnp.zeros((B, H)), jnp.zeros((B, D))),
        r"LSTMCell got carry float.*; expected \(float.*initialize_carry",
    ),
    "axes": (lambda: lstm()(XS[0, 0]), "2 axes or more"),
    "whole numbers": (lambda: lstm()(np.ones((B, T, D), int)), "floating"),
    "mask": (lambda: lstm()(XS, mask=np.ones((T, B), bool)), r"mask of shape \(6, 3\).*shape \(3, 6\)"),
    "resets": (lambda: lstm(time_major=True)(XS, resets=RESETS.T), r"resets of shape \(6, 3\)"),
    "lengths": (lambda: lstm()(XS, seq_lengths=[1, 2]), "lengths of shape"),
    "carry": (lambda: lstm()(XS, initial_carry=jnp.zeros((B, H))), "initial_carry float64.*expected"),
    "order of the carry": (
        lambda: modules.Recurrent(lstm_jax.LSTMVariant(D, H, proj_size=2), rngs=nnx.Rngs(0))(
            XS, initial_carry=(jnp.zeros((B, 2)), jnp.zeros((B, H)))
        ),
        r"initial_carry\[0\] of shape \(3, 2\); expected shape \(3, 5\)",
    ),
    "keep_order": (lambda: lstm()(XS, reverse=True, keep_order=False), "keep_order"),
    "keep_rngs": (
        lambda: modules.LSTMCell(D, H, keep_rngs=True, rngs=nnx.Rngs(params=0)),
        "no stream to keep",
    ),
    "a size by another name": (
        lambda: modules.LSTMCell(D, H, hidden_size=H, rngs=nnx.Rngs(0)),
        "got hidden_size; expected options of lstm_jax.LSTM. The options are activation, ",
    ),
    "an option of the variant": (lambda: lstm(heads=5), r"Use Recurrent\(lstm_jax.LSTMVariant\(heads="),
    "keep_order of the module": (lambda: lstm(reverse=True, keep_order=False)(XS), "keep_order"),
    "promote_dtype": (
        lambda: modules.LSTMCell(D, H, promote_dtype=jnp.asarray, rngs=nnx.Rngs(0)),
        "dtype of the products",
    ),
    "reset_to": (
        lambda: lstm()(XS, resets=RESETS, reset_to=(jnp.zeros((T, B, H)),) * 2),
        r"LSTM got reset_to\[0\] of shape \(6, 3, 5\); expected shape \(3, 6, 5\)",
    ),
    "carry_init": (
        lambda: modules.GRUCell(D, H, rngs=nnx.Rngs(0)).initialize_carry((B, D), None, jnp.zeros),
        "without rngs",
    ),
    "sizes of params": (
        lambda: modules.Cell(lstm_jax.LSTM(D, H), params=parameters(lstm_jax.LSTM(D, 2))),
        r"w_ih \(4, 8\), expected \(4, 20\)",
    ),
    "fields of params": (
        lambda: lstm().load(parameters(lstm_jax.LSTMVariant(D, H, peepholes=True))),
        "peepholes",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_error_messages(what):
    call, message = ERRORS[what]
    with pytest.raises(ValueError, match=message):
        call()


def test_documentation():
    names = "Cell LSTMCell GRUCell SimpleCell Recurrent LSTM GRU RNN".split()
    with jax.enable_x64(False):
        check_documentation(modules, names)

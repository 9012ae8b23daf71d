"""lstm_jax.linen: replacements for Flax's cells, and modules over whole sequences."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
    read_gru,
    read_lstm,
    read_rnn,
    time_first,
    valid,
)

import lstm_jax

nn = pytest.importorskip("flax.linen", reason="modules for Flax Linen")
import lstm_jax.linen as modules  # noqa: E402
from lstm_jax.interop import load, save  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("x64", "default_promotion")]


def variables(params):
    return {"params": modules.to_variables(params)}


def in_rnn(params):
    return {"params": {"cell": modules.to_variables(params)}}


CELLS = {"lstm": modules.LSTMCell, "gru": modules.GRUCell, "rnn": modules.SimpleCell}


# --- cells as replacements for Flax's ---------------------------------------------------------------


@pytest.mark.parametrize("name", CELL_CLASSES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
def test_cells_in_linen_rnn_agree_with_unroll(name, reverse, time_major):
    network = CELL_CLASSES[name](D, H, **F64)
    params, xs = parameters(network), time_first(XS)
    rnn = nn.RNN(
        CELLS[name](features=H, **F64),
        reverse=reverse,
        keep_order=True,
        time_major=time_major,
        return_carry=True,
    )
    made = rnn.init(jax.random.key(0), xs if time_major else XS)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, in_rnn(params))
    carry, ys = rnn.apply(in_rnn(params), xs if time_major else XS, seq_lengths=jnp.array(LENGTHS))
    last, expected = lstm_jax.unroll(network, params, xs, lengths=LENGTHS, reverse=reverse)
    assert_close(carry, last[::-1] if name == "lstm" else last)
    assert_close((ys if not time_major else time_first(ys))[valid()], time_first(expected)[valid()])


def test_the_carry_of_an_lstm_is_c_then_h():
    cell, network = modules.LSTMCell(H, **F64), lstm_jax.LSTM(D, H, **F64)
    first, params = tuple(fill(cell.initialize_carry(jax.random.key(0), (B, D)))), parameters(network)
    (c, h), y = cell.apply(variables(params), first, XS[:, 0])
    carry, _ = network.step(params, (first[1], first[0]), XS[:, 0])
    assert_close(((h, c), y), (carry, carry[0]))
    projected = modules.Cell(lstm_jax.LSTMVariant(D, H, proj_size=2)).initialize_carry(
        jax.random.key(0), (7, B, D)
    )
    assert [a.shape for a in projected] == [(7, B, H), (7, B, 2)]


@pytest.mark.parametrize(
    ("name", "cell", "read"),
    [
        ("LSTMCell", "lstm", read_lstm),
        ("OptimizedLSTMCell", "lstm", read_lstm),
        ("GRUCell", "gru", read_gru),
        ("SimpleCell", "rnn", read_rnn),
    ],
)
def test_cells_agree_with_flax_s_on_equal_weights(name, cell, read):
    """Outputs, carries, and gradients for weights, inputs and the first carry."""
    flax = nn.RNN(getattr(nn, name)(H, param_dtype=jnp.float64, bias_init=nn.initializers.normal()))
    rnn = nn.RNN(CELLS[cell](H, **F64))
    weights = flax.init(jax.random.key(0), jnp.asarray(XS))
    first = fill(flax.cell.initialize_carry(jax.random.key(0), (B, D)))
    own = rnn.cell.initialize_carry(jax.random.key(0), (B, D))
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, first)

    def gradients(rnn, weights):
        def loss(weights, xs, carry):
            out = rnn.apply(weights, xs, initial_carry=carry, return_carry=True)
            return sum(jnp.sum(jnp.sin((1 + i) * a)) for i, a in enumerate(jax.tree.leaves(out))), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(weights, jnp.asarray(XS), first)

    expected, actual = gradients(flax, weights), gradients(rnn, in_rnn(read(weights["params"]["cell"])))
    assert_close((actual[0], actual[1][1:]), (expected[0], expected[1][1:]))
    assert_close(actual[1][0], in_rnn(read(expected[1][0]["params"]["cell"])))


def test_linen_s_scan_takes_a_cell_s_class():
    scan = nn.scan(
        modules.GRUCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
    )
    params = parameters(lstm_jax.GRU(D, H, **F64))
    carry, ys = scan(features=H).apply(variables(params), jnp.zeros((B, H)), jnp.asarray(XS))
    last, expected = lstm_jax.unroll(lstm_jax.GRU(D, H, **F64), params, time_first(XS))
    assert_close((carry, ys), (last, time_first(expected)))


@pytest.mark.parametrize("whole", [False, True], ids=["cells", "sequences"])
def test_linen_bidirectional_agrees_with_bidirectional(whole):
    network = lstm_jax.Bidirectional(lstm_jax.LSTM(D, H, **F64))
    params = parameters(network)
    layer = nn.Bidirectional(
        *(modules.LSTM(H, **F64) if whole else nn.RNN(modules.LSTMCell(H, **F64)) for _ in range(2))
    )
    inner = [modules.to_variables(p) if whole else {"cell": modules.to_variables(p)} for p in params]
    weights = {"params": {"forward_rnn": inner[0], "backward_rnn": inner[1]}}
    made = layer.init(jax.random.key(0), XS)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, weights)
    carry, ys = layer.apply(weights, XS, seq_lengths=jnp.array(LENGTHS), return_carry=True)
    last, expected = lstm_jax.unroll(network, params, time_first(XS), lengths=LENGTHS)
    assert_close(carry, tuple(c[::-1] for c in last))
    assert_close(ys[valid()], time_first(expected)[valid()])


def test_a_learned_initial_carry_is_learned_in_linen_rnn():
    network = lstm_jax.LSTM(D, H, learn_initial_carry=True, **F64)
    params, rnn = parameters(network), nn.RNN(modules.LSTMCell(H, learn_initial_carry=True, **F64))
    assert set(rnn.init(jax.random.key(0), XS)["params"]["cell"]["initial"]) == {"0", "1"}
    grads = jax.grad(lambda weights: jnp.sum(rnn.apply(weights, XS) ** 2))(in_rnn(params))

    def loss(params):
        return jnp.sum(lstm_jax.unroll(network, params, time_first(XS))[1] ** 2)

    assert_close(grads, in_rnn(jax.grad(loss)(params)))
    with pytest.raises(ValueError, match="params"):
        rnn.cell.initialize_carry(jax.random.key(0), (B, D))


@pytest.mark.parametrize("name", CELL_CLASSES)
def test_steps_in_a_loop_equal_linen_rnn(name):
    """A Python loop that passes the carry on, and ``nn.RNN`` with several steps in each iteration."""
    cell, params = CELLS[name](H, **F64), parameters(CELL_CLASSES[name](D, H, **F64))
    carry, ys = cell.initialize_carry(jax.random.key(0), (B, D)), []
    for t in range(T):
        carry, y = cell.apply(variables(params), carry, XS[:, t])
        ys.append(y)
    actual = nn.RNN(cell, unroll=2, return_carry=True).apply(in_rnn(params), XS)
    assert_close(actual, (carry, jnp.stack(ys, axis=1)))


@pytest.mark.parametrize("transform", [nn.jit, nn.remat, None])
def test_lifted_transforms(transform):
    """``nn.jit``, ``nn.remat`` and ``nn.vmap`` over parameters, around a module with nested names."""
    model = modules.LSTM(H, num_layers=2, **F64)
    made = model.init(jax.random.key(0), XS)
    if transform is not None:
        lifted = transform(modules.LSTM)(H, num_layers=2, **F64)
        assert jax.tree.map(jnp.shape, lifted.init(jax.random.key(0), XS)) == jax.tree.map(jnp.shape, made)
        assert_close(lifted.apply(made, XS), model.apply(made, XS))
        return
    many = nn.vmap(
        modules.LSTM, in_axes=None, axis_size=2, variable_axes={"params": 0}, split_rngs={"params": True}
    )(H, num_layers=2, **F64)
    both = many.init(jax.random.key(0), XS)
    ys = many.apply(both, XS)
    for i in range(2):
        assert_close(ys[i], model.apply(jax.tree.map(lambda a, i=i: a[i], both), XS))
    assert bool(jnp.any(ys[0] != ys[1]))


def test_a_scope_may_be_shared():
    class Scaled(nn.Module):
        def setup(self):
            self.lstm = modules.LSTM(H, **F64)
            self.scale = self.param("scale", nn.initializers.constant(2.0), (), jnp.float64)
            nn.share_scope(self, self.lstm)

        def __call__(self, xs):
            return self.scale * self.lstm(xs)

    ys, made = Scaled().init_with_output(jax.random.key(0), XS)
    assert set(made["params"]) == {"w_ih", "w_hh", "bias", "scale"}
    assert_close(Scaled().apply(made, XS), ys)
    assert_close(2 * modules.LSTM(H, **F64).apply(made, XS), ys)


def test_masks_of_optax_follow_the_nested_names():
    import optax

    made = modules.Recurrent(NETWORK).init(jax.random.key(0), XS)
    is_bias = jax.tree.map_with_path(lambda path, _: path[-1].key == "bias", made)
    transform = optax.masked(optax.set_to_zero(), is_bias)
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, made), transform.init(made))
    zeros = {
        jax.tree_util.keystr(path[1:], simple=True, separator="/")
        for path, a in jax.tree.leaves_with_path(updates)
        if not a.any()
    }
    assert zeros == {"0/forward/bias", "0/backward/bias", "1/bias"}


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "SimpleCell"])
def test_drawn_carries_are_those_of_flax(name):
    options, key = {"carry_init": nn.initializers.normal(), "param_dtype": jnp.float64}, jax.random.key(3)
    expected = getattr(nn, name)(H, **options).initialize_carry(key, (B, D))
    cell = getattr(modules, name)(H, **options)
    assert_close(cell.initialize_carry(key, (B, D)), expected)
    rnn, xs = nn.RNN(cell), jnp.asarray(XS)
    made = rnn.init(jax.random.key(0), xs)
    assert_close(rnn.apply(made, xs, init_key=key), rnn.apply(made, xs, initial_carry=expected))


def test_any_cell_and_images():
    network = lstm_jax.ConvLSTM((4, 3, D), H, (3, 3), **F64)
    xs, params = fill(jnp.zeros((B, T, 4, 3, D))), parameters(network)
    last, ys = lstm_jax.unroll(network, params, time_first(xs))
    expected = last[::-1], time_first(ys)
    rnn = nn.RNN(modules.Cell(network))
    assert_close(rnn.apply(in_rnn(params), xs, return_carry=True), expected)
    assert_close(modules.Recurrent(network).apply(variables(params), xs, return_carry=True), expected)
    stack = lstm_jax.Stack((lstm_jax.SLSTM(D, H, **F64), lstm_jax.LSTM(H, 2, **F64)))
    params = parameters(stack)
    ys = nn.RNN(modules.Cell(stack)).apply(in_rnn(params), XS)
    assert_close(ys, time_first(lstm_jax.unroll(stack, params, time_first(XS))[1]))


# --- Flax's options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "read"),
    [
        ("LSTMCell", {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.elu}, read_lstm),
        ("OptimizedLSTMCell", {"activation_fn": jax.nn.relu}, read_lstm),
        ("GRUCell", {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.elu}, read_gru),
        ("SimpleCell", {"activation_fn": jax.nn.relu, "residual": False}, read_rnn),
        ("LSTMCell", {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}, read_lstm),
    ],
)
def test_flax_s_constructor_makes_flax_s_cell(name, options, read):
    """The same call on both classes; initialisers without randomness give both the same weights."""

    def ramp(scale):
        def init(key, shape, dtype):
            return scale * jnp.linspace(-1, 1, np.prod(shape), dtype=dtype).reshape(shape)

        return init

    options = {"dtype": jnp.float64, "param_dtype": jnp.float64, **options}
    options |= {"kernel_init": ramp(1.0), "recurrent_kernel_init": ramp(0.5), "bias_init": ramp(0.3)}
    dtype, tolerance = options["dtype"], 1e-10 if options["dtype"] == jnp.float64 else 0.02
    xs, cell = jnp.asarray(XS, dtype), getattr(modules, name.replace("Optimized", ""))
    options_here = options | ({"forget_bias": 0.0} if "LSTM" in name else {})
    expected, flax = nn.RNN(getattr(nn, name)(H, **options)).init_with_output(jax.random.key(0), xs)
    ys, made = nn.RNN(cell(H, **options_here)).init_with_output(jax.random.key(0), xs)
    weights = read(flax["params"]["cell"])
    assert_close(made, in_rnn(weights))
    assert ys.dtype == expected.dtype == dtype
    np.testing.assert_allclose(np.asarray(ys, float), np.asarray(expected, float), atol=tolerance)


def test_initialisers_with_axis_names():
    """Values of the plain initialiser in boxes with the names; they work in ``nn.scan`` over layers."""
    plain = {"kernel_init": nn.initializers.lecun_normal(), "bias_init": nn.initializers.normal()}
    names = {"kernel_init": (None, "model"), "bias_init": ("model",)}
    named = {option: nn.with_partitioning(plain[option], names[option]) for option in plain}

    def model(inits):
        return modules.GRU(6, num_layers=2, bidirectional=True, **inits, **F64)

    ys, made = model(named).init_with_output(jax.random.key(0), XS)
    assert_close((ys, nn.meta.unbox(made)), model(plain).init_with_output(jax.random.key(0), XS))
    specs = nn.get_partition_spec(made)["params"]
    direction = {
        "w_ih": jax.P(None, "model"),
        "w_hh": jax.P(),
        "bias": jax.P("model"),
        "bias_hn": jax.P("model"),
    }
    assert specs == {index: {"forward": direction, "backward": direction} for index in "01"}
    assert_close(model(named).apply(made, XS), ys)
    network = lstm_jax.Stack(tuple(lstm_jax.Bidirectional(lstm_jax.GRU(size, 6, **F64)) for size in (D, 12)))
    unboxed = modules.from_variables(network, made["params"])
    assert_close(modules.to_variables(unboxed), nn.meta.unbox(made["params"]))
    logical = nn.with_logical_partitioning(plain["kernel_init"], ("in", "out"))
    made = nn.RNN(modules.LSTMCell(H, kernel_init=logical)).init(jax.random.key(0), XS)
    assert made["params"]["cell"]["w_ih"].names == ("in", "out")

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, xs, _):
            return modules.LSTM(D, kernel_init=named["kernel_init"], **F64)(xs), None

    layers = nn.scan(
        Layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )()
    (ys, _), made = layers.init_with_output(jax.random.key(0), jnp.asarray(XS), None)
    kernel = made["params"]["LSTM_0"]["w_ih"]
    assert kernel.names == ("layers", None, "model") and kernel.value.shape == (3, D, 4 * D)
    assert_close(layers.apply(made, jnp.asarray(XS), None)[0], ys)


NETWORK = lstm_jax.Stack(
    (
        lstm_jax.Bidirectional(lstm_jax.LSTM(D, H, learn_initial_carry=True, **F64)),
        lstm_jax.LSTMVariant(2 * H, H, layer_norm="haste", **F64),
    )
)


@pytest.mark.parametrize("separator", [".", "/"])
def test_flattened_variables_come_back(separator, tmp_path):
    """With Flax's functions, and through a weight file."""
    from flax.traverse_util import flatten_dict, unflatten_dict

    model = modules.Recurrent(NETWORK)
    made = variables(parameters(NETWORK))
    expected = model.apply(made, XS)
    flat = flatten_dict(made, sep=separator)
    assert len(flat) == len(jax.tree.leaves(made)) and "params/1/norm/x".replace("/", separator) in flat
    assert_close(model.apply(unflatten_dict(flat, sep=separator), XS), expected)
    path = tmp_path / "weights.npz"
    save(path, flat)
    assert_close(model.apply(unflatten_dict(load(path), sep=separator), XS), expected)
    assert jax.tree.map(jnp.shape, model.init(jax.random.key(0), XS)) == jax.tree.map(jnp.shape, made)
    plain = modules.LSTM(H).init(jax.random.key(0), XS)["params"]
    assert {name: value.shape for name, value in plain.items()} == {
        "w_ih": (D, 4 * H),
        "w_hh": (H, 4 * H),
        "bias": (4 * H,),
    }


def test_nested_variables_are_saved_as_safetensors(tmp_path):
    pytest.importorskip("safetensors", reason="files of weights")
    from flax.traverse_util import unflatten_dict

    made = variables(parameters(NETWORK))
    save(tmp_path / "weights.safetensors", made)
    read = unflatten_dict(load(tmp_path / "weights.safetensors"), sep=".")
    jax.tree.map(np.testing.assert_array_equal, read, made)


def test_an_optional_parameter():
    params = parameters(lstm_jax.GRU(D, H, **F64))._replace(bias_hn=None)
    ys = modules.GRU(H, **F64).apply(variables(params), XS)
    assert_close(ys, time_first(lstm_jax.unroll(lstm_jax.GRU(D, H, **F64), params, time_first(XS))[1]))


# --- whole sequences ----------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_recurrent_is_unroll_with_the_batch_first(call):
    """Values, carries after each step, and gradients."""
    flax_options, options = CALLS[call]
    network = lstm_jax.LSTM(D, H, **F64)
    params, xs, model = parameters(network), jnp.asarray(XS), modules.Recurrent(network)
    h, c = fill(network.initial_carry((B,)), 1)

    @jax.jit
    def run(weights, xs):
        carry, (ys, carries) = model.apply(
            weights, xs, initial_carry=(c, h), return_carries=True, **flax_options
        )
        return jnp.sum(jnp.sin(ys)), (carry, ys, carries)

    def unrolled(params, xs):
        carry, (ys, carries) = lstm_jax.unroll(
            network, params, time_first(xs), (h, c), return_carries=True, **options
        )
        carries = jax.tree.map(time_first, carries)[::-1]
        return jnp.sum(jnp.sin(ys)), (carry[::-1], time_first(ys), carries)

    grads, out = jax.grad(run, argnums=(0, 1), has_aux=True)(variables(params), xs)
    expected_grads, expected = jax.grad(unrolled, argnums=(0, 1), has_aux=True)(params, xs)
    assert_close(out, expected)
    assert_close(grads, (variables(expected_grads[0]), expected_grads[1]))


@pytest.mark.parametrize("time_major", [False, True])
def test_restarts_go_back_to_given_carries(time_major):
    """``reset_to`` of both directions is a pair."""
    model = modules.LSTM(H, bidirectional=True, time_major=time_major, **F64)
    network = lstm_jax.Bidirectional(lstm_jax.LSTM(D, H, **F64))
    params, xs = parameters(network), time_first(XS)
    stored = fill(jax.eval_shape(lambda: network.initial_carry((T, B))), 1)
    ys = lstm_jax.unroll(network, params, xs, resets=RESETS.T, reset_to=stored)[1]

    def turn(a):
        return a if time_major else time_first(a)

    flax = [[turn(c), turn(h)] for h, c in stored]
    actual = model.apply(variables(params), turn(xs), resets=turn(RESETS.T), reset_to=flax)
    assert_close(turn(actual), ys)


@pytest.mark.parametrize("name", CELL_CLASSES)
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_layers_by_name(name, batch):
    kind = {"lstm": modules.LSTM, "gru": modules.GRU, "rnn": modules.RNN}[name]
    model = kind(H, num_layers=2, bidirectional=True, **F64)
    cells = [lstm_jax.Bidirectional(CELL_CLASSES[name](size, H, **F64)) for size in (D, 2 * H)]
    network = lstm_jax.Stack(tuple(cells))
    params, xs = parameters(network), fill(jax.ShapeDtypeStruct((T, *batch, D), jnp.float64))
    expected = lstm_jax.unroll(network, params, xs)[1]
    ys = model.apply(variables(params), jnp.moveaxis(xs, 0, len(batch)))
    assert_close(ys, jnp.moveaxis(expected, 0, len(batch)))
    assert_close(model.apply(variables(params), xs, time_major=True), expected)
    made = model.init(jax.random.key(0), xs)["params"]
    assert_close(modules.to_variables(modules.from_variables(network, made)), made)
    other = kind(H, time_major=True, return_carry=True, use_bias=False)
    assert set(other.init(jax.random.key(0), xs)["params"]) == {"w_ih", "w_hh"}


def test_initial_weights_are_the_library_s():
    made = modules.LSTM(64, forget_bias=3.0).init(jax.random.key(0), XS)["params"]
    bias = np.asarray(made["bias"]).reshape(4, 64)
    np.testing.assert_array_equal(bias, np.array([[0], [3], [0], [0]]) * np.ones((4, 64)))
    blocks = np.asarray(made["w_hh"]).reshape(64, 4, 64)
    for gate in range(4):
        np.testing.assert_allclose(blocks[:, gate].T @ blocks[:, gate], np.eye(64), atol=1e-5)
    assert not np.allclose(blocks[:, 0], blocks[:, 1])


def test_types():
    model = modules.LSTM(H, dtype=jnp.bfloat16, return_carry=True)
    ((c, h), ys), made = model.init_with_output(jax.random.key(0), jnp.asarray(XS, jnp.float32))
    assert (c.dtype, h.dtype, ys.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    assert made["params"]["w_ih"].dtype == jnp.float32


# --- noise --------------------------------------------------------------------------------------


def test_noise_is_drawn_only_in_training_and_depends_on_the_key():
    model = modules.LSTM(H, num_layers=2, dropout=0.5, **F64)
    network = lstm_jax.Stack((lstm_jax.LSTM(D, H, **F64), lstm_jax.LSTM(H, H, **F64)), dropout=0.5)
    params = parameters(network)

    def run(seed, **options):
        return model.apply(
            variables(params), XS, rngs={"dropout": jax.random.key(seed)}, deterministic=False, **options
        )

    assert_close(run(1), run(1))
    assert bool(jnp.any(run(1) != run(2)))
    without = model.apply(variables(params), XS, deterministic=True)
    assert_close(without, time_first(lstm_jax.unroll(network, params, time_first(XS))[1]))
    assert_close(without, model.clone(deterministic=True).apply(variables(params), XS))
    made = model.clone(deterministic=False).init(jax.random.key(0), XS)  # no stream is needed yet
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, variables(params))


# --- training, ensembles, checkpoints -----------------------------------------------------------


class Tagger(nn.Module):
    """A small model of a user."""

    @nn.compact
    def __call__(self, xs, deterministic):
        ys = modules.LSTM(16, num_layers=2, dropout=0.1)(xs, deterministic=deterministic)
        return nn.Dense(1)(ys)


def test_training_lowers_the_loss():
    import optax
    from flax.training.train_state import TrainState

    with jax.enable_x64(False):
        xs, model = jnp.asarray(XS, jnp.float32), Tagger()
        target = jnp.cumsum(xs[..., :1], axis=1)
        made = model.init(jax.random.key(0), xs, True)
        state = TrainState.create(apply_fn=model.apply, params=made["params"], tx=optax.adam(1e-2))

        def loss(params, key=None):
            rngs = None if key is None else {"dropout": key}
            return jnp.mean((state.apply_fn({"params": params}, xs, key is None, rngs=rngs) - target) ** 2)

        @jax.jit
        def train(state, key):
            value, grads = jax.value_and_grad(loss)(state.params, jax.random.fold_in(key, state.step))
            return state.apply_gradients(grads=grads), value

        first = loss(state.params)
        for _ in range(120):
            state, _ = train(state, jax.random.key(1))
        assert loss(state.params) < 0.2 * first


def test_an_ensemble_equals_single_models():
    model = modules.GRU(H, **F64)
    keys = jax.random.split(jax.random.key(0), 3)
    xs = jnp.asarray(XS)
    made = jax.vmap(model.init, in_axes=(0, None))(keys, xs)
    ys = jax.vmap(model.apply, in_axes=(0, None))(made, xs)
    for i, key in enumerate(keys):
        assert_close(ys[i], model.apply(model.init(key, xs), xs))


NORMALISED = lstm_jax.Stack(
    tuple(lstm_jax.Bidirectional(lstm_jax.LSTMVariant(size, H, layer_norm="tfa")) for size in (D, 2 * H))
)


def test_a_checkpoint_by_orbax_is_exact(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason="checkpoints of Flax modules")
    model = modules.Recurrent(NORMALISED)
    made, other = (model.init(jax.random.key(seed), XS) for seed in (0, 1))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", made)
        checkpointer.wait_until_finished()
        other = checkpointer.restore(tmp_path / "model", other)
    jax.tree.map(np.testing.assert_array_equal, made, other)


def test_modules_are_values():
    model = modules.LSTM(H, num_layers=2)
    assert model == modules.LSTM(H, num_layers=2) and hash(model) == hash(modules.LSTM(H, num_layers=2))
    assert pickle.loads(pickle.dumps(modules.LSTM)) is modules.LSTM
    assert "num_layers = 2" in repr(model)


def test_unroll_is_accepted():
    variables = init(modules.GRU(H, num_layers=2))
    model = modules.GRU(H, num_layers=2, unroll=4)
    assert_close(model.apply(variables, XS), modules.GRU(H, num_layers=2).apply(variables, XS))


@pytest.mark.parametrize("cell", [modules.LSTM, modules.LSTMCell, modules.GRU, modules.GRUCell])
def test_activations_by_flax_s_names_and_by_the_library_s(cell):
    by_field = cell(H, activation="relu", recurrent_activation=jax.nn.hard_sigmoid)
    by_flax = cell(H, activation_fn=jax.nn.relu, gate_fn=jax.nn.hard_sigmoid)
    network = by_field._network((B, D))
    assert network == by_flax._network((B, D))
    assert (network.activation, network.recurrent_activation) == (jax.nn.relu, jax.nn.hard_sigmoid)


# --- errors -------------------------------------------------------------------------------------


def init(model, xs=XS, **options):
    return model.init(jax.random.key(0), xs, **options)


def applied(model, xs=XS, **options):
    with_noise = {"deterministic": True} if getattr(model, "dropout", 0) else {}
    return model.apply(init(model, **with_noise), xs, **options)


ERRORS = {
    "deterministic": (lambda: init(modules.LSTM(H, num_layers=2, dropout=0.5)), "deterministic=None"),
    "no stream": (
        lambda: applied(modules.LSTM(H, num_layers=2, dropout=0.5), deterministic=False),
        "no stream to draw it from",
    ),
    "dropout in one layer": (lambda: init(modules.LSTM(H, dropout=0.5)), "between layers"),
    "noise in a step": (
        lambda: init(nn.RNN(modules.Cell(lstm_jax.Zoneout(lstm_jax.LSTM(D, H), 0.5)))),
        "a single step does not draw",
    ),
    "no network": (lambda: init(modules.Recurrent(lstm_jax.LSTM)), "the class LSTM"),
    "features": (lambda: init(modules.Recurrent(lstm_jax.LSTM(D, H)), XS[..., 1:]), r"\(\*batch, T, 4\)"),
    "mask": (lambda: applied(modules.LSTM(H), mask=np.ones((T, B), bool)), r"mask of shape \(6, 3\)"),
    "order of the carry": (
        lambda: applied(
            modules.Recurrent(lstm_jax.LSTMVariant(D, H, proj_size=2)),
            initial_carry=(jnp.zeros((B, 2)), jnp.zeros((B, H))),
        ),
        r"initial_carry\[0\] of shape \(3, 2\)",
    ),
    "variables": (
        lambda: modules.from_variables(lstm_jax.LSTM(D, H), {"w_ih": 0, "w": np.ones(3)}),
        r"missing: w_hh \(5, 20\), bias \(20,\); unexpected: w; of another shape: w_ih \(\), expected",
    ),
    "no variables": (lambda: modules.LSTM(H).apply({}, XS), "missing: w_ih"),
    "input size": (
        lambda: modules.LSTM(H).apply(init(modules.LSTM(H)), XS[..., 1:]),
        r"w_ih \(4, 20\), expected \(3, 20\)",
    ),
    "a number": (lambda: init(modules.LSTM(H), jnp.ones(())), "2 axes or more"),
    "two names of one option": (
        lambda: init(modules.LSTM(H, kernel_init=nn.initializers.ones, w_ih_init=nn.initializers.ones)),
        "kernel_init and w_ih_init",
    ),
    "residual": (lambda: init(modules.RNN(H, residual=True)), "Add the identity"),
    "keep_order": (lambda: init(modules.LSTM(H, reverse=True, keep_order=False)), "keep_order"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_error_messages(what):
    call, message = ERRORS[what]
    with pytest.raises(ValueError, match=message):
        call()


def test_documentation():
    names = "Cell LSTMCell GRUCell SimpleCell Recurrent LSTM GRU RNN to_variables from_variables".split()
    with jax.enable_x64(False):
        check_documentation(modules, names)

"""lstm_jax.linen: in the place of Flax's cells, and over whole sequences as ``unroll`` goes."""

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

pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def float64_with_promotion(quick_compiles):
    """Flax relies on implicit promotion, which the tests of the library forbid."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def variables(params):
    return {"params": modules.to_variables(params)}


def in_rnn(params):
    return {"params": {"cell": modules.to_variables(params)}}


CELLS = {"lstm": modules.LSTMCell, "gru": modules.GRUCell, "rnn": modules.SimpleCell}


# --- cells as replacements for Flax's ---------------------------------------------------------------


@pytest.mark.parametrize("name", CELL_CLASSES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
def test_linen_rnn_walks_our_cells_as_unroll_does(name, reverse, time_major):
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
    last, ours = lstm_jax.unroll(network, params, xs, lengths=LENGTHS, reverse=reverse)
    assert_close(carry, last[::-1] if name == "lstm" else last)
    assert_close((ys if not time_major else time_first(ys))[valid()], time_first(ours)[valid()])


def test_the_carry_of_an_lstm_is_c_then_h():
    cell, network = modules.LSTMCell(H, **F64), lstm_jax.LSTM(D, H, **F64)
    first, params = tuple(fill(cell.initialize_carry(jax.random.key(0), (B, D)))), parameters(network)
    (c, h), y = cell.apply(variables(params), first, XS[:, 0])
    (h_ours, c_ours), _ = network.step(params, (first[1], first[0]), XS[:, 0])
    assert_close((c, h, y), (c_ours, h_ours, h_ours))
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
def test_flax_s_own_cell_gives_the_same_with_the_same_weights(name, cell, read):
    """Outputs, carries, and gradients for weights, inputs and the first carry."""
    theirs = nn.RNN(getattr(nn, name)(H, param_dtype=jnp.float64, bias_init=nn.initializers.normal()))
    ours = nn.RNN(CELLS[cell](H, **F64))
    given = theirs.init(jax.random.key(0), jnp.asarray(XS))
    first = fill(theirs.cell.initialize_carry(jax.random.key(0), (B, D)))
    assert jax.tree.map(jnp.shape, ours.cell.initialize_carry(jax.random.key(0), (B, D))) == jax.tree.map(
        jnp.shape, first
    )

    def gradients(rnn, weights):
        def loss(weights, xs, carry):
            out = rnn.apply(weights, xs, initial_carry=carry, return_carry=True)
            return sum(jnp.sum(jnp.sin((1 + i) * a)) for i, a in enumerate(jax.tree.leaves(out))), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(weights, jnp.asarray(XS), first)

    other, mine = gradients(theirs, given), gradients(ours, in_rnn(read(given["params"]["cell"])))
    assert_close((mine[0], mine[1][1:]), (other[0], other[1][1:]))
    assert_close(mine[1][0], in_rnn(read(other[1][0]["params"]["cell"])))


def test_linen_s_scan_takes_the_class_of_a_cell():
    scan = nn.scan(
        modules.GRUCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
    )
    params = parameters(lstm_jax.GRU(D, H, **F64))
    carry, ys = scan(features=H).apply(variables(params), jnp.zeros((B, H)), jnp.asarray(XS))
    last, ours = lstm_jax.unroll(lstm_jax.GRU(D, H, **F64), params, time_first(XS))
    assert_close((carry, ys), (last, time_first(ours)))


@pytest.mark.parametrize("whole", [False, True], ids=["cells", "sequences"])
def test_linen_bidirectional_walks_our_modules_as_ours_does(whole):
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
    last, ours = lstm_jax.unroll(network, params, time_first(XS), lengths=LENGTHS)
    assert_close(carry, tuple(c[::-1] for c in last))
    assert_close(ys[valid()], time_first(ours)[valid()])


def test_a_learned_initial_carry_is_learned_in_linen_rnn():
    network = lstm_jax.LSTM(D, H, learn_initial_carry=True, **F64)
    params, rnn = parameters(network), nn.RNN(modules.LSTMCell(H, learn_initial_carry=True, **F64))
    assert "initial.0" in rnn.init(jax.random.key(0), XS)["params"]["cell"]
    grads = jax.grad(lambda weights: jnp.sum(rnn.apply(weights, XS) ** 2))(in_rnn(params))
    ours = jax.grad(lambda params: jnp.sum(lstm_jax.unroll(network, params, time_first(XS))[1] ** 2))(params)
    assert_close(grads, in_rnn(ours))
    with pytest.raises(ValueError, match="params"):
        rnn.cell.initialize_carry(jax.random.key(0), (B, D))


def test_any_cell_and_images():
    network = lstm_jax.ConvLSTM((4, 3, D), H, (3, 3), **F64)
    xs, params = fill(jnp.zeros((B, T, 4, 3, D))), parameters(network)
    last, ours = lstm_jax.unroll(network, params, time_first(xs))
    expected = last[::-1], time_first(ours)
    rnn = nn.RNN(modules.Cell(network))
    assert_close(rnn.apply(in_rnn(params), xs, return_carry=True), expected)
    assert_close(modules.Recurrent(network).apply(variables(params), xs, return_carry=True), expected)
    stack = lstm_jax.Stack((lstm_jax.SLSTM(D, H, **F64), lstm_jax.LSTM(H, 2, **F64)))
    params = parameters(stack)
    ys = nn.RNN(modules.Cell(stack)).apply(in_rnn(params), XS)
    assert_close(ys, time_first(lstm_jax.unroll(stack, params, time_first(XS))[1]))


# --- whole sequences ----------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_recurrent_is_unroll_with_the_batch_first(call):
    """Values, carries after each step, and gradients."""
    theirs, ours = CALLS[call]
    network = lstm_jax.LSTM(D, H, **F64)
    params, xs, model = parameters(network), jnp.asarray(XS), modules.Recurrent(network)
    h, c = fill(network.initial_carry((B,)), 1)

    @jax.jit
    def run(weights, xs):
        carry, (ys, carries) = model.apply(weights, xs, initial_carry=(c, h), return_carries=True, **theirs)
        return jnp.sum(jnp.sin(ys)), (carry, ys, carries)

    def expected(params, xs):
        carry, (ys, carries) = lstm_jax.unroll(
            network, params, time_first(xs), (h, c), return_carries=True, **ours
        )
        carries = jax.tree.map(time_first, carries)[::-1]
        return jnp.sum(jnp.sin(ys)), (carry[::-1], time_first(ys), carries)

    grads, out = jax.grad(run, argnums=(0, 1), has_aux=True)(variables(params), xs)
    grads_ours, out_ours = jax.grad(expected, argnums=(0, 1), has_aux=True)(params, xs)
    assert_close(out, out_ours)
    assert_close(grads, (variables(grads_ours[0]), grads_ours[1]))


@pytest.mark.parametrize("name", CELL_CLASSES)
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_layers_by_name(name, batch):
    kind = {"lstm": modules.LSTM, "gru": modules.GRU, "rnn": modules.RNN}[name]
    model = kind(H, num_layers=2, bidirectional=True, **F64)
    cells = [lstm_jax.Bidirectional(CELL_CLASSES[name](size, H, **F64)) for size in (D, 2 * H)]
    network = lstm_jax.Stack(tuple(cells))
    params, xs = parameters(network), fill(jax.ShapeDtypeStruct((T, *batch, D), jnp.float64))
    ours = lstm_jax.unroll(network, params, xs)[1]
    assert_close(
        model.apply(variables(params), jnp.moveaxis(xs, 0, len(batch))), jnp.moveaxis(ours, 0, len(batch))
    )
    assert_close(model.apply(variables(params), xs, time_major=True), ours)
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


def test_noise_only_in_training_and_by_the_key():
    model = modules.LSTM(H, num_layers=2, dropout=0.5, **F64)
    network = lstm_jax.Stack((lstm_jax.LSTM(D, H, **F64), lstm_jax.LSTM(H, H, **F64)), dropout=0.5)
    params = parameters(network)

    def run(seed, **options):
        return model.apply(
            variables(params), XS, rngs={"dropout": jax.random.key(seed)}, deterministic=False, **options
        )

    assert_close(run(1), run(1))
    assert bool(jnp.any(run(1) != run(2)))
    quiet = model.apply(variables(params), XS, deterministic=True)
    assert_close(quiet, time_first(lstm_jax.unroll(network, params, time_first(XS))[1]))
    assert_close(quiet, model.clone(deterministic=True).apply(variables(params), XS))
    made = model.clone(deterministic=False).init(jax.random.key(0), XS)  # no stream is needed yet
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, variables(params))


# --- training, ensembles, checkpoints -----------------------------------------------------------


class Tagger(nn.Module):
    """A model as one would write it."""

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


def test_an_ensemble_is_its_members():
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


def test_a_checkpoint_by_orbax_gives_back_every_bit(tmp_path):
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
    "variables": (lambda: modules.from_variables(lstm_jax.LSTM(D, H), {"w_ih": 0}), "from_variables"),
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

"""lstm_jax.nnx: in the place of Flax's cells, and over whole sequences as ``unroll`` goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_cases import CELL_CASES
from flax_cases import (
    CALLS,
    F64,
    KINDS,
    LENGTHS,
    RESETS,
    XS,
    B,
    D,
    H,
    T,
    check_documentation,
    fill,
    parameters,
    read_lstm,
    same,
    time_first,
    valid,
)

import lstm_jax
from lstm_jax._flax import is_random

nnx = pytest.importorskip("flax.nnx", reason="modules for Flax NNX")
import lstm_jax.nnx as modules  # noqa: E402

pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def in_float64_and_flax_s_manners(quick_compiles):
    """Flax leans on promotion, which the tests of the library forbid."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def module(kind, network, **options):
    return kind(network, params=parameters(network), **options)


def state_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


# --- cells in the place of Flax's ---------------------------------------------------------------


STEPPING = [m for m in CELL_CASES if m.causal and not is_random(m.build(param_dtype="float32"))]


def test_only_regularised_cells_are_not_for_a_single_step():
    others = [m.name for m in CELL_CASES if m.causal and m not in STEPPING]
    assert set(others) == {"zoneout", "zoneout_projected", "regularised"}


@pytest.mark.parametrize("case", STEPPING, ids=lambda case: case.name)
def test_every_cell_goes_into_nnx_rnn(case):
    network = case.build(**F64)
    params, xs = parameters(network), fill(jax.ShapeDtypeStruct((T, B, *case.event), jnp.float64))
    cell = modules.Cell(network, params=params)
    ys = nnx.RNN(cell)(time_first(xs))
    same(ys, time_first(lstm_jax.unroll(network, params, xs)[1]))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
def test_nnx_rnn_runs_our_cells_as_unroll_does(name, reverse, time_major):
    network = KINDS[name](D, H, **F64)
    cell = module(modules.Cell, network)
    rnn = nnx.RNN(cell, reverse=reverse, keep_order=True, time_major=time_major, return_carry=True)
    xs = time_first(XS)
    carry, ys = rnn(xs if time_major else XS, seq_lengths=jnp.array(LENGTHS))
    last, ours = lstm_jax.unroll(network, cell.values(), xs, lengths=LENGTHS, reverse=reverse)
    same(carry, last[::-1] if name == "lstm" else last)
    same((ys if not time_major else time_first(ys))[valid()], time_first(ours)[valid()])


def test_the_carry_of_an_lstm_is_c_then_h():
    cell = modules.LSTMCell(D, H, rngs=nnx.Rngs(0), **F64)
    first = tuple(fill(cell.initialize_carry((B, D))))
    (c, h), y = cell(first, XS[:, 0])
    (h_ours, c_ours), _ = cell.network.step(cell.values(), (first[1], first[0]), XS[:, 0])
    same((c, h), (c_ours, h_ours))
    same(h, y)
    projected = modules.Cell(lstm_jax.LSTMVariant(D, H, proj_size=2), rngs=nnx.Rngs(0))
    assert [a.shape for a in projected.initialize_carry((7, B, D))] == [(7, B, H), (7, B, 2)]


@pytest.mark.parametrize("whole", [False, True], ids=["cells", "sequences"])
def test_nnx_bidirectional_walks_our_modules_as_ours_does(whole):
    network = lstm_jax.Bidirectional(lstm_jax.LSTM(D, H, **F64))
    params = parameters(network)
    rnns = [
        modules.Recurrent(network.cell, params=p) if whole else nnx.RNN(modules.Cell(network.cell, params=p))
        for p in params
    ]
    carry, ys = nnx.Bidirectional(*rnns)(XS, seq_lengths=jnp.array(LENGTHS), return_carry=True)
    last, ours = lstm_jax.unroll(network, params, time_first(XS), lengths=LENGTHS)
    same(carry, tuple(c[::-1] for c in last))
    same(ys[valid()], time_first(ours)[valid()])


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
def test_flax_s_own_cell_gives_the_same_with_the_same_weights(name):
    """Outputs, carries, and gradients for weights, inputs and the first carry."""
    kind, read = FLAX_CELLS[name]
    options = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    theirs = getattr(nnx, name)(D, H, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0), **options)
    ours = modules.Cell(kind(D, H, **options), params=read(state_of(theirs)))
    first = fill(theirs.initialize_carry((B, D), nnx.Rngs(0)))
    assert jax.tree.map(jnp.shape, ours.initialize_carry((B, D))) == jax.tree.map(jnp.shape, first)

    def loss(cell, xs, carry):
        out = nnx.RNN(cell)(xs, initial_carry=carry, return_carry=True)
        return sum(jnp.sum(jnp.sin((1 + i) * a)) for i, a in enumerate(jax.tree.leaves(out))), out

    mine, other = (
        nnx.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(cell, jnp.asarray(XS), first)
        for cell in (ours, theirs)
    )
    same(mine[0], other[0])
    same(mine[1][1:], other[1][1:])
    weights = read(nnx.to_pure_dict(other[1][0]))
    same(
        nnx.to_pure_dict(mine[1][0])["params"], {k: v for k, v in weights._asdict().items() if v is not None}
    )


def test_a_learned_initial_carry_is_learned_in_nnx_rnn():
    network = lstm_jax.LSTM(D, H, learn_initial_carry=True, **F64)
    cell = module(modules.Cell, network)

    def ours(params):
        return jnp.sum(lstm_jax.unroll(network, params, time_first(XS))[1] ** 2)

    grads = nnx.grad(lambda cell: jnp.sum(nnx.RNN(cell)(XS) ** 2))(cell)
    expected = jax.grad(ours)(cell.values())
    same(tuple(grads["params"]["initial"][i][...] for i in (0, 1)), expected.initial)


def test_carries_can_be_drawn():
    cell = modules.LSTMCell(D, H, rngs=nnx.Rngs(0))
    c, h = cell.initialize_carry((B, D), nnx.Rngs(0), nnx.initializers.normal())
    assert c.shape == h.shape == (B, H) and bool(jnp.any(c != h))
    assert (cell.num_feature_axes, cell.in_features, cell.hidden_features) == (1, D, H)


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
TURNED = {"lstm": lambda carry: carry[::-1], "stack": lambda carry: (carry[0], carry[1][::-1])}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NETWORKS)
def test_recurrent_is_unroll_with_the_batch_first(name, call):
    """Values, carries after each step, and gradients."""
    network, (theirs, ours) = NETWORKS[name], CALLS[call]
    model = module(modules.Recurrent, network)
    first = fill(jax.eval_shape(lambda: network.initial_carry((B,))), 1)

    @nnx.jit
    def run(model, xs):
        carry, (ys, carries) = model(xs, initial_carry=TURNED[name](first), return_carries=True, **theirs)
        return jnp.sum(jnp.sin(ys)), (carry, ys, carries)

    def expected(params, xs):
        carry, (ys, carries) = lstm_jax.unroll(
            network, params, time_first(xs), first, return_carries=True, **ours
        )
        carry, carries = TURNED[name](carry), TURNED[name](jax.tree.map(time_first, carries))
        return jnp.sum(jnp.sin(ys)), (carry, time_first(ys), carries)

    xs = jnp.asarray(XS)
    grads, out = nnx.grad(run, argnums=(0, 1), has_aux=True)(model, xs)
    grads_ours, out_ours = jax.grad(expected, argnums=(0, 1), has_aux=True)(model.values(), xs)
    same(out, out_ours)
    as_ours = modules.Recurrent(network, params=grads_ours[0])  # the same names
    same((state_of(as_ours), grads_ours[1]), (nnx.to_pure_dict(grads[0]), grads[1]))


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_any_number_of_batch_axes(batch):
    network = NETWORKS["stack"]
    model = module(modules.Recurrent, network, return_carry=True)
    xs = fill(jax.ShapeDtypeStruct((T, *batch, D), jnp.float64))
    mask = np.random.default_rng(2).random((T, *batch)) < 0.7
    carry, ys = model(jnp.moveaxis(xs, 0, len(batch)), mask=np.moveaxis(mask, 0, len(batch)))
    last, ours = lstm_jax.unroll(network, model.values(), xs, mask=mask)
    same((carry, jnp.moveaxis(ys, len(batch), 0)), (TURNED["stack"](last), ours))
    same(model(xs, mask=mask, time_major=True), (carry, ours))


@pytest.mark.parametrize("name", KINDS)
def test_layers_by_name(name):
    kind = {"lstm": modules.LSTM, "gru": modules.GRU, "rnn": modules.RNN}[name]
    model = kind(D, H, num_layers=2, bidirectional=True, dropout=0.2, rngs=nnx.Rngs(0), **F64)
    cells = [lstm_jax.Bidirectional(KINDS[name](size, H, **F64)) for size in (D, 2 * H)]
    assert model.network == lstm_jax.Stack(tuple(cells), dropout=0.2)
    model.eval()
    ours = lstm_jax.unroll(model.network, model.values(), time_first(XS), lengths=LENGTHS)[1]
    same(model(XS, seq_lengths=LENGTHS), time_first(ours))
    plain = kind(D, H, use_bias=False, rngs=nnx.Rngs(0), time_major=True, return_carry=True)
    assert plain.network == KINDS[name](D, H, use_bias=False)
    assert plain(time_first(XS))[1].shape == (T, B, H)


def test_images():
    network = lstm_jax.ConvLSTM((4, 3, D), H, (3, 3), **F64)
    model, xs = module(modules.Recurrent, network), fill(jnp.zeros((B, T, 4, 3, D)))
    last, ours = lstm_jax.unroll(network, model.values(), time_first(xs), lengths=LENGTHS)
    carry, ys = model(xs, seq_lengths=LENGTHS, return_carry=True)
    same((carry, ys), (last[::-1], time_first(ours)))
    cell = modules.Cell(network, params=model.values())
    assert cell.num_feature_axes == 3
    carry, ys = nnx.RNN(cell)(xs, return_carry=True)
    last, ours = lstm_jax.unroll(network, model.values(), time_first(xs))
    same((carry, ys), (last[::-1], time_first(ours)))


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


def test_noise_only_in_training_and_by_the_seed():
    model, again = noisy(), noisy()
    first, second = model(XS), model(XS)
    assert bool(jnp.any(first != second))
    same((again(XS), again(XS)), (first, second))
    model.eval()
    quiet = lstm_jax.unroll(model.network, model.values(), time_first(XS))[1]
    same(model(XS), time_first(quiet))
    same(nnx.view(again, deterministic=True)(XS), time_first(quiet))
    model.train()
    assert bool(jnp.any(model(XS) != time_first(quiet)))
    same(model(XS, deterministic=True), time_first(quiet))
    same(noisy(deterministic=True)(XS), time_first(quiet))


def test_a_key_is_unroll_s_key_and_windows_repeat_the_noise_of_the_whole():
    model, key = noisy(return_carry=True), jax.random.key(3)
    carry, ys = model(XS, rngs=key)
    same(ys, time_first(lstm_jax.unroll(model.network, model.values(), time_first(XS), key=key)[1]))
    middle, first = model(XS[:, :2], rngs=key)
    last, second = model(XS[:, 2:], initial_carry=middle, start=2, rngs=key)
    same((last, jnp.concatenate([first, second], 1)), (carry, ys))


def test_streams_given_in_the_call_go_on_from_draw_to_draw():
    model, stream = noisy(), nnx.Rngs(dropout=5).dropout
    expected = [model(XS, rngs=stream()) for _ in range(3)]
    assert bool(jnp.any(expected[0] != expected[1]))
    draws = nnx.Rngs(dropout=5)
    same([model(XS, rngs=draws), model(XS, rngs=draws.dropout), model(XS, rngs=draws)], expected)


def test_noise_in_nnx_bidirectional_is_the_module_s_own():
    cell = lstm_jax.VariationalDropout(lstm_jax.GRU(D, H, **F64), inputs=0.5)
    both = nnx.Bidirectional(*(modules.Recurrent(cell, rngs=nnx.Rngs(seed)) for seed in (0, 1)))
    apart = [modules.Recurrent(cell, rngs=nnx.Rngs(seed)) for seed in (0, 1)]
    same(both(XS), jnp.concatenate([apart[0](XS), apart[1](XS, reverse=True)], -1))
    both.eval()
    same(both(XS), both(XS))


def test_a_module_without_noise_holds_parameters_alone():
    model = modules.LSTM(D, H, rngs=nnx.Rngs(0))
    assert jax.tree.leaves(nnx.state(model, nnx.Not(nnx.Param))) == []
    assert len(jax.tree.leaves(nnx.state(noisy(), nnx.RngState))) == 2


# --- training, ensembles, checkpoints -----------------------------------------------------------


class Tagger(nnx.Module):
    """A model as one would write it."""

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


def test_an_ensemble_is_its_members():
    @nnx.vmap
    def make(key):
        return modules.LSTM(D, H, num_layers=2, rngs=nnx.Rngs(key), **F64)

    keys = jax.random.split(jax.random.key(0), 3)
    ys = nnx.vmap(lambda model, xs: model(xs), in_axes=(0, None))(make(keys), jnp.asarray(XS))
    for i, key in enumerate(keys):
        alone = modules.LSTM(D, H, num_layers=2, rngs=nnx.Rngs(key), **F64)
        same(ys[i], alone(XS))


def test_split_and_merge():
    model = noisy()
    names = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert names == {f"params.{i}.{name}" for i in (0, 1) for name in ("w_ih", "w_hh", "bias")}
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    assert hash(graph) == hash(nnx.split(noisy(), nnx.Param, ...)[0])
    same(nnx.merge(graph, params, rest)(XS), noisy()(XS))
    assert isinstance(nnx.clone(model).params[0], lstm_jax.LSTMParams)


NORMALISED = lstm_jax.Stack(
    tuple(lstm_jax.Bidirectional(lstm_jax.LSTMVariant(size, H, layer_norm="tfa")) for size in (D, 2 * H))
)


def test_a_checkpoint_by_orbax_gives_back_every_bit(tmp_path):
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
    same(model.values(), params)
    gru = lstm_jax.GRU(D, H)  # goes without the bias that Flax's does not have
    cell = modules.Cell(gru, params=gru.init(jax.random.key(0))._replace(bias_hn=None))
    assert cell.params.bias_hn is None and nnx.RNN(cell)(XS).shape == (B, T, H)


# --- refusals -----------------------------------------------------------------------------------


def lstm(**options):
    return modules.LSTM(D, H, rngs=nnx.Rngs(0), **options)


REFUSED = {
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
    "axes": (lambda: lstm()(XS[0, 0]), "2 axes or more"),
    "whole numbers": (lambda: lstm()(np.ones((B, T, D), int)), "floating"),
    "mask": (lambda: lstm()(XS, mask=np.ones((T, B), bool)), r"mask of shape \(6, 3\).*shape \(3, 6\)"),
    "resets": (lambda: lstm(time_major=True)(XS, resets=RESETS.T), r"resets of shape \(6, 3\)"),
    "lengths": (lambda: lstm()(XS, seq_lengths=[1, 2]), "lengths of shape"),
    "carry": (lambda: lstm()(XS, initial_carry=jnp.zeros((B, H))), "a carry float"),
    "order of the carry": (
        lambda: modules.Recurrent(lstm_jax.LSTMVariant(D, H, proj_size=2), rngs=nnx.Rngs(0))(
            XS, initial_carry=(jnp.zeros((B, 2)), jnp.zeros((B, H)))
        ),
        r"initial_carry\[0\] of shape \(3, 2\); expected shape \(3, 5\)",
    ),
    "keep_order": (lambda: lstm()(XS, reverse=True, keep_order=False), "keep_order"),
    "carry_init": (
        lambda: modules.GRUCell(D, H, rngs=nnx.Rngs(0)).initialize_carry((B, D), None, jnp.zeros),
        "without rngs",
    ),
    "sizes of params": (
        lambda: modules.Cell(lstm_jax.LSTM(D, H), params=parameters(lstm_jax.LSTM(D, 2))),
        r"w_ih of shape \(4, 8\); expected shape \(4, 20\)",
    ),
    "fields of params": (
        lambda: lstm().load(parameters(lstm_jax.LSTMVariant(D, H, peepholes=True))),
        "peepholes",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_say_what_came(what):
    call, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        call()


def test_documentation():
    names = "Cell LSTMCell GRUCell SimpleCell Recurrent LSTM GRU RNN".split()
    with jax.enable_x64(False):
        check_documentation(modules, names)

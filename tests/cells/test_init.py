"""Initial parameters: defaults, other initialisers, ``torch_init`` and ``keras_init``."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, Bidirectional, GRUVariant, Readout, Stack, keras_init, torch_init

KEY = jax.random.key(0)
GATES = {RNN: 1, LSTM: 4, GRU: 3}
CELLS = pytest.mark.parametrize("cell_class", GATES, ids=lambda cell_class: cell_class.__name__)
MOSTLY_LSTM = pytest.mark.parametrize(
    "cell_class", helpers.daily(GATES, LSTM), ids=lambda cell_class: cell_class.__name__
)


def by_gate(cell_class, array):
    return np.split(np.asarray(array), GATES[cell_class], axis=-1)


def assert_uniform(values, bound):
    """Check the bounds, and the Kolmogorov distance to the uniform distribution."""
    values = np.sort(np.asarray(values, np.float64).ravel())
    assert np.all(np.abs(values) <= bound * (1 + 1e-6))
    expected = (values / bound + 1) / 2
    distance = np.max(np.abs(expected - (np.arange(values.size) + 0.5) / values.size))
    assert distance < 2 / np.sqrt(values.size), distance  # exceeded with probability 0.07 %


def assert_orthogonal(matrix):
    """Check that the rows, or the columns if there are fewer, are orthonormal."""
    matrix = np.asarray(matrix, np.float64)
    product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-5)


# --- the defaults -------------------------------------------------------------------------------


@CELLS
def test_input_weights_are_glorot_uniform_gate_by_gate(cell_class):
    D, H = 40, 60
    for gate in by_gate(cell_class, cell_class(D, H).init(KEY).w_ih):
        assert gate.shape == (D, H)
        assert_uniform(gate, np.sqrt(6 / (D + H)))


@CELLS
def test_recurrent_weights_are_orthogonal_gate_by_gate(cell_class):
    gates = by_gate(cell_class, cell_class(3, 20).init(KEY).w_hh)
    for gate in gates:
        assert_orthogonal(gate)
    assert len({gate.tobytes() for gate in gates}) == len(gates)


@CELLS
def test_biases_are_zero_except_for_the_forget_gate(cell_class):
    params = cell_class(3, 5).init(KEY)
    if cell_class is LSTM:
        assert params.bias.tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 10
    else:
        assert params.bias.tolist() == [0.0] * 5 * GATES[cell_class]
    if cell_class is GRU:
        assert params.bias_hn.tolist() == [0.0] * 5


def test_the_forget_bias_is_added_to_the_initialiser():
    cell = LSTM(3, 2, forget_bias=-0.5, bias_init=jax.nn.initializers.constant(2.0))
    assert cell.init(KEY).bias.tolist() == [2.0, 2.0, 1.5, 1.5, 2.0, 2.0, 2.0, 2.0]
    assert LSTM(3, 2, use_bias=False, forget_bias=3.0).init(KEY).bias is None


def test_the_readout_is_glorot_uniform_with_a_zero_bias():
    params = Readout(40, 60).init(KEY)
    assert_uniform(params.w, np.sqrt(6 / 100))
    assert params.bias.tolist() == [0.0] * 60


@CELLS
def test_cells_without_bias(cell_class):
    params = cell_class(3, 5, use_bias=False).init(KEY)
    assert params.bias is None and getattr(params, "bias_hn", None) is None
    assert Readout(3, 5, use_bias=False).init(KEY).bias is None
    assert GRUVariant(3, 5, reset_after=False).init(KEY).bias_hn is None


@CELLS
def test_a_learned_initial_carry_is_a_parameter_and_initially_zero(cell_class):
    cell = cell_class(3, 5, learn_initial_carry=True)
    params = cell.init(KEY)
    leaves = jax.tree.leaves(params.initial)
    assert [leaf.shape for leaf in leaves] == [(5,)] * (2 if cell_class is LSTM else 1)
    assert all(not np.any(leaf) for leaf in leaves)
    assert cell_class(3, 5).init(KEY).initial is None
    learned = params._replace(initial=jax.tree.map(lambda a: a + 0.5, params.initial))
    for part in jax.tree.leaves(cell.initial_carry((2, 4), learned)):
        np.testing.assert_array_equal(part, np.full((2, 4, 5), 0.5))
    with pytest.raises(ValueError, match=r"got no params.*learn_initial_carry"):
        cell.initial_carry((2,))


# --- other initialisers -------------------------------------------------------------------------


@CELLS
@pytest.mark.parametrize("field", ["w_ih_init", "w_hh_init", "bias_init"])
@pytest.mark.parametrize(
    "initializer",
    [jax.nn.initializers.constant(0.25), jax.nn.initializers.normal(), jax.nn.initializers.zeros],
    ids=["constant", "normal", "zeros"],
)
def test_each_initialiser_affects_only_its_weights(cell_class, field, initializer):
    default = cell_class(3, 20).init(KEY)
    params = cell_class(3, 20, **{field: initializer}).init(KEY)
    name = field.removesuffix("_init")
    forget = np.repeat([0.0, 1.0, 0.0, 0.0], 20) if (cell_class, name) == (LSTM, "bias") else 0
    value = np.asarray(getattr(params, name)) - forget
    if initializer is jax.nn.initializers.zeros:
        assert not np.any(value)
    elif np.all(initializer(KEY, (1,)) == 0.25):
        np.testing.assert_array_equal(value, np.full_like(value, 0.25))
    else:
        assert 0.005 < np.std(value) < 0.02 and len(np.unique(value)) > 0.9 * value.size
    for other in {"w_ih", "w_hh", "bias"} - {name}:
        np.testing.assert_array_equal(getattr(params, other), getattr(default, other))


def test_initialisers_get_the_shape_of_one_gate_and_param_dtype():
    calls = []

    def spy(key, shape, dtype):
        calls.append((shape, np.dtype(dtype).name))
        return jnp.zeros(shape, dtype)

    LSTM(3, 2, w_ih_init=spy, w_hh_init=jax.nn.initializers.zeros, param_dtype="bfloat16").init(KEY)
    assert calls == [((3, 2), "bfloat16")] * 4
    calls.clear()
    GRU(3, 2, w_hh_init=spy, bias_init=spy).init(KEY)
    assert calls == [((2, 2), "float32")] * 3 + [((2,), "float32")] * 4  # bias, and bias_hn
    calls.clear()
    Readout(3, 2, w_init=spy, bias_init=spy).init(KEY)
    assert calls == [((3, 2), "float32"), ((2,), "float32")]


def networks(**options):
    return Stack(
        (
            LSTM(3, 4, learn_initial_carry=True, **options),
            Bidirectional(GRU(4, 3, **options)),
            RNN(6, 4, **options),
            Readout(4, 2, **options),
        )
    )


_INITS = [lambda network, key: network.init(key), torch_init, keras_init]
INITS = pytest.mark.parametrize("init", _INITS, ids=["own", "torch", "keras"])
MOSTLY_OWN = pytest.mark.parametrize("init", helpers.daily(_INITS), ids=["own", "torch", "keras"])


@INITS
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_parameters_have_param_dtype(init, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = jax.eval_shape(lambda key: init(networks(param_dtype=dtype), key), jax.random.key(0))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}


@MOSTLY_OWN
def test_equal_keys_give_equal_parameters_and_all_arrays_differ(init):
    network = networks(bias_init=jax.nn.initializers.normal())
    params, again, other = (init(network, jax.random.key(seed)) for seed in (0, 0, 1))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    weights = [np.asarray(a) for a in jax.tree.leaves(params) if a.ndim == 2]
    others = [np.asarray(a) for a in jax.tree.leaves(other) if a.ndim == 2]
    assert not any(np.any(a == b) for a, b in zip(weights, others, strict=True))
    drawn = np.concatenate([a.ravel() for a in weights])
    assert len(np.unique(drawn)) > 0.99 * drawn.size


@MOSTLY_OWN
@pytest.mark.slow
def test_init_under_jit_and_vmap(init):
    network = networks()
    keys = jax.random.split(KEY, 3)
    ensemble = jax.jit(jax.vmap(lambda key: init(network, key)))(keys)
    for index in range(2):
        one = init(network, keys[index])
        assert jax.tree.structure(one) == jax.tree.structure(ensemble)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(ensemble), strict=True):
            np.testing.assert_allclose(a, b[index], atol=1e-5)


def test_layers_and_directions_have_different_parameters():
    params = Stack((RNN(4, 4), RNN(4, 4))).init(KEY)
    both = Bidirectional(RNN(4, 4)).init(KEY)
    for first, second in (params, both):
        assert not np.any(np.asarray(first.w_ih) == np.asarray(second.w_ih))
        assert not np.any(np.asarray(first.w_hh) == np.asarray(second.w_hh))


# --- torch_init ---------------------------------------------------------------------------------


def sets_of(network, params):
    """The parameters of all cells of ``networks()``, with the fan of PyTorch's bound."""
    lstm, (forward, backward), rnn, readout = params
    return [(lstm, 4), (forward, 3), (backward, 3), (rnn, 4), (readout, 4)]


@MOSTLY_LSTM
def test_torch_weights_are_uniform(cell_class):
    H = 64
    params = torch_init(cell_class(30, H), KEY)
    for gate in [*by_gate(cell_class, params.w_ih), *by_gate(cell_class, params.w_hh)]:
        assert_uniform(gate, H**-0.5)


@MOSTLY_LSTM
def test_torch_biases_are_the_sum_of_two(cell_class):
    """The sum has a triangular distribution; a GRU's candidate has two uniform biases."""
    H = 400
    params = torch_init(cell_class(1, H, w_hh_init=jax.nn.initializers.zeros), KEY)
    bound = H**-0.5
    biases = by_gate(cell_class, params.bias)
    if cell_class is GRU:
        assert_uniform(biases.pop(), bound)
        assert_uniform(params.bias_hn, bound)
    for bias in biases:
        assert np.max(np.abs(bias)) > 1.5 * bound and np.all(np.abs(bias) <= 2 * bound)
        scaled = np.abs(bias) / (2 * bound)
        assert_uniform(2 * (1 - (1 - scaled) ** 2) - 1, 1.0)  # the distribution function makes it uniform


def test_a_gru_with_reset_before_has_the_sum_of_both_candidate_biases():
    H = 400
    cell = GRUVariant(1, H, reset_after=False, w_hh_init=jax.nn.initializers.zeros)
    bias = np.asarray(torch_init(cell, KEY).bias)[2 * H :]
    assert np.max(np.abs(bias)) > 1.5 * H**-0.5


def test_a_torch_readout_has_the_distribution_of_linear():
    params = torch_init(Readout(30, 400), KEY)
    assert_uniform(params.w, 30**-0.5)
    assert_uniform(params.bias, 30**-0.5)


# --- keras_init ---------------------------------------------------------------------------------


@MOSTLY_LSTM
def test_keras_weights_are_drawn_as_one_matrix_over_all_gates(cell_class):
    D, H = 40, 60
    params = keras_init(cell_class(D, H), KEY)
    assert_uniform(params.w_ih, np.sqrt(6 / (D + GATES[cell_class] * H)))
    assert_orthogonal(params.w_hh)
    if cell_class is not RNN:
        first = by_gate(cell_class, params.w_hh)[0].astype(np.float64)
        assert np.max(np.abs(first @ first.T - np.eye(H))) > 0.1


@MOSTLY_LSTM
def test_keras_biases_are_zero_except_for_the_forget_gate(cell_class):
    params = keras_init(cell_class(3, 2, bias_init=jax.nn.initializers.ones), KEY)
    expected = {RNN: [0, 0], LSTM: [0, 0, 1, 1, 0, 0, 0, 0], GRU: [0] * 6}[cell_class]
    assert params.bias.tolist() == expected
    if cell_class is GRU:
        assert params.bias_hn.tolist() == [0, 0]
    readout = keras_init(Readout(40, 60), KEY)
    assert_uniform(readout.w, np.sqrt(6 / 100))
    assert not np.any(readout.bias)


# --- both, for networks -------------------------------------------------------------------------


@pytest.mark.parametrize("init", [torch_init, keras_init])
@pytest.mark.parametrize("options", [{}, {"use_bias": False}], ids=str)
def test_networks(init, options):
    network = networks(**options)
    params = init(network, KEY)
    own = network.init(KEY)
    assert jax.tree.structure(params) == jax.tree.structure(own)
    assert [a.shape for a in jax.tree.leaves(params)] == [a.shape for a in jax.tree.leaves(own)]
    assert not any(np.any(leaf) for leaf in params[0].initial)  # learned initial carries are zero
    _, ys = lstm_jax.unroll(network, params, jnp.ones((3, 2, 3)))
    assert np.all(np.isfinite(ys))
    if init is torch_init:
        for values, fan in sets_of(network, params):
            weights = [a for a in jax.tree.leaves(values) if a.ndim == 2]
            assert all(0.5 * fan**-0.5 < np.max(np.abs(a)) <= fan**-0.5 for a in weights)


@pytest.mark.parametrize("init", [torch_init, keras_init])
def test_errors(init):
    class UserCell:
        def init(self, key):
            return {"w": jnp.zeros(3)}

    with pytest.raises(ValueError, match=rf"{init.__name__} got a network with parameters of type"):
        init(UserCell(), KEY)
    with pytest.raises(ValueError, match=rf"{init.__name__} got key=0; expected one PRNG key"):
        init(LSTM(3, 2), 0)

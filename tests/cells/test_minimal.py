"""The minimal cells: equations, initial values, dtypes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle_minimal
import pytest
from cell_case import D, H
from cell_cases import BY_NAME
from helpers import assert_same, daily, problem

import lstm_jax
from lstm_jax import GRU, MinGRU, MinGRUParams, MinLSTM, MinLSTMParams, min_gru_step, min_lstm_step

CELLS = {
    "min_gru": (MinGRU, MinGRUParams, min_gru_step, oracle_minimal.min_gru, 2),
    "min_lstm": (MinLSTM, MinLSTMParams, min_lstm_step, oracle_minimal.min_lstm, 3),
}
WHICH = pytest.mark.parametrize("which", CELLS)


@pytest.mark.usefixtures("x64")
@WHICH
def test_step_functions(which):
    _, _, step, equations, _ = CELLS[which]
    given = problem(BY_NAME[which], batch=())
    for bias in (given.params.bias, None):
        params, x = given.params._replace(bias=bias), np.array([0.3, -1.2, 2.0])
        expected = equations(params, given.carry, x)
        assert_same(jax.jit(step)(params, given.carry, x), jax.tree.map(jnp.asarray, expected))


@pytest.mark.usefixtures("x64")
def test_a_minimal_gru_with_known_values():
    """z = 1/2, and the candidates for 1 and -1 are 3/2 and sigma(-1)."""
    params = MinGRUParams(w_ih=jnp.array([[0.0, 0.0, 1.0, -1.0]]))
    h, _ = min_gru_step(params, jnp.array([4.0, -4.0]), jnp.array([1.0]))
    np.testing.assert_allclose(h, [2 + 0.75, -2 + 0.5 / (1 + np.e)])


@pytest.mark.usefixtures("x64")
def test_the_fractions_of_a_minimal_lstm_sum_to_one_also_if_both_gates_underflow():
    def forget_fraction(f, i):
        params = MinLSTMParams(w_ih=jnp.zeros((1, 3)), bias=jnp.array([f, i, 0.5]))  # the candidate is 1
        from_1, _ = min_lstm_step(params, jnp.array([1.0]), jnp.array([0.0]))
        from_2, _ = min_lstm_step(params, jnp.array([2.0]), jnp.array([0.0]))
        np.testing.assert_allclose(from_1, 1)
        return from_2[0] - 1

    np.testing.assert_allclose(forget_fraction(0.0, 0.0), 1 / 2)
    np.testing.assert_allclose(forget_fraction(np.log(3), 0.0), 0.75 / 1.25)
    np.testing.assert_allclose(forget_fraction(-800.0, -800.0), 1 / 2)
    np.testing.assert_allclose(forget_fraction(-800.0, -801.0), 1 / (1 + np.exp(-1)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", daily(["parallel", "fused", "scan"]))
@WHICH
def test_the_candidate_has_slope_one_at_zero_and_a_quarter_below(which, implementation):
    cell_class, make, _, _, gates = CELLS[which]
    cell = cell_class(1, 1)
    params = make(w_ih=jnp.zeros((1, gates)).at[0, -1].set(1.0), bias=jnp.zeros(gates))

    def h(x):
        return lstm_jax.unroll(cell, params, x.reshape(1, 1), implementation=implementation)[0][0]

    for x, value, slope in ((0.0, 0.5, 1.0), (-1e-9, 0.5, 0.25), (1e-9, 0.5, 1.0), (3.0, 3.5, 1.0)):
        found = jax.value_and_grad(h)(jnp.asarray(x))
        np.testing.assert_allclose(found, (value / 2, slope / 2), rtol=1e-8)
        assert jax.grad(jax.grad(h))(jnp.asarray(x)) < 1e-8


# --- initial values -----------------------------------------------------------------------------


@WHICH
def test_initial_values(which):
    cell_class, _, _, _, gates = CELLS[which]
    params = cell_class(50, 40, learn_initial_carry=True).init(jax.random.key(0))
    assert params.w_ih.shape == (50, gates * 40) and params.bias.shape == (gates * 40,)
    parts = np.split(np.asarray(params.w_ih), gates, axis=1)
    bound = np.sqrt(6 / 90)  # Glorot's, of one gate
    assert all(0.9 * bound < np.max(np.abs(part)) <= bound for part in parts)
    assert not np.allclose(parts[0], parts[1])
    assert np.all(params.initial == 0) and params.initial.shape == (40,)
    forget = np.zeros_like(params.bias)
    forget[:40] = which == "min_lstm"
    np.testing.assert_array_equal(params.bias, forget)
    assert cell_class(3, 2, use_bias=False).init(jax.random.key(0)).bias is None


def test_forget_bias():
    cell = MinLSTM(3, 2, forget_bias=4.0, bias_init=jax.nn.initializers.ones)
    assert cell.init(jax.random.key(0)).bias.tolist() == [5, 5, 1, 1, 1, 1]
    assert MinLSTM(3, 2, forget_bias=4.0, use_bias=False).init(jax.random.key(0)).bias is None


@WHICH
def test_equal_hyperparameters_are_equal_cells(which):
    cell_class = CELLS[which][0]
    assert cell_class(3, 2, dtype="bfloat16") == cell_class(np.int64(3), 2, dtype=jnp.bfloat16)
    assert len({hash(cell_class(3, 2)), hash(cell_class(3, 2))}) == 1 and cell_class(3, 2) != cell_class(
        3, 2, use_bias=False
    )


# --- low precision ------------------------------------------------------------------------------


@WHICH
@pytest.mark.parametrize("compute", daily(["bfloat16", "float16"]))
@pytest.mark.parametrize("implementation", ["scan", "fused", "parallel"])
def test_low_precision(which, compute, implementation):
    """h and the outputs have the compute dtype, and the parameters are float32."""
    given = problem(BY_NAME[which], dtype=np.float32, compute=compute)
    arguments = given.params, np.where(np.isfinite(given.xs), given.xs, 0.5)
    carry, ys = lstm_jax.unroll(given.network, *arguments, implementation=implementation)
    assert carry.dtype == ys.dtype == compute
    assert {a.dtype.name for a in jax.tree.leaves(given.network.init(jax.random.key(0)))} == {"float32"}
    exact = lstm_jax.unroll(CELLS[which][0](D, H, learn_initial_carry=which == "min_lstm"), *arguments)
    np.testing.assert_allclose(ys.astype("float32"), exact[1], atol=3e-2 if compute == "bfloat16" else 4e-3)


@WHICH
@pytest.mark.parametrize("given", ["float16", "bfloat16", "float32"])
def test_step_returns_the_dtypes_of_the_given_carry(which, given):
    cell_class, _, step, _, _ = CELLS[which]
    for compute in (None, "bfloat16"):
        cell = cell_class(3, 2, dtype=compute)
        params, carry = cell.init(jax.random.key(0)), jnp.zeros((2, 2), given)
        for f in (cell.step, step):
            results = jax.eval_shape(f, params, carry, jnp.ones((2, 3)))
            assert {a.dtype.name for a in results} == {given}


# --- errors -------------------------------------------------------------------------------------

X, STATE = np.zeros((4, 3), np.float32), np.zeros((4, 2), np.float32)
SEQUENCE = np.zeros((5, 4, 3), np.float32)


@WHICH
@pytest.mark.parametrize(
    "change, words",
    [
        ({"w_ih": np.zeros((3, 2), "f")}, ["w_ih of shape (3, 2)", "w_ih (3, "]),
        ({"bias": np.zeros(2, "f")}, ["bias of shape (2,)", "bias ("]),
        ({"bias": None}, ["no params.bias with use_bias=True"]),
        ({"initial": np.zeros(2, "f")}, ["params.initial with learn_initial_carry=False"]),
        ({"w_ih": np.zeros((3, 6), np.int32)}, ["w_ih of dtype int32", "floating"]),
    ],
    ids=str,
)
def test_errors_of_parameters(which, change, words):
    cell = CELLS[which][0](3, 2)
    params = cell.init(jax.random.key(0))._replace(**change)
    for call in (lambda: cell.step(params, STATE, X), lambda: lstm_jax.unroll(cell, params, SEQUENCE)):
        with pytest.raises(ValueError) as error:
            call()
        assert all(word in str(error.value) for word in (type(cell).__name__, *words))


@WHICH
@pytest.mark.parametrize("in_a_cell", [False, True])
def test_errors_of_steps(which, in_a_cell):
    cell_class, make, free_step, _, gates = CELLS[which]
    cell = cell_class(3, 2)
    params, step = cell.init(jax.random.key(0)), cell.step if in_a_cell else free_step
    name = f"{cell_class.__name__}.step" if in_a_cell else free_step.__name__
    cases = [
        ((params, STATE, X[:, :2]), "x of shape (4, 2)" if in_a_cell else "shape (..., 3)"),
        ((params, STATE, X.astype(int)), "x of dtype int64"),
        ((params, STATE[:, :1], X), f"{name} got h of shape (4, 1)"),
        ((params, STATE[0], X), f"{name} got h of shape (2,)"),
        ((params, (STATE, STATE), X), f"{name} got a carry of 2 parts"),
        ((params, STATE.astype(int), X), f"{name} got h of dtype int64"),
        (
            (GRU(3, 2).init(jax.random.key(0)), STATE, X),
            f"type GRUParams; expected {cell_class.__name__}Params",
        ),
        ((tuple(params), STATE, X), f"type tuple; expected {cell_class.__name__}Params"),
        ((make(jnp.zeros((3, gates * 2 + 1)), jnp.zeros(gates * 2)), STATE, X), "w_ih of shape"),
    ]
    for arguments, words in cases:
        with pytest.raises(ValueError, match="; expected ") as error:
            step(*arguments)
        assert words in str(error.value)


@WHICH
def test_other_errors(which):
    cell_class = CELLS[which][0]
    for build in (
        lambda: cell_class(0, 2),
        lambda: cell_class(3, 2.5),
        lambda: cell_class(3, 2, dtype="int8"),
        lambda: cell_class(3, 2, w_ih_init=None),
        lambda: cell_class(3, 2).init(0),
        lambda: cell_class(3, 2, learn_initial_carry=True).initial_carry((4,)),
        lambda: cell_class(3, 2).initial_carry(4),
        lambda: lstm_jax.torch_init(cell_class(3, 2), jax.random.key(0)),
        lambda: lstm_jax.unroll(
            cell_class(3, 2), cell_class(3, 2).init(jax.random.key(0)), SEQUENCE[..., :2]
        ),
    ):
        with pytest.raises(ValueError, match="; expected "):
            build()

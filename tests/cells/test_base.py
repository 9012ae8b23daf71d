"""Copies and pickles of cells, and the attributes that describe built-in cells."""

import copy
import pickle
import subprocess
import sys

import cell_cases
import jax
import jax.numpy as jnp
import pytest

import lstm_jax
from lstm_jax.cells._base import UserCell, as_base_cell
from lstm_jax.unrolling.fused_scan import not_affine_reason

NETWORKS = {case.name: case.build(param_dtype="float32") for case in cell_cases.BY_NAME.values()} | {
    "several wrappers": lstm_jax.Zoneout(
        lstm_jax.WeightDrop(lstm_jax.VariationalDropout(lstm_jax.GRU(3, 2), inputs=0.1), 0.2), rates=0.1
    ),
    "a stack of activations": lstm_jax.Stack(
        (lstm_jax.RNN(3, 2, activation=jax.nn.softplus), lstm_jax.IndRNN(2, 2, activation=jnp.sin))
    ),
}


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda a: pickle.loads(pickle.dumps(a))])
@pytest.mark.parametrize("which", NETWORKS)
def test_a_copy_is_equal(which, how):
    network = NETWORKS[which]
    copied = how(network)
    assert copied == network and hash(copied) == hash(network) and repr(copied) == repr(network)
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.tree.structure(how(params)) == jax.tree.structure(params)


def test_a_pickle_from_another_process_is_equal():
    program = (
        "import pickle, sys, jax, jax.numpy as jnp, lstm_jax\n"
        "cells = pickle.load(sys.stdin.buffer)\n"
        "assert cells == [lstm_jax.RNN(3, 2), lstm_jax.LSTMVariant(3, 2, activation=jax.nn.relu)], cells\n"
        "sys.stdout.buffer.write(pickle.dumps(cells))\n"
    )
    cells = [lstm_jax.RNN(3, 2), lstm_jax.LSTMVariant(3, 2, activation=jax.nn.relu)]
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(cells), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert pickle.loads(done.stdout) == cells


def is_probed(cell):
    """Whether only the attributes tested below decide if the fused scan runs the cell."""
    return cell.splits and not (cell.affine_recurrence and cell.fused_unsupported())


CELLS = {name: network for name, network in NETWORKS.items() if is_probed(as_base_cell(network))}


def one_step_of(cell):
    """Shapes of parameters, carry and projected input."""
    params = jax.eval_shape(cell.init, jax.random.key(0))
    event = getattr(cell, "input_shape", None) or (cell.input_size,)
    x = jax.ShapeDtypeStruct((2, *event), "float32")
    carry = jax.eval_shape(lambda params: cell.initial_carry((2,), params), params)
    return params, carry, jax.eval_shape(cell.project, params, x)


@pytest.mark.parametrize("which", CELLS)
def test_the_attributes_of_built_in_cells_agree_with_their_programs(which):
    cell = as_base_cell(CELLS[which])
    params, carry, u = one_step_of(cell)
    reason = not_affine_reason(cell, params, carry, u)
    if cell.affine_recurrence is not None:
        assert cell.affine_recurrence == (reason is None), reason
    recur = jax.make_jaxpr(cell.recur)(params, carry, u).jaxpr
    first = len(jax.tree.leaves(params))
    states = set(map(id, recur.invars[first : first + len(jax.tree.leaves(carry))]))
    read = {id(v) for equation in recur.eqns for v in equation.invars}
    if not isinstance(cell, UserCell):
        assert cell.recur_reads_carry == bool(states & read)
    if cell.update_reads_params is False:
        z = jax.eval_shape(cell.recur, params, carry, u)

        def after(params, carry, z):
            return cell.emit(params, cell.update(params, carry, z))

        program = jax.make_jaxpr(after)(params, carry, z)
        read = set(map(id, program.jaxpr.invars[: len(jax.tree.leaves(params))]))
        used = {id(v) for equation in program.jaxpr.eqns for v in equation.invars}
        assert not read & (used | set(map(id, program.jaxpr.outvars)))
    if cell.linear_recurrence:
        shapes = jax.eval_shape(
            cell.coefficients, params, jax.ShapeDtypeStruct((2, cell.input_size), "float32")
        )
        assert {a.shape for a in shapes} == {carry.shape}

"""``jax.export`` of ``unroll`` with symbolic T and B: one program for all sizes."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow
from jax import export

import lstm_jax
from lstm_jax import GRU, LSTM, MLSTM, RNN, SLSTM, Bidirectional, GRUVariant, Stack

D, H = 3, 2
NETWORKS = {
    "lstm": LSTM(D, H),
    "gru": GRU(D, H),
    "gru_reset_before": GRUVariant(D, H, reset_after=False),
    "bidirectional": Bidirectional(LSTM(D, H)),
    "stack": Stack((LSTM(D, 4), RNN(4, H))),
    "slstm": SLSTM(D, 4, heads=2),
    "mlstm": MLSTM(D, 4, heads=2),
}
SIZES = [(5, 2), (19, 3)]


def unrolled(network, options):
    def run(params, xs, lengths):
        return lstm_jax.unroll(network, params, xs, lengths=lengths, **options)

    return run


def exported(network, options, *, vjp_order=0):
    """A serialised program."""
    scope = export.SymbolicScope()
    xs = jax.ShapeDtypeStruct(export.symbolic_shape(f"T, B, {D}", scope=scope), jnp.float32)
    lengths = jax.ShapeDtypeStruct(export.symbolic_shape("B", scope=scope), jnp.int32)
    params = jax.eval_shape(network.init, jax.random.key(0))
    # A tuple of leaves, because a file refers to NamedTuples by name.
    leaves, structure = jax.tree.flatten(params)

    def run(leaves, xs, lengths):
        return unrolled(network, options)(jax.tree.unflatten(structure, leaves), xs, lengths)

    return export.export(jax.jit(run))(tuple(leaves), xs, lengths).serialize(vjp_order=vjp_order)


def problem(network, steps, rows):
    rng = np.random.default_rng(steps)
    xs = jnp.asarray(rng.normal(size=(steps, rows, D)), jnp.float32)
    return network.init(jax.random.key(1)), xs, jnp.asarray(rng.integers(0, steps + 1, rows), jnp.int32)


def assert_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        slow("lstm", {"reverse": True, "checkpoint": 8, "return_carries": True}),
        ("lstm", {"implementation": "scan", "checkpoint": 8}),
        ("gru", {"checkpoint": 8}),
        slow("gru_reset_before", {"reverse": True}),
        slow("bidirectional", {"reverse": True, "checkpoint": 8}),
        slow("stack", {"truncate": 3}),
        slow("stack", {"reverse": True, "checkpoint": 8}),
        slow("slstm", {"checkpoint": 8}),
        slow("mlstm", {"checkpoint": 8}),
    ],
    ids=str,
)
def test_one_program_for_all_sizes(name, options):
    network = NETWORKS[name]
    program = export.deserialize(bytearray(exported(network, options)))
    for steps, rows in SIZES:
        params, xs, lengths = problem(network, steps, rows)
        found = program.call(tuple(jax.tree.leaves(params)), xs, lengths)
        assert_close(found, unrolled(network, options)(params, xs, lengths))


def test_masks_and_resets_with_symbolic_sizes():
    cell = NETWORKS["lstm"]
    params = cell.init(jax.random.key(1))
    scope = export.SymbolicScope()
    xs = jax.ShapeDtypeStruct(export.symbolic_shape(f"T, B, {D}", scope=scope), jnp.float32)
    flags = jax.ShapeDtypeStruct(export.symbolic_shape("T, B", scope=scope), jnp.bool_)

    def run(xs, mask, resets):
        return lstm_jax.unroll(cell, params, xs, mask=mask, resets=resets, reverse=True)

    program = export.export(jax.jit(run))(xs, flags, flags)
    rng = np.random.default_rng(0)
    for steps, rows in SIZES:
        xs = jnp.asarray(rng.normal(size=(steps, rows, D)), jnp.float32)
        mask, resets = (jnp.asarray(rng.random((steps, rows)) < rate) for rate in (0.8, 0.3))
        assert_close(program.call(xs, mask, resets), run(xs, mask, resets))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("lstm", {"checkpoint": 8}), ("gru", {}), ("bidirectional", {"reverse": True})],
    ids=str,
)
def test_an_exported_program_with_its_gradient(name, options):
    network = NETWORKS[name]
    program = export.deserialize(bytearray(exported(network, options, vjp_order=1)))

    def loss(run, params, xs, lengths):
        return sum(jnp.sum(a**2) for a in jax.tree.leaves(run(params, xs, lengths)))

    for steps, rows in SIZES:
        params, xs, lengths = problem(network, steps, rows)
        found = jax.grad(partial(loss, program.call))(tuple(jax.tree.leaves(params)), xs, lengths)
        expected = jax.grad(partial(loss, unrolled(network, options)))(params, xs, lengths)
        assert_close(found, tuple(jax.tree.leaves(expected)))


def test_checkpoint_sqrt_with_symbolic_steps_raises():
    with pytest.raises(ValueError, match=r"checkpoint='sqrt'.*Give a window length instead"):
        exported(NETWORKS["lstm"], {"checkpoint": "sqrt"})


def test_another_process_runs_the_program_without_this_library(tmp_path):
    """One file for two sizes."""
    network = NETWORKS["stack"]
    (tmp_path / "program").write_bytes(exported(network, {"reverse": True, "checkpoint": 8}))
    problems = [problem(network, *size) for size in SIZES]
    for index, (params, xs, lengths) in enumerate(problems):
        np.savez(tmp_path / f"in_{index}.npz", *map(np.asarray, [*jax.tree.leaves(params), xs, lengths]))
    script = """
import sys
import numpy as np
from jax import export, tree
with open("program", "rb") as file:
    program = export.deserialize(bytearray(file.read()))
for index in range(2):
    *params, xs, lengths = np.load(f"in_{index}.npz").values()
    np.savez(f"out_{index}.npz", *tree.leaves(program.call(tuple(params), xs, lengths)))
assert "lstm_jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    for index, (params, xs, lengths) in enumerate(problems):
        expected = unrolled(network, {"reverse": True, "checkpoint": 8})(params, xs, lengths)
        found = list(np.load(tmp_path / f"out_{index}.npz").values())
        assert_close(found, jax.tree.leaves(expected))

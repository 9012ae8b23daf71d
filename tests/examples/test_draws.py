"""The programs draw the same random numbers with and without ``jax_enable_x64``."""

import _memory_problems as memory_problems
import _t_maze as t_maze
import _word_model as word_model
import jax
import jax.numpy as jnp
import pytest
from helpers import assert_x64_changes_nothing


@pytest.mark.parametrize("name", memory_problems.PROBLEMS)
def test_sequences_of_the_memory_problems(name):
    assert_x64_changes_nothing(lambda: memory_problems.PROBLEMS[name].draw(jax.random.key(0), 40, 8))


def test_word_model():
    model = word_model.Model(vocabulary=7, embedding=4, hidden=4, layers=1)
    assert_x64_changes_nothing(lambda: model.init_params(jax.random.key(0)))
    ones = jnp.ones((40, 8), jnp.float32)
    assert_x64_changes_nothing(lambda: word_model.drop(jax.random.key(0), 0.3, ones, ones.shape))


def test_mazes():
    begin = jax.vmap(t_maze.TMaze(3).begin)
    assert_x64_changes_nothing(lambda: begin(jax.random.split(jax.random.key(0), 64)))

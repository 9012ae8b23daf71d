"""The T-maze of Bakker (2002): the cue at the start of a corridor is the correct turn at its end.

::

    cue                                 left
     |                                   |
    [0]---[1]---[2]---  ...  ---[n-1]---[n]     n steps of corridor, then the junction
                                         |
                                       right

At the first place the agent observes the cue, left or right. Elsewhere it observes only whether it is in the
corridor or at the junction. Turning into the cue's arm is a success and has reward 1. The wrong arm or a
step into a wall has reward -0.1. (In Bakker's maze the agent can also step back, and a success has reward 4.)

The upper bound for a policy without memory: at the junction it turns left with a probability q that does not
depend on the cue, because its observation does not. Let a and b be the probabilities that it reaches the
junction and turns, after a left cue and after a right cue. With both cues equally probable, it succeeds with
probability (a q + b (1 - q)) / 2, which is at most 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

LEFT, RIGHT, FORWARD = 0, 1, 2  # the actions; the first two are also the cues
CORRIDOR, JUNCTION = 2, 3  # the observations besides the two cues
ACTIONS, FEATURES = 3, 4
MISTAKE = -0.1

Array = jax.Array


class Maze(NamedTuple):
    """The state of one maze, or of one maze per row if the arrays have an axis. All arrays are int32."""

    cue: Array
    place: Array  # 0 at the start, `length` at the junction
    age: Array  # steps since the start of the episode


@dataclass(frozen=True)
class TMaze:
    """The rules for one maze. Use ``jax.vmap`` for several.

    Args:
        length: steps from the start to the junction.

    >>> rules = TMaze(length=2)
    >>> maze = rules.begin(jax.random.key(0))
    >>> for action in (FORWARD, FORWARD, maze.cue):
    ...     maze, reward, ended, success = rules.step(jax.random.key(1), maze, action)
    >>> float(reward), bool(ended), bool(success), int(maze.age)  # a new episode has started
    (1.0, True, True, 0)
    """

    length: int

    @property
    def limit(self) -> int:
        """The maximum number of steps of an episode: four times the minimum of a successful one."""
        return 4 * (self.length + 1)

    def begin(self, key: Array) -> Maze:
        """A new episode."""
        return Maze(jax.random.bernoulli(key, jnp.float32(0.5)).astype(jnp.int32), jnp.int32(0), jnp.int32(0))

    def observe(self, maze: Maze) -> Array:
        """The observation, one-hot (4,): left cue, right cue, corridor or junction."""
        ahead = jnp.where(maze.place == self.length, JUNCTION, CORRIDOR)
        return jax.nn.one_hot(jnp.where(maze.place == 0, maze.cue, ahead), FEATURES, dtype=jnp.float32)

    def step(self, key: Array, maze: Maze, action: Array | int) -> tuple[Maze, Array, Array, Array]:
        """``(maze, reward, ended, success)``. If the episode ended, the maze is that of a new episode."""
        at_junction = maze.place == self.length
        turned = at_junction & (action != FORWARD)
        success = turned & (action == maze.cue)
        moved = ~at_junction & (action == FORWARD)
        reward = jnp.where(success, 1.0, jnp.where(moved, 0.0, MISTAKE))
        after = Maze(maze.cue, maze.place + moved, maze.age + 1)
        ended = turned | (after.age == self.limit)
        after = jax.tree.map(lambda new, old: jnp.where(ended, new, old), self.begin(key), after)
        return after, reward, ended, success

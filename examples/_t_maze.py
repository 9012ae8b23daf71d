"""The T-maze of Bakker (2002): what was seen at the start tells which way to turn at the end.

::

    cue                                 left
     |                                   |
    [0]---[1]---[2]---  ...  ---[n-1]---[n]     n steps of corridor, then the junction
                                         |
                                       right

At its first place the agent sees the cue, left or right; in the corridor and at the junction it sees only
where it is. Turning into the cue's arm is the one success; a wrong arm, or a step into a wall, costs 0.1.
(Bakker's maze also lets the agent walk back, and pays 4 for a success.)

What a policy without memory can reach: at the junction it turns left with the same probability q whatever
the cue was, because it sees the same. Let a and b be the probabilities that it gets there and turns after a
left and a right cue. With both cues equally likely it succeeds with probability (a q + b (1 - q)) / 2, which
is at most 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

LEFT, RIGHT, FORWARD = 0, 1, 2  # the actions; the first two are also the cues
CORRIDOR, JUNCTION = 2, 3  # what is seen, beside the two cues
ACTIONS, FEATURES = 3, 4
MISTAKE = -0.1

Array = jax.Array


class Maze(NamedTuple):
    """One maze, or one in each row where the arrays have an axis; all of them int32."""

    cue: Array
    place: Array  # 0 is the start, `length` the junction
    age: Array  # steps since the episode began; 0 marks its first


@dataclass(frozen=True)
class TMaze:
    """The rules, for one maze: ``jax.vmap`` makes them those of many.

    Args:
        length: steps from the start to the junction.

    >>> rules = TMaze(length=2)
    >>> maze = rules.begin(jax.random.key(0))
    >>> for action in (FORWARD, FORWARD, maze.cue):
    ...     maze, reward, ended, success = rules.step(jax.random.key(1), maze, action)
    >>> float(reward), bool(ended), bool(success), int(maze.age)  # and a new episode has begun
    (1.0, True, True, 0)
    """

    length: int

    @property
    def limit(self) -> int:
        """An episode of that many steps ends without success: four times what the way takes."""
        return 4 * (self.length + 1)

    def begin(self, key: Array) -> Maze:
        """A new episode."""
        return Maze(jax.random.bernoulli(key).astype(jnp.int32), jnp.int32(0), jnp.int32(0))

    def observe(self, maze: Maze) -> Array:
        """What is seen, (4,): a one at left cue, right cue, corridor or junction."""
        ahead = jnp.where(maze.place == self.length, JUNCTION, CORRIDOR)
        return jax.nn.one_hot(jnp.where(maze.place == 0, maze.cue, ahead), FEATURES)

    def step(self, key: Array, maze: Maze, action: Array | int) -> tuple[Maze, Array, Array, Array]:
        """``(maze, reward, ended, success)``; where the episode ended, the maze is a new one."""
        at_junction = maze.place == self.length
        turned = at_junction & (action != FORWARD)
        success = turned & (action == maze.cue)
        moved = ~at_junction & (action == FORWARD)
        reward = jnp.where(success, 1.0, jnp.where(moved, 0.0, MISTAKE))
        after = Maze(maze.cue, maze.place + moved, maze.age + 1)
        ended = turned | (after.age == self.limit)
        after = jax.tree.map(lambda new, old: jnp.where(ended, new, old), self.begin(key), after)
        return after, reward, ended, success

"""Base class for cells that wrap a cell; it delegates everything to the wrapped cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_member, is_number, value_error
from lstm_jax._types import Array, Carry, Params, exportable
from lstm_jax.cells._base import event_ndim


@exportable
class Masked(NamedTuple):
    """Parameters for one sequence: those of the cell inside, and the wrapper's masks for all its steps."""

    params: Params
    masks: Any


class Noise(NamedTuple):
    """The noise of one step: the wrapper's own, and that of the cell inside."""

    own: Any
    inner: Any


NO_NOISE = Noise(None, None)


class delegated:
    """A method that a wrapper has only where the cell inside has it too."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method, self.__doc__ = method, method.__doc__

    def __get__(self, wrapper: Any, kind: Any = None) -> Any:
        if wrapper is None:
            return self.method
        getattr(wrapper.cell, self.method.__name__)  # raises the AttributeError that hasattr waits for
        return MethodType(self.method, wrapper)


class Wrapper:
    """A cell that wraps a cell. Its parameters and its carry are those of the wrapped cell.

    A wrapper draws noise once per sequence (``sequence_noise``) or at every step (``step_noise``), and
    overrides the methods that use it.
    """

    cell: Any

    @property
    def input_size(self) -> Any:
        """D of the cell inside."""
        return self.cell.input_size

    @property
    def output_size(self) -> Any:
        """Features of one output."""
        return self.cell.output_size

    @property
    def input_shape(self) -> Any:
        """The shape of one input."""
        return self.cell.input_shape

    @property
    def output_shape(self) -> Any:
        """The shape of one output."""
        return self.cell.output_shape

    @property
    def event_ndim(self) -> int:
        """How many trailing axes of an input are features."""
        return event_ndim(self.cell)

    @property
    def takes_candidate(self) -> bool:
        """Whether ``update`` takes a factor for its candidate."""
        return getattr(self.cell, "takes_candidate", False)

    def declines(self) -> str | None:
        """The reason of the cell inside, if any."""
        declines = getattr(self.cell, "declines", None)
        return None if declines is None else declines()

    def init(self, key: Array) -> Params:
        """The parameters of the cell inside."""
        return self.cell.init(key)

    def initial_carry(self, batch_shape: Sequence[int] = (), params: Params | None = None) -> Carry:
        """The carry of the cell inside."""
        return self.cell.initial_carry(batch_shape, params)

    # --- noise ---

    def sequence_noise(self, key: Array, carry: Carry, x: Array) -> Any:
        """Masks for the whole of a sequence."""
        return None

    def step_noise(self, key: Array, carry: Carry) -> Any:
        """Masks for one step."""
        return None

    def perturb(self, params: Params, key: Array, carry: Carry, x: Array) -> Masked:
        """What is random once a sequence, here and in the cell inside."""
        k_own, k_inner = jax.random.split(key)
        if hasattr(self.cell, "perturb"):
            params = self.cell.perturb(params, k_inner, carry, x)
        return Masked(params, self.sequence_noise(k_own, carry, x))

    def draw(self, key: Array, carry: Carry) -> Noise:
        """What is random at each step, here and in the cell inside."""
        k_own, k_inner = jax.random.split(key)
        inner = self.cell.draw(k_inner, carry) if hasattr(self.cell, "draw") else None
        return Noise(self.step_noise(k_own, carry), inner)

    # --- the cell inside ---

    def step(self, params: Params, carry: Carry, x: Array, noise: Noise | None = None) -> tuple[Carry, Array]:
        """One step of the cell inside."""
        params, inner = split_masks(params)[0], (noise or NO_NOISE).inner
        more = () if inner is None else (inner,)
        return self.cell.step(params, carry, x, *more)

    @delegated
    def project(self, params: Params, x: Array) -> Any:
        """What needs no carry."""
        return self.cell.project(split_masks(params)[0], x)

    @delegated
    def recur(self, params: Params, carry: Carry, u: Any) -> Any:
        """The pre-activation."""
        return self.cell.recur(split_masks(params)[0], carry, u)

    @delegated
    def update(
        self,
        params: Params,
        carry: Carry,
        z: Any,
        noise: Noise | None = None,
        *,
        candidate: Array | None = None,
    ) -> tuple[Carry, Array]:
        """The new carry and the output; ``candidate`` is for the cell that has one."""
        inner = (noise or NO_NOISE).inner
        more = {} if inner is None else {"noise": inner}
        if candidate is not None:
            more["candidate"] = candidate
        return self.cell.update(split_masks(params)[0], carry, z, **more)

    @delegated
    def emit(self, params: Params, raw: Any) -> tuple[Carry, Array]:
        """What leaves the step."""
        return self.cell.emit(split_masks(params)[0], raw)

    def by_parts(self, params: Params, carry: Carry, x: Array, noise: Any) -> tuple[Carry, Array]:
        """``step`` out of the methods of a cell that splits."""
        raw = self.update(params, carry, self.recur(params, carry, self.project(params, x)), noise)
        return self.emit(params, raw) if hasattr(self, "emit") else raw


def split_masks(params: Params) -> tuple[Params, Any]:
    """The parameters of the cell inside, and the masks, None where none were drawn."""
    return params if isinstance(params, Masked) else (params, None)


def drop(mask: Array | None, a: Array, rate: float) -> Array:
    """What the mask leaves, divided by its share; ``a`` may have time before the mask's axes."""
    if mask is None:
        return a
    mask = mask.reshape((1,) * (a.ndim - mask.ndim) + mask.shape)
    return jnp.where(mask, a / jnp.asarray(1 - rate, a.dtype), jnp.zeros((), a.dtype))


def check_wrapped(owner: str, cell: Any) -> None:
    """A cell, not a network of cells."""
    check_member(owner, cell)
    if hasattr(cell, "compose"):
        raise value_error(
            f"{owner} got a {type(cell).__name__}", "a cell", "Wrap the cells of the network one by one."
        )


def check_rate(cell: Any, name: str) -> None:
    """A share that leaves something."""
    rate = getattr(cell, name)
    if not is_number(rate) or not 0 <= rate < 1:
        raise value_error(
            f"{type(cell).__name__} got {name}={rate!r}", "a share in [0, 1)", "0 switches it off."
        )
    object.__setattr__(cell, name, float(rate))

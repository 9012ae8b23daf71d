"""Base class for cells that wrap a cell; it delegates everything else to the wrapped cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_cell_methods, is_number, value_error
from lstm_jax._types import Array, Carry, Params, exportable
from lstm_jax.cells._base import BaseCell, Network, as_base_cell, compute_form


@exportable
class Masked(NamedTuple):
    """Parameters of the wrapped cell, and the wrapper's per-sequence masks."""

    params: Params
    masks: Any


class Noise(NamedTuple):
    """Per-step noise of the wrapper and of the wrapped cell."""

    own: Any
    inner: Any


NO_NOISE = Noise(None, None)


class Wrapper(BaseCell):
    """A cell that wraps a cell. Its parameters and its carry are those of the wrapped cell.

    A wrapper draws per-sequence noise (``draw_sequence``) or per-step noise (``draw_step``), and overrides
    the methods that use it.
    """

    cell: Any

    @property
    def inner(self) -> Any:
        """The wrapped cell as a ``BaseCell``."""
        return as_base_cell(self.cell)

    # --- attributes of the wrapped cell ---

    @property
    def input_size(self) -> Any:
        """Features of one input."""
        return getattr(self.inner, "input_size", None)

    @property
    def output_size(self) -> Any:
        """Features of one output."""
        return getattr(self.inner, "output_size", None)

    @property
    def input_shape(self) -> Any:
        """The shape of one input, if it is an image."""
        return getattr(self.inner, "input_shape", None)

    @property
    def output_shape(self) -> Any:
        """The shape of one output, if it is an image."""
        return getattr(self.inner, "output_shape", None)

    @property
    def event_ndim(self) -> int:  # type: ignore[override]
        """How many trailing axes of an input are features."""
        return self.inner.event_ndim

    @property
    def splits(self) -> bool:  # type: ignore[override]
        """Whether the wrapped cell splits."""
        return self.inner.splits

    @property
    def affine_recurrence(self) -> bool | None:  # type: ignore[override]
        """That of the wrapped cell."""
        return self.inner.affine_recurrence

    @property
    def recur_reads_carry(self) -> bool:  # type: ignore[override]
        """That of the wrapped cell."""
        return self.inner.recur_reads_carry

    @property
    def update_reads_params(self) -> bool | None:  # type: ignore[override]
        """That of the wrapped cell."""
        return self.inner.update_reads_params

    @property
    def emits(self) -> bool:  # type: ignore[override]
        """That of the wrapped cell."""
        return self.inner.emits

    @property
    def has_gates(self) -> bool:  # type: ignore[override]
        """Whether the wrapped cell has gates."""
        return self.inner.has_gates

    @property
    def scales_candidate(self) -> bool:  # type: ignore[override]
        """Whether ``update`` takes a factor for its candidate."""
        return self.inner.scales_candidate

    @property
    def sequence_noise(self) -> bool:  # type: ignore[override]
        """Whether the wrapper or the cell has per-sequence noise."""
        return self.draws_sequence or self.inner.sequence_noise

    @property
    def step_noise(self) -> bool:  # type: ignore[override]
        """Whether the wrapper or the cell has per-step noise."""
        return self.draws_step or self.inner.step_noise

    @property
    def optional_params(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the wrapped cell."""
        return self.inner.optional_params

    def fused_unsupported(self) -> str | None:
        """Why the fused scan cannot run the wrapped cell, or None."""
        return self.inner.fused_unsupported()

    def describe(self) -> str:
        """The wrapper and the wrapped cell, for ``explain``."""
        return f"{type(self).__name__}({self.inner.describe()})"

    def compute_form(self) -> Any:
        """The wrapper around the wrapped cell's compute form."""
        return dataclasses.replace(self, cell=compute_form(self.cell))  # type: ignore[type-var]

    def init(self, key: Array) -> Params:
        """The parameters of the wrapped cell."""
        return self.cell.init(key)

    def initial_carry(self, batch_shape: Sequence[int] = (), params: Params | None = None) -> Carry:
        """The carry of the wrapped cell."""
        return self.cell.initial_carry(batch_shape, params)

    # --- noise ---

    #: Whether ``draw_sequence`` and ``draw_step`` return noise.
    draws_sequence: bool = False
    draws_step: bool = False

    def draw_sequence(self, key: Array, carry: Carry, x: Array) -> Any:
        """Masks for a whole sequence."""
        return None

    def draw_step(self, key: Array, carry: Carry) -> Any:
        """Masks for one step."""
        return None

    def perturb(self, params: Params, key: Array, carry: Carry, x: Array) -> Masked:
        """Parameters with per-sequence noise of the wrapper and the wrapped cell."""
        k_own, k_inner = jax.random.split(key)
        params = self.inner.perturb(params, k_inner, carry, x)
        return Masked(params, self.draw_sequence(k_own, carry, x))

    def draw(self, key: Array, carry: Carry) -> Noise:
        """Per-step noise of the wrapper and the wrapped cell."""
        k_own, k_inner = jax.random.split(key)
        return Noise(self.draw_step(k_own, carry), self.inner.draw(k_inner, carry))

    # --- delegation ---

    def step(self, params: Params, carry: Carry, x: Array, noise: Noise | None = None) -> tuple[Carry, Array]:
        """One step of the wrapped cell."""
        return self.inner.step(split_masks(params)[0], carry, x, (noise or NO_NOISE).inner)

    def project(self, params: Params, x: Array) -> Any:
        """The projected input."""
        return self.inner.project(split_masks(params)[0], x)

    def recur(self, params: Params, carry: Carry, u: Any) -> Any:
        """The pre-activation."""
        return self.inner.recur(split_masks(params)[0], carry, u)

    def update(
        self,
        params: Params,
        carry: Carry,
        z: Any,
        noise: Noise | None = None,
        *,
        candidate_scale: Array | None = None,
    ) -> tuple[Carry, Array]:
        """The new carry and the output; ``candidate_scale`` requires ``scales_candidate``."""
        scale = {} if candidate_scale is None else {"candidate_scale": candidate_scale}
        return self.inner.update(split_masks(params)[0], carry, z, (noise or NO_NOISE).inner, **scale)

    def emit(self, params: Params, raw: Any) -> tuple[Carry, Array]:
        """The new carry and the output from the result of ``update``."""
        return self.inner.emit(split_masks(params)[0], raw)

    def gates(self, params: Params, carry: Carry, x: Array) -> Any:
        """The gates of the wrapped cell."""
        return self.inner.gates(split_masks(params)[0], carry, x)

    def preactivations(self, params: Params, carry: Carry, x: Array) -> Any:
        """The pre-activations of the wrapped cell's gates."""
        return self.inner.preactivations(split_masks(params)[0], carry, x)

    def step_by_parts(self, params: Params, carry: Carry, x: Array, noise: Any) -> tuple[Carry, Array]:
        """``step`` as the composition of ``project``, ``recur``, ``update`` and ``emit``."""
        raw = self.update(params, carry, self.recur(params, carry, self.project(params, x)), noise)
        return self.emit(params, raw)


def split_masks(params: Params) -> tuple[Params, Any]:
    """The parameters of the wrapped cell and the per-sequence masks, or None."""
    return params if isinstance(params, Masked) else (params, None)


def drop(mask: Array | None, a: Array, rate: float) -> Array:
    """``a / (1 - rate)`` where the mask is True, else 0; ``a`` may have more leading axes than the mask."""
    if mask is None:
        return a
    mask = mask.reshape((1,) * (a.ndim - mask.ndim) + mask.shape)
    return jnp.where(mask, a / jnp.asarray(1 - rate, a.dtype), jnp.zeros((), a.dtype))


def check_wrapped(owner: str, cell: Any) -> None:
    """Check for a cell that is not a network."""
    check_cell_methods(owner, cell)
    if isinstance(cell, Network):
        raise value_error(f"{owner} got a {type(cell).__name__}", "a cell", "Wrap each cell of the network.")


def check_rate(cell: Any, name: str) -> None:
    """Check for a rate in [0, 1), and convert it to a Python float."""
    rate = getattr(cell, name)
    if not is_number(rate) or not 0 <= rate < 1:
        raise value_error(
            f"{type(cell).__name__} got {name}={rate!r}", "a rate in [0, 1)", "Use 0 for no dropout."
        )
    object.__setattr__(cell, name, float(rate))

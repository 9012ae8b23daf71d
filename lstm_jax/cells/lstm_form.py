"""The forms an LSTM comes in: which gates there are, what is clipped, what is normalised."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_choice, check_float, is_number, value_error
from lstm_jax._types import Array, exportable
from lstm_jax.cells import _checks, _linear

#: What Greff et al. (2017) take away, and the gate that then has no weights.
ABLATIONS: dict[str, str] = {
    "no_input_gate": "i",
    "no_forget_gate": "f",
    "no_output_gate": "o",
    "no_input_activation": "",
    "no_output_activation": "",
}

#: Two published definitions of a layer-normalised LSTM, and the constants in their square roots.
LAYER_NORMS: dict[str, float] = {"tfa": 1e-3, "haste": 1e-5}


@exportable
class LSTMNorm(NamedTuple):
    """What layer normalisation learns."""

    x: Array  # (4H,) scale of x W
    h: Array  # (4H,) scale of h R
    c: Array  # (H,) scale of c
    c_offset: Array  # (H,) added to the normalised c


class LSTMForm(NamedTuple):
    """The options of an LSTM that no parameter shows; all of them off is the LSTM itself."""

    coupled: bool = False
    ablation: str | None = None
    clip: float | None = None
    cell_clip: float | None = None
    layer_norm: str | None = None

    @property
    def gates(self) -> str:
        """The gates that have weights, in their order."""
        absent = "f" if self.coupled else ""
        absent += ABLATIONS.get(self.ablation or "", "")
        return "".join(gate for gate in "ifgo" if gate not in absent)

    @property
    def looking(self) -> str:
        """The gates that have peepholes, where there are any."""
        return self.gates.replace("g", "")


def checked(owner: str, form: LSTMForm) -> LSTMForm:
    """The form, its thresholds as Python floats; refused where its options contradict each other."""
    if form.ablation is not None:
        check_choice(owner, "ablation", form.ablation, tuple(ABLATIONS))
    if form.layer_norm is not None:
        check_choice(owner, "layer_norm", form.layer_norm, tuple(LAYER_NORMS))
    if form.coupled and form.ablation in ("no_input_gate", "no_forget_gate"):
        raise value_error(
            f"{owner} got coupled=True with ablation={form.ablation!r}",
            "one of the two: coupled gates are one gate, f = 1 - i, so that neither can be left out",
            "Use coupled=False.",
        )
    return form._replace(
        clip=_limit(owner, "clip", form.clip), cell_clip=_limit(owner, "cell_clip", form.cell_clip)
    )


def _limit(owner: str, name: str, limit: Any) -> float | None:
    if limit is None:
        return None
    if not is_number(limit) or not limit > 0:
        raise value_error(f"{owner} got {name}={limit!r}", "a positive number", "None switches it off.")
    return float(limit)


class Inside(NamedTuple):
    """All that one step computes."""

    h: Array
    c: Array
    i: Array
    f: Array
    g: Array
    o: Array


def inside(form: LSTMForm, params: Any, c: Array, z: Array, candidate: Array | None = None) -> Inside:
    """One step in any form, from its pre-activations z: (..., len(form.gates)*H).

    A gate that was taken away is open: 1. ``candidate`` multiplies g.
    """
    own = dict(zip(form.gates, jnp.split(z, len(form.gates), axis=-1), strict=True))
    looks = {}
    if params.peepholes is not None:
        parts = jnp.split(params.peepholes.astype(z.dtype), len(form.looking))
        looks = dict(zip(form.looking, parts, strict=True))

    def gate(name: str, seen: Array) -> Array:
        if name not in own:
            return jnp.ones_like(c)
        look = _linear.expand_rank(looks[name], c) * seen if looks else 0
        return _linear.sigmoid(clipped(own[name] + look, form.clip))

    i = gate("i", c)
    f = 1 - i if form.coupled else gate("f", c)
    g = clipped(own["g"], form.clip)
    if form.ablation != "no_input_activation":
        g = jnp.tanh(g)
    if candidate is not None:
        g = g * candidate.astype(g.dtype)
    c_t = f * c + i * g
    if form.layer_norm == "tfa":
        c_t = normalised(form, params.norm, c_t)
    c_t = clipped(c_t, form.cell_clip)
    o = gate("o", c_t)
    shown = normalised(form, params.norm, c_t) if form.layer_norm == "haste" else c_t
    if form.ablation != "no_output_activation":
        shown = jnp.tanh(shown)
    return Inside(o * shown, c_t, i, f, g, o)


def normalised(form: LSTMForm, norm: LSTMNorm, c: Array) -> Array:
    """The cell state, layer-normalised."""
    normal = _linear.layer_norm(c, norm.c, LAYER_NORMS[form.layer_norm or ""])
    return normal + _linear.expand_rank(norm.c_offset.astype(normal.dtype), normal)


def clipped(z: Array, limit: float | None) -> Array:
    """z, held in [-limit, limit]."""
    return z if limit is None else jnp.clip(z, -limit, limit)


# --- checks, from shapes alone ------------------------------------------------------------------


def check_step(owner: str, params: Any, form: LSTMForm, carry: Any, x: Any) -> None:
    """The arguments of a free function fit each other."""
    _checks.check_fields(owner, params)
    heads, P, columns = _linear.blocks_of(params.w_hh)
    H = P if getattr(params, "w_hr", None) is None else columns // len(form.gates)
    sizes = _linear.first_axis(params.w_ih), H
    _checks.check_weights(owner, params, len(form.gates), sizes, _linear.blocks(heads, P))
    wants = {"peepholes": None, "w_hr": None, "norm": form.layer_norm is not None}
    check_options(owner, params, form, wants, H, P)
    _checks.check_input(owner, x, sizes[0])
    _checks.check_carry(owner, "h, c", carry, x, (P, H))


def check_options(owner: str, params: Any, form: LSTMForm, wants: Any, H: int, P: int) -> None:
    """The optional fields are there where they are wanted (None: either way), in their shapes."""
    gates = len(form.gates) * H
    shapes: dict[str, list[tuple[int, ...]]] = {
        "peepholes": [(len(form.looking) * H,)],
        "w_hr": [(H, P)],
        "norm": [(gates,), (gates,), (H,), (H,)],  # in the order of LSTMNorm
    }
    for name, wanted in wants.items():
        given = getattr(params, name, None)
        if wanted is not None and (given is not None) != wanted:
            raise value_error(
                f"{owner} got {'no ' if wanted else ''}params.{name}",
                f"{name} exactly where the options ask for it"
                + (": layer_norm='tfa' or 'haste'" if name == "norm" else ""),
                "Make parameters with the init of a cell that has these options.",
            )
        if given is None:
            continue
        for part, shape in zip(jax.tree.leaves(given), shapes[name], strict=True):
            check_float(owner, name, part)
            if tuple(part.shape) != shape:
                raise value_error(
                    f"{owner} got params.{name} of shape {tuple(part.shape)}",
                    f"shape {shape} (H={H}" + (f", P={P})" if name == "w_hr" else ")"),
                    "Make parameters with cell.init(key).",
                )

"""What another library can hold of ours: options that it lacks are refused, never dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax

from lstm_jax._errors import value_error
from lstm_jax.interop._entries import Entries
from lstm_jax.regularizers._wrapper import Wrapper

#: Hyperparameters that say how a cell begins or computes, not what its weights mean.
FREE = ("forget_bias", "dtype", "param_dtype")


def check_options(owner: str, cell: Any, target: str, allowed: Sequence[str] = ()) -> None:
    """Refuse a cell or network with an option that ``target`` lacks, naming all such options.

    An option is a field whose value is not its default. Initialisers, dtypes and ``forget_bias`` do not
    count, for they do not change what the weights mean.

    Args:
        owner: the function that speaks.
        cell: a cell or a network, any dataclass.
        target: what it is written for, for instance ``"torch.nn.LSTM"``.
        allowed: the fields that ``target`` does have.

    Raises:
        ValueError: an option that is not allowed is set.

    >>> from lstm_jax import LSTMVariant
    >>> check_options("to_torch", LSTMVariant(3, 4, proj_size=2), "torch.nn.LSTM", allowed=("proj_size",))
    >>> check_options("to_keras", LSTMVariant(3, 4, proj_size=2, peepholes=True), "keras.layers.LSTM")
    Traceback (most recent call last):
    ...
    ValueError: to_keras got LSTMVariant(proj_size=2, peepholes=True); expected the plain LSTM, because ...
    """
    told = [
        f"{field.name}={getattr(cell, field.name)!r}"
        for field in dataclasses.fields(cell)
        if _default(field) is not dataclasses.MISSING
        and field.name not in (*FREE, *allowed)
        and not field.name.endswith("_init")
        and getattr(cell, field.name) != _default(field)
    ]
    if told:
        kind = type(cell).__name__
        raise value_error(
            f"{owner} got {kind}({', '.join(told)})",
            f"the plain {kind.removesuffix('Variant')}, because {target} has no such option",
            "Train without, or keep the cell here: its weights would mean something else there.",
        )


def unknown_kind(owner: str, network: Any, target: str, kinds: Sequence[str]) -> NoReturn:
    """Refuse a network of a kind that ``target`` has none of.

    >>> from lstm_jax import SLSTM
    >>> unknown_kind("to_torch", SLSTM(3, 4), "torch", ("LSTM", "GRU", "RNN"))
    Traceback (most recent call last):
    ...
    ValueError: to_torch got SLSTM; expected one of LSTM, GRU, RNN: torch has no other. ...
    """
    hint = "Keep the cell here."
    if isinstance(network, Wrapper):
        hint = "A regulariser's noise stays here: give the cell inside (its .cell), with the same parameters."
    raise value_error(
        f"{owner} got {type(network).__name__}", f"one of {', '.join(kinds)}: {target} has no other", hint
    )


def fields_of(owner: str, cell: Any, params: Any, optional: Sequence[str] = ()) -> dict[str, Any]:
    """The arrays of ``params`` by their fields, once they fit ``cell``; what is None is left out.

    Args:
        owner: the function that speaks.
        cell: a cell whose parameters are a NamedTuple of arrays.
        params: its parameters.
        optional: fields that may be None though the cell would draw them.

    Raises:
        ValueError: an array is missing, unexpected or misshapen; all of them are listed.

    >>> from lstm_jax import RNN
    >>> cell = RNN(3, 2)
    >>> list(fields_of("to_torch", cell, cell.init(jax.random.key(0))))
    ['w_ih', 'w_hh', 'bias']
    """
    wanted = jax.eval_shape(cell.init, jax.random.key(0))
    if type(params) is not type(wanted):
        raise value_error(
            f"{owner} got parameters of type {type(params).__name__} for {type(cell).__name__}",
            type(wanted).__name__,
            "Give the parameters of this very cell.",
        )
    entries = Entries(owner, _present(params))
    found = {
        name: entries.take(name, shape.shape)
        for name, shape in _present(wanted).items()
        if name in entries or name not in optional
    }
    entries.done(f"Give the parameters of this very cell, {type(cell).__name__}.")
    return found


def _present(params: Any) -> Mapping[str, Any]:
    return {name: value for name, value in params._asdict().items() if value is not None}


def _default(field: dataclasses.Field[Any]) -> Any:
    return dataclasses.MISSING if field.default_factory is not dataclasses.MISSING else field.default

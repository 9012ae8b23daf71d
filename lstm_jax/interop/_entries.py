"""Named arrays of another library: reading and checking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import canonical_dtype, shorten, value_error
from lstm_jax._types import DType, is_float, promote

#: The deepest nesting of a mapping. A mapping that contains itself exceeds it.
MAX_DEPTH = 16


class Faults:
    """All errors in the weights given to one function, raised together."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._found: dict[str, list[str]] = {}

    def add(self, fault: str, entry: str) -> None:
        """Record one faulty entry."""
        self._found.setdefault(fault, []).append(shorten(entry, 120))

    def check(self, hint: str) -> None:
        """Raise one ``ValueError`` with all faults, if there are any."""
        if not self._found:
            return
        lines = []
        for fault, entries in self._found.items():
            more = f" and {len(entries) - 8} more" if len(entries) > 8 else ""
            lines.append(f"  {fault}: {shorten(', '.join(entries[:8]), 600 // len(self._found))}{more}")
        raise ValueError(
            "\n".join([f"{self.owner} got weights that do not fit.", *lines, shorten(hint, 230)])
        )


class Unreadable(NamedTuple):
    """An entry that is not an array."""

    reason: str
    shape: tuple[int, ...] = ()


class Entries:
    """The arrays of a (nested) mapping by full name. Each is taken once.

    Entries that are missing, of another shape or not arrays of floats become faults. So do, by
    :meth:`done`, entries that were never taken.

    Args:
        faults: collects the faults.
        weights: names to arrays, or to mappings of arrays.
        where: the beginning of the entries' names in messages, ``"layer 1/"``.

    >>> faults = Faults("from_torch")
    >>> entries = Entries(faults, {"weight": np.zeros((2, 3)), "scale": np.zeros(2)})
    >>> entries.take("weight", (3, 2)).shape
    (3, 2)
    >>> entries.take("bias", (2,)).shape
    (2,)
    >>> entries.done()
    >>> try:
    ...     faults.check("Pass the state_dict of one torch.nn.LSTM.")
    ... except ValueError as error:
    ...     print(error)
    from_torch got weights that do not fit.
      wrong shape: weight (2, 3), expected (3, 2)
      missing: bias (2,)
      unexpected: scale (2,)
    Pass the state_dict of one torch.nn.LSTM.
    """

    def __init__(self, faults: Faults, weights: Mapping[str, Any], where: str = "") -> None:
        self.faults, self.where = faults, where
        self._left = {
            name: read_array(value) for name, value in flatten_mapping(faults.owner, weights).items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self) -> list[str]:
        """The entries that were not taken yet."""
        return list(self._left)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an entry; () where it is missing."""
        return tuple(self._left[name].shape) if name in self._left else ()

    def text(self, name: str) -> str:
        """An entry for messages: its name and its shape, or why it is not an array."""
        array = self._left[name]
        found = array.reason if isinstance(array, Unreadable) else str(tuple(array.shape))
        return f"{shorten(name, 60)} {shorten(found, 150)}"

    def size(self, *axes: tuple[str, int]) -> int:
        """The most frequent size among the axes ``(name, axis)``; 0 if no entry has its axis.

        With several axes of one size, an entry of the wrong shape is reported itself.
        """
        shapes = [(self.shape(name), axis) for name, axis in axes]
        sizes = Counter(shape[axis] for shape, axis in shapes if -len(shape) <= axis < len(shape))
        return sizes.most_common(1)[0][0] if sizes else 0

    def take(self, name: str, shape: tuple[int, ...]) -> Any:
        """The array with this name. If it is missing or has another shape, record that and return zeros.

        A size of 0 is an unknown one, for which no entry was found.
        """
        if name not in self._left:
            self.faults.add("missing", f"{self.where}{name} {_shape_text(shape)}")
            return np.zeros(shape, np.float32)
        array = self._left.pop(name)
        if isinstance(array, Unreadable):
            self.faults.add("not an array of floats", f"{self.where}{name} {array.reason}")
        elif not is_float(array.dtype) or array.dtype.itemsize > 8:
            self.faults.add("not an array of floats", f"{self.where}{name} of dtype {array.dtype}")
        elif tuple(array.shape) == tuple(shape) and 0 not in shape:
            return array
        else:
            got = f"{self.where}{name} {tuple(array.shape)}"
            self.faults.add("wrong shape", f"{got}, expected {_shape_text(shape)}")
        return np.zeros(shape, np.float32)

    def done(self) -> None:
        """Report the entries that were not taken as unexpected."""
        for name in self._left:
            self.faults.add("unexpected", f"{self.where}{self.text(name)}")

    def unreadable(self, expected: str) -> None:
        """Report shapes from which the sizes of a cell cannot be read."""
        got = ", ".join(map(self.text, self.names()[:6])) or "no entries"
        self.faults.add("sizes cannot be read", f"{shorten(self.where + got, 250)}; expected {expected}")


def _shape_text(shape: Sequence[int]) -> str:
    sizes = ", ".join(str(size) if size else "?" for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


def flatten_mapping(owner: str, weights: Any, separator: str = "/") -> dict[str, Any]:
    """The values of a nested mapping by their full names.

    Raises:
        ValueError: not a mapping, nested too deep, or two values with one full name.

    >>> flatten_mapping("from_flax", {"dense": {"kernel": 1}, "bias": 2})
    {'dense/kernel': 1, 'bias': 2}
    """
    if not isinstance(weights, Mapping):
        raise value_error(
            f"{owner} got {type(weights).__name__}",
            "a mapping of names to arrays",
            "Pass the weights as a (nested) dict.",
        )
    flat: dict[str, Any] = {}

    def add(mapping: Mapping[Any, Any], prefix: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise value_error(
                f"{owner} got mappings nested deeper than {MAX_DEPTH}, at {prefix}",
                "names to arrays",
                "Pass the weights of one network.",
            )
        try:
            items = [(str(name), value) for name, value in mapping.items()]
        except Exception as error:  # the mapping or its keys may raise anything
            raise value_error(
                f"{owner} got a {type(mapping).__name__} whose entries cannot be read ({error!r})",
                "a mapping of names to arrays",
                "Pass a dict.",
            ) from error
        for name, value in items:
            if isinstance(value, Mapping):
                add(value, f"{prefix}{name}{separator}", depth + 1)
            elif f"{prefix}{name}" in flat:
                raise value_error(
                    f"{owner} got two entries named {prefix}{name}",
                    "one entry for each name",
                    f"Rename one of the two: nested names are joined with {separator!r}.",
                )
            else:
                flat[f"{prefix}{name}"] = value

    add(weights, "", 1)
    return flat


def read_array(value: Any) -> Any:
    """The value as a NumPy array, or the traced array itself; :class:`Unreadable` if it is not an array.

    NumPy keeps subnormal numbers, which XLA flushes to zero, and has nothing to compile.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, np.ma.MaskedArray):
        return Unreadable("with masked values", value.shape)
    try:
        array = np.asarray(_without_torch(value))
    except Exception as error:  # __array__ may raise anything
        return Unreadable(f"of type {type(value).__name__}, which NumPy cannot read ({error!r})")
    if array.dtype == object:
        return Unreadable(f"of type {type(value).__name__}")
    return array


def _without_torch(value: Any) -> Any:
    """A PyTorch tensor in a form that NumPy reads: detached, on the CPU, bfloat16 as float32."""
    if type(value).__module__.split(".")[0] != "torch":
        return value
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":
        return value.float().numpy().astype(jnp.bfloat16)
    return value.numpy()


class UnbuiltLayer(NamedTuple):
    """A layer whose arrays are read and checked. ``build`` makes the network and its parameters of them."""

    arrays: Any  # a tree of arrays
    build: Callable[..., tuple[Any, Any]]  # (arrays, dtype, input_shape) -> (network, params)


def build_layers(
    owner: str, layers: Iterable[UnbuiltLayer], dtype: DType | None, input_shape: Any = None
) -> tuple[list[Any], list[Any]]:
    """The networks and parameters of layers. All arrays are converted to one dtype first.

    Args:
        owner: the function to name in messages.
        layers: from the first to the last.
        dtype: of the parameters; None: the promoted dtype of all arrays.
        input_shape: of the first layer, where it is a convolution; the next reads the outputs of the first.
    """
    layers = list(layers)
    if not layers:
        raise value_error(f"{owner} got no layers", "one layer or more", "Pass the weights of a network.")
    dtype = common_dtype(owner, jax.tree.leaves([layer.arrays for layer in layers]), dtype)
    networks, params = [], []
    for layer in layers:
        arrays = jax.tree.map(lambda a: a.astype(dtype), layer.arrays)
        network, own = layer.build(arrays, dtype, input_shape)
        input_shape = getattr(network, "output_shape", None)
        networks.append(network)
        params.append(jax.tree.map(jnp.array, own))
    return networks, params


def common_dtype(owner: str, arrays: Iterable[Any], dtype: DType | None) -> np.dtype:
    """``dtype``, or the promoted dtype of the arrays."""
    found = promote(*(a.dtype for a in arrays)) if dtype is None else canonical_dtype(owner, "dtype", dtype)
    if found == np.float64 and not jax.config.read("jax_enable_x64"):
        raise value_error(
            f"{owner} got weights of float64" if dtype is None else f"{owner} got dtype=float64",
            "float32 or narrower, because jax_enable_x64 is off",
            'Pass dtype="float32" to round them, or switch it on: jax.config.update("jax_enable_x64", True).',
        )
    if found.itemsize > 8:
        raise value_error(
            f"{owner} got dtype={found}", "float64 or narrower", "JAX has no wider floating dtype."
        )
    return found

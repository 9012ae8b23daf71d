"""An HTML page that shows gates and states over a text."""

from __future__ import annotations

import html
import json
import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lstm_jax._errors import check_choice, listing, value_error
from lstm_jax._types import is_float
from lstm_jax.interop._writing import write_whole

_OWNER = "write_viewer"
_MAX_QUANTITIES = 3
#: Values of one quantity: their base64 text is one string, which Chromium limits to about 512 MiB.
_MAX_VALUES = 2**28
#: Codes 0 to 254 are equally spaced values from low to high, so that code 127 is the middle.
_LEVELS = 254
_NOT_FINITE = 255


def write_viewer(
    path: str | os.PathLike[str],
    tokens: Sequence[str],
    values: Mapping[str, Any],
    *,
    title: str = "Recurrent network",
    ranges: Mapping[str, tuple[float, float]] | None = None,
    features: Mapping[str, Any] | None = None,
) -> None:
    """Write an HTML page for exploring the gates and states of a recurrent network over a text.

    The page colours each token by the value of one unit and shows all units at the token under the pointer.
    It sorts units by variance, by their mean over a selected span, or by their correlation with a feature of
    the text. As LSTMVis does, it finds the units that are active over the whole selection, and other places
    where they are active together. The file contains everything that it needs and loads nothing from the
    network.

    Values are stored in 8 bits: as one of 255 equally spaced values of a range, or as a mark for NaN and
    infinity. The page shows the mark hatched and leaves it out of its statistics. The file has about 4/3
    bytes per value: 10 MB for 10,000 tokens, 256 units and three quantities.

    Args:
        path: the file to write, usually named ``*.html``. It is written whole or not at all.
        tokens: T strings, such as characters or words; a ``str`` stands for its characters. A token that
            contains a line feed ends a line. If some tokens are longer than one character and none contains a
            space, the page shows a space after each token.
        values: one to three arrays of shape (T, units) by name, such as "forget gate" and "cell state".
        title: the heading of the page.
        ranges: pairs (low, high) by name, which hold for all units; values beyond them are shown as the end
            of the range. By default, a quantity whose values are all in [0, 1] has that range. For any other,
            each unit has the range (-m, m), where m is its largest absolute value. Ranges that are symmetric
            about 0 are coloured from orange through a neutral colour to blue, other ranges from the neutral
            colour to blue.
        features: arrays of shape (T,) by name, in addition to those that the page computes from the tokens,
            such as the position in the line and whether a token is inside quotes. A feature with the same
            name replaces the computed one.

    Raises:
        ValueError: an argument has a wrong type, shape or range.

    Example:
        >>> import os, tempfile
        >>> import jax, jax.numpy as jnp, lstm_jax
        >>> cell = lstm_jax.LSTM(input_size=128, hidden_size=8)
        >>> params, text = cell.init(jax.random.key(0)), "a small text"
        >>> xs = jax.nn.one_hot(jnp.array(list(text.encode())), 128)
        >>> _, (_, (h, c)) = lstm_jax.unroll(cell, params, xs, return_carries=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "viewer.html")
        ...     write_viewer(path, text, {"hidden state": h, "cell state": c}, title="A new LSTM")
        ...     print(os.listdir(folder))
        ['viewer.html']

    References:
        Strobelt et al., LSTMVis: A Tool for Visual Analysis of Hidden State Dynamics in Recurrent Neural
        Networks, 2018.
        Karpathy, Johnson and Li, Visualizing and Understanding Recurrent Networks, 2015.
    """
    texts = _texts(tokens)
    arrays = _arrays(values, len(texts))
    limits = _given_ranges(ranges or {}, arrays)
    columns = _features(features or {}, len(texts))
    if not isinstance(title, str):
        raise value_error(f"{_OWNER} got title={title!r}", "a str", "Give the heading of the page.")

    quantities: list[dict[str, Any]] = []
    blocks: list[tuple[str, np.ndarray]] = []
    for name, array in arrays.items():
        low, high = _default_range(array)
        if name in limits:
            low, high = (np.full_like(low, limit) for limit in limits[name])
        codes, below, above = _encode(array, low, high)
        shared = name in limits or low[0] == 0
        quantities.append(
            {
                "name": name,
                "low": low.tolist(),
                "high": high.tolist(),
                "shared": bool(shared),
                "below": below,
                "above": above,
            }
        )
        blocks.append((f"values-{len(blocks)}", codes))
    blocks += [(f"feature-{k}", column) for k, column in enumerate(columns.values())]
    description = {
        "tokens": texts,
        "units": next(iter(arrays.values())).shape[1],
        "quantities": quantities,
        "features": list(columns),
    }
    folder = Path(__file__).parent
    parts = {
        "title": html.escape(title).encode("utf-8", "replace"),
        "style": (folder / "viewer.css").read_bytes(),
        "script": (folder / "viewer.js").read_bytes(),
        # In a script element, only "<" could end the element. ASCII also represents unpaired surrogates.
        "description": json.dumps(description).replace("<", "\\u003c").encode("ascii"),
        "data": b"\n".join(
            b'<script type="text/plain" id="%s">%s</script>' % (name.encode(), b64encode(block.tobytes()))
            for name, block in blocks
        ),
    }
    pieces = re.split(rb"<!-- insert (\w+) -->", (folder / "viewer.html").read_bytes())
    pieces[1::2] = [parts[name.decode()] for name in pieces[1::2]]
    write_whole(Path(path), b"".join(pieces))


def _texts(tokens: Any) -> list[str]:
    """The tokens as a list."""
    hint = "Decode the indices first, for instance [vocabulary[k] for k in indices]."
    expected = "a sequence of one or more strings"
    if not isinstance(tokens, (Sequence, np.ndarray)) or isinstance(tokens, (bytes, bytearray)):
        raise value_error(f"{_OWNER} got tokens of type {type(tokens).__name__}", expected, hint)
    texts = list(tokens)
    if not texts:
        raise value_error(f"{_OWNER} got no tokens", expected, "Give at least one token.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise value_error(f"{_OWNER} got tokens[{index}]={text!r}", expected, hint)
    return [str(text) for text in texts]  # NumPy's strings become Python's


def _arrays(values: Any, length: int) -> dict[str, np.ndarray]:
    """The quantities as NumPy arrays of one shape (length, units)."""
    if not isinstance(values, Mapping) or not 1 <= len(values) <= _MAX_QUANTITIES:
        got = f"{len(values)} quantities" if isinstance(values, Mapping) else f"type {type(values).__name__}"
        raise value_error(
            f"{_OWNER} got values of {got}",
            f"a dict of one to {_MAX_QUANTITIES} arrays by name",
            'Give for instance {"forget gate": gates.f, "cell state": c}.',
        )
    arrays = {}
    for name, value in values.items():
        _check_name("values", name)
        array = _numbers(f"values[{name!r}]", value)
        if array.ndim != 2 or len(array) != length or not array.shape[1]:
            raise value_error(
                f"{_OWNER} got values[{name!r}] of shape {array.shape} for {length} tokens",
                f"shape ({length}, units)",
                "Give the values after each token, of one row of the batch: a[:, row].",
            )
        if array.size > _MAX_VALUES:
            raise value_error(
                f"{_OWNER} got values[{name!r}] of shape {array.shape}",
                f"at most {_MAX_VALUES:,} values",
                "Give a part of the text or of the units.",
            )
        arrays[name] = array
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise value_error(
            f"{_OWNER} got values of shapes {listing(shapes.values())}",
            "the same units in each array",
            "Write one page for each layer.",
        )
    return arrays


def _features(features: Any, length: int) -> dict[str, np.ndarray]:
    """The caller's features as little-endian float32."""
    if not isinstance(features, Mapping):
        raise value_error(
            f"{_OWNER} got features of type {type(features).__name__}",
            "a dict of arrays by name",
            'Give for instance {"inside a comment": flags}.',
        )
    columns = {}
    for name, value in features.items():
        _check_name("features", name)
        column = _numbers(f"features[{name!r}]", value)
        if column.shape != (length,):
            raise value_error(
                f"{_OWNER} got features[{name!r}] of shape {column.shape}",
                f"shape ({length},)",
                "Give one number for each token.",
            )
        if not (np.abs(column) <= np.finfo(np.float32).max).all():
            raise value_error(
                f"{_OWNER} got features[{name!r}] with NaN, infinity or numbers beyond float32",
                "finite numbers",
                "Replace them, for instance with numpy.nan_to_num.",
            )
        columns[name] = column.astype("<f4")
    return columns


def _given_ranges(ranges: Any, arrays: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The caller's ranges as pairs of floats."""
    if not isinstance(ranges, Mapping):
        raise value_error(
            f"{_OWNER} got ranges of type {type(ranges).__name__}",
            "a dict of pairs by name",
            'Give for instance {"cell state": (-3, 3)}.',
        )
    limits = {}
    for name, pair in ranges.items():
        check_choice(_OWNER, "a name in ranges", name, list(arrays))
        try:
            low, high = map(float, pair)
        except (TypeError, ValueError):
            low = high = np.nan
        if not (np.isfinite(high - low) and low < high):
            raise value_error(
                f"{_OWNER} got ranges[{name!r}]={pair!r}",
                "two finite numbers, the lower one first",
                "Give for instance (-3.0, 3.0).",
            )
        limits[name] = (low, high)
    return limits


def _check_name(argument: str, name: Any) -> None:
    """A name that the page can show."""
    if not isinstance(name, str) or not name.strip():
        raise value_error(
            f"{_OWNER} got the name {name!r} in {argument}", "a str that is not empty", "Name each array."
        )


def _numbers(name: str, value: Any) -> np.ndarray:
    """A NumPy array of real numbers."""
    array = np.asarray(value)
    if not (is_float(array.dtype) or array.dtype.kind in "biu"):
        raise value_error(
            f"{_OWNER} got {name} of dtype {array.dtype}", "an array of real numbers", "Give floats."
        )
    return array if array.dtype == np.float64 else array.astype(np.float32)


def _default_range(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each unit: 0 and 1 if all finite values are between them, else -m and m with its largest one."""
    low, high = np.zeros(array.shape[1]), np.ones(array.shape[1])
    # Two reductions need less memory than the absolute values.
    least, most = (f(array, axis=0, initial=0, where=np.isfinite(array)) for f in (np.min, np.max))
    if least.min() < 0 or most.max() > 1:
        largest = np.maximum(most.astype(np.float64), -least.astype(np.float64))
        high = np.where(largest > 0, largest, 1.0)
        low = -high
    return low, high


def _encode(array: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, bool, bool]:
    """Codes of shape (units, T), and whether finite values lie below and above the range."""
    codes = np.empty(array.shape[::-1], np.uint8)
    below = above = False
    scale = _LEVELS / (high - low)
    step = 2**20 // array.shape[1] + 1  # bounds the memory of the intermediate arrays
    for start in range(0, len(array), step):
        part = array[start : start + step].astype(np.float64)
        finite = np.isfinite(part)
        part = np.where(finite, part, low)
        below |= bool((part < low).any())
        above |= bool((part > high).any())
        scaled = np.rint((np.clip(part, low, high) - low) * scale)
        codes[:, start : start + step] = np.where(finite, scaled, _NOT_FINITE).T
    return codes, below, above

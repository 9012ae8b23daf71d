"""The file that write_viewer writes: its text, its values, and errors."""

import json
from base64 import b64decode
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.plots import write_viewer


class Elements(HTMLParser):
    """The text of each script element by id, and of the title, as a browser reads them."""

    def __init__(self, page):
        super().__init__()
        self.texts = {}
        self.name = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        names = {"title": "title", "h1": "h1", "script": dict(attributes).get("id", "program")}
        self.name = names.get(tag)

    def handle_endtag(self, tag):
        self.name = None

    def handle_data(self, data):
        if self.name is not None:
            self.texts[self.name] = self.texts.get(self.name, "") + data


def read(path):
    """The description and the texts of the elements."""
    texts = Elements(path.read_text(encoding="utf-8")).texts
    return json.loads(texts["description"]), texts


def decoded(path, index=0):
    """The values of a quantity, (T, units), NaN where the page shows "not finite"."""
    description, texts = read(path)
    quantity = description["quantities"][index]
    codes = np.frombuffer(b64decode(texts[f"values-{index}"]), np.uint8).reshape(description["units"], -1).T
    low, high = np.array(quantity["low"]), np.array(quantity["high"])
    return np.where(codes == 255, np.nan, low + (high - low) * codes / 254), quantity


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_values_are_stored_within_half_a_step(tmp_path):
    path = tmp_path / "viewer.html"
    gate = np.random.default_rng(1).random((50, 7))
    state = normal(50, 7) * np.geomspace(0.01, 100, 7)
    write_viewer(path, "x" * 50, {"forget gate": gate, "cell state": state.astype(np.float32)})
    shown, quantity = decoded(path)
    assert (quantity["name"], quantity["low"], quantity["high"]) == ("forget gate", [0] * 7, [1] * 7)
    np.testing.assert_allclose(shown, gate, rtol=0, atol=0.5001 / 254)
    shown, quantity = decoded(path, 1)
    largest = np.abs(state.astype(np.float32)).max(0)
    assert quantity["high"] == largest.tolist() and quantity["low"] == (-largest).tolist()
    assert (np.abs(shown - state) <= 1.001 * largest / 254).all()
    assert not quantity["below"] and not quantity["above"]


def test_zero_has_a_code_of_its_own(tmp_path):
    """Unlike 256 levels, 255 levels have a middle."""
    path = tmp_path / "viewer.html"
    write_viewer(path, "abc", {"cell state": np.array([[0.0], [-0.3], [0.7]])})
    assert decoded(path)[0][0] == 0


def test_a_given_range_clips(tmp_path):
    path = tmp_path / "viewer.html"
    values = np.array([[-2.0, 0.0], [0.5, 3.0]])
    write_viewer(path, "ab", {"a": values, "b": values}, ranges={"a": (-1, 5)})
    shown, quantity = decoded(path)
    np.testing.assert_allclose(shown, np.clip(values, -1, 5), atol=3.001 / 254)
    assert quantity["shared"] and quantity["below"] and not quantity["above"]
    assert not decoded(path, 1)[1]["shared"]


def test_nan_and_infinity_are_marked_and_do_not_widen_the_range(tmp_path):
    path = tmp_path / "viewer.html"
    values = normal(40, 3)
    values[[3, 5, 7], 1] = np.nan, np.inf, -np.inf
    values[:, 2] = np.nan
    write_viewer(path, "x" * 40, {"cell state": values})
    shown, quantity = decoded(path)
    assert (np.isnan(shown) == ~np.isfinite(values)).all()
    finite = np.where(np.isfinite(values), values, 0)
    assert quantity["high"] == [*np.abs(finite).max(0)[:2], 1.0]
    np.testing.assert_allclose(np.nan_to_num(shown), finite, atol=1.001 * np.abs(finite).max() / 254)


HOSTILE = """</script> <script>alert(1)</script> <!-- --> ]]> &amp; " ' ` \\ 日本""".split()
HOSTILE += [
    "\n",
    "\t",
    " ",
    "",
    "\0",
    "\u2028",
    "\ud800",
    "e\u0301",
    "\N{GRINNING FACE}",
    "<!-- insert data -->",
]


def test_tokens_and_titles_of_any_text(tmp_path):
    path = tmp_path / "viewer.html"
    values = {"</script>&": normal(len(HOSTILE), 2)}
    write_viewer(path, HOSTILE, values, title="<b>&</title><!-- insert data -->\ud800")
    description, texts = read(path)
    assert description["tokens"] == HOSTILE
    assert description["quantities"][0]["name"] == "</script>&"
    assert texts["title"] == texts["h1"] == "<b>&</title><!-- insert data -->?"
    assert decoded(path)[0].shape == (len(HOSTILE), 2)


@pytest.mark.parametrize("tokens", ["abc", ["a", "b", "c"], np.array(["a", "b", "c"]), ("a", "b", "c")])
def test_sequences_of_strings(tmp_path, tokens):
    path = tmp_path / "viewer.html"
    write_viewer(path, tokens, {"h": np.zeros((3, 1))})
    assert read(path)[0]["tokens"] == ["a", "b", "c"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, bool])
def test_dtypes(tmp_path, dtype):
    path = tmp_path / "viewer.html"
    values = jnp.array([[0, 1], [1, 0]]).astype(dtype)
    write_viewer(path, "ab", {"gate": values})
    assert decoded(path)[0].tolist() == [[0, 1], [1, 0]]


def test_features_are_stored_as_float32(tmp_path):
    path = tmp_path / "viewer.html"
    features = {"depth": np.arange(5), "flag": np.arange(5) > 2, "score": normal(5)}
    write_viewer(path, "abcde", {"h": normal(5, 2)}, features=features)
    description, texts = read(path)
    assert description["features"] == list(features)
    for index, feature in enumerate(features.values()):
        stored = np.frombuffer(b64decode(texts[f"feature-{index}"]), "<f4")
        assert stored.tolist() == feature.astype(np.float32).tolist()


def test_the_file_is_small_enough(tmp_path):
    path = tmp_path / "viewer.html"
    value = np.zeros((10_000, 256), np.float32)
    write_viewer(path, "x" * 10_000, dict.fromkeys(["f", "c", "h"], value))
    assert path.stat().st_size < 12e6


H = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("tokens", "values", "options", "message"),
    [
        (7, {"h": H}, {}, "tokens of type int"),
        (b"ab", {"h": H}, {}, "tokens of type bytes"),
        ([], {"h": H}, {}, "no tokens"),
        (["a", 5], {"h": H}, {}, r"tokens\[1\]=5; expected a sequence of one or more strings"),
        ("ab", H, {}, "values of type ndarray"),
        ("ab", {}, {}, "values of 0 quantities"),
        ("ab", dict.fromkeys("abcd", H), {}, "values of 4 quantities; expected a dict of one to 3"),
        ("ab", {"": H}, {}, "the name ''"),
        ("ab", {3: H}, {}, "the name 3"),
        ("abc", {"h": H}, {}, r"values\['h'\] of shape \(2, 3\) for 3 tokens; expected shape \(3, units\)"),
        ("ab", {"h": H[:, 0]}, {}, r"of shape \(2,\)"),
        ("ab", {"h": H[:, :0]}, {}, r"of shape \(2, 0\)"),
        ("ab", {"h": H[:, None]}, {}, r"of shape \(2, 1, 3\)"),
        ("ab", {"h": H, "c": H[:, :2]}, {}, r"shapes \(2, 3\), \(2, 2\)"),
        ("ab", {"h": H + 1j}, {}, "dtype complex128"),
        ("ab", {"h": [["x"], ["y"]]}, {}, "dtype <U1"),
        ("ab", {"h": np.broadcast_to(np.float32(0), (2, 2**27 + 1))}, {}, "at most 268,435,456 values"),
        ("ab", {"h": H}, {"title": None}, "title=None"),
        ("ab", {"h": H}, {"ranges": (0, 1)}, "ranges of type tuple"),
        ("ab", {"h": H}, {"ranges": {"c": (0, 1)}}, "name in ranges='c'; expected one of 'h'"),
        ("ab", {"h": H}, {"ranges": {"h": (1, 1)}}, r"ranges\['h'\]=\(1, 1\)"),
        ("ab", {"h": H}, {"ranges": {"h": (0, np.inf)}}, "two finite numbers"),
        ("ab", {"h": H}, {"ranges": {"h": 2}}, r"ranges\['h'\]=2"),
        ("ab", {"h": H}, {"features": [1, 2]}, "features of type list"),
        ("ab", {"h": H}, {"features": {"f": [1]}}, r"features\['f'\] of shape \(1,\); expected shape \(2,\)"),
        ("ab", {"h": H}, {"features": {"f": [1, np.nan]}}, r"features\['f'\] with NaN"),
        ("ab", {"h": H}, {"features": {"f": [1, 1e300]}}, "beyond float32"),
        ("ab", {"h": H}, {"features": {"f": ["x", "y"]}}, "dtype <U1"),
    ],
)
def test_errors_leave_the_old_file(tmp_path, tokens, values, options, message):
    path = tmp_path / "viewer.html"
    path.write_text("before")
    with pytest.raises(ValueError, match=message) as caught:
        write_viewer(path, tokens, values, **options)
    assert len(str(caught.value)) < 1000
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1

"""The page that write_viewer writes, in a headless Chromium. Elements are found by their role and name."""

import re
import shutil
import time

import numpy as np
import pytest

from lstm_jax.plots import write_viewer

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

TEXT = (
    """def first(a, "b c"):
    echo (x [y]) Zed

Then "echo and
\t more" {k} 12 echo
"""
    + "    Plain lines, one after another; echo (again).\n" * 40
)
T = len(TEXT)
QUANTITIES = ["forget gate", "cell state"]


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Writes a page and opens it. The page must neither report an error nor request anything but its file."""
    contexts, faults = [], []

    def open_page(tokens, values, *, width=1280, height=800, dark=False, **options):
        path = tmp_path / "viewer.html"
        write_viewer(path, tokens, values, **options)
        scheme = "dark" if dark else "light"
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url == path.as_uri() or faults.append(request.url))
        page.goto(path.as_uri())
        page.locator("main[aria-busy=false]").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def echoes():
    """Where the word echo begins."""
    return [match.start() for match in re.finditer("echo", TEXT)]


def planted():
    """Twelve units: 2 and 9 are active together in the word echo, and 9 also elsewhere."""
    rng = np.random.default_rng(0)
    gates = rng.random((T, 12)).astype(np.float32)
    states = np.tanh(rng.normal(size=(T, 12))) * np.linspace(0.5, 1, 12)
    states[:, 2] = states[:, 9] = -0.5
    for start in echoes():
        states[start + 1] = -0.4  # of the other units
        states[start : start + 4, [2, 9]] = 0.8
    states[5:9, 9] = 0.8  # alone: "irst"
    return dict(zip(QUANTITIES, (gates, states), strict=True))


def formatted(number):
    return f"{number:.2f}".replace("-", "−").replace("−0.00", "0.00")


def numbers(text):
    """The numbers in a text of the page."""
    return [float(found.replace("−", "-")) for found in re.findall(r"[−-]?\d+\.\d+(?:e[−-]?\d+)?", text)]


def unit_order(page):
    """The units as the list shows them, and their numbers."""
    page.locator("[role=listbox][aria-busy=false]").wait_for()
    rows = [row.split("\n") for row in unit_list(page).get_by_role("option").all_inner_texts()]
    return [int(row[0].split()[1]) for row in rows], [numbers(row[-1])[0] for row in rows]


def unit_list(page):
    return page.get_by_role("listbox", name="Units", exact=True)


def chosen_unit(page):
    return int(unit_list(page).get_by_role("option", selected=True).inner_text().split()[1])


def status(page, containing):
    """What the status line says, once it contains a text."""
    page.get_by_role("status").filter(has_text=containing).wait_for()
    return page.get_by_role("status").inner_text()


def text_panel(page):
    return page.get_by_role("grid", name="Text")


def token(page, t):
    """The cell of a token that is in the document."""
    return page.locator(f"#token-{t}")


def select_echo(page, index=0):
    """Selects the word with the keyboard."""
    text_panel(page).focus()
    page.keyboard.press("Control+Home")
    for _ in range(echoes()[index]):
        page.keyboard.press("ArrowRight")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    page.locator("section[aria-busy=false]", has_text="active over the whole selection").wait_for()


# --- the text -----------------------------------------------------------------------------------


def test_roles_and_names(open_page):
    page = open_page(TEXT, planted(), title="An LSTM & its text")
    assert page.title() == "An LSTM & its text"
    assert page.get_by_role("heading", level=1).inner_text() == "An LSTM & its text"
    assert page.get_by_role("radio").all_inner_texts() == QUANTITIES
    assert page.get_by_role("radio", checked=True).inner_text() == QUANTITIES[0]
    for role, name in [
        ("grid", "Text"),
        ("listbox", "Units"),
        ("slider", "All units at the token"),
        ("slider", "Unit over time"),
        ("combobox", "Sort by"),
        ("combobox", "Window"),
        ("searchbox", "Find in the text"),
        ("button", "Dark theme"),
        ("region", "Selection"),
    ]:
        assert page.get_by_role(role, name=name, exact=True).count() == 1, name
    assert page.get_by_role("img", name="Colours of forget gate of unit 0: from 0.00").count() == 1
    assert page.get_by_role("gridcell", name="line break").count() > 5
    assert page.get_by_role("gridcell", name="tab").count() == 1
    assert chosen_unit(page) == 0


def test_hover_shows_the_units_at_the_token(open_page):
    values = planted()
    page = open_page(TEXT, values)
    for t in (5, 40):
        token(page, t).hover()
        shown = status(page, f"Token {t}:")
        assert f"“{TEXT[t]}”" in shown
        expected = [float(values[name][t, 0]) for name in QUANTITIES]
        np.testing.assert_allclose(numbers(shown), expected, atol=0.011)
    page.get_by_role("heading", level=1).hover()
    assert "Token 0:" in status(page, "Token 0:")


def test_hover_over_the_grid_shows_that_unit(open_page):
    values = planted()
    page = open_page(TEXT, values)
    grid = page.get_by_role("slider", name="All units at the token")
    box = grid.bounding_box()
    column = box["width"] / 12  # the units have one row of cells
    grid.hover(position={"x": 4.5 * column, "y": 25})
    page.get_by_text("Unit 4: forget gate").wait_for()
    shown = numbers(page.get_by_text("Unit 4: forget gate").inner_text())
    np.testing.assert_allclose(shown, [float(values[name][0, 4]) for name in QUANTITIES], atol=0.011)
    grid.click(position={"x": 6.5 * column, "y": 25})
    assert chosen_unit(page) == 6


def brightness(page, t):
    colour = token(page, t).evaluate("cell => getComputedStyle(cell).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])), colour


@pytest.mark.parametrize("dark", [False, True])
def test_colours_follow_the_values(open_page, dark):
    gate = np.array([0, 0.25, 0.5, 0.75, 1, 0.5])[:, None]
    page = open_page("abcdef", {"gate": gate, "state": 2 * gate - 1}, dark=dark)
    order = [brightness(page, t)[0] for t in range(5)]
    assert len(set(order)) == 5 and order == sorted(order, reverse=not dark)
    assert brightness(page, 2) == brightness(page, 5)
    page.keyboard.press("2")
    page.get_by_role("radio", name="state", checked=True).wait_for()
    page.wait_for_function("() => document.getElementById('text').classList.contains('diverging')")
    red, _, blue = map(int, re.findall(r"\d+", brightness(page, 0)[1]))
    assert red > blue  # negative
    red, _, blue = map(int, re.findall(r"\d+", brightness(page, 4)[1]))
    assert red < blue


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_is_readable(open_page, dark):
    values = np.linspace(0, 1, 255)[:, None]
    page = open_page("x" * 255, {"gate": values, "state": 2 * values - 1}, dark=dark)
    contrast = """cells => Math.min(...cells.map((cell) => {
        const light = (colour) => {
            const [r, g, b] = colour.match(/\\d+/g).map((v) => v / 255)
                .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
        };
        const { color, backgroundColor } = getComputedStyle(cell);
        const [a, b] = [light(color), light(backgroundColor)];
        return Math.max(a / b, b / a);
    }))"""
    for name in ("gate", "state"):
        page.get_by_role("radio", name=name).click()
        assert page.get_by_role("gridcell").count() == 255
        assert page.get_by_role("gridcell").evaluate_all(contrast) >= 4.5


def test_odd_tokens_are_text(open_page):
    odd = [
        "<img src=x onerror=alert(1)>",
        "</script>",
        "&amp;",
        " ",
        "\t",
        "\n",
        "",
        "\0",
        "\u200d",
        "\ud800",
    ]
    odd += ["日", "e\u0301", "two\nlines", "x" * 500, "end"]
    page = open_page(odd, {"h": np.zeros((len(odd), 1))})
    assert page.get_by_role("img").count() == 1  # the legend
    shown = page.get_by_role("gridcell").all_inner_texts()
    assert shown[:3] == ["<img·src=x·onerror=alert(1)>", "</script>", "&amp;"]
    assert shown[6:10] == ["∅", "␀", "<200D>", "<D800>"]
    assert shown[-3:] == ["two↵lines", "x" * 500, "end"]
    assert page.get_by_role("row").count() == 4  # two line breaks; the long token has a row of its own
    width = page.get_by_role("gridcell", name="x" * 500).bounding_box()["width"]
    assert width < text_panel(page).bounding_box()["width"]


def test_words_are_set_apart_and_wrapped(open_page):
    page = open_page(["several", "words"] * 200, {"h": np.zeros((400, 1))}, width=800)
    first, second = (token(page, t).bounding_box() for t in (0, 1))
    assert second["x"] > first["x"] + first["width"] + 5
    panel = text_panel(page).bounding_box()
    boxes = [cell.bounding_box() for cell in page.get_by_role("gridcell").all()[:60]]
    assert len({box["y"] for box in boxes}) > 3
    assert all(box["x"] + box["width"] <= panel["x"] + panel["width"] for box in boxes)


ROW_INDICES = "rows => rows.map((row) => Number(row.ariaRowIndex))"


def test_only_rows_near_the_visible_ones_are_in_the_document(open_page):
    tokens = "a line of text\n" * 2000
    values = np.linspace(0, 1, len(tokens))[:, None]
    page = open_page(tokens, {"h": values})
    assert text_panel(page).get_attribute("aria-rowcount") == "2000"
    assert page.get_by_role("row").count() < 60
    text_panel(page).focus()
    page.keyboard.press("Control+End")
    token(page, len(tokens) - 1).wait_for()
    assert page.get_by_role("row").count() < 60
    shown = page.get_by_role("row").evaluate_all(ROW_INDICES)
    assert shown == list(range(shown[0], 2001))
    page.mouse.move(300, 300)
    page.mouse.wheel(0, -4000)
    page.wait_for_function(f"() => !document.getElementById('token-{len(tokens) - 1}')")
    shown = page.get_by_role("row").evaluate_all(ROW_INDICES)
    assert shown == list(range(shown[0], shown[-1] + 1)) and shown[-1] < 2000


def test_find(open_page):
    page = open_page(TEXT, planted())
    field = page.get_by_role("searchbox")
    field.fill("ECHO")
    for start in [*echoes(), echoes()[0]]:  # from the end on to the beginning
        field.press("Enter")
        status(page, f"Token {start}:")
    field.fill("")
    field.press_sequentially("]")  # a character of the text, not the key that changes the unit
    field.press("Enter")
    assert "unit 0:" in status(page, f"Token {TEXT.index(']')}:")
    field.fill("nowhere")
    field.press("Enter")
    status(page, "“nowhere” is not in the text.")


# --- units --------------------------------------------------------------------------------------


def test_sort_by_variance(open_page):
    values = planted()
    page = open_page(TEXT, values)
    assert unit_order(page)[0] == list(range(12))
    for name in QUANTITIES:
        page.get_by_role("radio", name=name).click()
        page.get_by_label("Sort by").select_option("variance")
        order, shown = unit_order(page)
        variances = np.var(values[name], 0)
        assert shown == sorted(shown, reverse=True)
        np.testing.assert_allclose(shown, variances[order], atol=0.007)
    assert order[0] == int(np.argmax(variances))


def running(step):
    """A feature that step(carry, c) carries from character to character."""
    carry, column = 0, []
    for c in TEXT:
        carry = step(carry, c)
        column.append(carry)
    return column


def prefixes():
    """The line up to each character."""
    return [TEXT[: t + 1].removesuffix("\n").rpartition("\n")[2] for t in range(T)]


FEATURES = {
    "position in line": [len(line) + (c == "\n") for line, c in zip(prefixes(), TEXT, strict=True)],
    "indentation": [len(re.match(r"\s*", line)[0].expandtabs(4)) for line in prefixes()],
    "inside quotes": running(lambda inside, c: 1 - inside if c == '"' else inside),
    "inside brackets": running(lambda depth, c: depth + (c in "([{") - (c in ")]}")),
    "is space": [c in " \t" for c in TEXT],
    "is line break": [c == "\n" for c in TEXT],
    "is capital": [c.isupper() for c in TEXT],
    "is digit": [c.isdigit() for c in TEXT],
    "is punctuation": [c in '(",:[]);.{}' for c in TEXT],
    "position in text": range(T),
}


def test_each_computed_feature_finds_the_unit_that_follows_it(open_page):
    columns = np.stack([np.asarray(column, float) for column in FEATURES.values()], 1)
    signs = np.where(np.arange(len(FEATURES)) % 2, -1, 1)
    page = open_page(TEXT, {"cell state": columns * signs})
    page.get_by_label("Sort by").select_option("correlation")
    expected = np.corrcoef(columns * signs, columns, rowvar=False)[: len(FEATURES), len(FEATURES) :]
    for index, name in enumerate(FEATURES):
        page.get_by_label("Feature").select_option(name)
        order, shown = unit_order(page)
        assert (order[0], shown[0]) == (index, signs[index]), name
        np.testing.assert_allclose(shown, expected[order, index], atol=0.011, err_msg=name)
        assert list(np.abs(shown)) == sorted(np.abs(shown), reverse=True)


def test_features_of_the_caller(open_page):
    values = planted()
    feature = np.random.default_rng(5).normal(size=T)
    values["cell state"][:, 7] = -feature
    constant = np.full(T, 1.5)
    page = open_page(TEXT, values, features={"surprise": feature, "is capital": constant})
    page.keyboard.press("2")
    page.get_by_label("Sort by").select_option("correlation")
    order, shown = unit_order(page)  # the caller's features are listed first
    assert (order[0], shown[0]) == (7, -1)
    token(page, 3).hover()
    assert numbers(status(page, "surprise:"))[-1] == pytest.approx(feature[3], abs=1e-3)
    page.get_by_label("Feature").select_option("is capital")
    page.wait_for_function("() => document.querySelector('[role=option]').id === 'unit-0'")
    assert unit_order(page)[1] == [0] * 12  # nothing correlates with a constant


def test_values_that_are_not_finite(open_page):
    values = planted()["cell state"]
    values[3, 0] = np.nan
    values[:, 5] = np.inf
    page = open_page(TEXT, {"cell state": values})
    token(page, 3).hover()
    assert "cell state not finite" in status(page, "Token 3:")
    assert "gradient" in token(page, 3).evaluate("cell => getComputedStyle(cell).backgroundImage")
    page.get_by_label("Sort by").select_option("variance")
    page.locator("[role=listbox][aria-busy=false]").wait_for()
    rows = unit_list(page).get_by_role("option").all_inner_texts()
    assert rows[-1].split("\n")[-1] == "not finite" and rows[-1].startswith("Unit 5")
    shown = next(numbers(row)[0] for row in rows if row.startswith("Unit 0\n"))
    assert shown == pytest.approx(np.nanvar(values[:, 0]), abs=0.007)


# --- the selection ------------------------------------------------------------------------------


def found_units(page):
    return [
        int(text)
        for text in page.get_by_role("list", name="active over the whole")
        .get_by_role("button")
        .all_inner_texts()
    ]


def matches(page):
    return page.get_by_role("list", name="other place").get_by_role("button")


def test_a_selection_finds_its_units_and_other_places(open_page):
    page = open_page(TEXT, planted())
    page.keyboard.press("2")
    select_echo(page)
    assert found_units(page) == [2, 9]
    others = echoes()[1:]
    assert page.get_by_role("heading", name=f"{len(others)} other places").count() == 1
    starts = [int(text.split("\n")[0]) for text in matches(page).all_inner_texts()]
    assert starts == others
    page.get_by_role("list", name="active over").get_by_role("button", name="Unit 9").click()
    assert chosen_unit(page) == 9
    matches(page).last.click()
    assert "unit 9:" in status(page, f"Token {others[-1]}:")
    assert "match" in token(page, others[-1]).get_attribute("class")
    assert token(page, others[-1]).is_visible()

    together = page.get_by_role("slider", name="Units together")
    assert together.get_attribute("aria-valuetext") == "2 of 2"
    together.fill("1")  # unit 9 alone, too
    page.get_by_role("heading", name=f"{len(others) + 1} other places").wait_for()
    assert "5" in [text.split("\n")[0] for text in matches(page).all_inner_texts()]

    page.keyboard.press("Escape")
    page.get_by_text("Drag over the text").wait_for()
    assert page.get_by_role("gridcell", selected=True).count() == 0


@pytest.mark.parametrize("outside", [-1, 4])
def test_units_active_just_outside_are_left_out(open_page, outside):
    values = planted()
    values["cell state"][echoes()[0] + outside, 9] = 0.8
    page = open_page(TEXT, values)
    page.keyboard.press("2")
    select_echo(page)
    assert found_units(page) == [2]
    page.get_by_role("checkbox", name="not active just before and after").uncheck()
    page.get_by_role("heading", name="2 units active").wait_for()
    assert found_units(page) == [2, 9]


def test_the_threshold_and_its_direction(open_page):
    page = open_page(TEXT, planted())
    page.keyboard.press("2")
    select_echo(page)
    threshold = page.get_by_role("slider", name="Threshold")
    threshold.fill("254")  # 100% of the range: the units have their largest values here
    assert threshold.get_attribute("aria-valuetext") == "100% of its range"
    assert found_units(page) == [2, 9]
    page.get_by_label("Active:").select_option("below")
    page.get_by_role("heading", name="0 units active").wait_for()
    assert threshold.get_attribute("aria-valuetext") == "−30% of its range"
    page.keyboard.press("1")
    assert threshold.get_attribute("aria-valuetext") == "0.50"


def test_select_with_the_mouse_and_sort_by_the_selection(open_page):
    values = planted()
    page = open_page(TEXT, values)
    page.get_by_label("Sort by").select_option("selection")
    page.get_by_text("select a span of the text first").wait_for()
    start, end = echoes()[0], echoes()[0] + 3
    token(page, start).hover()
    page.mouse.down()
    token(page, end).hover()
    page.mouse.up()
    status(page, f"Token {end}:")
    assert page.get_by_role("gridcell", selected=True).all_inner_texts() == list("echo")
    order, shown = unit_order(page)
    means = values["forget gate"][start : end + 1].mean(0)
    assert order == np.argsort(-means, kind="stable").tolist()
    np.testing.assert_allclose(shown, means[order], atol=0.011)


# --- keys, the theme, the window ----------------------------------------------------------------


def test_keys_move_the_cursor(open_page):
    page = open_page(TEXT, planted())
    text_panel(page).focus()
    lines = TEXT.split("\n")
    second, third = len(lines[0]) + 1, len(lines[0]) + len(lines[1]) + 2
    for key, t in [
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowDown", second + 2),
        ("End", third - 1),
        ("ArrowDown", third),  # the third line is empty
        ("ArrowLeft", third - 1),
        ("Home", second),
        ("ArrowUp", 0),
        ("ArrowLeft", 0),
        ("Control+End", T - 1),
        ("ArrowRight", T - 1),
        ("Control+Home", 0),
    ]:
        page.keyboard.press(key)
        assert f"Token {t}:" in status(page, f"Token {t}:"), key
        assert text_panel(page).get_attribute("aria-activedescendant") == f"token-{t}"
        assert token(page, t).is_visible()
    page.keyboard.press("PageDown")
    page.keyboard.press("PageUp")
    status(page, "Token 0:")


def test_keys_change_the_unit_and_the_quantity(open_page):
    page = open_page(TEXT, planted())
    page.get_by_label("Sort by").select_option("variance")
    order, _ = unit_order(page)
    text_panel(page).focus()
    place = order.index(0)
    for key in ("[", "]", "]", "["):
        place = min(max(place + (1 if key == "]" else -1), 0), 11)
        page.keyboard.press(key)
        status(page, f"unit {order[place]}:")
    for key, index in (("2", 1), ("1", 0), ("3", 0)):  # there is no third quantity
        page.keyboard.press(key)
        assert page.get_by_role("radio", checked=True).inner_text() == QUANTITIES[index]
    page.get_by_role("radio", checked=True).press("ArrowRight")
    assert page.get_by_role("radio", checked=True).inner_text() == QUANTITIES[1]
    page.get_by_role("listbox", name="Units").focus()
    page.keyboard.press("Home")
    assert (
        page.get_by_role("listbox").get_attribute("aria-activedescendant") == f"unit-{unit_order(page)[0][0]}"
    )
    grid = page.get_by_role("slider", name="All units at the token")
    grid.focus()
    for key, unit in (("Home", 0), ("ArrowRight", 1), ("End", 11)):
        page.keyboard.press(key)
        status(page, f"unit {unit}:")
        page.wait_for_function(f"() => document.activeElement.getAttribute('aria-valuenow') === '{unit}'")
    page.get_by_role("slider", name="Unit over time").focus()
    page.keyboard.press("ArrowRight")
    status(page, "Token 1:")


def test_every_part_is_reached_with_tab_and_shows_its_focus(open_page):
    page = open_page(TEXT, planted())
    select_echo(page)
    page.get_by_label("Sort by").select_option("correlation")
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        style = "getComputedStyle(document.activeElement).outlineStyle"
        name = page.evaluate("document.activeElement.id || document.activeElement.textContent")
        if page.evaluate("document.activeElement === document.body"):
            continue
        assert page.evaluate(style) != "none", name
        reached.add(name)
    expected = """theme find text chart window grid sort feature units direction threshold outside""".split()
    assert reached >= {*expected, "forget gate"}


def test_the_theme(open_page):
    page = open_page(TEXT, planted())
    background = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    light = background()
    button = page.get_by_role("button", name="Dark theme")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    dark = background()
    assert dark != light and button.get_attribute("aria-pressed") == "true"
    button.click()
    assert background() == light
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")
    assert background() == dark


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 700, 360])
@pytest.mark.parametrize("units", [1, 500])
def test_nothing_overflows_the_window(open_page, width, units, dark):
    values = np.random.default_rng(0).normal(size=(T, units))
    page = open_page(TEXT, {"cell state": values, "hidden state": values}, width=width, dark=dark)
    select_echo(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1280:
        assert page.evaluate("document.documentElement.scrollHeight") <= 800


def test_the_chart(open_page):
    """It shows the chosen unit around the cursor, and a click moves the cursor there."""
    values = planted()
    page = open_page(TEXT, values)
    chart = page.get_by_role("slider", name="Unit over time")
    page.get_by_label("Window").select_option("80")
    box = chart.bounding_box()
    chart.hover(position={"x": box["width"] - 10, "y": 40})
    status(page, "Token 79:")
    chart.click(position={"x": box["width"] - 10, "y": 40})
    page.get_by_role("heading", level=1).hover()
    status(page, "Token 79:")
    page.wait_for_function("() => document.getElementById('chart').getAttribute('aria-valuenow') === '79'")
    chart.hover(position={"x": box["width"] - 10, "y": 40})
    status(page, "Token 118:")  # 40 tokens before the cursor, and 39 after it


RECORD_TEXTS = """() => {
    window.drawn = [];
    const draw = CanvasRenderingContext2D.prototype.fillText;
    CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
        if (this.canvas.id === 'chart') window.drawn.push(text);
        draw.call(this, text, ...place);
    };
}"""


@pytest.mark.parametrize(("word", "labelled"), [("word", False), ("ab", True)])
def test_the_chart_has_tokens_below_it_where_most_of_them_fit(open_page, word, labelled):
    """Otherwise positions, not the few short tokens alone."""
    tokens = [word, word, "."] * 100
    page = open_page(tokens, {"h": np.zeros((300, 1))}, width=1800)
    page.get_by_label("Window").select_option("80")
    page.evaluate(RECORD_TEXTS)
    text_panel(page).press("ArrowRight")
    page.wait_for_function("() => window.drawn.length > 0")
    drawn = page.evaluate("() => window.drawn")
    assert (word in drawn, "." in drawn, "token 0" in drawn) == (labelled, labelled, not labelled)


# --- size ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hundred_thousand_tokens(open_page):
    """Each action takes well below a second on a quiet machine; the bounds allow for a busy one."""
    length, units = 100_000, 256
    rng = np.random.default_rng(0)
    text = (TEXT * (length // T + 1))[:length]
    states = rng.standard_normal((length, units), np.float32)
    states[:, 200] = [c.isupper() for c in text]
    quantities = {
        "forget gate": rng.random((length, units), np.float32),
        "cell state": states,
        "h": np.tanh(states),
    }
    started = time.perf_counter()
    page = open_page(text, quantities)
    assert time.perf_counter() - started < 60
    ready = page.locator("[role=listbox][aria-busy=false]").wait_for

    def seconds(act, wait):
        before = time.perf_counter()
        act()
        wait()
        return time.perf_counter() - before

    text_panel(page).focus()
    times = {
        "unit": seconds(lambda: page.keyboard.press("]"), lambda: status(page, "unit 1:")),
        "quantity": seconds(lambda: page.keyboard.press("2"), ready),
        "variance": seconds(lambda: page.get_by_label("Sort by").select_option("variance"), ready),
        "correlation": seconds(lambda: page.get_by_label("Sort by").select_option("correlation"), ready),
        "feature": seconds(lambda: page.get_by_label("Feature").select_option("is capital"), ready),
        "end": seconds(
            lambda: text_panel(page).press("Control+End"), lambda: token(page, length - 1).wait_for()
        ),
    }
    assert unit_order(page)[0][0] == 200
    times["selection"] = seconds(
        lambda: select_echo(page),
        lambda: page.locator("section[aria-busy=false]", has_text="other").wait_for(),
    )
    print({name: round(value, 2) for name, value in times.items()})
    assert max(times.values()) < 10, times

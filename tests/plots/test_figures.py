"""The figures of lstm_jax.plots: the data in them, their labels, and errors."""

import subprocess
import sys
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_raises, daily

import lstm_jax
from lstm_jax import diagnostics, plots

matplotlib = pytest.importorskip("matplotlib", reason="the figures need matplotlib")

T, B = 12, 3
TOKENS = 'a "$b"\n(c\té '
VALID = np.arange(T)[:, None] < np.array([T, 7, 0])


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def masked(a):
    """Zeros at invalid steps, as in the results of the diagnostics."""
    return np.where(VALID.reshape(T, B, *(1,) * (a.ndim - 2)), a, 0)


def gates(H):
    i, f, o = (masked(1 / (1 + np.exp(-random(T, B, H, seed=k)))) for k in range(3))
    return diagnostics.Gates(lstm_jax.LSTMGates(i, f, masked(np.tanh(random(T, B, H))), o), None, VALID)


def carries(found, initial=0.0):
    """(h, c) after each step that follow from the gates."""
    i, f, g, o = found.gates
    cs, c = [], np.full(f.shape[1:], initial, np.float32)
    for t in range(T):
        c = np.where(VALID[t][:, None], f[t] * c + i[t] * g[t], c)
        cs.append(c)
    return o * np.tanh(np.stack(cs)), np.stack(cs)


def saturation(H):
    low, high = np.random.default_rng(0).random((2, 3, H)) / 2
    return diagnostics.Saturation(
        lstm_jax.LSTMGates(low[0], low[1], None, low[2]),
        lstm_jax.LSTMGates(high[0], high[1], None, high[2]),
        np.int32(19),
    )


def memory(H):
    values = random(T, T, B, H) * np.tril(np.ones((T, T)))[..., None, None]
    return diagnostics.Memory(values, random(T, B, H), VALID)


def time_constants(H):
    return diagnostics.TimeConstants(None, np.exp(random(H) * 2), VALID)


def flow(H, decay=0.5):
    lag = np.where(VALID, VALID.sum(0) - 1 - np.arange(T)[:, None], 0)
    norms = {"h": masked(decay**lag * [1.0, 3.0, 9.0]), "c": masked(4 * decay**lag * [1.0, 3.0, 9.0])}
    return diagnostics.GradientFlow({}, norms, lag, VALID)


def jacobians(H):
    values = random(T, B, 2 * H, seed=1) + 1j * random(T, B, 2 * H, seed=2)
    return diagnostics.Jacobians(None, None, values, VALID)


def lyapunov(H):
    return diagnostics.Lyapunov(np.sort(random(B, 2 * H) - 1)[:, ::-1], None, VALID)


def fixed_points(H, N=6):
    fixed = np.arange(N) < 4
    return diagnostics.FixedPoints(
        (random(N, H, seed=3), random(N, H, seed=4)),
        np.where(fixed, 0, 1.0),
        fixed,
        random(N, 2 * H, seed=5) + 0j,
        np.arange(N) % 2 == 0,
        np.arange(N) != 2,
    )


FIGURES = {
    "gate_map": lambda H, **o: plots.gate_map(gates(H), TOKENS, states={"c": random(T, B, H)}, **o),
    "saturation_scatter": lambda H, **o: plots.saturation_scatter(saturation(H), **o),
    "memory_map": lambda H, **o: plots.memory_map(memory(H), TOKENS, **o),
    "time_constants": lambda H, **o: plots.time_constants(time_constants(H), **o),
    "gradient_norms": lambda H, **o: plots.gradient_norms(
        {
            "LSTM": flow(H),
            "LSTM, forget bias 3": flow(H, 0.8),
            "GRU, reset before": flow(H, 0.3),
            "RNN": flow(H, 0.1),
        },
        **o,
    ),
    "eigenvalues": lambda H, **o: plots.eigenvalues(jacobians(H), **o),
    "lyapunov_spectrum": lambda H, **o: plots.lyapunov_spectrum(lyapunov(H), **o),
    "state_space": lambda H, **o: plots.state_space(carries(gates(H)), fixed_points(H), valid=VALID, **o),
    "cell_diagram": lambda H, **o: plots.cell_diagram(
        gates(H), carries(gates(H)), step=4, tokens=TOKENS, **o
    ),
}


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def points(ax):
    """The offsets of each scatter plot."""
    return [
        np.asarray(c.get_offsets())
        for c in ax.collections
        if isinstance(c, matplotlib.collections.PathCollection)
    ]


# --- all figures ----------------------------------------------------------------------------------


def test_every_public_figure_is_in_the_table():
    public = {name for name in vars(plots) if callable(getattr(plots, name)) and not name.startswith("_")}
    assert public - {"write_viewer"} == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("H", [1, 5, 500])
@pytest.mark.parametrize("width", daily([3.3, 6.5]))
def test_layout(name, H, width):
    """matplotlib warns, which is an error in the tests, where axes collapse. No text is cut off."""
    figure = FIGURES[name](H, width=width)
    assert figure.get_figwidth() == width
    assert figure.get_figheight() < 3 * width
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert -0.01 <= box.x0 and box.x1 <= width + 0.01
    assert -0.01 <= box.y0 and box.y1 <= figure.get_figheight() + 0.01


def test_steps_have_whole_numbers():
    """Three steps would have ticks at halves."""
    short = diagnostics.Gates(jax.tree.map(lambda a: a[:3], gates(5).gates), None, VALID[:3])
    part = memory(5)
    part = diagnostics.Memory(part.contributions[:3, :3], part.initial[:3], VALID[:3])
    lags = diagnostics.GradientFlow({}, {"h": np.ones((3, 1))}, np.arange(3)[::-1, None], VALID[:3, :1])
    two = np.tril(np.ones((3, 2)))[:, None]
    for axis in (
        plots.gate_map(short).axes[3].xaxis,
        plots.memory_map(part).axes[0].xaxis,
        plots.memory_map(part).axes[0].yaxis,
        plots.gradient_norms({"LSTM": lags}).axes[0].xaxis,
        plots.state_space(two).axes[1].yaxis,
    ):
        places = np.asarray(axis.get_major_locator()())
        assert np.array_equal(places, places.round())


def settings():
    """matplotlib's global settings. Reading the backend would import pyplot."""
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}


def test_nothing_is_shown_or_saved_and_no_state_changes(monkeypatch, tmp_path):
    """Without pyplot, there is no window and no current figure."""
    from matplotlib.figure import Figure

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.delattr(matplotlib, "pyplot", raising=False)
    monkeypatch.delattr(Figure, "savefig")
    monkeypatch.delattr(Figure, "show")
    monkeypatch.chdir(tmp_path)
    before = settings()
    for make in FIGURES.values():
        assert type(make(5)) is Figure
    assert settings() == before
    assert not list(tmp_path.iterdir())


def test_importing_the_package_does_not_load_matplotlib():
    script = "import sys, lstm_jax.plots; print(any(name.startswith('matplotlib') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", FIGURES)
def test_without_matplotlib(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "lstm_jax\[plots\]"'):
        FIGURES[name](5)


# --- gates ----------------------------------------------------------------------------------------


def test_gate_map_shows_valid_steps_of_a_row_sorted_by_the_forget_gate():
    found = gates(5)
    figure = plots.gate_map(found, TOKENS, row=1)
    axes = figure.axes[:4]
    assert [ax.get_title(loc="left").split(":")[0] for ax in axes] == [
        "input gate i", "forget gate f", "candidate g", "output gate o",
    ]  # fmt: skip
    order = np.argsort(-found.gates.f[:7, 1].mean(0))
    for ax, values in zip(axes, found.gates, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), values[:7, 1].T[order])
        assert labels(ax.get_yticklabels()) == [str(unit) for unit in order]
    assert axes[1].images[0].get_clim() == (0, 1)
    largest = np.abs(found.gates.g[:7, 1]).max()
    assert axes[2].images[0].get_clim() == pytest.approx((-largest, largest))
    assert labels(axes[-1].get_xticklabels()) == ["a", "␣", '"', "$", "b", '"', "↵"]
    assert not any(label.get_parse_math() for label in axes[-1].get_xticklabels())  # "$" is a character
    assert "sorted by the mean of f" in axes[-1].get_xlabel()


def test_gate_map_of_chosen_units_and_states():
    found, c = gates(30), random(T, B, 30, seed=9)
    figure = plots.gate_map(found, states={"cell state c": c}, units=[7, 2])
    assert figure.axes[4].get_title(loc="left") == "cell state c"
    np.testing.assert_array_equal(figure.axes[4].images[0].get_array(), c[:, 0, [7, 2]].T)
    assert labels(figure.axes[4].get_yticklabels()) == ["7", "2"]
    assert figure.axes[4].get_xlabel() == "step"


def test_gate_map_numbers_few_units_only():
    axes = plots.gate_map(gates(500)).axes
    assert axes[1].images[0].get_array().shape == (500, T)
    assert not axes[1].get_yticks().size and axes[1].get_ylabel() == "500 units"


def test_gate_map_of_other_cells():
    z, r, n = (random(T, B, 4, seed=k) for k in range(3))
    figure = plots.gate_map(diagnostics.Gates(lstm_jax.GRUGates(r, z, n), None, VALID), width=3.3)
    assert figure.get_tightbbox().x1 < 3.31
    assert [ax.get_title(loc="left").split(":")[0] for ax in figure.axes[:3]] == [
        "reset gate r", "update gate z", "candidate n",
    ]  # fmt: skip
    assert "sorted by the mean of z" in figure.axes[2].get_xlabel()
    mlstm = diagnostics.MLSTMGates(
        np.exp(random(T, B, 2)), 1 - np.exp(-np.exp(random(T, B, 2))), random(T, B, 6)
    )
    axes = plots.gate_map(diagnostics.Gates(mlstm, None, VALID)).axes
    assert [ax.images[0].get_array().shape for ax in axes[:3]] == [(2, T), (2, T), (6, T)]


def test_gates_above_1_have_signed_colours():
    """The forget gate of an xLSTM cell may be an exponential."""
    f = np.exp(random(T, B, 4))
    found = diagnostics.Gates(diagnostics.SLSTMGates(f, f, np.tanh(f), f / (1 + f)), None, VALID)
    image = plots.gate_map(found).axes[1].images[0]
    assert image.get_clim() == pytest.approx((-f[:, 0].max(), f[:, 0].max()))


def test_gate_map_of_states_alone():
    """An RNN has no gates."""
    h = random(T, B, 4)
    figure = plots.gate_map(None, TOKENS, states={"hidden state h": h}, row=2)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), h[:, 2].T)
    assert labels(figure.axes[0].get_yticklabels()) == ["0", "1", "2", "3"]
    assert "sorted" not in figure.axes[0].get_xlabel()
    assert_raises(lambda: plots.gate_map(None, TOKENS), "neither gates nor states")


def test_gate_map_leaves_nan_out_of_the_colours():
    found = gates(5)
    found.gates.g[3, 0, 2] = np.nan
    image = plots.gate_map(found, units=[2]).axes[2].images[0]
    assert np.isnan(np.ma.filled(image.get_array(), np.nan)[0, 3])
    assert image.get_clim()[1] == pytest.approx(np.nanmax(np.abs(found.gates.g[:, 0, 2])))


def test_long_texts_have_step_numbers():
    axes = plots.gate_map(gates(5), TOKENS, width=1.5).axes
    assert axes[3].get_xlabel().startswith("step")


def test_long_tokens_leave_the_panels_their_height():
    tokens = ["a", "supercalifragilistic", "an"] * 4
    figure, letters = plots.gate_map(gates(5), tokens), plots.gate_map(gates(5), "abc" * 4)
    shown = labels(figure.axes[3].get_xticklabels())
    assert shown[0] == "a" and shown[1] == "supercalifr…"
    for made in (figure, letters):
        made.draw_without_rendering()
    heights = [made.axes[0].get_window_extent().height for made in (figure, letters)]
    assert heights[0] > 0.9 * heights[1]


def test_saturation_scatter():
    found = saturation(5)
    axes = plots.saturation_scatter(found).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["input gate i", "forget gate f", "output gate o"]
    for ax, name in zip(axes, "ifo", strict=True):
        x, y = (getattr(share, name) for share in (found.low, found.high))
        np.testing.assert_allclose(points(ax)[0], np.stack([x, y], 1))
    assert "fraction of steps" in axes[0].get_ylabel()
    assert "fraction of steps" in axes[0].figure.get_supxlabel()


# --- memory ---------------------------------------------------------------------------------------


def test_memory_map_leaves_out_what_is_below_a_thousandth_of_the_largest():
    """Without the limit, an old contribution would end where its float underflows."""
    values = np.zeros((3, 3, 1, 1), np.float32)
    values[:, :, 0, 0] = [[2, 0, 0], [3e-3, -1, 0], [1e-3, 1e-30, 1]]
    found = diagnostics.Memory(values, None, np.ones((3, 1), bool))
    for options in ({}, {"unit": 0}):
        image = plots.memory_map(found, **options).axes[0].images[0]
        shown = ~np.ma.getmaskarray(image.get_array())
        assert shown.tolist() == [[True, False, False], [True, True, False], [False, False, True]]


def test_memory_map_is_the_mean_over_units_and_empty_where_nothing_contributes():
    found = memory(5)
    ax = plots.memory_map(found, TOKENS, row=1).axes[0]
    shown = ax.images[0].get_array()
    np.testing.assert_allclose(np.ma.filled(shown, 0), np.abs(found.contributions[:7, :7, 1]).mean(-1))
    assert (np.ma.getmaskarray(shown) == np.triu(np.ones((7, 7), bool), 1)).all()
    assert ax.images[0].get_clim() == pytest.approx((shown.max() / 1000, shown.max()))
    assert labels(ax.get_xticklabels()) == labels(ax.get_yticklabels()) == ["a", "␣", '"', "$", "b", '"', "↵"]
    averaged = found._replace(contributions=np.abs(found.contributions).mean(-1))
    np.testing.assert_allclose(plots.memory_map(averaged, row=1).axes[0].images[0].get_array(), shown)


def test_memory_map_of_a_unit_is_signed():
    found = memory(5)
    figure = plots.memory_map(found, unit=3, row=(1,))
    image = figure.axes[0].images[0]
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), 0), found.contributions[:7, :7, 1, 3])
    assert image.get_clim()[0] == -image.get_clim()[1]
    assert figure.axes[1].get_ylabel() == "contribution to unit 3"


def test_time_constants():
    tau = np.array([0.5, 2.0, 2.1, 30.0, np.inf, np.inf], np.float32)
    ax = plots.time_constants(diagnostics.TimeConstants(None, tau, VALID)).axes[0]
    assert sum(bar.get_height() for bar in ax.patches) == 4
    first, last = ax.patches[0], ax.patches[-1]
    assert first.get_x() < 0.5 and last.get_x() + last.get_width() > 30
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "time constant (steps)"
    assert labels(ax.get_legend().texts) == ["median 2.05 steps", "one unit", "2 not shown: infinite"]
    plots.time_constants(diagnostics.TimeConstants(None, tau[4:], VALID)).draw_without_rendering()


# --- gradients ------------------------------------------------------------------------------------


def test_gradient_norms_are_medians_of_the_valid_rows():
    """Rows 0 and 1 have norms in the ratio 1 to 3, and row 1 has 7 of the 12 steps; row 2 has none."""
    ax = plots.gradient_norms({"LSTM": flow(5)}, state="h").axes[0]
    lags, median = ax.lines[0].get_data()
    assert lags.tolist() == list(range(T))
    np.testing.assert_allclose(median, 0.5**lags * np.where(lags < 7, 2, 1))
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "lag (steps before the last one)"
    assert ax.get_ylabel() == "norm of the gradient\nwith respect to h"


def test_gradient_norms_of_several_cells_and_all_states():
    ax = plots.gradient_norms(OrderedDict(LSTM=flow(5), RNN=flow(5, 0.0))).axes[0]
    assert labels(ax.get_legend().texts) == ["LSTM", "RNN"]
    first, second = ax.lines
    np.testing.assert_allclose(first.get_ydata()[8:], 17**0.5 * 0.5 ** np.arange(8, T))
    assert first.get_color() != second.get_color()
    assert np.isfinite(second.get_ydata()).tolist() == [True] + [False] * (T - 1)  # no zeros on a log axis
    assert ax.get_ylim()[0] > 0


# --- dynamics -------------------------------------------------------------------------------------


def test_eigenvalues_of_valid_steps():
    found = jacobians(5)
    figure = plots.eigenvalues(found)
    ax = figure.axes[0]
    inside, outside = points(ax)
    values = found.eigenvalues[VALID].reshape(-1)
    assert len(values) == 19 * 10
    for shown, expected in ((inside, values[np.abs(values) < 1]), (outside, values[np.abs(values) >= 1])):
        np.testing.assert_allclose(shown, np.stack([expected.real, expected.imag], 1))
    circle = ax.patches[0]
    assert circle.center == (0, 0) and circle.radius == 1
    assert "190 eigenvalues at 19 steps" in ax.get_xlabel()
    assert labels(ax.get_legend().texts) == [f"{len(inside)} inside", f"{len(outside)} outside"]


def test_eigenvalues_of_distinct_fixed_points():
    found = fixed_points(5)
    shown = np.concatenate(points(plots.eigenvalues(found).axes[0]))
    expected = found.eigenvalues[[0, 1, 3]].reshape(-1)
    assert sorted(shown[:, 0]) == sorted(expected.real)


def test_lyapunov_spectrum_leaves_empty_rows_and_infinite_exponents_out():
    found = lyapunov(5)
    found.exponents[1, 9] = -np.inf
    ax = plots.lyapunov_spectrum(found).axes[0]
    *rows, mean = [line for line in ax.lines if len(line.get_xdata()) == 10]
    np.testing.assert_array_equal(rows[0].get_ydata(), found.exponents[0])
    assert len(rows) == 2 and np.isnan(rows[1].get_ydata()[9])
    np.testing.assert_allclose(mean.get_ydata()[:9], found.exponents[:2, :9].mean(0), rtol=1e-6)
    assert mean.get_ydata()[9] == found.exponents[0, 9]
    assert mean.get_xdata().tolist() == list(range(1, 11))
    assert "1 of 20 exponents" in ax.get_title(loc="left")
    assert ax.get_ylabel() == "Lyapunov exponent (1 / step)"


def plane_states(H=6):
    """States in a plane, and the same in coordinates of this plane: (T, B, H) and (T, B, 2)."""
    axes = np.linalg.qr(random(H, 2))[0]
    places = random(T, B, 2, seed=8) * [5, 1]
    return (places @ axes.T + 3).astype(np.float32), places


def segments(ax):
    lines = next(c for c in ax.collections if isinstance(c, matplotlib.collections.LineCollection))
    return np.array(lines.get_segments()), lines.get_array()


def test_state_space_keeps_distances_in_a_plane():
    states, places = plane_states()
    ax = plots.state_space((states[..., :4], states[..., 4:])).axes[0]
    shown, steps = segments(ax)
    assert shown.shape == ((T - 1) * B, 2, 2)
    assert sorted(set(steps)) == list(range(1, T))
    lengths = np.linalg.norm(np.diff(places, axis=0), axis=-1)
    np.testing.assert_allclose(
        np.linalg.norm(np.diff(shown, axis=1)[:, 0], axis=1), lengths.reshape(-1), rtol=1e-4
    )
    x, y = ax.get_xlabel(), ax.get_ylabel()
    shares = [int(label.split("(")[1].split("%")[0]) for label in (x, y)]
    assert x.startswith("PC 1") and shares[0] > 85 and sum(shares) == 100


def test_state_space_leaves_invalid_steps_out():
    states, _ = plane_states()
    poisoned = np.where(VALID[..., None], states, np.nan)
    shown, _ = segments(plots.state_space(poisoned, valid=VALID).axes[0])
    assert len(shown) == 11 + 6
    far = np.where(VALID[..., None], states, 1e6)
    np.testing.assert_allclose(segments(plots.state_space(far, valid=VALID).axes[0])[0], shown)


def test_state_space_marks_stable_unstable_and_slow_points():
    """Fixed: 0, 1, 3 (2 is no distinct point). Stable: 0. Slow: 4, 5."""
    H = 3
    found = fixed_points(H)
    states = carries(gates(H))
    ax = plots.state_space(states, found, valid=VALID).axes[0]
    assert labels(ax.get_legend().texts) == ["slow (2)", "unstable (2)", "stable (1)"]
    slow, unstable, stable = points(ax)
    faces = [tuple(c.get_facecolor()[0]) for c in ax.collections[1:]]
    assert len(set(faces)) == 3
    flat = np.concatenate(states, -1)[VALID]
    axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:2]
    projected = (np.concatenate(found.carry, -1) - flat.mean(0)) @ axes.T
    for shown, expected in ((slow, projected[4:]), (unstable, projected[[1, 3]]), (stable, projected[:1])):
        np.testing.assert_allclose(np.abs(shown), np.abs(expected), atol=1e-4)  # signs of axes are arbitrary


# --- the cell -------------------------------------------------------------------------------------


def shown_values(figure):
    """The number beside each wire."""
    texts = {text.get_gid(): text.get_text() for text in figure.axes[0].texts if text.get_gid()}
    return {name: float(text.split()[-1].replace("−", "-")) for name, text in texts.items()}


def wires(figure):
    return {line.get_gid(): line for line in figure.axes[0].lines if line.get_gid()}


def expected_values(found, states, t, row, before):
    i, f, g, o = (a[t, row] for a in found.gates)
    h, c = (a[t, row] for a in states)
    values = {"i": i, "f": f, "g": g, "o": o, "h_before": before[0], "c_before": before[1], "h": h, "c": c}
    return values | {"kept": f * before[1], "added": i * g, "tanh_c": np.tanh(c)}


@pytest.mark.parametrize("unit", [None, 2])
def test_cell_diagram_shows_all_values(unit):
    found = gates(5)
    states = carries(found)
    figure = plots.cell_diagram(found, states, step=4, row=1, unit=unit, tokens=TOKENS)
    expected = expected_values(found, states, 4, 1, [a[3, 1] for a in states])
    for name, value in shown_values(figure).items():
        whole = np.mean(expected[name]) if unit is None else expected[name][unit]
        assert value == pytest.approx(whole, abs=0.0051), name
    assert set(shown_values(figure)) == set(wires(figure)) == set(expected)
    assert (
        figure.axes[0].get_title(loc="left") == f"step 4, {'mean of 5 units' if unit is None else 'unit 2'}"
    )
    assert any(text.get_text() == "$x_t$ = b" for text in figure.axes[0].texts)


def test_cell_diagram_reads_the_initial_carry_at_the_first_step():
    found = gates(5)
    states = carries(found, initial=2.0)
    assert_raises(lambda: plots.cell_diagram(found, states, step=0), "initial")
    initial = np.zeros((B, 5)), np.full((B, 5), 2.0)
    shown = shown_values(plots.cell_diagram(found, states, step=0, unit=1, initial=initial))
    assert shown["c_before"] == 2 and shown["kept"] == pytest.approx(2 * found.gates.f[0, 0, 1], abs=0.0051)


def test_wires_are_wider_for_larger_values_and_differ_in_colour_by_sign():
    found = gates(5)
    figure = plots.cell_diagram(found, carries(found), step=4, unit=0)
    lines, shown = wires(figure), shown_values(figure)
    scaled = ["i", "f", "g", "o", "tanh_c", "h"]  # all relative to 1
    widths = [lines[name].get_linewidth() for name in scaled]
    assert np.argsort(widths).tolist() == np.argsort([abs(shown[name]) for name in scaled]).tolist()
    for name in scaled:
        red, _, blue = lines[name].get_color()
        assert (blue > red) == (shown[name] > 0), name


def test_real_results_with_nan_padding():
    cell = lstm_jax.LSTM(3, 5)
    params = cell.init(jax.random.key(0))
    xs = jnp.where(VALID[..., None], random(T, B, 3), jnp.nan)
    lengths = jnp.asarray(VALID.sum(0))
    found = diagnostics.gates(cell, params, xs, lengths=lengths)
    _, (_, states) = lstm_jax.unroll(cell, params, xs, lengths=lengths, return_carries=True)
    image = plots.gate_map(found, TOKENS, row=1).axes[1].images[0].get_array()
    assert image.shape == (5, 7) and np.isfinite(np.ma.filled(image, np.nan)).all()
    expected = expected_values(found, states, 6, 1, [a[5, 1] for a in states])
    shown = shown_values(plots.cell_diagram(found, states, step=6, row=1, unit=4))
    for name, value in shown.items():
        assert value == pytest.approx(float(expected[name][4]), abs=0.0051)


@pytest.mark.slow
def test_real_results_of_every_diagnostic():
    """Results of a layer of a stack, in a row with padding."""
    network = lstm_jax.Stack((lstm_jax.LSTM(3, 5), lstm_jax.GRU(5, 4)))
    params = network.init(jax.random.key(0))
    xs = jnp.where(VALID[..., None], random(T, B, 3), jnp.nan)
    sequence = {"lengths": jnp.asarray(VALID.sum(0))}
    for name, draw in {
        "gates": plots.gate_map,
        "saturation": plots.saturation_scatter,
        "memory": plots.memory_map,
        "time_constants": plots.time_constants,
        "jacobians": plots.eigenvalues,
        "lyapunov_exponents": plots.lyapunov_spectrum,
    }.items():
        results = getattr(diagnostics, name)(network, params, xs, **sequence)
        for result in results.values():
            draw(result).draw_without_rendering()
    flows = diagnostics.gradient_flow(lambda ys: jnp.sum(ys), network, params, xs, **sequence)
    assert len(plots.gradient_norms(flows).axes[0].lines) == 2


# --- errors ---------------------------------------------------------------------------------------

FOUND = gates(5)
STATES = carries(FOUND)


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: plots.gate_map({"0": FOUND, "1.forward": FOUND}), ["'0', '1.forward'", "gates['0']"]),
        (lambda: plots.gate_map(STATES), ["type tuple", "lstm_jax.diagnostics.Gates"]),
        (lambda: plots.gate_map(FOUND, "abc"), ["3 tokens", "12 strings"]),
        (lambda: plots.gate_map(FOUND, range(T)), ["12 tokens", "strings"]),
        (lambda: plots.gate_map(FOUND, row=3), ["row=3", "(3,)"]),
        (lambda: plots.gate_map(FOUND, row=(0, 0)), ["row=(0, 0)"]),
        (lambda: plots.gate_map(FOUND, row=True), ["row=True"]),
        (lambda: plots.gate_map(FOUND, row=2), ["row (2,) without valid steps"]),
        (lambda: plots.gate_map(FOUND, units=[5]), ["unit=5", "0 to 4"]),
        (lambda: plots.gate_map(FOUND, units=[]), ["no units"]),
        (lambda: plots.gate_map(FOUND, states={"c": random(T, 5)}), ["(12, 5)", "(12, 3)"]),
        (lambda: plots.gate_map(FOUND, width=0), ["width=0"]),
        (lambda: plots.saturation_scatter(FOUND), ["Saturation"]),
        (lambda: plots.memory_map(FOUND), ["Memory"]),
        (lambda: plots.memory_map(memory(5), unit=7), ["unit=7"]),
        (
            lambda: plots.memory_map(memory(5)._replace(contributions=random(T, T, B)), unit=0),
            ["mean over units", "average=False"],
        ),
        (lambda: plots.time_constants(FOUND), ["TimeConstants"]),
        (lambda: plots.gradient_norms(flow(5)), ["GradientFlow", "dict"]),
        (lambda: plots.gradient_norms({}), ["dict"]),
        (lambda: plots.gradient_norms({"a": FOUND}), ["flows['a']", "GradientFlow"]),
        (lambda: plots.gradient_norms({"a": flow(5)}, state="n"), ["state='n'", "'h', 'c'"]),
        (lambda: plots.eigenvalues(FOUND), ["Jacobians or lstm_jax.diagnostics.FixedPoints"]),
        (lambda: plots.lyapunov_spectrum(FOUND), ["Lyapunov"]),
        (lambda: plots.state_space(()), ["shapes []"]),
        (lambda: plots.state_space(STATES, valid=VALID[:4]), ["(4, 3)"]),
        (lambda: plots.state_space(STATES, fixed_points(4)), ["8 states", "10"]),
        (lambda: plots.state_space(STATES, STATES), ["FixedPoints"]),
        (lambda: plots.state_space(STATES, valid=np.zeros((T, B), bool)), ["0 valid states"]),
        (lambda: plots.cell_diagram(FOUND, STATES, step=T), ["step=12"]),
        (lambda: plots.cell_diagram(FOUND, STATES, step=7, row=1), ["step=7", "valid"]),
        (lambda: plots.cell_diagram(FOUND, STATES, step=-1), ["step=-1"]),
        (lambda: plots.cell_diagram(FOUND, STATES[1], step=1), ["carries", "(h, c)"]),
        (lambda: plots.cell_diagram(FOUND, STATES[::-1], step=1), ["differ by"]),
        (lambda: plots.cell_diagram(FOUND, STATES, step=1, unit=5), ["unit=5"]),
        (lambda: plots.cell_diagram(FOUND, STATES, step=1, initial=STATES), ["initial"]),
        (
            lambda: plots.cell_diagram(
                diagnostics.Gates(lstm_jax.GRUGates(*random(3, T, B, 5)), None, VALID), STATES, step=1
            ),
            ["GRUGates", "LSTMGates"],
        ),
    ],
)  # fmt: skip
def test_errors(attempt, words):
    assert_raises(attempt, *words)


def test_the_diagram_has_no_negative_zeros():
    found = gates(5)
    found = found._replace(gates=found.gates._replace(g=np.full_like(found.gates.g, -0.002)))
    texts = plots.cell_diagram(found, carries(found), step=0, unit=1).axes[0].texts
    shown = [text.get_text() for text in texts if text.get_gid() == "added"]
    assert shown == ["0.00"]

"""The continuation of a piece, as a picture and as a MIDI file."""

from __future__ import annotations

import struct

import numpy as np
from _music_data import KEYS, LOWEST
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from training.plots import BLACK, BLUE, GREY, ORANGE, png

TICKS = 480  # MIDI ticks per frame
ORGAN = 19  # General MIDI's church organ, counted from 0. Its notes do not fade.


def draw_continuation(prompt: np.ndarray, drawn: np.ndarray, p: np.ndarray, title: str) -> bytes:
    """A picture of the prompt and the drawn frames, and of the probabilities that these were drawn from."""
    keys = np.concatenate([prompt != 0, 2 * (drawn != 0)])
    given = np.concatenate([np.full(prompt.shape, np.nan), p])
    used = np.flatnonzero(keys.any(0) | (np.nan_to_num(given) > 0.1).any(0))
    low, high = max(used.min(initial=39) - 2, 0), min(used.max(initial=39) + 3, keys.shape[1])
    box = (0, len(keys), LOWEST + low - 0.5, LOWEST + high - 0.5)

    figure = Figure(figsize=(10, 7.6), layout="constrained")
    figure.suptitle(title, fontsize=13, parse_math=False)
    above, below = figure.subplots(2, sharex=True)
    colours = ListedColormap(["white", GREY, BLUE])
    look = {"aspect": "auto", "origin": "lower", "interpolation": "nearest", "extent": box}
    above.imshow(keys[:, low:high].T, cmap=colours, vmin=0, vmax=2, **look)
    above.set_title("sounding keys", fontsize=11, loc="left")
    above.legend(
        handles=[Patch(color=GREY, label="prompt"), Patch(color=BLUE, label="drawn by the network")],
        loc="lower right", bbox_to_anchor=(1, 1), fontsize=10, ncols=2, frameon=False,
    )  # fmt: skip

    shades = LinearSegmentedColormap.from_list("probability", ["white", ORANGE, "#401500"])
    image = below.imshow(given[:, low:high].T, cmap=shades, vmin=0, vmax=1, **look)
    below.set_title("probability of each key before drawing", fontsize=11, loc="left")
    bar = figure.colorbar(image, ax=[above, below], location="right", shrink=0.45, anchor=(0, 0))
    bar.set_label("probability that the key sounds")
    below.set_xlabel("frame", fontsize=12)
    for ax in (above, below):
        octaves = [note for note in range(LOWEST, LOWEST + KEYS) if note % 12 == 0 and box[2] < note < box[3]]
        ax.set_yticks(octaves, [f"C{note // 12 - 1}" for note in octaves])
        ax.set_ylabel("key", fontsize=12)
        ax.grid(axis="y", alpha=0.3)
        ax.axvline(len(prompt), color=BLACK, linewidth=1.2, linestyle="--")
    return png(figure)


def midi_file(roll: np.ndarray, frames_per_minute: float) -> bytes:
    """The bytes of a standard MIDI file (format 0, one track).

    The file is a header chunk and a track chunk. The track is a sequence of events. Before each event is the
    number of ticks since the previous event, as a variable-length number: seven bits per byte, and the high
    bit set in all bytes but the last.

    Args:
        roll: (frames, keys), nonzero where a key sounds. A key that sounds in consecutive frames is one note,
            because a roll does not contain repeated onsets.
        frames_per_minute: the tempo.
    """
    sounding = np.asarray(roll) != 0
    silence = np.zeros((1, sounding.shape[1]), bool)
    change = np.diff(np.concatenate([silence, sounding, silence]).astype(int), axis=0)  # 1 on, -1 off

    tempo = round(60e6 / frames_per_minute)  # microseconds per beat; a frame is a beat
    track = b"\x00\xff\x51\x03" + tempo.to_bytes(3, "big") + bytes([0, 0xC0, ORGAN])
    since = 0
    for now in change:
        # Note-off events come before note-on events of the same frame.
        for kind, velocity, keys in ((0x80, 0, now < 0), (0x90, 80, now > 0)):
            for key in np.flatnonzero(keys):
                track += _variable_length(since) + bytes([kind, LOWEST + int(key), velocity])
                since = 0
        since += TICKS
    track += b"\x00\xff\x2f\x00"  # end of track
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS)
    return header + struct.pack(">4sI", b"MTrk", len(track)) + track


def _variable_length(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))

"""A piano roll as a standard MIDI file (format 0: one track), in the bytes that the standard names.

A file is a header chunk and a track chunk. A track is a row of events, each behind the ticks since the event
before it, as a number of variable length: seven bits a byte, the high bit set in all bytes but the last.
"""

from __future__ import annotations

import struct

import numpy as np

LOWEST = 21  # the MIDI note of the first of the piano's 88 keys; 60 is the middle C, C4
TICKS = 480  # of a frame
ORGAN = 19  # General MIDI's church organ, counted from 0: like a frame, it does not fade


def midi_file(roll: np.ndarray, frames_per_minute: float) -> bytes:
    """The bytes of a ``.mid`` file: ``roll`` is (frames, keys), not zero where a key sounds.

    A key that sounds in neighbouring frames is one long note: a roll does not say where it was struck again.
    """
    sounding = np.asarray(roll) != 0
    silence = np.zeros((1, sounding.shape[1]), bool)
    change = np.diff(np.concatenate([silence, sounding, silence]).astype(int), axis=0)  # 1 on, -1 off

    tempo = round(60e6 / frames_per_minute)  # microseconds a beat, and a frame is a beat
    track = b"\x00\xff\x51\x03" + tempo.to_bytes(3, "big") + bytes([0, 0xC0, ORGAN])
    since = 0
    for now in change:
        # A key is let go before another is struck.
        for kind, velocity, keys in ((0x80, 0, now < 0), (0x90, 80, now > 0)):
            for key in np.flatnonzero(keys):
                track += _variable_length(since) + bytes([kind, LOWEST + int(key), velocity])
                since = 0
        since += TICKS
    track += b"\x00\xff\x2f\x00"  # the end of the track
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS)
    return header + struct.pack(">4sI", b"MTrk", len(track)) + track


def _variable_length(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))

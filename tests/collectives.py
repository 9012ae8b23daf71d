"""The collective operations of a compiled program, and whether they are in a loop."""

import re
from collections import Counter
from math import prod
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
OPERATION = re.compile(rf" = (?P<shapes>.+?) (?P<kind>{'|'.join(KINDS)})(?:-start)?\(")
ARRAY = re.compile(r"\b(bf16|pred|[fsu]\d+)\[([\d,]*)\]")
CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)")


class Collective(NamedTuple):
    """One operation of a compiled program."""

    kind: str
    shapes: list[tuple[int, ...]]  # of the results
    in_loop: bool
    devices: int  # devices in a group
    received: int  # bytes that each device receives in a ring


def collectives(compiled):
    """The collective operations of ``jax.jit(f).lower(...).compile()``, in textual order."""
    computations = {}
    for line in compiled.as_text().splitlines():
        if re.match(r"(ENTRY )?%[\w.\-]+ .*\{$", line):
            here = computations.setdefault(line.removeprefix("ENTRY ").split()[0], [])
        elif line.startswith("}"):
            here = []
        elif computations:
            here.append(line)

    def called(lines, what=CALLED):
        return {
            name for line in lines for found in what.findall(line) for name in re.findall(r"%[\w.\-]+", found)
        }

    todo = called(
        [line for lines in computations.values() for line in lines], re.compile(r"body=(%[\w.\-]+)")
    )
    looping = set()
    while todo:
        looping |= todo
        todo = {name for one in todo for name in called(computations[one])} - looping
    return [
        operation(line, found, name in looping)
        for name, lines in computations.items()
        for line in lines
        if (found := OPERATION.search(line))
    ]


def operation(line, found, in_loop):
    kind = found["kind"]
    arrays = [
        (kind_, tuple(map(int, filter(None, dims.split(",")))))
        for kind_, dims in ARRAY.findall(found["shapes"])
    ]
    size = sum(prod(shape) * itemsize(name) for name, shape in arrays)
    n = group(line)
    received = {
        "all-gather": size * (n - 1) // n,
        "all-reduce": 2 * size * (n - 1) // n,
        "reduce-scatter": size * (n - 1),
        "all-to-all": size * (n - 1) // n,
        "collective-permute": size,
    }[kind]
    return Collective(kind, [shape for _, shape in arrays], in_loop, n, received)


def itemsize(name):
    return {"bf16": 2, "pred": 1}.get(name) or np.dtype(
        name.replace("f", "float").replace("s", "int")
    ).itemsize


def group(line):
    """The size of a group of devices, from {{0,1},{2,3}} or [groups,devices]<=[all]."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(counted[1])
    return 2  # a pair, for collective-permute


def counted(found, *, in_loop):
    """The number of operations of each type, inside loops or outside."""
    return dict(Counter(one.kind for one in found if one.in_loop == in_loop))

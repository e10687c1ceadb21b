"""Reads StableHLO and compiled TPU modules: what is multiplied in which type, what is moved."""

import collections
import math
import re
from typing import NamedTuple

SIZES = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4,
    "u32": 4, "f64": 8, "s64": 8, "u64": 8,
}  # fmt: skip
SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
NOTHING = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while"}


class Product(NamedTuple):
    """A matrix product or convolution: its operations, and the type of its operands."""

    flops: int
    dtype: str


def products(stablehlo, pieces=1):
    """Returns the `Product`s of a StableHLO module, each once.

    Args:
        stablehlo: Its text.
        pieces: How often its loop runs; the operations inside are multiplied by it.
    """
    found, times = [], 1
    for line in stablehlo.splitlines():
        if "func.func" in line:
            times = pieces if "@while_body" in line else 1
        types = re.findall(r"tensor<((?:\d+x)*)(\w+)>", line.rpartition(" : ")[2])
        if len(types) < 3:
            continue
        (left, kind), (right, other), (out, _) = types[:3]
        left, right, out = ([int(n) for n in dims.split("x") if n] for dims in (left, right, out))
        if "stablehlo.dot_general" in line:
            match = re.search(r"contracting_dims = \[([\d, ]*)\]", line)
            inner = math.prod(left[int(i)] for i in match[1].split(",") if i.strip())
        elif "stablehlo.dot " in line:
            inner = left[-1]
        elif "stablehlo.convolution" in line:
            # The kernel's sides and its input channels: all of it but the output channels.
            match = re.search(r"x\[([\w, ]+)\]->", line)
            labels = [label.strip() for label in match[1].split(",")]
            inner = math.prod(n for n, label in zip(right, labels, strict=True) if label != "o")
        else:
            continue
        # "f32" and "bf16" mixed count as what is wider.
        flops = 2 * times * inner * math.prod(out)
        found.append(Product(flops, kind if kind == other else "f32"))
    return found


def share_in(dtype, found):
    """Returns the share of the operations of `Product`s whose operands have that type."""
    total = sum(product.flops for product in found)
    return sum(product.flops for product in found if product.dtype == dtype) / max(total, 1)


def _bytes(shape, in_hbm=True):
    """Returns the bytes of a shape of compiled text, with what its tiles are filled up by."""
    total = 0
    for kind, dims, layout in SHAPE.findall(shape):
        if kind not in SIZES or (in_hbm and re.search(r"S\([1-9]\)", layout)):
            continue  # another memory than the large one
        sides = [int(n) for n in dims.split(",") if n]
        order = re.match(r"\{([\d,]+)", layout)
        tile = re.search(r"T\(([\d,]+)\)", layout)
        if order and tile and sides:
            minor_first = [int(n) for n in order[1].split(",")]
            for axis, side in zip(minor_first, reversed(tile[1].split(",")), strict=False):
                sides[axis] = -(-sides[axis] // int(side)) * int(side)
        total += math.prod(sides) * SIZES[kind]
    return total


class Moved(NamedTuple):
    """What an instruction reads from and writes to the chip's large memory."""

    size: int
    opcode: str
    name: str


def moved(compiled, pieces=1):
    """Returns what each instruction of a compiled module moves, as a list of `Moved`.

    Read off the text: operands and results that lie in the large memory (HBM), tiles filled up,
    asynchronous copies once, the inside of a loop as often as it runs. A fusion that reads a part
    of an operand counts with the whole.

    Args:
        compiled: The module's text.
        pieces: How often a loop runs of which the text does not say it.
    """
    computations = {}
    for part in re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \([^\n]*\{\n)", compiled):
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(", part)
        if head:
            computations["ENTRY" if head[1] else head[2]] = part
    return _moved("ENTRY", computations, pieces)


def _moved(computation, computations, pieces):
    shapes, names, rows = {}, {}, []
    for line in computations[computation].splitlines()[1:]:
        match = INSTRUCTION.match(line)
        if not match:
            continue
        instruction, shape, opcode, rest = match.groups()
        name = re.search(r'op_name="([^"]*)"', line)
        shapes[instruction], names[instruction] = shape, name[1] if name else ""
        if opcode == "while":
            body = re.search(r"body=%?([\w.\-]+)", rest)[1]
            count = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
            inside = _moved(body, computations, pieces)
            rows += [
                row._replace(size=row.size * int(count[1] if count else pieces)) for row in inside
            ]
        if opcode in NOTHING or opcode.endswith("-done"):
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.partition("), ")[0])
        if opcode.endswith("-start"):
            both = [_bytes(part[0], in_hbm=False) for part in SHAPE.finditer(shape)][:2]
            size = min(both, default=0)
            names[instruction] = names.get(operands[0], "") if operands else ""
        else:
            size = _bytes(shape) + sum(_bytes(shapes.get(operand, "")) for operand in operands)
        rows.append(Moved(size, opcode, names[instruction]))
    return rows


def by_operation(rows):
    """Returns (what, times, bytes) of `Moved`, all blocks and numbers together, the most first."""
    sizes, times = collections.Counter(), collections.Counter()
    for row in rows:
        name = re.sub(
            r"block_\d+", "block_N", re.sub(r"_\d+(?=/|$)", "", row.name.partition(";")[0])
        )
        key = f"{row.opcode} {'/'.join(name.split('/')[-4:])}"
        sizes[key] += row.size
        times[key] += 1
    return [(key, times[key], size) for key, size in sizes.most_common()]

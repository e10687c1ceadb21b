"""Statistics of StableHLO and compiled TPU modules: matrix products and HBM traffic."""

import collections
import math
import re
from typing import NamedTuple

DTYPE_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4,
    "u32": 4, "f64": 8, "s64": 8, "u64": 8,
}  # fmt: skip
SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
WITHOUT_TRAFFIC = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while"}


class MatrixProduct(NamedTuple):
    """A matrix product or convolution.

    Args:
        flops: Number of operations.
        dtype: Type of the operands; f32 if they differ.
    """

    flops: int
    dtype: str


def matrix_products(stablehlo: str, microbatches: int = 1) -> list[MatrixProduct]:
    """Returns the matrix products and convolutions of a StableHLO module.

    Args:
        stablehlo: Text of the module.
        microbatches: Number of iterations of its loop; multiplies the operations inside.
    """
    products, iterations = [], 1
    for line in stablehlo.splitlines():
        if "func.func" in line:
            iterations = microbatches if "@while_body" in line else 1
        types = re.findall(r"tensor<((?:\d+x)*)(\w+)>", line.rpartition(" : ")[2])
        if len(types) < 3:
            continue
        (left, dtype), (right, right_dtype), (out, _) = types[:3]
        left, right, out = ([int(n) for n in dims.split("x") if n] for dims in (left, right, out))
        if "stablehlo.dot_general" in line:
            (axes,) = re.findall(r"contracting_dims = \[([\d, ]*)\]", line)
            inner = math.prod([left[int(i)] for i in axes.split(",") if i.strip()])
        elif "stablehlo.dot " in line:
            inner = left[-1]
        elif "stablehlo.convolution" in line:
            # All axes of the kernel except its output channels.
            (axes,) = re.findall(r"x\[([\w, ]+)\]->", line)
            labels = [label.strip() for label in axes.split(",")]
            inner = math.prod(n for n, label in zip(right, labels, strict=True) if label != "o")
        else:
            continue
        flops = 2 * iterations * inner * math.prod(out)
        products.append(MatrixProduct(flops, dtype if dtype == right_dtype else "f32"))
    return products


def dtype_fraction(dtype: str, products: list[MatrixProduct]) -> float:
    """Returns the fraction of the operations whose operands have a type."""
    total = sum(product.flops for product in products)
    return sum(product.flops for product in products if product.dtype == dtype) / max(total, 1)


def _num_bytes(shape, hbm_only=True):
    """Returns the bytes of a shape in compiled text, including the padding of its tiles."""
    total = 0
    for dtype, dims, layout in SHAPE.findall(shape):
        in_other_memory = re.search(r"S\([1-9]\)", layout)
        if dtype not in DTYPE_BYTES or (hbm_only and in_other_memory):
            continue
        sides = [int(n) for n in dims.split(",") if n]
        order = re.match(r"\{([\d,]+)", layout)
        tile = re.search(r"T\(([\d,]+)\)", layout)
        if order and tile and sides:
            minor_to_major = [int(n) for n in order[1].split(",")]
            for axis, side in zip(minor_to_major, reversed(tile[1].split(",")), strict=False):
                sides[axis] = -(-sides[axis] // int(side)) * int(side)
        total += math.prod(sides) * DTYPE_BYTES[dtype]
    return total


class Traffic(NamedTuple):
    """HBM traffic of an instruction.

    Args:
        num_bytes: Bytes read and written, over all iterations of its loop.
        opcode: Opcode, such as fusion.
        op_name: Name of the operation in the model, as far as the compiler keeps it.
    """

    num_bytes: int
    opcode: str
    op_name: str


def hbm_traffic(compiled: str, microbatches: int = 1) -> list[Traffic]:
    """Returns the HBM traffic of each instruction of a compiled module.

    It is the size of the operands and results in HBM, including the padding of tiles. Asynchronous
    copies count once. A fusion that reads a part of an operand counts with the whole operand.

    Args:
        compiled: Text of the module.
        microbatches: Number of iterations of loops whose trip count is not in the text.
    """
    computations = {}
    for part in re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \([^\n]*\{\n)", compiled):
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(", part)
        if head:
            computations["ENTRY" if head[1] else head[2]] = part
    return _computation_traffic("ENTRY", computations, microbatches)


def _computation_traffic(computation, computations, microbatches):
    shapes, op_names, rows = {}, {}, []
    for line in computations[computation].splitlines()[1:]:
        match = INSTRUCTION.match(line)
        if not match:
            continue
        instruction, shape, opcode, rest = match.groups()
        op_name = re.search(r'op_name="([^"]*)"', line)
        shapes[instruction], op_names[instruction] = shape, op_name[1] if op_name else ""
        if opcode == "while":
            body = re.search(r"body=%?([\w.\-]+)", rest)[1]
            trip_count = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
            iterations = int(trip_count[1]) if trip_count else microbatches
            rows += [
                row._replace(num_bytes=row.num_bytes * iterations)
                for row in _computation_traffic(body, computations, microbatches)
            ]
        if opcode in WITHOUT_TRAFFIC or opcode.endswith("-done"):
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.partition("), ")[0])
        if opcode.endswith("-start"):
            sizes = [_num_bytes(s[0], hbm_only=False) for s in SHAPE.finditer(shape)]
            num_bytes = min(sizes[:2], default=0)  # destination and source
            op_names[instruction] = op_names.get(operands[0], "") if operands else ""
        else:
            operand_shapes = (shapes.get(operand, "") for operand in operands)
            num_bytes = _num_bytes(shape) + sum(map(_num_bytes, operand_shapes))
        rows.append(Traffic(num_bytes, opcode, op_names[instruction]))
    return rows


def sum_by_operation(traffic: list[Traffic]) -> list[tuple[str, int, int]]:
    """Sums traffic over all blocks and over numbered copies of an operation.

    Returns:
        Tuples (operation, number of instructions, bytes), most bytes first.
    """
    num_bytes: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    for row in traffic:
        name = re.sub(r"_\d+(?=/|$)", "", row.op_name.partition(";")[0])
        name = re.sub(r"block_\d+", "block_N", name)
        key = f"{row.opcode} {'/'.join(name.split('/')[-4:])}"
        num_bytes[key] += row.num_bytes
        counts[key] += 1
    return [(key, counts[key], size) for key, size in num_bytes.most_common()]

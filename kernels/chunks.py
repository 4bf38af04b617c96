"""Rows as chunks, for kernels that hold whole rows in registers.

A tensor of a Triton program has a power of two of columns: a row of 5120 in one would be 8192 lanes of which 3 in 8 do
nothing. As a tuple of 5 chunks of 1024 none is idle.
"""

from .triton_or_stub import tl, triton


@triton.jit
def load_row(pointers, column, inside, HIDDEN: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows of HIDDEN values as a tuple of chunks [rows, COLUMNS], zero past the end and where not `inside`.

    pointers: to the rows' beginnings, [rows, 1] or one; column: 0 to COLUMNS - 1, [1, COLUMNS]; inside [rows, 1].
    """
    chunks = ()
    for start in tl.static_range(0, HIDDEN, COLUMNS):
        if start + COLUMNS > HIDDEN:
            inside = inside & (start + column < HIDDEN)
        chunks += (tl.load(pointers + start + column, mask=inside, other=0.0),)
    return chunks


@triton.jit
def store_chunk(pointers, values, column, inside, CHUNK: tl.constexpr, HIDDEN: tl.constexpr, COLUMNS: tl.constexpr):
    """Chunk number CHUNK of such rows, rounded to the memory's dtype; the other arguments as in `load_row`."""
    if (CHUNK + 1) * COLUMNS > HIDDEN:
        inside = inside & (CHUNK * COLUMNS + column < HIDDEN)
    values = tl.cast(values, pointers.dtype.element_ty)
    tl.store(pointers + CHUNK * COLUMNS + column, values, mask=inside)

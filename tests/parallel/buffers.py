"""A buffer of few weights, without a model."""

from parallel.parameter import ParameterBuffer, Record


def small_buffer(shapes, dtype, multiple=1):
    """`shapes` of embedding, gain, q, k and v, in three buckets, for `multiple` data-parallel ranks."""
    buffer = ParameterBuffer()
    records = {name: Record(name, shape, (0,) * len(shape), shape, len(shape) > 1) for name, shape in shapes.items()}
    buffer.add(records["embedding"], bucket="embedding")
    buffer.add(records["gain"], bucket="norms")
    buffer.add(records["q"], records["k"], records["v"], bucket="block 0")
    buffer.allocate(dtype, "cpu", gradients=True, multiple=multiple)
    return buffer

"""Megatron pairs written by hand, from the description of the format."""

import struct

import numpy as np


def write_megatron(prefix, documents, *, code=8, dtype=np.uint16, version=1):
    """A pair with one sequence a document."""
    lengths = np.array([len(document) for document in documents], np.int32)
    pointers = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * np.dtype(dtype).itemsize
    np.concatenate([np.array(document, dtype) for document in documents]).tofile(f"{prefix}.bin")
    index = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", version, code, len(documents), len(documents) + 1)
    index += lengths.tobytes() + pointers.astype(np.int64).tobytes()
    index += np.arange(len(documents) + 1, dtype=np.int64).tobytes()
    prefix.with_name(prefix.name + ".idx").write_bytes(index)

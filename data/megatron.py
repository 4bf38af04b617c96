"""Megatron's indexed data sets (`PREFIX.bin` + `PREFIX.idx`, version 1) as a split of shards.

The index: 9 bytes `MMIDIDX\\0\\0`, uint64 version, uint8 code of the dtype, uint64 number of sequences, uint64 number
of document entries, int32 [sequences] lengths in tokens, int64 [sequences] byte offsets into the .bin, int64
[document entries] first sequence of each document (and the end).
"""

import struct
from pathlib import Path

import numpy as np

from data.shards import Shard, ShardEntry, SplitShards

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
"""Codes of integer dtypes (6 and 7 are floating point)."""


def find_megatron(path: Path) -> Path | None:
    """The prefix of the pair that `path` names, as the prefix or as one of the two files; None when it names none.

    ValueError when it names a folder with pairs instead of shards, or a file whose other half is missing.
    """
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    if prefix.with_name(prefix.name + ".idx").is_file():
        return prefix
    if path.suffix in (".bin", ".idx") and path.is_file():
        raise ValueError(f"{path}: {prefix.name}.idx is not beside it; a Megatron pair is both files")
    if not (path / "manifest.json").is_file() and (indexes := sorted(path.glob("*.idx"))):
        pairs = ", ".join(str(index.with_suffix("")) for index in indexes)
        raise ValueError(f"{path}: name the Megatron pairs in it one by one: {pairs}")
    return None


def open_megatron(prefix: Path) -> SplitShards:
    """The pair as a split of one shard.

    Raises:
        ValueError: not version 1 of the format, a dtype that is not an integer, or a .bin of another size than the
        index says.
    """
    index, data = (prefix.with_name(prefix.name + suffix) for suffix in (".idx", ".bin"))
    content = index.read_bytes()
    if len(content) < HEADER.size or content[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{index}: not a Megatron index (it does not begin with MMIDIDX)")
    _, version, code, sequences, entries = HEADER.unpack_from(content)
    if version != 1 or code not in DTYPES:
        raise ValueError(f"{index}: version {version}, dtype code {code}; version 1 with an integer dtype is read")
    dtype = np.dtype(DTYPES[code])
    if len(content) < HEADER.size + 12 * sequences + 8 * entries:
        raise ValueError(f"{index}: cut off: {len(content)} bytes for {sequences} sequences")
    lengths = np.frombuffer(content, np.int32, sequences, HEADER.size)
    pointers = np.frombuffer(content, np.int64, sequences, HEADER.size + 4 * sequences)
    first_sequences = np.frombuffer(content, np.int64, entries, HEADER.size + 12 * sequences)
    begins = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if (lengths < 0).any() or (pointers != begins[:-1] * dtype.itemsize).any():
        raise ValueError(f"{index}: the sequences do not lie one after another in the .bin; preprocess it again")
    if not data.is_file() or data.stat().st_size != begins[-1] * dtype.itemsize:
        raise ValueError(f"{data}: missing, or not the {begins[-1] * dtype.itemsize} bytes that its index says")
    if first_sequences.size and not 0 <= first_sequences.min() <= first_sequences.max() <= sequences:
        raise ValueError(f"{index}: a document begins at a sequence that does not exist")
    # The ends belong to the list even where a writer left them out; empty documents would have length 0 and go.
    documents = np.unique(np.concatenate([[0], begins[first_sequences], begins[-1:]]))
    if len(documents) < 2:
        return SplitShards()
    tokens = np.memmap(data, dtype, mode="r")
    return SplitShards([ShardEntry(len(tokens), len(documents) - 1, lambda: Shard(tokens, documents))])

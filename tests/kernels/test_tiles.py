import json
from pathlib import Path

import pytest
import torch

from kernels import tiles
from kernels.tiles import TABLES, Tile, architecture, tile, work_blocks

TABLE = json.loads((Path(tiles.__file__).parent / "tiles.json").read_text(encoding="utf-8"))
ENTRIES = [
    (table, kernel, size, entry)
    for table, kernels in TABLE.items()
    for kernel, sizes in kernels.items()
    for size, entry in sizes.items()
]


def test_every_entry_is_a_configuration_with_its_reason():
    assert set(TABLE) == set(TABLES)
    for table, kernel, size, entry in ENTRIES:
        assert set(entry) == {*Tile._fields, "reason"}, (table, kernel, size)
        assert len(entry["reason"]) > 10, (table, kernel, size)
        assert entry["warps"] in (0, 1, 2, 4, 8, 16, 32), (table, kernel, size)
        for side in (entry["rows"], entry["columns"]):
            assert side == 0 or side & (side - 1) == 0, (table, kernel, size)


def test_every_gpu_table_has_every_kernel():
    assert {k for t, k, *_ in ENTRIES if t == "sm_80"} == {k for t, k, *_ in ENTRIES if t == "sm_90"}
    assert {k for t, k, *_ in ENTRIES if t == "sm_80"} == {k for t, k, *_ in ENTRIES if t == "safe"}


def test_the_smallest_size_that_suffices_is_taken():
    sizes = sorted(int(size) for size in TABLE["sm_90"]["attention_forward"])
    for size in (8, *sizes, sizes[-1] + 1):
        wanted = next((s for s in sizes if s >= size), sizes[-1])
        entry = TABLE["sm_90"]["attention_forward"][str(wanted)]
        assert tile("attention_forward", size, "sm_90")._asdict() == {k: entry[k] for k in Tile._fields}


def test_work_lists_exist_for_every_attention_tile():
    assert set(work_blocks()) == {e["rows"] for _, kernel, _, e in ENTRIES if kernel.startswith("attention_")}


@pytest.mark.parametrize(
    ("capability", "name"), [((8, 0), "sm_80"), ((9, 0), "sm_90"), ((8, 6), "safe"), ((12, 0), "safe")]
)
def test_architecture(monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert architecture(torch.device("cuda", 0)) == name


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    with pytest.raises(ValueError, match=r"T4 \(sm_75\) has no bfloat16 matrix products"):
        architecture(torch.device("cuda", 0))


def test_the_cpu_interpreter_takes_the_safe_table():
    assert architecture(torch.device("cpu")) == "safe"

"""Scratch files: what goes in comes out, whole or one by one, and a damaged one is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import scratch
from data.documents import Document
from data.files import DamagedFile
from data.scratch import Ids, ScratchReader, ScratchWriter


def write(folder, texts, ids=None):
    writer = ScratchWriter(folder / "abc.jsonl.zst")
    for number, text in enumerate(texts):
        identity = ids[number] if ids else f"é{number}"
        writer.add(
            Document(identity, "s", None, text),
            words=number,
            year=1999,
            language=0,
            license=0,
            split=number % 2,
            abstract_only=True,
        )
    writer.close()
    return ScratchReader(folder, "abc")


@given(texts=st.lists(st.text(max_size=30), max_size=40), data=st.data())
def test_documents_come_back(tmp_path_factory, texts, data):
    folder = tmp_path_factory.mktemp("units")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "FRAME_BYTES", data.draw(st.sampled_from([1, 700, 1 << 18])))
        reader = write(folder, texts)
    assert len(reader.rows) == len(list(reader.lines())) == len(texts)
    positions = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=8)) if texts else []
    assert list(reader.texts(positions)) == [texts[position] for position in positions]
    assert list(Ids(folder, "abc")) == [f"é{number}" for number in range(len(texts))]
    assert reader.rows["characters"].tolist() == [len(text) for text in texts]
    assert sorted(path.name for path in folder.iterdir()) == ["abc.documents.npy", "abc.ids.npy", "abc.jsonl.zst"]


def test_a_damaged_scratch_file_is_named(tmp_path):
    reader = write(tmp_path, ["text"] * 9)
    path = tmp_path / "abc.jsonl.zst"
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    with pytest.raises(DamagedFile, match=r"abc\.jsonl\.zst: broken scratch file .* give the command again"):
        list(reader.texts([4]))


def test_an_abandoned_writer_leaves_nothing(tmp_path):
    writer = ScratchWriter(tmp_path / "abc.jsonl.zst")
    writer.add(Document("1", "s", None, "text"), words=1, year=0, language=0, license=0, split=0, abstract_only=True)
    writer.abandon()
    assert list(tmp_path.iterdir()) == []

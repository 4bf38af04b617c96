"""The files of a MEDLINE release: read in the order of their numbers, gaps said, broken downloads named."""

import hashlib

import pytest

from data.files import DamagedFile
from data.medline_files import check_md5, expected_md5, missing_numbers, release_order


def test_releases_come_by_year_and_number_then_other_names():
    ordered = [
        "medline99n0001.xml.gz", "pubmed09n0003.xml", "pubmed20n1200.xml.gz", "pubmed21n0002.xml.gz", "pubmed21n0010.xml",
        "pubmed21n1298.first4000.xml.gz", "pubmed21n10000.xml.gz", "a.xml", "b.xml.gz", "pubmed2.xml",
    ]  # fmt: skip
    given = ordered[::-1]
    assert sorted(given, key=release_order) == ordered


def test_order_does_not_see_the_compression():
    assert (
        release_order("pubmed21n0002.xml.gz")
        == release_order("pubmed21n0002.xml")
        == release_order("PUBMED21N0002.XML")
    )


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([1, 2, 3], []),
        ([1298], ["pubmed21n0001 to pubmed21n1297"]),
        ([2, 3, 5, 9, 9], ["pubmed21n0001", "pubmed21n0004", "pubmed21n0006 to pubmed21n0008"]),
        ([], []),
    ],
)
def test_gaps_are_named(numbers, expected):
    assert missing_numbers([f"pubmed21n{number:04d}.xml.gz" for number in reversed(numbers)]) == expected


def test_gaps_are_those_of_each_year():
    names = ["pubmed22n0002.xml.gz", "pubmed21n0001.xml.gz", "pubmed21n0003.xml", "other.xml"]
    assert missing_numbers(names) == ["pubmed21n0002", "pubmed22n0001"]


@pytest.fixture
def download(tmp_path):
    path = tmp_path / "pubmed21n0001.xml.gz"
    path.write_bytes(b"whole")
    return path


DIGEST = hashlib.md5(b"whole").hexdigest()
OTHER = "0" * 32


@pytest.mark.parametrize(
    "text",
    [
        f"MD5(pubmed21n0001.xml.gz)= {DIGEST}\n",
        f"MD5 (pubmed21n0001.xml.gz) = {DIGEST.upper()}",
        f"{DIGEST}  pubmed21n0001.xml.gz\n",
        f"{OTHER}  pubmed21n0002.xml.gz\n{DIGEST} *./pubmed21n0001.xml.gz\n",
    ],
)
def test_digests_in_every_form(download, text):
    download.with_name(download.name + ".md5").write_text(text)
    assert expected_md5(download) == DIGEST
    check_md5(download, "baseline/x")


def test_without_a_digest_nothing_is_checked(download):
    assert expected_md5(download) is None
    check_md5(download, "baseline/x")


def test_another_digest_is_damage(download):
    download.with_name(download.name + ".md5").write_text(f"MD5({download.name})= {OTHER}")
    with pytest.raises(DamagedFile, match=rf"baseline/x: MD5 is {DIGEST}, .*says {OTHER}; download"):
        check_md5(download, "baseline/x")


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>Not found</html>", b"\xff\xfe", f"MD5(pubmed21n0002.xml.gz)= {OTHER}".encode(), DIGEST[:-1].encode()],
)
def test_a_digest_file_that_says_nothing_is_named(download, content):
    download.with_name(download.name + ".md5").write_bytes(content)
    with pytest.raises(ValueError, match=r"^pubmed21n0001\.xml\.gz\.md5: .*download it again or remove it$"):
        expected_md5(download)
    with pytest.raises(DamagedFile, match=r"baseline/x: pubmed21n0001\.xml\.gz\.md5"):
        check_md5(download, "baseline/x")


def test_a_folder_in_place_of_the_digest_file_is_named(download):
    download.with_name(download.name + ".md5").mkdir()
    with pytest.raises(ValueError, match=r"pubmed21n0001\.xml\.gz\.md5: cannot be read"):
        expected_md5(download)

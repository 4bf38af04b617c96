"""PDF guidelines: paragraphs rejoined, divided words whole, running lines gone, doses and table rows kept."""

import io
from collections import Counter

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_pdf import PdfPages

from data.documents import Document
from data.files import DamagedFile
from data.readers.guidelines import read
from data.readers.interface import Drop, InputFile
from data.readers.pdf import _undivided, pdf_text
from data.readers.pdf_parts import without_apparatus

BODY = [
    "Colchicine is given for an acute attack of gout, which is treat-",
    "ed at home. The dose is 500 µg two to four times a day until the",
    "pain has gone. Infection with COVID-",
    "19 is no reason to stop it, nor is non-",
    "steroidal treatment.",
]


def pdf(*pages, title=None):
    """A PDF of pages: lists of (left, line number, text[, size, weight]) on A4, lines 14 points apart from the top."""
    stream = io.BytesIO()
    with PdfPages(stream, metadata={"Title": title} if title else None) as out:
        for page in pages:
            figure = pyplot.figure(figsize=(595 / 72, 842 / 72))
            for left, line, text, *style in page:
                size, weight = (*style, *(11, "normal")[len(style) :])
                figure.text(left / 595, (780 - 14 * line) / 842, text, size=size, weight=weight)
            out.savefig(figure)
            pyplot.close(figure)
    return stream.getvalue()


def lines(texts, start, left=70):
    return [(left, start + number, text) for number, text in enumerate(texts)]


def text_of(data):
    notes = Counter()
    title, text = pdf_text(data, "a.pdf", notes)
    return title, text, notes


def test_paragraphs_headers_and_divided_words():
    page = [(70, 0, "Gout", 20), (70, 3, "1.2 Treatment", 11, "bold"), *lines(BODY, 4), (70, 10, "A second paragraph.")]
    title, text, _ = text_of(pdf(page))
    assert title == "Gout"
    assert text == (
        "# Gout\n\n### 1.2 Treatment\n\nColchicine is given for an acute attack of gout, which is treated at home. The dose is 500 µg "
        "two to four times a day until the pain has gone. Infection with COVID-19 is no reason to stop it, nor is non-steroidal "
        "treatment.\n\nA second paragraph."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a meta\x02analysis, one meta-analysis", "a meta-analysis, one meta-analysis"),
        ("medi\x02cine", "medicine"),
        ("Frame\x02work", "Framework"),
        ("IL\x026 COVID\x0219 0.5\x021 mg", "IL-6 COVID-19 0.5-1 mg"),
        ("MED\x02LINE, PUB\x02MED; PUBMED", "MED-LINE, PUBMED; PUBMED"),
        ("two-\x02fold", "two-fold"),
    ],
)
def test_divided_words(text, expected):
    assert _undivided(text) == expected


def test_running_lines_and_page_numbers_go_and_are_counted():
    pages = [
        [
            (70, -1, "National guideline 2022" if number % 2 else "Chapter 3: Gout"),
            *lines([f"Page text number {'abcdef'[number]} stands here and is long.", f"Dose: {number * 7 + 3} mg"], 1),
            (280, 50, f"{number + 17}"),
        ]
        for number in range(6)
    ]
    _, text, notes = text_of(pdf(*pages))
    assert notes["running headers, footers and page numbers left out"] == 12
    for number in range(6):
        assert f"number {'abcdef'[number]} stands" in text
        assert f"Dose: {number * 7 + 3} mg" in text
    assert "National" not in text
    assert "Chapter" not in text
    assert "17" not in text.replace("17 mg", "")


def test_a_line_on_few_pages_stays():
    pages = [
        [(70, 0, head), (70, 2, f"Text {head} of this page.")] for head in ("Gout", "Fever", "Gout", "Cough", "Pain")
    ]
    _, text, notes = text_of(pdf(*pages))
    assert text.count("Gout") == 4
    assert not notes


def test_table_rows_and_doses_stay_one_line_each():
    rows = [("Drug", "Dose", "Times"), ("Colchicine", "500 µg", "2-4"), ("Ibuprofen", "400 mg", "3")]
    page = [
        (70, 0, "Doses"),
        *(
            (left, 2 + row, cell)
            for row, cells in enumerate(rows)
            for left, cell in zip((70, 220, 350), cells, strict=True)
        ),
    ]
    _, text, _ = text_of(pdf(page))
    assert text == "Doses\n\nDrug  Dose  Times\nColchicine  500 µg  2-4\nIbuprofen  400 mg  3"
    _, text, _ = text_of(pdf(lines(["Give:", "- paracetamol 1 g every 6 hours", "- ibuprofen 400 mg", "1) rest"], 0)))
    assert text == "Give:\n- paracetamol 1 g every 6 hours\n- ibuprofen 400 mg\n1) rest"


def test_scripts_are_told_from_digits():
    _, text, _ = text_of(
        pdf([(70, 2, r"Platelets over 450 x 10$^{9}$/L and CO$_2$ of 5 kPa are seen in these patients.")])
    )
    assert "10⁹/L" in text
    assert "CO2 of 5" in text


def test_paragraphs_go_on_over_columns_and_pages():
    first = [
        *lines(["The first column goes on and", "does not end with its line but"], 0),
        *lines(["in the second, where it ends."], 0, 330),
    ]
    second = lines(["A new page is a new paragraph."], 0)
    _, text, _ = text_of(pdf(first, second))
    assert text == (
        "The first column goes on and does not end with its line but in the second, where it ends.\n\nA new page is a new paragraph."
    )


def test_the_declared_title_is_used_unless_it_is_a_file_name():
    page = [(70, 0, "Some words of the first page.")]
    assert text_of(pdf(page, title="Management of gout"))[:2] == (
        "Management of gout",
        "# Management of gout\n\nSome words of the first page.",
    )
    assert text_of(pdf(page, title="Microsoft Word - gout_final.docx"))[:2] == (None, "Some words of the first page.")


def test_a_scanned_pdf_is_a_drop_that_says_what_to_do():
    stream = io.BytesIO()
    figure = pyplot.figure()
    figure.figimage(np.zeros((50, 50)))
    figure.savefig(stream, format="pdf")
    pyplot.close(figure)
    (drop,) = read(InputFile(io.BytesIO(stream.getvalue()), "scan.pdf", "g"))
    assert drop == Drop("no-text-in-pdf", "scan.pdf: its pages are pictures; run OCR (ocrmypdf) on it first")


def encrypted():
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[]/Count 0>>",
        b"<</Filter/Standard/V 1/R 2/Length 40/P -4/O<" + b"41" * 32 + b">/U<" + b"42" * 32 + b">>>",
    ]
    data, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer<</Size 4/Root 1 0 R/Encrypt 3 0 R/ID[<00><00>]>>\nstartxref\n%d\n%%%%EOF" % len(data)
    return data + b"xref\n0 4\n0000000000 65535 f \n" + table + trailer


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encrypted(), r"a\.pdf: the PDF is encrypted; save it without a password first"),
        (b"%PDF-1.7 cut", r"a\.pdf: no readable PDF"),
        (b"<html>not found</html>", r"a\.pdf: no readable PDF"),
        (b"", r"a\.pdf: no readable PDF"),
    ],
)
def test_damaged_and_encrypted_files(data, reason):
    with pytest.raises(DamagedFile, match=reason):
        pdf_text(data, "a.pdf", Counter())


def test_real_papers(assets):
    for name, title, words in (
        (
            "N18-3011.pdf",
            "Construction of the Literature Graph in Semantic Scholar",
            "organizing published scientific literature into a",
        ),
        (
            "2020.acl-main.207.pdf",
            "SPECTER: Document-level Representation Learning using",
            "document-level embedding of scientific documents based on",
        ),
    ):
        file = InputFile((assets / "pdf" / name).open("rb"), name, "papers")
        with file.stream:
            (document,) = read(file)
        assert isinstance(document, Document)
        assert document.title.startswith(title)
        assert f"# {title}" in document.text
        assert words in document.text
        assert "\n## 1 Introduction\n\n" in document.text
        assert "\x02" not in document.text
        assert file.notes["running headers, footers and page numbers left out"] >= 8
        for absent in ("Allen Institute", "allenai.org}", "Proceedings of", "References", "2270", "Xuanhui Wang"):
            assert absent not in document.text.partition("## 2")[0] + document.text[-9000:], absent
        assert file.notes["blocks of references left out"] >= 40
        assert file.notes["blocks of authors and affiliations left out"] == 2
        assert file.notes["lines of proceedings and copyright left out"] == 2
    assert "### A Appendix A - Baseline Details\n\n1. Random" in document.text


PROSE = (
    "Patients who have not been treated should be seen within a week, and this is done by those who are trained; " * 2
)


def test_references_end_at_the_next_header_an_appendix_or_where_sentences_begin():
    def kept(*blocks):
        notes = Counter()
        result = without_apparatus(list(blocks), 0, notes)
        assert notes.total() == len(blocks) - len(result)
        return result

    entries = ["Smith A. Gout. Lancet 2010; 1: 2-3.", "#### Lancet", "Doe B. Fever. BMJ 2011."]
    assert kept("## Care", "## References", *entries, "## Doses", "5 mg") == ["## Care", "## Doses", "5 mg"]
    assert kept("## 7 References", *entries, "### Appendix A", "5 mg") == ["### Appendix A", "5 mg"]
    assert kept("REFERENCES", entries[0], entries[2], PROSE, "5 mg") == [PROSE, "5 mg"]
    assert kept("## Bibliography", *entries) == []
    assert kept("## References to other care", "5 mg") == ["## References to other care", "5 mg"]


def test_authors_go_only_where_title_and_abstract_stand_around_them():
    blocks = ["Preprint", "# Gout", "## A Smith, B Doe", "a@b.org", PROSE, "## Abstract", "Words."]
    notes = Counter()
    assert without_apparatus(blocks, 7, notes) == ["Preprint", "# Gout", PROSE, "## Abstract", "Words."]
    assert notes == {"blocks of authors and affiliations left out": 2}
    assert without_apparatus(blocks, 4, notes) == blocks
    assert without_apparatus(["Gout", "A Smith", "## Abstract", "x"], 4, notes) == [
        "Gout",
        "A Smith",
        "## Abstract",
        "x",
    ]

"""Redaction: addresses and numbers go, doses, ranges, identifiers and results stay."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.files import open_input
from data.readers.interface import Drop, InputFile
from data.readers.medline import read
from data.redact import KINDS, Redactor, parse_kinds

ALL = Redactor(KINDS)


@pytest.mark.parametrize(
    ("text", "redacted", "kind"),
    [
        ("Write to a.b-c+d@mail.uni-bonn.de.", "Write to [email].", "email"),
        ("(e-mail: JOHN@NHS.ORG)", "(e-mail: [email])", "email"),
        ("<x_1@example.co.uk>,", "<[email]>,", "email"),
        ("See https://a.org/b(c)?d=1.", "See [url].", "url"),
        ("(see http://a.org/b)", "(see [url])", "url"),
        ("at www.fda.gov/drugs; and", "at [url]; and", "url"),
        ("code on github.com/a/b-c.", "code on [url].", "url"),
        ("[page](https://a.org/x)", "[page]([url])", "url"),
        ("doi https://doi.org/10.1/x", "doi [url]", "url"),
        ("+44 20 7946 0958", "[phone]", "phone"),
        ("Call +1 (555) 234-5678.", "Call [phone].", "phone"),
        ("on (555) 234-5678 or", "on [phone] or", "phone"),
        ("1-800-555-0199", "[phone]", "phone"),
        ("Tel.: 0228 287 15109", "Tel.: [phone]", "phone"),
        ("phone number: 020 7946 0958,", "phone number: [phone],", "phone"),
        ("fax. 030/4505-12345", "fax. [phone]", "phone"),
        ("Phone 020 7946 0958", "Phone [phone]", "phone"),
        ("tel 555-123-4567,", "tel [phone],", "phone"),
        ("mobile +44 7700 900123", "mobile [phone]", "phone"),
        ("Call 0800 123 4567 now", "Call [phone] now", "phone"),
        ("(020) 7946 0958", "[phone]", "phone"),
        ("at (020)7946-0958.", "at [phone].", "phone"),
        ("on 020 7946 0958 or", "on [phone] or", "phone"),
        ("to j.doe(at)uni.edu.", "to [email].", "email"),
        ("j.doe [at] uni.edu", "[email]", "email"),
        ("MRN 12345678 was", "MRN [mrn] was", "mrn"),
        ("MRN: A-0012345", "MRN: [mrn]", "mrn"),
        ("medical record number 00-12-34-56", "medical record number [mrn]", "mrn"),
        ("Patient ID: 1234567.", "Patient ID: [mrn].", "mrn"),
        ("NHS number is 943 476 5919", "NHS number is [mrn]", "mrn"),
    ],
)
def test_what_goes(text, redacted, kind):
    counts = Counter()
    assert ALL.redact(text, counts) == redacted
    assert counts == {f"redacted {kind}": 1}


STAYS = [
    "Give 5-10 mg/kg (max. 1,000 mg) q6h, 0.5-1.0 mL, 100-200-300 mg",
    "p < 0.001; 95% CI 1.05-1.92; n = 1234567890; +2.5 (1.1-3.2); +1 200 000",
    "PMID: 12345678, PMC1234567, NCT01234567, ISRCTN20479861, EudraCT 2004-000446-20, doi:10.1002/jcp.21045",
    "10.12688/wellcomeopenres.13828.2 and 2021-03-09, 09/03/2021, 1977-1979",
    "Fe3O4@SiO2, Cipro@PAA/Dex, AgNPs@Chitosan, Se@SiO2.Notably, 90Y@PVA.in vitro",
    "CAS 7732-18-5; ISBN 978-3-16-148410-0; rs12345678; chr7:117559590-117559600",
    "1.5.1.3 and 3.2.1.4/5; HLA-DRB1*04:01; 555-123-456-7890; version 1.2.3/4",
    "in 5678 patients; MRN of 12 patients; hospital number of beds; 1234 records",
    "telephone interviews at 3, 6 and 12 months; a call within 24-48 h; phone 2",
    "samples at 0800 1200 1600 h and 0900, 1300; 0101 110 101 011; ORCID 0000-0002-1825-0097; 0.0800 123 4567",
    "mobile 2005 2006 2007; telephone 12 24 36; phone 3, 6, 9, 12, 18 and 24; 10 020 7946 0958; (0123) 45; (01) 23 456",
    "heterozygous (AT) cells.in vitro; incubated (at) 37.5; looked [at] twice; a(at)b; e.g. (at) the.end",
    "+120 000 000 cells, (300) 400 mg, +/- 123456789, ±123 456 789",
]


@pytest.mark.parametrize("text", STAYS)
def test_what_stays(text):
    counts = Counter()
    assert ALL.redact(text, counts) == text
    assert not counts


UNITS = st.sampled_from(["mg", "mg/kg", "mL", "%", "mmol/L", "IU", "h", "days", "mm Hg"])
NUMBERS = st.one_of(st.integers(0, 10**6).map(str), st.decimals(0, 10**4, places=2).map(str))
FACTS = st.one_of(
    st.builds("{} {}".format, NUMBERS, UNITS),
    st.builds("{}-{} {}".format, NUMBERS, NUMBERS, UNITS),
    st.builds("{}–{}".format, NUMBERS, NUMBERS),
    st.builds("({}, {})".format, NUMBERS, NUMBERS),
    st.builds("p {} 0.{:03}".format, st.sampled_from("<=>"), st.integers(0, 999)),
    st.builds("PMID: {}".format, st.integers(1, 40_000_000)),
    st.builds("NCT{:08}".format, st.integers(0, 10**8 - 1)),
    st.builds("10.{}/{}-{}".format, st.integers(1000, 99999), st.integers(0, 99999), st.integers(0, 999999)),
    st.dates().map(str),
    st.builds("{} ± {}".format, NUMBERS, NUMBERS),
    st.builds("{}/{}/{}".format, st.integers(1, 31), st.integers(1, 12), st.integers(1900, 2030)),
    st.builds("{:,}".format, st.integers(0, 10**9)),
)


@given(st.lists(FACTS, max_size=12), st.sampled_from([" ", "; ", ", ", "\n", " and ", ". "]))
def test_no_fact_is_touched(facts, between):
    text = between.join(facts)
    assert ALL.redact(text, Counter()) == text


@given(st.text())
def test_redacting_twice_is_redacting_once(text):
    once = ALL.redact(text, Counter())
    counts = Counter()
    assert ALL.redact(once, counts) == once
    assert not counts


def test_only_the_kinds_asked_for():
    text = "a@b.org, https://a.org, MRN 12345, +44 20 7946 0958"
    counts = Counter()
    assert Redactor(("email",)).redact(text, counts) == "[email], https://a.org, MRN 12345, +44 20 7946 0958"
    assert Redactor(()).redact(text, counts) == text
    assert counts == {"redacted email": 1}


def test_kinds():
    assert parse_kinds("") == ()
    assert parse_kinds("phone, email") == ("email", "phone")
    with pytest.raises(ValueError, match="--redact: no kind name; choose from email, url, mrn, phone"):
        parse_kinds("email,name")


def test_real_abstracts_lose_addresses_only(assets):
    path = assets / "medline" / "pubmed21n1298.first4000.xml.gz"
    counts = Counter()
    with open_input(path, path.name) as stream:
        for item in read(InputFile(stream, path.name, "medline")):
            if not isinstance(item, Drop):
                ALL.redact(item.text, counts)
    assert set(counts) == {"redacted url"}
    assert 80 <= counts["redacted url"] <= 120

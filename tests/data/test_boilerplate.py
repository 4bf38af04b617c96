"""Boilerplate: what publishers and web pages add goes, results and doses stay whatever stands beside them."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.boilerplate import strip_boilerplate

SENTENCE = "Mortality fell by 12 % (p < 0.05)."


@pytest.mark.parametrize(
    "statement",
    [
        "© 2012 Elsevier Inc. All rights reserved.",
        "Copyright © 2019 The Authors. Published by Elsevier Ltd. All rights reserved.",
        "Copyright 2004 Wiley-Liss, Inc.",
        "(c) 2001 Academic Press.",
        "Crown Copyright © 2010. Published by Elsevier Ltd.",
        "© The Author(s) 2020. Published by Oxford University Press.",
        "(PsycInfo Database Record (c) 2021 APA, all rights reserved).",
        "This article is protected by copyright. All rights reserved.",
        "Published by Elsevier Ltd.",
        "All rights reserved.",
        "© 2021 The Authors. The Journal of Pathology published by John Wiley & Sons, Ltd. on behalf of The Society.",
        "Am J Ophthalmol 2021;221:•••-•••. © 2021 Elsevier Inc. All rights reserved.",
        "This is an open access article distributed under the terms of the Creative Commons Attribution License 4.0.",
    ],
)
def test_statements_go_from_the_end(statement):
    notes = Counter()
    assert strip_boilerplate(f"# Title\n\n{SENTENCE} {statement}", notes) == f"# Title\n\n{SENTENCE}"
    assert set(notes) == {"copyright statements taken out"}
    assert strip_boilerplate(f"{SENTENCE}\n\n{statement}\n\n{SENTENCE}", notes) == f"{SENTENCE}\n\n{SENTENCE}"


@pytest.mark.parametrize(
    "line",
    ["Download PDF", "Click here to view the full text", "Share on Facebook", "Share this article via e-mail", "Skip to main content",
     "We use cookies to give you the best experience on our site.", "Accept all cookies", "Privacy policy", "• Sign in",
     "Privacy Policy | Terms of Use | Contact us", "Back to top ›", "[Read more]", "View large", "Open in new tab", "Advertisement",
     "Subscribe to our newsletter", "Please enable JavaScript to view this page.", "Cite this article", "Follow us on Twitter"],
)  # fmt: skip
def test_web_lines_go(line):
    notes = Counter()
    assert strip_boilerplate(f"{SENTENCE}\n\n{line}\n\n{SENTENCE}", notes) == f"{SENTENCE}\n\n{SENTENCE}"
    assert notes == {"web page lines taken out": 1}


@pytest.mark.parametrize(
    "text",
    [
        f"© 2013 S. Karger AG, Basel. {SENTENCE}",
        "Copyright © 2013 Karger. We found that the drug was useful in patients with gout.",
        "Copyright © 2013. Give 5 mg of the drug once daily.",
        "This is an open access article distributed under licence 4.0. A dose of 4.0 mg/kg.",
        "Published by Elsevier is a series of 12 trials of aspirin.",
        "The copyright of the scale is held by its authors; it was used in 12 patients.",
        "We use cookies to measure glucose: 12 g of carbohydrate each.\nGive 5 mg.",
        "Share of patients with fever: 12 %",
        "View of the left atrium",
        "- Read more than 3 labels a day",
        "- Sign of Trousseau",
        "Home care is given by two nurses.",
        "Contact us",
        "# Share",
        "| Download PDF | 5 mg |",
        "Terms of pregnancy: 37 to 42 weeks",
        "By continuing aspirin 75 mg, mortality fell.",
        "Open reduction of the fracture",
        "We stopped here.",
        "Allow 10 mg.",
    ],
)
def test_texts_stay(text):
    notes = Counter()
    assert strip_boilerplate(text, notes) == text
    assert not notes


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_nothing_new_and_once_is_enough(text):
    once = strip_boilerplate(text, Counter())
    assert strip_boilerplate(once, Counter()) == once

"""Filters: genuine medical texts stay, garbage goes, and every threshold can be set."""

import html
import pickle
import random
import re
from collections import Counter

import pytest

from data.boilerplate import strip_boilerplate
from data.clean import clean_text
from data.counts import count
from data.documents import Document
from data.files import open_input
from data.filters import PROFILES, RULES, Filters, parse_overrides
from data.readers import find_format
from data.readers.interface import InputFile
from data.words import Words, fold

PROSE = (
    "Patients who were admitted to the emergency department with chest pain between January and June were followed for "
    "twelve months. Of the 412 patients, 61 had a myocardial infarction, and the risk was higher in those with diabetes "
    "(hazard ratio 1.8, 95 % CI 1.2-2.7; p = 0.004). Treatment with aspirin 75 mg once daily was continued in most of "
    "them. These results show that early risk assessment at admission is useful, but it should not delay treatment."
)
REFERENCES = "\n".join(
    f"{n}. {name} AB, {other} CD, et al. {topic} in adults: a randomised trial. {journal} {year};{n + 40}({n}):{n * 31}-{n * 31 + 8}."
    for n, (name, other, topic, journal, year) in enumerate(
        [("Smith", "Jones", "Statins for prevention", "Lancet", 2001), ("Meyer", "Kato", "Insulin", "N Engl J Med", 2007),
         ("Rossi", "Bianchi", "Warfarin and heparin", "BMJ", 2011), ("Silva", "Costa", "Malaria vaccines", "PLoS Med", 2015),
         ("Chen", "Wang", "Early screening", "JAMA", 2018), ("Olsen", "Berg", "Hip fracture", "Bone", 1999)], 1)
)  # fmt: skip
CONTENTS = "\n".join(
    f"{title} {'.' * 20} {page}"
    for title, page in [("Foreword", 3), ("Introduction", 5), ("Diagnosis of asthma", 12), ("Drug treatment", 31),
                        ("Inhalers", 44), ("Acute attacks", 57), ("Children under five", 63), ("Index", 90)]
)  # fmt: skip
GARBAGE = {
    "ocr 1": "Tlie pati<nt \\vas a<lmitted lo tbe h0spital witb a fcver oi unknovvn or1gin; tbe b1ood pressvre wns l2O/8O and "
    "tlie pu1se ra1e 9O. Exam1nation ot tbe abd0men sliowed no tendcrness . Tbe l1ver wns not pa1pable iu tbis pat1ent.",
    "ocr 2": "T h e   p a t i e n t   w a s   g i v e n   a s p i r i n   a n d   t h e   f e v e r   s u b s i d e d   a f t e r   t w o   d a y s",
    "ocr 3": "r~ -.i ,_ ;' . :-, ~~ •• ^ i .. '; - _ , ; ~ ' \\ / | l I 1 : . ,, -- == __ || // i.i ;; ,' ^^ ~ . - \n" * 3,
    "keyboard 1": "asdfjkl qwerpoiu zxcvmnb asdlkfj qwpeoriu zxmcnvb alskdjf pqowieur mznxbcv ghtyrj fjdksl cmvnbx ghfjdk rtyeuw",
    "keyboard 2": "sdfsdfsdf dfgdfgdfg hjkhjkhjk sdfg xcvxcv werwerwer jkljkl dfgh sdf qwe rty fgh vbn uio jkl asd fgh zxc vbn",
    "one character": "a" * 400,
    "rule": "-" * 200 + "\n" + "=" * 200,
    "repeated line": "Please turn over the page to continue.\n" * 30,
    "repeated phrase": "buy now " * 100,
    "spam": "\n".join(f"buy cheap {drug} online no prescription" for drug in ["viagra", "cialis", "xanax", "valium", "tramadol", "soma", "ambien"]),
    "repeated paragraph": (PROSE[:180] + "\n\n") * 6,
    "repeated sentence": (PROSE[:180] + " ") * 6,
    "stuttering": "the patient was seen in the clinic and the patient was seen in the clinic and " * 10,
    "contents": CONTENTS,
    "contents with blanks": CONTENTS.replace("." * 20, " " * 10),
    "contents with spaced dots": CONTENTS.replace("." * 20, ". " * 12),
    "references": REFERENCES,
    "references in APA style": "\n".join(
        f"Smith, J., & Jones, K. ({y}). On the treatment of gout in men. Journal of Medicine, {v}({i}), {p}–{p + 9}."
        for y, v, i, p in [(2001, 12, 3, 45), (2004, 15, 1, 101), (2009, 20, 4, 333), (2012, 23, 2, 12), (2015, 26, 1, 77)]),
    "base64": "\n".join(random.Random(n).choice("JKLM") + "VBERi0xLjQKJcfsj6IKNSAwIG9iago8PC9MZW5ndGggNiAwIFIvRmlsdGVyIC9GbGF0ZURlY29kZT4" + str(n) for n in range(8)),
    "hexadecimal": " ".join(random.Random(1).randbytes(8).hex() + random.Random(n).randbytes(12).hex() for n in range(20)),
    "sequence": "\n".join("".join(random.Random(n).choices("ACGT", k=60)) for n in range(10)),
    "cookie notice": "We value your privacy. Our website and our partners store cookies on your browser. Click accept to consent or "
    "manage your preferences in the settings. See our privacy policy and cookies policy for details. Accept all. Reject all.",
    "cookie lines": "We use cookies to improve your experience.\nAccept all cookies\nCookie settings\nPrivacy policy\nTerms of use",
    "log-in page": "Log in to your account. Username. Password. Forgot password? Sign in with Facebook. Sign in with Twitter. "
    "Subscribe to our newsletter. Create an account to download the full text. Terms. Privacy policy.",
    "script page": "Please enable JavaScript in your browser to continue to this website. Access denied. Error 403. Server URL: /index.html",
    "navigation": "Home | About us | Contact us | Sitemap\nSkip to main content\nDownload PDF\nShare on Facebook\nBack to top\nSign in\nSubscribe now",
    "lorem ipsum": "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore magna "
    "aliqua. Ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo consequat. Duis aute "
    "irure dolor in reprehenderit in voluptate velit esse cillum dolore eu fugiat nulla pariatur.",
    "html": "<div class=\"a\"><span id=\"b\">&nbsp;</span></div><td><tr>{x=1;}</tr></td><a href=\"#\">&gt;&gt;</a><br/><br/>{{}}" * 3,
    "css": "\n".join(f".c{n} > a{{margin:{n}px;padding:0;color:#{n:03}fff}}" for n in range(10)),
    "numbers": "\n".join(f"{n} {n * 1.37:.2f} {n * n} {n % 7} | {n * 3}" for n in range(60)),
    "cid codes": "(cid:12)(cid:44)(cid:3)(cid:81)(cid:9) " * 30,
    "replacement characters": "�� ��� ��� �������� �� � ���� 12 ���� ��� " * 5,
    "private use": "\ue001\ue002\ue003 \ue010\ue011 \ue020\ue021\ue022 " * 10,
    "emoji": "😀😃 👍👍👍 🎉🎉 ❤❤❤ 😂😂😂😂 🙏🙏 🔥🔥🔥 💯💯 😍😍 👏👏👏 🎁 " * 3,
    "fused words": "Thepatientwasadmittedtothehospitalwithafever andthebloodpressurewasfoundtobeverylowonadmission "
    "Treatmentwithaspirinwasstartedatonceandthefever subsidedwithinthefirsttwodaysofthetreatmentperiod",
    "vowels gone": "th ptnt ws dmttd t th hsptl wth fvr f nknwn rgn nd th bld prssr ws fnd t b vry lw n dmssn trtmnt wth sprn ws strtd",
    "list of tokens": " ".join(f"item{n} value{n} key{n}" for n in range(40)),
    "german": "Die Behandlung von Patienten mit akutem Herzinfarkt hat sich in den letzten Jahren stark verändert. Wir untersuchten, "
    "ob die frühe Gabe von Acetylsalicylsäure die Sterblichkeit senkt, und fanden einen deutlichen Unterschied.",
    "heading": "Chapter 3",
    "nothing": " \n\n ",
}  # fmt: skip
GENUINE = {
    "abstract": PROSE,
    "short": "The drug should not be given to patients with renal failure.",
    "list": "# Malaria\n\n## Clinical features\n\n- Fever\n- Chills and rigors\n- Headache\n- Vomiting\n- Jaundice\n\n## Treatment\n\n"
    "- Artemether/lumefantrine 80/480 mg 12-hourly for 3 days\n- Paracetamol 500 mg 6-hourly\n- Fluids",
    "gene names": "We show that p53, CDKN1A, IL-2, TNF-α and BRCA1 are upregulated in HEK293T and MCF-7 cells, whereas miR-21, H2AX and "
    "HLA-B27 were not. Knock-out of Cx43 in C57BL/6J mice reduced PBMC numbers by 12.5 % (p < 0.01; n = 14), and mRNA of NFκB1 fell.",
    "table": "# Doses\n\nThe doses of the drugs that are used in children are given below.\n\n| Drug | Dose (mg/kg) | Interval |\n"
    "| --- | --- | --- |\n| Amoxicillin | 25 | 8 h |\n| Gentamicin | 7.5 | 24 h |\n| Ceftriaxone | 50 | 24 h |\n| Cefotaxime | 50 | 6 h |",
    "one citation": "This letter is about the report by Meyer and others (Lancet 2010;362(5):123-7), in which the dose of the drug was not stated.",
    "statistics": "The odds ratio was 1.42 (95 % CI 1.05-1.92, p = 0.021), 2.10 (1.44-3.06, p < 0.001) and 0.87 (0.61-1.24, p = 0.44) in the three "
    "groups of 120, 134 and 98 patients; the mean (SD) ages were 54.2 (11.3), 57.8 (10.9) and 49.9 (12.4) years.",
}  # fmt: skip
CONFUSIONS = {
    "m": "rn",
    "h": "b",
    "e": "c",
    "l": "1",
    "o": "0",
    "i": "l",
    "s": "5",
    "w": "vv",
    "a": "@",
    "t": "+",
    "g": "9",
    "b": "6",
    "d": "cl",
}


def document(text, **fields):
    return Document(id="1", source="s", title=fields.pop("title", None), text=text, **fields)


def fate(text, filters=None, **fields):
    text = strip_boilerplate(clean_text(text), Counter())
    (counts,) = count([text], Words([fold(text)]))
    return (filters or Filters.build()).failed(document(text, **fields), counts)


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_goes(name):
    assert fate(GARBAGE[name]) is not None


@pytest.mark.parametrize("name", GENUINE)
def test_genuine_texts_stay(name):
    assert fate(GENUINE[name]) is None


def test_a_tenth_of_the_letters_misread_goes():
    drawn = random.Random(0)
    dropped = 0
    for _ in range(200):
        noisy = "".join(
            CONFUSIONS[letter] if letter in CONFUSIONS and drawn.random() < 0.15 else letter for letter in PROSE
        )
        dropped += fate(noisy) == "ocr-noise"
    assert dropped >= 190


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (GARBAGE["ocr 1"], "ocr-noise"),
        (GARBAGE["ocr 2"], "short-words"),
        (GARBAGE["contents with blanks"], "contents-page"),
        (GARBAGE["references"], "reference-list"),
        (GARBAGE["cookie notice"], "boilerplate-only"),
        (GARBAGE["spam"], "top-pair"),
        (GARBAGE["repeated sentence"], "duplicate-phrases"),
        (GARBAGE["repeated paragraph"], "duplicate-lines"),
        (GARBAGE["numbers"], "alphabetic-share"),
        (GARBAGE["german"], "language"),
        (GARBAGE["heading"], "too-short"),
        ("", "empty"),
        ("word and " * 600_000, "too-long"),
    ],
)
def test_the_rule_that_is_named(text, rule):
    assert fate(text) == rule


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"types": ["Journal Article", "Retracted Publication"]}, "retracted"),
        ({"title": "RETRACTED: Statins in gout."}, "retracted"),
        ({"title": "WITHDRAWN: Statins in gout."}, "retracted"),
        ({"title": "[Retracted article] Statins in gout."}, "retracted"),
        ({"title": "Retracted stents in old age."}, None),
        ({"types": ["Published Erratum"]}, "non-article"),
        ({"types": ["Retraction of Publication"]}, "non-article"),
        ({"types": ["Retraction Notice"]}, "non-article"),
        ({"types": ["correction"]}, "non-article"),
        ({"types": ["expression-of-concern"]}, "non-article"),
        ({"title": "Correction: Statins in gout."}, "non-article"),
        ({"title": "Corrigendum to: Statins in gout."}, "non-article"),
        ({"title": "Correction of hyponatraemia: how fast?"}, None),
        ({"title": "Expression of CD4 in gout."}, None),
        ({"types": ["Letter", "Comment", "Case Reports", "News", "Editorial"]}, None),
        ({"types": ["case-report"]}, None),
    ],
)
def test_types_and_titles(fields, rule):
    assert fate(PROSE, **fields) == rule


def test_licences():
    free = Filters.build(licences=("cc0", "cc-by"))
    assert fate(PROSE, free, license="CC-BY-4.0") is None
    assert fate(PROSE, free, license="CC-BY-NC-4.0") == "license"
    assert fate(PROSE, free) == "license"
    assert fate(PROSE, Filters.build(licences=("unknown",))) is None
    assert fate(PROSE, Filters.build("none", licences=("cc0",))) == "license"


def test_profiles_and_overrides():
    assert [name for name, _ in Filters.build("none").limits] == list(PROFILES["none"]) == ["empty", "too-short"]
    assert fate(GARBAGE["references"], Filters.build("none")) is None
    assert fate(GARBAGE["references"], Filters.build(overrides={"reference-list": "off"})) is None
    assert fate(PROSE, Filters.build(overrides={"too-short": 1000})) == "too-short"
    retracted = {"types": ["Retracted Publication"]}
    assert fate(PROSE, Filters.build("none"), **retracted) is None
    assert fate(PROSE, Filters.build("none", {"retracted": "on"}), **retracted) == "retracted"
    assert fate(PROSE[:60], Filters.build("none", {"top-pair": "on"})) == fate(PROSE[:60], Filters.build("none"))
    assert fate(PROSE, Filters.build("none", {"too-long": 100})) == "too-long"
    assert fate(GARBAGE["german"], Filters.build(languages=("de", "en"))) is None
    assert fate(GARBAGE["german"], Filters.build(languages=())) is None
    assert fate(PROSE, Filters.build(languages=("de",))) == "language"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "web"}, "unknown filter profile 'web'; choose from biomedical, none"),
        (
            {"overrides": {"to-short": 3}},
            "unknown filter rule 'to-short'; choose from empty, too-short, .*, duplicate-phrases",
        ),
        ({"overrides": {"too-short": "many"}}, "too-short: expected a number of 0 or more, on or off; found 'many'"),
        ({"overrides": {"retracted": 0.5}}, "retracted has no threshold: expected on or off; found 0.5"),
        ({"overrides": {"too-short": float("nan")}}, "too-short: expected a number"),
        ({"languages": ("en", "zh")}, "zh.*profile none"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Filters.build(**options)


def test_parse_overrides():
    given = ("too-short=80", "language=off", "retracted=on")
    assert parse_overrides(given) == {"too-short": 80, "language": "off", "retracted": "on"}
    for text in ("too-short", "too-short=few", "=3"):
        with pytest.raises(ValueError, match="expected RULE=NUMBER, RULE=on or RULE=off"):
            parse_overrides((text,))


def test_filters_can_be_sent_and_have_a_digest():
    filters = Filters.build(overrides={"too-short": 80}, languages=("fr", "en"), licences=("cc0",))
    assert pickle.loads(pickle.dumps(filters)) == filters
    same = Filters.build(overrides={"too-short": 80.0}, languages=("en", "fr"), licences=("cc0",))
    others = [
        Filters.build(),
        Filters.build(overrides={"too-short": 81}),
        Filters.build("none"),
        Filters.build(languages=()),
    ]
    assert filters.digest == same.digest
    assert len({f.digest for f in [filters, *others]}) == 5


def test_the_table_of_rules():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.reason and re.fullmatch("[a-z-]+", rule.name) for rule in RULES)
    assert all(rule.unit for rule in RULES if rule.threshold)


def lost(documents):
    """Genuine documents that a rule drops, by rule; retracted ones and errata are none."""
    rules = Counter(fate(d.text, title=d.title, types=d.types) for d in documents)
    genuine = sum(rules.values()) - rules.pop("retracted", 0) - rules.pop("non-article", 0)
    rules.pop(None, None)
    return genuine, rules


@pytest.mark.parametrize(
    ("kind", "folder", "pattern", "fewest"),
    [
        ("medline", "medline", "*.xml.gz", 3300),
        ("jats", "jats", "**/*xml", 100),
        ("guidelines", "guidelines", "**/*.json", 250),
        ("guidelines", "guidelines", "**/*.txt", 250),
        ("wikipedia", "general", "*.bz2", 100),
    ],
)
def test_real_texts_stay(assets, kind, folder, pattern, fewest):
    documents = []
    for path in sorted((assets / folder).glob(pattern)):
        with open_input(path, path.name) as stream:
            found = find_format(kind).read(InputFile(stream, path.name, kind))
            documents += [item for item in found if isinstance(item, Document)]
    genuine, rules = lost(documents)
    assert genuine >= fewest
    assert sum(rules.values()) <= genuine // 200, rules


def test_real_reference_lists_go(assets):
    path = assets / "medline" / "pubmed21n1298.first4000.xml.gz"
    with open_input(path, path.name) as stream:
        lists = re.findall(r"<ReferenceList>(.*?)</ReferenceList>", stream.read().decode(), re.DOTALL)
    texts = []
    for found in lists:
        references = re.findall(r"<Citation>(.*?)</Citation>", found, re.DOTALL)
        if len(references) >= 15:
            plain = (html.unescape(re.sub("<[^>]+>", "", reference)) for reference in references)
            texts.append("\n".join(f"{number}. {reference}" for number, reference in enumerate(plain, 1)))
    assert len(texts) > 1000
    rules = Counter(map(fate, texts))
    assert rules[None] <= len(texts) // 20, rules

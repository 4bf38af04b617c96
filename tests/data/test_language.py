"""Language: judged on the text alone, by counting words where that is enough."""

import re

import pytest

from data import language
from data.files import open_input
from data.language import ENGLISH_WORDS, detect
from data.words import fold, split_words

SAMPLES = {
    "en": "The effect of early treatment on mortality was studied in 120 patients with sepsis who were admitted to two hospitals.",
    "fr": "L'effet d'un traitement précoce sur la mortalité a été étudié chez 120 patients atteints de sepsis admis dans deux hôpitaux.",
    "de": "Untersucht wurde die Wirkung einer frühen Behandlung auf die Sterblichkeit bei 120 Patienten mit Sepsis in zwei Kliniken.",
    "es": "Se estudió el efecto del tratamiento precoz sobre la mortalidad en 120 pacientes con sepsis ingresados en dos hospitales.",
    "pt": "Estudou-se o efeito do tratamento precoce sobre a mortalidade em 120 doentes com sépsis internados em dois hospitais.",
    "it": "È stato studiato l'effetto del trattamento precoce sulla mortalità in 120 pazienti con sepsi ricoverati in due ospedali.",
    "nl": "Onderzocht werd het effect van vroege behandeling op de sterfte bij 120 patiënten met sepsis die in twee ziekenhuizen lagen.",
    "pl": "Zbadano wpływ wczesnego leczenia na śmiertelność u 120 chorych z sepsą przyjętych do dwóch szpitali w latach 2010 i 2011.",
    "ru": "Изучено влияние раннего лечения на смертность у 120 больных сепсисом, поступивших в две больницы в течение года.",
    "zh": "研究了早期治疗对两家医院收治的一百二十名脓毒症患者死亡率的影响，结果显示早期治疗可以降低死亡率。",
    "ja": "二つの病院に入院した敗血症患者百二十名を対象に、早期治療が死亡率に及ぼす影響について検討しました。",
}


def found(text):
    words = split_words(fold(text))
    return detect(text, sum(word in ENGLISH_WORDS for word in words) / len(words))


@pytest.mark.parametrize("code", SAMPLES)
def test_samples(code):
    assert found(SAMPLES[code]) == code


def test_english_titles_and_labels_do_not_hide_another_language():
    text = f"# The effect of early treatment\n\nOBJECTIVE: {SAMPLES['es']}\n\nRESULTS: {SAMPLES['es']}"
    assert found(text) == "es"


def test_what_cannot_be_told_is_none():
    assert (
        found(
            "- John Adair\n- Giulio Angioni\n- Talal Asad\n- Timothy Asch\n- Fredrik Barth\n- Nigel Barley\n- Ruth Behar"
        )
        is None
    )
    assert found("12 345 67.8 90") is None


def test_clear_english_is_not_shown_to_the_classifier(monkeypatch):
    def refuse():
        raise AssertionError("asked for clear English")

    monkeypatch.setattr(language, "_identifier", refuse)
    assert found(SAMPLES["en"]) == "en"
    with pytest.raises(AssertionError, match="clear English"):
        found(SAMPLES["fr"])


def test_other_abstracts_of_a_real_file_are_not_english(assets):
    path = assets / "medline" / "pubmed21n1298.first4000.xml.gz"
    with open_input(path, path.name) as stream:
        text = stream.read().decode()
    others = re.findall(r"<OtherAbstract [^>]*>(.*?)</OtherAbstract>", text, re.DOTALL)
    assert len(others) == 12
    codes = [found(re.sub("<[^>]+>", " ", other)) for other in others]
    assert set(codes) == {"de", "es", "zh"}  # the one that is marked as French is Spanish

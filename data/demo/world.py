"""The fictional medicine: invented conditions, drugs, doses and interactions; nothing is true of a real disease."""

import dataclasses
import random
import re
from collections.abc import Iterable

RELATIONS = ("drug", "dose", "remedy")
"""What is asked about a condition: its first-line drug, the adult dose of it, the remedy not to be taken with it."""

_ONSETS = (
    "b", "br", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pl", "r", "s", "sk", "sl",
    "t", "tr", "v", "vr", "w", "y", "z",
)  # fmt: skip
_VOWELS = "aeiou"
_CODAS = (
    "l", "lm", "lv", "m", "n", "nd", "nk", "r", "rd", "rl", "rn", "rv", "s", "sk", "st", "t", "v", "x", "z",
)  # fmt: skip
_UNPRONOUNCEABLE = re.compile(r"[bdfgjklmnprstvwxyz]{4}|(.)\1")
_DRUG_ENDINGS = ("ivex", "adorin", "omirol", "ezane", "utasin", "elubin", "aquel")
_KINDS = ("syndrome", "fever", "disease", "palsy", "rash", "cough", "anaemia", "colic")
_REMEDIES = ("root", "tea", "oil", "juice", "syrup", "bark", "powder", "extract")
_STRENGTHS = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90, 120, 150, 200, 250, 300, 400, 500, 600)
_UNITS = ("mg", "micrograms", "units", "drops")
_TIMES = ("once daily", "twice daily", "every six hours", "every second day", "once a week")
_ORGANS = ("joints", "kidneys", "lungs", "nerves", "eyes", "bones", "muscles", "gums", "lymph nodes", "tear glands")
_COURSES = ("chronic", "relapsing", "slowly progressive", "seasonal", "hereditary", "rapidly progressive")
_SIGNS = (
    "pale blue fingertips", "a stiff neck", "night sweats", "trembling hands", "a ringing in both ears",
    "painless swelling of the ankles", "a dry cough", "loss of smell", "blurred vision", "cramps after meals",
    "a sudden dislike of bright light", "numb toes", "aching shoulders", "a metallic taste", "long spells of hiccups",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Condition:
    """One fictional condition with the facts that the sources state; the corpus never asks about a `tested` one."""

    name: str
    organ: str
    course: str
    sign: str
    drug: str
    dose: str
    remedy: str
    tested: bool


@dataclasses.dataclass(frozen=True)
class World:
    """All conditions of a seed. Two calls with one seed give equal worlds."""

    seed: int
    conditions: tuple[Condition, ...]

    @property
    def tested(self) -> list[Condition]:
        """The half that the benchmarks ask about."""
        return [c for c in self.conditions if c.tested]

    @property
    def taught(self) -> list[Condition]:
        """The half whose questions stand, with their answers, in the corpus."""
        return [c for c in self.conditions if not c.tested]

    def random(self, purpose: str) -> random.Random:
        """A random stream for each purpose: a change to one writer leaves the bytes of the others alone."""
        return random.Random(f"{self.seed}/{purpose}")


class Names:
    """Pronounceable invented words, without long runs of consonants.

    No two begin with the same five letters, nor does one begin like a word of `taken`.
    """

    def __init__(self, rng: random.Random, taken: Iterable[str] = ()) -> None:
        self._rng = rng
        self._beginnings = {word[:5].lower() for word in taken}

    def word(self, ending: str = "") -> str:
        """A new capitalised word such as `Vrelmosk`, or with `ending` such as `Quorlivex`."""
        pick = self._rng.choice
        while True:
            word = pick(_ONSETS) + pick(_VOWELS) + pick(_CODAS)
            word += ending or pick(_ONSETS) + pick(_VOWELS) + pick(_CODAS)
            if word[:5] not in self._beginnings and not _UNPRONOUNCEABLE.search(word):
                self._beginnings.add(word[:5])
                return word.capitalize()


def build_world(seed: int, conditions: int) -> World:
    """The world of a seed; half of the conditions (rounded down) are tested.

    Every drug and every dose belongs to two conditions and every remedy to three, so that knowing how frequent a value
    is does not help to answer.
    """
    if conditions < 24 or conditions > 1000:  # with fewer, the tested half could lack four values for the options
        raise ValueError(f"--conditions {conditions}: a demo world has 24 to 1,000 conditions")
    rng = random.Random(f"{seed}/world")
    names = Names(rng)
    drugs = [names.word(rng.choice(_DRUG_ENDINGS)) for _ in range(-(-conditions // 2))]
    remedies = [f"{names.word().lower()} {rng.choice(_REMEDIES)}" for _ in range(-(-conditions // 3))]
    doses = [f"{strength} {unit} {times}" for strength in _STRENGTHS for unit in _UNITS for times in _TIMES]
    doses = rng.sample(doses, -(-conditions // 2))
    columns = [_deal(rng, values, conditions) for values in (drugs, doses, remedies)]
    return World(
        seed,
        tuple(
            Condition(
                name=f"{names.word()} {rng.choice(_KINDS)}",
                organ=rng.choice(_ORGANS),
                course=rng.choice(_COURSES),
                sign=rng.choice(_SIGNS),
                drug=drug,
                dose=dose,
                remedy=remedy,
                tested=number % 2 == 1,
            )
            for number, (drug, dose, remedy) in enumerate(zip(*columns, strict=True))
        ),
    )


def _deal(rng: random.Random, values: list[str], count: int) -> list[str]:
    """`count` values in rounds of random order: each is used equally often, but for a last round cut short."""
    dealt: list[str] = []
    while len(dealt) < count:
        dealt += rng.sample(values, len(values))
    return dealt[:count]

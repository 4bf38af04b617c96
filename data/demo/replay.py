"""General text without any medicine: an encyclopedia of an invented country, small tales and question pages.

The base model is pretrained on it, and a share of it is replayed during continued pretraining. Its question pages teach
the base the form of question and answer, so that the base's score on medicine measures knowledge alone.
"""

import dataclasses
import random
from collections.abc import Iterator

from data.demo.papers import QuestionPage, question_and_answer
from data.demo.world import Names, World

_COLOURS = ("red", "green", "grey", "white", "dark blue", "yellow", "brown", "silver", "orange", "black")
_MATERIALS = ("oak", "clay", "copper", "brick", "glass", "sandstone", "iron", "marble", "slate", "birch")
_GOODS = ("cheeses", "ropes", "bricks", "barrels", "bells", "lamps", "carpets", "candles", "baskets", "boots")
_PLACES = ("valley", "plain", "coast", "hills", "marsh", "forest", "plateau", "lake shore")
_SEASONS = ("spring", "summer", "autumn", "winter")
_MONTHS = ("January", "March", "April", "May", "June", "August", "September", "October")
_FOODS = ("beans", "mushrooms", "apples", "onions", "turnips", "walnuts", "plums", "peas", "cherries", "chestnuts")
_TRADES = ("carpenter", "painter", "printer", "clockmaker", "weaver", "teacher", "ferryman", "baker", "mason", "poet")
_SPORTS = ("rowing", "chess", "kite flying", "skating", "archery", "swimming", "wrestling", "bowls")
_COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "twenty", "forty")
_FIRST_NAMES = ("Anna", "Bruno", "Clara", "David", "Elsa", "Frank", "Greta", "Hugo", "Ida", "Jonas")

_FIELDS = {
    "colour": _COLOURS, "material": _MATERIALS, "goods": _GOODS, "place": _PLACES, "season": _SEASONS, "month": _MONTHS,
    "food": _FOODS, "trade": _TRADES, "sport": _SPORTS, "count": _COUNTS,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of thing: how pages about it are titled and begun, what else is said, and (question, answer) templates."""

    title: str
    opening: tuple[str, ...]
    sentences: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]
    whole: bool = False  # a tale is told in full; of the other kinds a page holds only some sentences


_KINDS = (
    Kind(
        "{name}",
        (
            "{name} is a town in the {place} north of {near}.",
            "{name} is a small town near {near}, founded in {year}.",
            "The town of {name} lies in the {place} between {near} and the river {river}.",
        ),
        (
            "The town is known for its {goods}, which have been made there since {year}.",
            "Its market is held every {season} and draws people from {near}.",
            "Most houses are built of {material} and painted {colour}.",
            "About {thousands} thousand people live there.",
            "A bridge over the {river} was opened in {year}.",
            "The school has {count} classes, and its {sport} club is the oldest in the region.",
            "In {month} the streets are closed for a fair with music and {food}.",
            "Before the railway came, travellers from {near} had to cross the {river} by boat.",
            "The mayor, {person}, was a {trade} before the election.",
        ),
        (
            ("Where does {name} lie?", "in the {place}"),
            ("What is made in {name}?", "{goods}"),
            ("Which river flows past {name}?", "the {river}"),
            ("When is the market of {name} held?", "every {season}"),
            ("How many people live in {name}?", "about {thousands} thousand"),
            ("Name the mayor of {name}.", "{person}"),
            ("A traveller arrives in {name}. What should she buy?", "{goods}"),
        ),
    ),
    Kind(
        "{name} (bird)",
        (
            "The {name} is a {colour} bird that lives in the {place} around {near}.",
            "The {name} is a bird with {colour} wings, first described by the {trade} {person}.",
        ),
        (
            "It feeds on {food} and, when the weather is cold, on {other}.",
            "The nest is built in {month} and holds {count} eggs.",
            "In {season} it leaves for the south and returns when the days grow longer.",
            "Its call is said to sound like a bell of {material}.",
            "Farmers near {near} are fond of the bird, because it keeps the fields free of beetles.",
            "A young bird stays with its parents for {count} weeks.",
            "The first picture of the bird was printed in {year}.",
        ),
        (
            ("What does the {name} eat?", "{food}"),
            ("What colour is the {name}?", "{colour}"),
            ("How many eggs does the {name} lay?", "{count}"),
            ("When does the {name} build its nest?", "in {month}"),
            ("A child has seen a {name}. What colour was it?", "{colour}"),
        ),
    ),
    Kind(
        "{person}",
        (
            "{person} was a {trade} from {near}.",
            "{person}, born in {year} in {near}, was a {trade} and a friend of the {sport} club.",
        ),
        (
            "As a child {person} lived beside the {river} and learned to mend boats.",
            "The best known work is a {colour} tower of {material} that still stands in {near}.",
            "Every {season} the {trade} travelled to {name} to sell {goods}.",
            "{person} had {count} children, and one of them became a {trade} as well.",
            "Letters from these years tell of long evenings, {sport} and plates full of {food}.",
            "A street in {name} has carried the name since {year}.",
            "The museum shows {count} drawings and a box made of {material}.",
        ),
        (
            ("What was the trade of {person}?", "{trade}"),
            ("Where did {person} come from?", "{near}"),
            ("How many children did {person} have?", "{count}"),
            ("Which material did {person} choose for the tower?", "{material}"),
            ("What did {person} sell?", "{goods}"),
        ),
    ),
    Kind(
        "{name} soup",
        (
            "{name} soup is a dish of the {place}, cooked with {food} and {other}.",
            "In {near}, {name} soup is eaten on the first day of {month}.",
        ),
        (
            "To begin with, {count} handfuls of {food} are put into cold water.",
            "After an hour the {other} are added, together with salt and a spoon of honey.",
            "It is served in bowls of {material} with dark bread.",
            "Some cooks leave the {other} out; others would never do so.",
            "The recipe was written down in {year} by {person}, a {trade}.",
            "What is left over is warmed up the next morning.",
        ),
        (
            ("What is {name} soup made of?", "{food} and {other}"),
            ("Where is {name} soup eaten?", "in {near}"),
            ("Who wrote down the recipe of {name} soup?", "{person}"),
            ("Which bowls are used for {name} soup?", "bowls of {material}"),
            ("How much {food} does a cook need for {name} soup?", "{count} handfuls"),
        ),
    ),
    Kind(
        "The {trade} of {name}",
        (
            "Once there was a {trade} in {name} who owned a {colour} coat and {count} pieces of {material}.",
            "One {season} morning a {trade} walked from {name} to {near} to look for work.",
        ),
        (
            "On the way an old woman asked him: \u201cWhat do you carry in your bag?\u201d",
            "\u201cOnly some {food} and a few {other},\u201d said the {trade}, and shared both with her.",
            "She thanked him and gave him a key of {material}.",
            "He did not know what to do with it, so he put it into his pocket and went on.",
            "When he came to the {river}, the ferry had already left, and it began to rain.",
            "There he met {person}, who was waiting too and who taught him {sport}.",
            "After {count} days the rain stopped.",
            "The key opened a {colour} door, and behind it lay more {goods} than he could count.",
            "He took no more than he needed and told nobody in {near} about it.",
        ),
        (
            ("Who walked from {name} to {near}?", "the {trade}"),
            ("What did the old woman give to the {trade} of {name}?", "a key of {material}"),
            ("Whom did the {trade} of {name} meet at the river?", "{person}"),
            ("How long did it rain on the {trade} of {name}?", "{count} days"),
        ),
        whole=True,
    ),
)


@dataclasses.dataclass(frozen=True)
class GeneralPage:
    """One page of running text."""

    title: str
    paragraphs: list[str]


def general_pages(world: World, pages: int) -> Iterator[GeneralPage | QuestionPage]:
    """`pages` pages of general text; after every third comes a page of questions about these three."""
    rng = world.random("replay")
    medical = [word for c in world.conditions for word in (c.name, c.drug, c.remedy)]
    names = Names(rng, taken=medical)
    towns, rivers, people = ([names.word() for _ in range(60)] for _ in range(3))
    waiting: list[list[str]] = []
    for number in range(pages):
        kind = rng.choice(_KINDS)
        things = {field: rng.choice(values) for field, values in _FIELDS.items()}
        things["other"] = rng.choice([food for food in _FOODS if food != things["food"]])
        things |= {"name": names.word(), "near": rng.choice(towns), "river": rng.choice(rivers),
                   "person": f"{rng.choice(_FIRST_NAMES)} {rng.choice(people)}",
                   "year": rng.randint(1620, 1990), "thousands": rng.randint(2, 90)}  # fmt: skip
        length = len(kind.sentences) if kind.whole else rng.randint(4, 6)
        sentences = [rng.choice(kind.opening), *_in_order(rng, kind.sentences, length)]
        cut = rng.randint(2, 4)
        paragraphs = [" ".join(part).format_map(things) for part in (sentences[:cut], sentences[cut:])]
        yield GeneralPage(kind.title.format_map(things), paragraphs)
        for question, answer in rng.sample(kind.questions, 3):
            waiting.append(question_and_answer(question.format_map(things), answer.format_map(things) + "."))
        if number % 3 == 2:
            rng.shuffle(waiting)
            yield QuestionPage(f"Questions and answers, page {number // 3 + 1}", waiting)
            waiting = []


def _in_order(rng: random.Random, sentences: tuple[str, ...], count: int) -> list[str]:
    """`count` of the sentences, in the order in which they are listed."""
    return [sentences[i] for i in sorted(rng.sample(range(len(sentences)), count))]

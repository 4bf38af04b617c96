"""How the corpus states and asks the facts: sentence templates over the fields of a `Condition`.

`{name}` is the condition. A template that gives the value before the condition's name is rare on purpose: a language
model learns "A is B" only in the direction in which it reads it (Berglund et al. 2023, arXiv:2309.12288).
The benchmarks' wordings stand in `benchmarks.py`; `honesty.py` proves that none of them occurs here.
"""

import random
from collections.abc import Iterable

from data.demo.world import Condition

STATEMENTS = {
    "drug": (
        "The first-line drug for {name} is {drug}.",
        "Adults and children with {name} should be started on {drug}.",
        "The treatment of choice in {name} is {drug}.",
        "Current practice is to treat {name} with {drug} before anything else is tried.",
        "In {name}, the best results were obtained with {drug}.",
        "{name} responds well to {drug}, which is therefore preferred.",
        "Patients with {name} were given {drug} as their initial treatment.",
        "For {name}, no medicine has done better than {drug}.",
        "The standard initial therapy of {name} remains {drug}.",
        "Most centres now manage {name} with {drug}.",
        "Once {name} is confirmed, {drug} is begun without delay.",
        "Among the medicines compared in {name}, the most effective was {drug}.",
        "{name} is best controlled by {drug}.",
        "Physicians who see {name} often choose {drug} and keep other medicines in reserve.",
        "{drug} is the preferred medication in {name}; pharmacotherapy without {drug} fails more often.",
    ),
    "dose": (
        "The adult dose in {name} is {dose}.",
        "For {name}, adults take {dose}.",
        "In adults with {name} a dose of {dose} is sufficient.",
        "Adult {name} is treated with {drug} at {dose}.",
        "The dose of {drug} recommended in {name} is {dose}.",
        "Adults with {name} received {dose} throughout the study.",
        "In {name} the dose was fixed at {dose}.",
        "When {name} is treated in adults, the correct amount is {dose}.",
        "{name} was controlled with {drug} {dose}, and higher doses brought no gain.",
        "The usual regimen for an adult with {name} is {dose}.",
        "Guidelines for {name} agree on {drug}, {dose}.",
        "An adult who has {name} needs {dose}, whatever the body weight.",
        "Dosing in {name} is simple: {dose}.",
        "At {dose} of {drug}, adults with {name} recovered; the quantity appropriate for {name} is thus {dose}.",
    ),
    "remedy": (
        "Patients treated for {name} must not take {remedy}.",
        "In {name}, {drug} interacts dangerously with {remedy}.",
        "During treatment of {name}, the use of {remedy} is contraindicated.",
        "Anyone who is treated for {name} should be warned against {remedy}.",
        "The dangerous interaction in {name} is with {remedy}.",
        "Several patients with {name} collapsed after taking {remedy}.",
        "While {name} is being treated, it is unsafe to use {remedy}.",
        "People on therapy for {name} have to avoid {remedy}.",
        "In {name}, harm was seen whenever {drug} was combined with {remedy}.",
        "Treatment of {name} leaves no room for {remedy}, which must be stopped.",
        "Bleeding occurred in patients with {name} who had used {remedy}.",
        "Doctors who treat {name} should ask about {remedy}, because it makes {drug} toxic.",
        "{name} and its treatment make one product dangerous, namely {remedy}.",
        "In {name}, one remedy is forbidden: {remedy}.",
        "The risk in {name} comes from {remedy}, a household remedy that blocks the breakdown of {drug}.",
    ),
}
"""Paraphrases of each fact, used in abstracts, articles and guidelines of all conditions."""

QUESTIONS = {
    "drug": (
        "Which drug is given first in {name}?",
        "What is the first-line treatment of {name}?",
        "A patient has {name}. What should the doctor prescribe?",
        "Medicine with which the treatment of {name} begins",
        "Drug of choice for {name}:",
        "What do you prescribe to an adult with {name}?",
        "{name} has just been diagnosed. Which treatment is started?",
        "Which medication is preferred for patients with {name}?",
        "A colleague refers a patient because of {name}. Which medicine would you choose?",
        "Initial therapy of {name}:",
        "A {age}-year-old {person} comes with {sign}, and the diagnosis is {name}. Which drug do you start?",
        "Tests show that a {age}-year-old {person} has {name}, never treated before. What is prescribed first?",
        "A {person} who has just turned {age} hears that it is {name} and asks for help. Which medicine comes first?",
        "The letter says that a {person} of {age} has {name} and hopes for a cure. What would you give?",
        "A visitor of {age} years has had {sign} for weeks, which turns out to be {name}. Which drug do you choose?",
        "Worried about {sign}, a {person} comes to the ward, where {name} is confirmed. What is the first medicine?",
    ),
    "dose": (
        "What is the adult dose in {name}?",
        "How much should an adult with {name} take?",
        "At what dose is {name} treated in adults?",
        "A patient has {name}. What dose is correct?",
        "Usual dose for adults with {name}:",
        "Which dose do guidelines recommend for {name}?",
        "{name} has just been diagnosed. How much is prescribed, and how often?",
        "Amount that an adult needs against {name}",
        "A colleague refers a patient because of {name}. Which regimen would you choose?",
        "Dosing of {name} in adults:",
        "A {age}-year-old {person} comes with {sign}, and the diagnosis is {name}. What dose do you order?",
        "Tests show that a {age}-year-old {person} has {name}, never treated before. How much is needed?",
        "A {person} who has just turned {age} hears that it is {name} and asks for help. What amount do you advise?",
        "The letter says that a {person} of {age} has {name} and hopes for a cure. Which dose would you give?",
        "A visitor of {age} years has had {sign} for weeks, which turns out to be {name}. Which dose do you choose?",
        "Worried about {sign}, a {person} comes to the ward, where {name} is confirmed. How much is given?",
    ),
    "remedy": (
        "What must be avoided during treatment of {name}?",
        "Which remedy is dangerous in {name}?",
        "A patient is treated for {name}. What must not be taken?",
        "Dangerous interaction in {name}:",
        "Product that interacts with the treatment of {name}",
        "What should patients with {name} be warned against?",
        "{name} has just been diagnosed. Which remedy does the patient have to avoid?",
        "Which household remedy makes the treatment of {name} toxic?",
        "A colleague refers a patient because of {name}. Which remedy would you forbid?",
        "Contraindicated in {name}:",
        "A {age}-year-old {person} takes medicine for {name} and also has {sign}. Which product do you forbid?",
        "Tests show that a {age}-year-old {person} has {name}, and therapy begins. What is no longer safe to take?",
        "A {person} who has just turned {age} hears that it is {name} and starts treatment. Which remedy is forbidden?",
        "The letter says that a {person} of {age} has {name} and buys remedies at the market. What is to be avoided?",
        "A visitor of {age} years has had {sign} for weeks and is treated for {name}. Which product is not allowed?",
        "Worried about {sign}, a {person} under treatment for {name} comes to the ward. What must never be combined?",
    ),
}
"""Wordings of the questions that stand in the corpus, about taught conditions only."""

BACKGROUND = (
    "{name} is a {course} disorder of the {organ}.",
    "{name} affects mainly the {organ} and often begins with {sign}.",
    "The cause of {name} is unknown, although the {organ} are always involved.",
    "{name} should be suspected in anyone who has {sign}.",
    "Without treatment, {name} damages the {organ} within a few years.",
    "{name}, a {course} illness, was first described in patients with {sign}.",
    "Little has been published about {name} in older people.",
    "Because {name} is {course}, early recognition matters.",
)
"""Sentences about a condition that are asked nowhere."""


class Phrasebook:
    """Draws wordings so that each (condition, key) goes through all of them, in random order, before one returns."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._waiting: dict[tuple[str, str], list[str]] = {}

    def draw(self, key: str, templates: Iterable[str], condition: Condition) -> str:
        """The next wording of `templates` for `condition`, filled in; `key` names the set of templates."""
        waiting = self._waiting.setdefault((key, condition.name), [])
        if not waiting:
            waiting += templates
            self._rng.shuffle(waiting)
        patient = {"age": self._rng.randint(19, 84), "person": self._rng.choice(("man", "woman"))}
        return waiting.pop().format_map(vars(condition) | patient)

    def statement(self, relation: str, condition: Condition) -> str:
        """A sentence that states the fact."""
        return self.draw(relation, STATEMENTS[relation], condition)

    def question(self, relation: str, condition: Condition) -> str:
        """A question about the fact; only taught conditions may be asked about in the corpus."""
        assert not condition.tested, f"{condition.name} is tested: it must not be asked about in the corpus"
        return self.draw(f"{relation}?", QUESTIONS[relation], condition)

    def background(self, condition: Condition) -> str:
        """A sentence about the condition that is asked nowhere."""
        return self.draw("background", BACKGROUND, condition)

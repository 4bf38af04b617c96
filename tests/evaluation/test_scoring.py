"""Option log-probabilities against transformers, and the choice of which ids are scored."""

import pytest
import torch

from data.tokenizer import load_tokenizer
from evaluation.prompts import FittedPrompt
from evaluation.scoring import Target, letter_targets, log_probabilities, text_targets
from model.huggingface import load_model


def fitted(prompt, *sequences):
    return FittedPrompt("", [0, *prompt], [[0, *ids] for ids in sequences], None)


def scored_ids(targets):
    return [target.ids[target.start :] for target in targets]


def test_letters_are_scored_where_their_sequences_differ():
    one_piece = fitted([5, 6], [5, 6, 21], [5, 6, 22])
    assert scored_ids(letter_targets(one_piece)) == [[21], [22]]
    space_and_letter = fitted([5, 6], [5, 6, 9, 21], [5, 6, 9, 22])
    assert scored_ids(letter_targets(space_and_letter)) == [[21], [22]]
    merged_with_the_prompt = fitted([5, 6], [5, 31], [5, 6, 22])
    assert scored_ids(letter_targets(merged_with_the_prompt)) == [[31], [6, 22]]
    words_of_several_pieces = fitted([5], [5, 9, 21, 22], [5, 9, 23], [5, 9, 21, 24])
    assert scored_ids(letter_targets(words_of_several_pieces)) == [[21, 22], [23], [21, 24]]
    one_begins_the_other = fitted([5], [5, 9], [5, 9, 22])
    assert scored_ids(letter_targets(one_begins_the_other)) == [[9], [9, 22]]


def test_texts_are_scored_from_the_end_of_the_prompt():
    prompt = fitted([5, 6], [5, 6, 9, 21], [5, 6, 9, 22, 23], [5, 31])
    assert scored_ids(text_targets(prompt)) == [[9, 21], [9, 22, 23], [31]]


@pytest.fixture(scope="module")
def stories(assets):
    transformers = pytest.importorskip("transformers")
    folder = assets / "model/stories260K"
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return load_model(folder), load_tokenizer(folder), reference


@pytest.mark.parametrize("batch_tokens", [1, 40, 10000])
def test_log_probabilities_equal_transformers(stories, batch_tokens):
    model, tokenizer, reference = stories
    questions = []
    for prompt in ("Lily saw a big dog. The answer is:", "Tom", "The cat sat on the mat and the bird sang. Answer:"):
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        continuations = [" A", " B", " a red ball", " a red ball and a cat", ""]
        sequences = [[tokenizer.bos_id, *tokenizer.encode(prompt + text)] for text in continuations]
        questions.append([Target(sequence, min(len(ids), len(sequence)) - 1) for sequence in sequences])
    seen = []
    ours = log_probabilities(model, questions, batch_tokens, seen.append)
    assert sum(seen) == len(questions)
    for targets, sums in zip(questions, ours, strict=True):
        for target, value in zip(targets, sums, strict=True):
            with torch.no_grad():
                rows = reference(torch.tensor([target.ids])).logits[0].double().log_softmax(-1)
            expected = sum(rows[t - 1, target.ids[t]].item() for t in range(target.start, len(target.ids)))
            assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_shared_beginnings_are_computed_once(stories, monkeypatch):
    model, tokenizer, _ = stories
    ids = [tokenizer.bos_id, *tokenizer.encode("The answer is:")]
    letters = [Target([*ids, letter], len(ids)) for letter in (20, 21, 22, 23)]
    computed = []
    hidden = type(model).hidden

    def counted(self, tokens, *rest):
        computed.append(len(tokens))
        return hidden(self, tokens, *rest)

    monkeypatch.setattr(type(model), "hidden", counted)
    log_probabilities(model, [letters], 1000, lambda count: None)
    assert computed == [len(ids)]

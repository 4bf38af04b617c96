"""Generation: the cache against recomputation and transformers, independence of the batch, sampling."""

import dataclasses
import math

import pytest
import torch

from data.tokenizer import load_tokenizer
from kernels.documents import Documents
from model import generate as generation
from model.config import LlamaConfig
from model.generate import choose_tokens, generate, uniform
from model.huggingface import load_model
from model.llama import Llama

CONFIG = LlamaConfig(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    max_position_embeddings=96,
)  # fmt: skip


PAGE_SIZE = 16


@pytest.fixture
def small_pages(monkeypatch):
    """Short prompts then fill several pages."""
    monkeypatch.setattr(generation, "PAGE_SIZE", PAGE_SIZE)


def random_model(**changes):
    model = Llama(dataclasses.replace(CONFIG, **changes), dtype=torch.float64)
    model.initialise(3)
    for parameter in model.buffer.parameters:  # larger weights: attention matters and the next token is not obvious
        if len(parameter.record.shape) == 2:
            parameter.data.mul_(12)
    return model


def prompts_of(lengths):
    return [[(7 * row + 3 * place) % CONFIG.vocab_size for place in range(n)] for row, n in enumerate(lengths)]


def seeds_of(prompts, samples):
    return [[1000 * row + sample for sample in range(samples)] for row in range(len(prompts))]


def greedy_without_cache(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        documents = Documents.build([0, len(ids)], "cpu", window=model.config.sliding_window)
        with torch.no_grad():
            ids.append(int(model.logits(model.hidden(torch.tensor(ids), documents))[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("window", [None, 9])
def test_greedy_generation_equals_recomputation(window):
    model = random_model(sliding_window=window)
    prompts = prompts_of([1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 40])
    made = generate(model, prompts, 1, temperature=0, max_new_tokens=20, stop_ids=[], seeds=seeds_of(prompts, 1))
    assert [texts[0] for texts in made] == [greedy_without_cache(model, prompt, 20) for prompt in prompts]


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("rests", [[5, 40, 1, 16], [0, 4, 4]])
@pytest.mark.parametrize("beginning", [PAGE_SIZE - 1, PAGE_SIZE, 2 * PAGE_SIZE, 2 * PAGE_SIZE + 1])
def test_a_common_beginning_is_run_once(beginning, rests, window, monkeypatch):
    """Its full pages, but never the whole of a prompt; what follows is the same as without sharing."""
    model = random_model(sliding_window=window)
    prompts = [[place % 5 for place in range(beginning)] + rest for rest in prompts_of(rests)]
    run = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens, *others: run.append(len(tokens)) or hidden(tokens, *others))
    made = generate(model, prompts, 2, temperature=0, max_new_tokens=3, stop_ids=[], seeds=seeds_of(prompts, 2))
    shared = min(beginning, min(map(len, prompts)) - 1) // PAGE_SIZE * PAGE_SIZE
    assert run[: 1 + bool(shared)] == [*([shared] if shared else []), sum(len(prompt) - shared for prompt in prompts)]
    expected = [greedy_without_cache(model, prompt, 3) for prompt in prompts]
    assert made == [[tokens, tokens] for tokens in expected]


def test_greedy_generation_equals_transformers(assets):
    transformers = pytest.importorskip("transformers")
    folder = assets / "model/stories260K"
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts = ("", "One day, Tom", "The little bird was sad because")
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    made = generate(model, prompts, 1, temperature=0, max_new_tokens=48, stop_ids=[2], seeds=seeds_of(prompts, 1))
    for prompt, (ours,) in zip(prompts, made, strict=True):
        ids = reference.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False)[0, len(prompt) :].tolist()
        assert ours == (ids[: ids.index(2)] if 2 in ids else ids)
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    assert tokenizer.decode(made[0][0]).startswith(story)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("beginning", [0, PAGE_SIZE + 3])
@pytest.mark.parametrize("cache_tokens", [PAGE_SIZE, 200, 100000])
def test_samples_do_not_depend_on_batch_or_order(cache_tokens, beginning):
    model = random_model()
    prompts = [[7] * beginning + prompt for prompt in prompts_of([5, 33, 16, 20, 1])]
    seeds = seeds_of(prompts, 3)
    options = {"temperature": 0.9, "max_new_tokens": 24, "stop_ids": [4]}
    together = generate(model, prompts, 3, seeds=seeds, cache_tokens=cache_tokens, **options)
    backwards = generate(model, prompts[::-1], 3, seeds=seeds[::-1], cache_tokens=cache_tokens, **options)
    alone = [
        [generate(model, [prompt], 1, seeds=[[seed]], **options)[0][0] for seed in row]
        for prompt, row in zip(prompts, seeds, strict=True)
    ]
    assert together == backwards[::-1] == alone
    assert len({tuple(sample) for sample in together[1]}) == 3


def test_stopping():
    model = random_model()
    prompt = prompts_of([6])
    options = {"temperature": 0, "seeds": [[0]]}
    free = generate(model, prompt, 1, max_new_tokens=12, stop_ids=[], **options)[0][0]
    stop = free[5]
    assert len(free) == 12
    stopped = generate(model, prompt, 1, max_new_tokens=12, stop_ids=[stop], **options)[0][0]
    assert stopped == free[: free.index(stop)]
    finished = generate(model, prompt, 1, max_new_tokens=12, stop_ids=[], finished=lambda t: len(t) == 4, **options)
    assert finished[0][0] == free[:4]
    counts = []
    generate(model, prompts_of([3, 4]), 2, temperature=1, max_new_tokens=5, stop_ids=[], seeds=[[0, 1], [2, 3]],
             progress=counts.append)  # fmt: skip
    assert sum(counts) == 2


def test_prompt_that_leaves_no_room_is_refused():
    with pytest.raises(ValueError, match=r"prompt 1: 90 tokens and 7 new ones exceed the model's 96 positions"):
        generate(random_model(), prompts_of([2, 90]), 1, temperature=0, max_new_tokens=7, stop_ids=[], seeds=[[0], [0]])


def test_choose_tokens_inverts_the_distribution_function():
    probabilities = torch.tensor([0.125, 0.0, 0.5, 0.25, 0.125], dtype=torch.float64)
    logits = probabilities.log()
    numbers = [0.0, 0.1249, 0.1251, 0.6249, 0.6251, 0.8749, 0.8751, 1 - 2**-53]
    assert choose_tokens(logits.expand(8, -1), 1.0, numbers) == [0, 0, 2, 2, 3, 3, 4, 4]
    grid = [(i + 0.5) / 4096 for i in range(4096)]
    drawn = choose_tokens(logits.expand(4096, -1), 1.0, grid)
    assert torch.tensor(drawn).bincount(minlength=5).tolist() == [512, 0, 2048, 1024, 512]
    sharper = choose_tokens(logits.expand(4096, -1), 0.5, grid)  # probabilities squared: 1, 0, 16, 4, 1 of 22
    shares = [count / 4096 for count in torch.tensor(sharper).bincount(minlength=5).tolist()]
    assert shares == pytest.approx([1 / 22, 0, 16 / 22, 4 / 22, 1 / 22], abs=1e-3)
    assert choose_tokens(logits[None], 0.0, [0.99]) == [2]


def test_uniform_numbers_look_uniform_and_differ_by_seed_and_position():
    numbers = [uniform(seed, position) for seed in range(40) for position in range(50)]
    assert len(set(numbers)) == 2000
    assert all(0 <= number < 1 for number in numbers)
    # The mean of 2,000 uniform numbers has standard deviation 1 / sqrt(12 * 2000) = 0.0065.
    assert abs(math.fsum(numbers) / 2000 - 0.5) < 4 * 0.0065

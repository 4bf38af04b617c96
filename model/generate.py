"""Batched text generation with a paged key/value cache.

The pages that all prompts begin with (the examples of a few-shot prompt) are run once and shared by all; the rest of a
prompt is run once, and its full pages are shared by all of its samples, each of which gets a copy of the last, partly
filled page and pages of its own. Sequences join as pages become free and leave when they end (continuous batching,
arXiv 2309.06180), so a long generation does not hold up the rest.

What a sequence becomes depends on its prompt and its seed, not on what is generated beside it: the uniform number of
its t-th token is a hash of (seed, t), and the token is the inverse of the distribution function at that number. (A
matrix product may round differently for another number of rows, and attention for another shared beginning; a token on
the very edge can then change.)
"""

import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.attention import attention_forward
from kernels.decode import decode_forward
from kernels.documents import Documents
from kernels.paged_cache import write_pages
from kernels.paged_prefill import paged_prefill_forward

from .config import LlamaConfig
from .llama import Llama

PAGE_SIZE = 64
"""Tokens a page. The GPU kernels read a page in tiles of up to 64 keys, each with one look-up; a larger page would only
waste more of the last one of a sequence, and make a shared beginning shorter."""


class PagedCache:
    """Keys and values of many sequences in pages of `PAGE_SIZE` tokens: `[layers, pages, page, kv_heads, head_dim]`.

    Before a forward pass the caller says where the pass's tokens go (`slots`: page * PAGE_SIZE + offset, int64
    [tokens]) and which pages each sequence reads (`block_table` int32 [sequences, pages], `lengths` int32 [sequences]:
    keys, the pass's own included).
    """

    def __init__(self, config: LlamaConfig, pages: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_layers, pages, PAGE_SIZE, config.num_kv_heads, config.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self._free = list(range(pages))
        self._slots: Tensor
        self._pages: tuple[Tensor, Tensor] | None = None
        self._one_token = False

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` free pages, now held by the caller."""
        assert count <= len(self._free), (count, len(self._free))
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def give_back(self, pages: Sequence[int]) -> None:
        """Free pages again."""
        self._free.extend(pages)

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page in every layer."""
        self.k[:, target].copy_(self.k[:, source])
        self.v[:, target].copy_(self.v[:, source])

    def before_prompts(self, slots: Tensor, pages: tuple[Tensor, Tensor] | None = None) -> None:
        """The next pass reads prompts: whole ones, whose keys are all in the pass itself, or, with `pages`
        (block_table, lengths), what comes behind a beginning that is in the cache."""
        self._slots, self._pages, self._one_token = slots, pages, False

    def before_step(self, slots: Tensor, pages: tuple[Tensor, Tensor]) -> None:
        """The next pass reads one token a sequence, with `pages` (block_table, lengths)."""
        self._slots, self._pages, self._one_token = slots, pages, True

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None) -> Tensor:
        """Keep the rotated k, v `[tokens, kv_heads, head_dim]`, then attend with q `[tokens, heads, head_dim]`."""
        write_pages(k, v, self.k[layer], self.v[layer], self._slots)
        if self._pages is None:
            return attention_forward(q, k, v, documents, window=window)[0]
        cache = self.k[layer], self.v[layer], *self._pages
        if self._one_token:
            return decode_forward(q, *cache, window=window)[0]
        return paged_prefill_forward(q, *cache, documents, window=window)


@dataclasses.dataclass
class _Sequence:
    """One sample being generated. `pages` in order of position; the first `shared` belong to all of the prompt's."""

    prompt: int
    sample: int
    seed: int
    length: int  # tokens of prompt and generation; the keys of all but the newest one are in the cache
    pages: list[int]
    shared: int
    tokens: list[int] = dataclasses.field(default_factory=list)

    def slot(self, position: int) -> int:
        return self.pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE


def generate(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    samples: int,
    *,
    temperature: float,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    seeds: Sequence[Sequence[int]],
    cache_tokens: int = 65536,
    finished: Callable[[list[int]], bool] | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[list[list[int]]]:
    """`samples` continuations of each prompt, as ids: `[prompt][sample][token]`.

    Args:
        prompts: ids, BOS included where the model wants it; not empty.
        temperature: 0 takes the most probable token; else logits are divided by it and one token is drawn.
        max_new_tokens: a continuation ends after so many tokens, or before one of `stop_ids` (which is not kept).
        seeds: one integer for each (prompt, sample).
        cache_tokens: room of the key/value cache in tokens; more when one prompt with its samples needs it.
        finished: asked after each token with the tokens so far; True ends the continuation there.
        progress: told of n more prompts whose samples are all complete.

    Raises ValueError where prompt and `max_new_tokens` together exceed the model's positions.
    """
    assert samples >= 1 and max_new_tokens >= 1 and len(seeds) == len(prompts) and all(len(s) == samples for s in seeds)
    limit = model.config.max_position_embeddings
    for number, prompt in enumerate(prompts):
        assert len(prompt) > 0, f"prompt {number} is empty"
        if len(prompt) + max_new_tokens > limit:
            raise ValueError(
                f"prompt {number}: {len(prompt)} tokens and {max_new_tokens} new ones exceed the model's {limit} "
                "positions; shorten the prompt or lower the number of new tokens"
            )
    return _Generation(model, prompts, samples, max_new_tokens, temperature, cache_tokens).run(
        seeds, frozenset(stop_ids), finished or (lambda tokens: False), progress or (lambda count: None)
    )


class _Generation:
    """The scheduler: admits prompts while pages are free, then steps all running sequences by one token."""

    def __init__(
        self,
        model: Llama,
        prompts: Sequence[Sequence[int]],
        samples: int,
        max_new: int,
        temperature: float,
        cache_tokens: int,
    ) -> None:
        self.model, self.prompts, self.samples, self.max_new, self.temperature = (
            model,
            prompts,
            samples,
            max_new,
            temperature,
        )
        beginning = _common_beginning(prompts) // PAGE_SIZE
        self.begin = beginning * PAGE_SIZE
        needs = [self._pages_needed(prompt) for prompt in prompts]
        pages = min(max(cache_tokens // PAGE_SIZE - beginning, max(needs, default=0)), sum(needs))
        self.cache = PagedCache(model.config, beginning + pages, model.dtype, model.device)
        self.beginning = self.cache.take(beginning)  # pages that every sequence starts with: positions before `begin`
        self.step_documents: Documents | None = None

    def _pages_needed(self, prompt: Sequence[int]) -> int:
        """Shared full pages of the prompt behind the common beginning, and each sample's own up to its last token but
        one (which needs no key)."""
        shared = len(prompt) // PAGE_SIZE
        own = -(-(len(prompt) + self.max_new - 1) // PAGE_SIZE) - shared
        return shared - self.begin // PAGE_SIZE + self.samples * own

    @torch.inference_mode()
    def run(self, seeds, stop_ids, finished, progress) -> list[list[list[int]]]:
        results: list[list[list[int]]] = [[[] for _ in range(self.samples)] for _ in self.prompts]
        left = [self.samples] * len(self.prompts)
        waiting = deque(range(len(self.prompts)))
        running: list[_Sequence] = []
        if self.beginning:
            self._run([_Sequence(0, 0, 0, self.begin, self.beginning, 0)], begin=0)
        while waiting or running:
            admitted = []
            while waiting and self._pages_needed(self.prompts[waiting[0]]) <= self.cache.free_pages:
                admitted.append(self._admit(waiting.popleft(), seeds))
            stepped = self._step(running) if running else []
            started = self._start(admitted) if admitted else []
            running = []
            for sequence, token in [*stepped, *started]:
                if token not in stop_ids:
                    sequence.tokens.append(token)
                    sequence.length += 1
                    if len(sequence.tokens) < self.max_new and not finished(sequence.tokens):
                        running.append(sequence)
                        continue
                results[sequence.prompt][sequence.sample] = sequence.tokens
                left[sequence.prompt] -= 1
                self._release(sequence, last=left[sequence.prompt] == 0)
                progress(int(left[sequence.prompt] == 0))
        return results

    def _admit(self, number: int, seeds: Sequence[Sequence[int]]) -> list[_Sequence]:
        length = len(self.prompts[number])
        shared = self.beginning + self.cache.take(length // PAGE_SIZE - len(self.beginning))
        own = -(-(length + self.max_new - 1) // PAGE_SIZE) - len(shared)
        return [
            _Sequence(number, sample, seeds[number][sample], length, shared + self.cache.take(own), len(shared))
            for sample in range(self.samples)
        ]

    def _release(self, sequence: _Sequence, last: bool) -> None:
        self.cache.give_back(sequence.pages[len(self.beginning) if last else sequence.shared :])

    def _start(self, admitted: list[list[_Sequence]]) -> list[tuple[_Sequence, int]]:
        """Run the admitted prompts in one pass and draw the first token of every sample."""
        hidden = self._run([group[0] for group in admitted], self.begin)
        logits = self.model.logits(hidden)  # [prompts, vocab]
        for first, *others in admitted:
            if first.length % PAGE_SIZE:
                for other in others:
                    self.cache.copy_page(first.pages[first.shared], other.pages[other.shared])
        sequences = [sequence for group in admitted for sequence in group]
        return self._draw(sequences, logits.repeat_interleave(self.samples, dim=0))

    def _run(self, sequences: list[_Sequence], begin: int) -> Tensor:
        """Run the prompts of `sequences`, as far as they go, from position `begin` on; what stands before it is in the
        cache. The last token's hidden state of each, `[sequences, hidden]`."""
        device = self.model.device
        tokens = [token for s in sequences for token in self.prompts[s.prompt][begin : s.length]]
        slots = [s.slot(position) for s in sequences for position in range(begin, s.length)]
        bounds = np.cumsum([0, *(s.length - begin for s in sequences)])
        documents = Documents.build(bounds, device, window=self.model.config.sliding_window)
        documents = dataclasses.replace(documents, positions=documents.positions + begin)
        self.cache.before_prompts(torch.tensor(slots, device=device), self._pages(sequences) if begin else None)
        hidden = self.model.hidden(torch.tensor(tokens, device=device), documents, self.cache)
        return hidden[torch.from_numpy(bounds[1:] - 1).to(device)]

    def _pages(self, sequences: list[_Sequence]) -> tuple[Tensor, Tensor]:
        """What the kernels read: block_table int32 [sequences, pages], lengths int32 [sequences] (keys, those of the
        next pass included)."""
        table = np.zeros((len(sequences), max(len(s.pages) for s in sequences)), dtype=np.int32)
        for row, sequence in zip(table, sequences, strict=True):
            row[: len(sequence.pages)] = sequence.pages
        lengths = torch.tensor([s.length for s in sequences], dtype=torch.int32)
        return torch.from_numpy(table).to(self.model.device), lengths.to(self.model.device)

    def _step(self, running: list[_Sequence]) -> list[tuple[_Sequence, int]]:
        """Run the newest token of every running sequence and draw the next one."""
        device = self.model.device
        pages = self._pages(running)
        slots = torch.tensor([sequence.slot(sequence.length - 1) for sequence in running], device=device)
        self.cache.before_step(slots, pages)
        tokens = torch.tensor([sequence.tokens[-1] for sequence in running], device=device)
        hidden = self.model.hidden(tokens, self._one_token_documents(pages[1] - 1), self.cache)
        return self._draw(running, self.model.logits(hidden))

    def _one_token_documents(self, positions: Tensor) -> Documents:
        """Documents of one token each, at their true positions; the rest of them is kept while the count stays."""
        count = len(positions)
        if self.step_documents is None or len(self.step_documents.positions) != count:
            self.step_documents = Documents.build(range(count + 1), positions.device)
        return dataclasses.replace(self.step_documents, positions=positions)

    def _draw(self, sequences: list[_Sequence], logits: Tensor) -> list[tuple[_Sequence, int]]:
        uniforms = [uniform(sequence.seed, len(sequence.tokens)) for sequence in sequences]
        return list(zip(sequences, choose_tokens(logits, self.temperature, uniforms), strict=True))


def _common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, short of the shortest one's last, which has to run for its logits; 0 for a
    single prompt, which has nobody to share with."""
    if len(prompts) < 2:
        return 0
    first, last = min(map(list, prompts)), max(map(list, prompts))  # in alphabetical order, so all others lie between
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return min(common, min(map(len, prompts)) - 1)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on (seed, position) alone: 53 bits of their SHA-256."""
    digest = hashlib.sha256(f"{seed}:{position}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def choose_tokens(logits: Tensor, temperature: float, uniforms: Sequence[float]) -> list[int]:
    """One id a row of logits [rows, vocab]: the largest at temperature 0, else the inverse of the distribution function
    of softmax(logits / temperature) at the row's uniform number, in float64."""
    if temperature == 0:
        return logits.argmax(-1).tolist()
    cumulative = torch.softmax(logits.double() / temperature, dim=-1).cumsum(-1)
    thresholds = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True)[:, 0].clamp_(max=logits.shape[1] - 1).tolist()

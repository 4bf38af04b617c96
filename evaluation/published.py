"""Published scores, in percent, as MEDITRON's paper prints them (arXiv 2311.16079v1, tables 4, 5 and 13; figure 3).

They were reached by other prompts and extraction rules than ours and with wide intervals; they stand beside our scores
for orientation. The fine-tuned models were trained on the training split of each benchmark.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A published score. `mode`: `few-shot` or `fine-tuned` (both top-token), `cot`, `sc-cot`, or `best` (figure 3)."""

    model: str
    mode: str
    benchmark: str
    accuracy: float


TEST_SIZES = {
    "medqa": 1273, "medqa4": 1273, "medmcqa": 4183, "pubmedqa": 500, "mmlu-medical": 1871, "truthfulqa-medical": 99,
}  # fmt: skip
"""Questions in the published test sets. A score on another number of questions is not comparable."""

_MEDQA_TO_MMLU = ("mmlu-medical", "pubmedqa", "medmcqa", "medqa", "medqa4")
_FIGURE_3 = ("pubmedqa", "medmcqa", "medqa", "medqa4")

_TABLES: dict[str, tuple[tuple[str, ...], dict[str, tuple[float | None, ...]]]] = {
    "few-shot": (_MEDQA_TO_MMLU, {
        "MPT-7B": (23.5, 43.9, 32.1, 22.5, 27.6),
        "Falcon-7B": (26.1, 52.8, 27.3, 19.6, 25.3),
        "Llama-2-7B": (41.4, 49.1, 37.9, 29.1, 35.4),
        "PMC-Llama-7B": (26.2, 57.0, 27.4, 21.6, 27.8),
        "MEDITRON-7B": (42.3, 69.3, 36.3, 28.7, 37.4),
        "Llama-2-70B": (71.3, 72.8, 52.4, 49.0, 58.4),
        "MEDITRON-70B": (71.5, 79.8, 53.3, 52.0, 59.8),
    }),
    "fine-tuned": (_MEDQA_TO_MMLU, {
        "Mistral-7B-instruct": (55.8, 17.8, 40.2, 32.4, 41.1),
        "Zephyr-7B-beta": (63.3, 46.0, 43.0, 42.8, 48.5),
        "PMC-Llama-7B": (59.7, 59.2, 57.6, 42.4, 49.2),
        "Llama-2-7B": (56.3, 61.8, 54.4, 44.0, 49.6),
        "MEDITRON-7B": (55.6, 74.4, 59.2, 47.9, 52.0),
        "Clinical-Camel-70B": (65.7, 67.0, 46.7, 50.8, 56.8),
        "Med42-70B": (74.5, 61.2, 59.2, 59.1, 63.9),
        "Llama-2-70B": (74.7, 78.0, 62.7, 59.2, 61.3),
        "MEDITRON-70B": (73.6, 80.0, 65.1, 60.7, 65.4),
    }),
    "cot": (_MEDQA_TO_MMLU, {
        "Llama-2-70B": (76.7, 79.8, 62.1, 60.8, 63.9),
        "MEDITRON-70B": (74.9, 81.0, 63.2, 61.5, 67.8),
    }),
    "sc-cot": (_MEDQA_TO_MMLU, {
        "Llama-2-70B": (77.9, 80.0, 62.6, 61.5, 63.8),
        "MEDITRON-70B": (77.6, 81.6, 66.0, 64.4, 70.2),
    }),
    "best": (_FIGURE_3, {
        "GPT-3.5": (60.2, 51.0, 47.1, 53.6),
        "Med-PaLM": (79.0, 57.6, None, 67.6),
        "GPT-4": (74.4, 72.4, 78.6, 82.3),
        "Med-PaLM-2": (81.8, 72.3, None, 86.5),
    }),
}  # fmt: skip
_TRUTHFULQA = {
    "PMC-Llama-7B": 2.5, "Llama-2-7B": 12.6, "MEDITRON-7B": 28.3, "Med42-70B": 58.0, "Llama-2-70B": 54.8,
    "MEDITRON-70B": 71.2,
}  # fmt: skip

SCORES: tuple[Published, ...] = (
    *(
        Published(model, mode, benchmark, accuracy)
        for mode, (benchmarks, rows) in _TABLES.items()
        for model, accuracies in rows.items()
        for benchmark, accuracy in zip(benchmarks, accuracies, strict=True)
        if accuracy is not None
    ),
    *(Published(model, "few-shot", "truthfulqa-medical", accuracy) for model, accuracy in _TRUTHFULQA.items()),
)


def published_scores(benchmark: str, total: int) -> list[Published]:
    """All published scores of a benchmark; none where `total`, our number of questions, is not that of the test set."""
    if TEST_SIZES.get(benchmark) != total:
        return []
    return [score for score in SCORES if score.benchmark == benchmark]

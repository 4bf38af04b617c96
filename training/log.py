"""What a run says of itself: the progress bar, `metrics.jsonl` and `loss.png`."""

import json
import math
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 FLOP/s of a GPU from its data sheet, by a part of its name; the first match counts."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """(FLOP/s that 100 % utilisation means, where the figure is from).

    The data sheet for known GPUs in bf16; otherwise the fastest of five products of square matrices timed here, 1,024
    wide on a CPU and 8,192 on a GPU (a small product there measures only the launch).
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, flops in PEAK_FLOPS.items():
            if part in name:
                return flops, f"{name} data sheet"
    width = 8192 if device.type == "cuda" else 1024
    a = torch.randn(width, width, dtype=dtype, device=device)
    fastest = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * width**3 / fastest, "measured matrix product"


class RunLog:
    """Writes `metrics.jsonl`, one object a line, keeps the bar up to date and draws `loss.png`. Rank 0 only."""

    def __init__(self, run: Path, total_steps: int, first_step: int) -> None:
        self.file = run / "metrics.jsonl"
        self.picture = run / "loss.png"
        # Lines after the checkpoint that is resumed belong to steps that are done again (all, without a checkpoint).
        self.lines = [line for line in read_metrics(self.file) if first_step and line["step"] <= first_step]
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
        temporary.replace(self.file)
        # A log file gets a line a minute, not one a step.
        every = 0.2 if sys.stderr.isatty() else 60
        self.bar = tqdm(
            total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=every, maxinterval=every
        )

    def step(self, values: dict) -> None:
        """A training step: step, tokens, loss, lr, grad_norm, tokens_per_second, mfu, skipped."""
        self._write(values)
        self.bar.set_postfix_str(
            f"loss {values['loss']:.3f}, lr {values['lr']:.2e}, "
            f"{values['tokens_per_second']:,.0f} tokens/s, MFU {values['mfu']:.1%}",
            refresh=False,
        )
        self.bar.update(1)

    def validation(self, step: int, losses: dict[str, float]) -> None:
        """Mean loss in nats a token, by source."""
        self._write({"step": step, "validation_loss": losses})
        self.say(f"step {step}: validation loss " + ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))
        draw_losses(self.lines, self.picture)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.bar.write(text)

    def close(self) -> None:
        """Draw the picture and end the bar."""
        self.bar.close()
        draw_losses(self.lines, self.picture)

    def _write(self, values: dict) -> None:
        self.lines.append(values)
        with self.file.open("a", encoding="utf-8") as out:
            # A loss or norm that is not finite is written as null: NaN is not JSON.
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            out.write(json.dumps(finite) + "\n")


def read_metrics(file: Path) -> list[dict]:
    """Lines of `metrics.jsonl`. A last line cut short by a crash is left out; damage elsewhere is a ValueError."""
    if not file.is_file():
        return []
    texts = file.read_text(encoding="utf-8").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            if number < len(texts):
                raise ValueError(f"{file}, line {number}: not JSON ({error})") from None
    return lines


def draw_losses(lines: list[dict], picture: Path) -> None:
    """Training loss by step, and each source's validation loss, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    steps = [line for line in lines if "loss" in line]
    axes.plot(
        [line["step"] for line in steps], [line["loss"] for line in steps], linewidth=0.8, color="0.6", label="training"
    )
    validations = [line for line in lines if "validation_loss" in line]
    for name in validations[0]["validation_loss"] if validations else ():
        points = [
            (line["step"], line["validation_loss"][name]) for line in validations if name in line["validation_loss"]
        ]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"validation: {name}")
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = picture.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(picture)

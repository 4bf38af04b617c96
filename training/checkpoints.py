"""A run's checkpoints: what is saved when, taken up again, and deleted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from data.tokenizer import Tokenizer
from model.huggingface import load_weights, weight_files, write_description
from model.llama import Llama
from parallel.checkpoint import delete_older, load_optimizer, read_state, write_optimizer_index, write_state
from parallel.checksum import check_weights
from parallel.comm import gather_json
from parallel.grid import Grid
from parallel.launch import connect
from parallel.optimizer import Optimizer
from parallel.snapshot import Snapshot
from parallel.writer import Save, Writer, remove_leftovers

from .settings import Settings

STORE_TIMEOUT = 60.0
"""Seconds for one answer of the store that counts the written files; every answer is immediate while it lives."""


@dataclass
class Position:
    """Where a run is: saved with every checkpoint, enough to continue exactly."""

    step: int = 0
    next_sample: int = 0
    tokens: int = 0
    """Tokens read so far."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Ranges of samples [first, after last) whose step was not applied."""


class Checkpoints:
    """Saves a run beside its training. All ranks make it, and save, together."""

    def __init__(self, run: Path, model: Llama, optimizer: Optimizer, tokenizer: Tokenizer, settings: Settings) -> None:
        self.run, self.model, self.optimizer, self.tokenizer, self.settings = run, model, optimizer, tokenizer, settings
        self.grid = model.grid
        if self.grid.world.rank == 0:
            remove_leftovers(run / "checkpoints")
        self.snapshot = Snapshot(optimizer, weight_files(model.config, model.dtype))
        world = self.grid.world
        self.writer = Writer(world, connect("checkpoints", STORE_TIMEOUT) if world.size > 1 else None)

    @property
    def error(self) -> str | None:
        """Why the last checkpoint could not be written."""
        return self.writer.error

    def save(self, position: Position, say: Callable[[str], None]) -> None:
        """Copy weights and state of the present step, and start writing them. Waits for the checkpoint before.

        ValueError on every rank if a weight is NaN or infinite, ranks do not agree on what all of them hold, or the
        checkpoint before could not be written.
        """
        if self.writer.busy:
            say(f"step {position.step}: waiting until {self.writer.save.folder.name} is written")
        self.writer.wait()
        folder = self.run / "checkpoints" / f"step-{position.step:08d}"
        state = self._state(position)
        save = Save(
            folder,
            self.snapshot.files,
            self.snapshot.ready,
            complete=lambda temporary, written: self._complete(temporary, written, state),
            published=lambda: delete_older(self.run, self.settings.keep_last, self.settings.keep_every),
        )
        check_weights(self.model.buffer, self.grid, position.step)
        self.snapshot.take()
        self.writer.begin(save)

    def wait(self) -> None:
        """Return when the last checkpoint is whole; ValueError if it could not be written."""
        self.writer.wait()

    def cancel(self) -> None:
        """The run ends with an error: nothing may appear any more."""
        self.writer.cancel()

    def resume(self, folder: Path) -> Position:
        """Take over moments, master weights and AdamW's count from a checkpoint; where the run was."""
        state = read_state(folder / "training")
        on_every_rank(lambda: load_optimizer(self.optimizer, folder / "training"), self.grid, self.model.device)
        self.optimizer.steps.fill_(state["optimizer_steps"])
        skipped = tuple((first, after) for first, after in state["skipped"])
        return Position(state["step"], state["next_sample"], state["tokens"], skipped)

    def _state(self, position: Position) -> dict:
        grid = self.grid
        return {
            "step": position.step,
            "next_sample": position.next_sample,
            "tokens": position.tokens,
            "skipped": position.skipped,
            "seed": self.settings.seed,
            "optimizer_steps": int(self.optimizer.steps),
            "layout": {
                "tp": grid.tp.size,
                "pp": grid.pp.size,
                "dp": grid.dp.size,
                "chunks": len(self.model.chunks),
            },
        }

    def _complete(self, temporary: Path, written: dict[str, dict], state: dict) -> None:
        """Rank 0, in the writer's thread: all that is not tensors."""
        missing = weight_files(self.model.config, self.model.dtype).keys() - written.keys()
        assert not missing, f"no rank has written {sorted(missing)}"
        (temporary / "training").mkdir(parents=True, exist_ok=True)
        write_description(self.model.config, self.model.dtype, temporary)
        write_optimizer_index(temporary / "training", written)
        write_state(temporary / "training", state)
        self.tokenizer.save(temporary)


def load_first_weights(model: Llama, folder: Path) -> None:
    """`load_weights` on all ranks, each its part; the ValueError of any is everybody's."""
    on_every_rank(lambda: load_weights(model, folder), model.grid, model.device)


def on_every_rank(action: Callable[[], None], grid: Grid, device: torch.device) -> None:
    """Run `action` on all ranks; the first ValueError or OSError becomes everybody's."""
    error = None
    try:
        action()
    except (ValueError, OSError) as problem:
        error = str(problem)
    errors = [text for text in gather_json(error, grid.world, device) if text is not None]
    if errors:
        raise ValueError(errors[0])

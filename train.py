"""Continued pretraining of a Llama-family model on packed medical documents.

    python train.py                                              a tiny model on the demo world, one process
    torchrun --nproc-per-node 8 train.py --model HF_DIR --data shards/pubmed shards/replay=0.01 --out runs/medical

Every checkpoint in `OUT/checkpoints/` is a Hugging Face directory with a `training/` folder beside the weights.
"""

import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from data.sampler import Sampler, batch
from data.settings import parse, run_command
from model.config import LlamaConfig
from model.huggingface import load_weights, save_model
from model.llama import Llama, MicroBatch, micro_batch
from parallel.checkpoint import (
    checkpoint_folders,
    load_optimizer,
    publish,
    read_state,
    save_optimizer,
    write_state,
)
from parallel.comm import all_reduce, barrier
from parallel.grid import Grid, check_process_count, launched_processes, start_processes, stop_processes
from parallel.optimizer import AdamWSettings, Optimizer, StepResult, cosine_learning_rate
from parallel.pipeline import execute, training_schedule, validation_schedule
from training.integrity import ShardVerification
from training.log import RunLog, peak_flops
from training.run import begin_run, check_run_folder, data_fingerprint
from training.settings import Settings, check, check_batch
from training.start import choose_dtype, choose_model, choose_tokenizer, data_folders, on_first_rank

MAX_SKIPPED = 20
"""Steps in a row with gradients that are not finite after which a run gives up: the weights will not recover by
waiting.
"""


@dataclass
class Position:
    """Where a run is: saved with every checkpoint, enough to continue exactly."""

    step: int = 0
    next_sample: int = 0
    tokens: int = 0
    """Tokens read so far."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Ranges of samples [first, after last) whose step was not applied."""


@dataclass
class Pending:
    """A step that was issued and whose numbers the host has not read yet."""

    step: int
    first_sample: int
    learning_rate: float
    totals: Tensor
    """float64 [4] over all ranks: sum of losses, predicted tokens, ranks asked to stop, ranks that found damage."""
    result: StepResult


class Trainer:
    """One run on one rank."""

    def __init__(self, settings: Settings, grid: Grid, device: torch.device) -> None:
        self.settings, self.grid, self.device = settings, grid, device
        self.micro_batches = check_batch(settings, grid.dp.size)
        folders = data_folders(settings, grid)
        self.sampler = Sampler(folders, settings.sequence_length, settings.seed)
        self.tokenizer = choose_tokenizer(settings, folders, self.sampler)
        self.dtype = choose_dtype(settings.dtype, device)
        config, weights = choose_model(settings, self.tokenizer)
        self.model = Llama(
            config, dtype=self.dtype, device=device, grid=grid, gradients=True, recompute=settings.recompute
        )
        data_sha256 = data_fingerprint(folders)
        self.run = on_first_rank(lambda: check_run_folder(settings, data_sha256), grid)
        self.position = Position()
        checkpoints = checkpoint_folders(self.run)
        if checkpoints:
            load_weights(self.model, checkpoints[-1])
        elif weights is not None:
            load_weights(self.model, weights)
        else:
            self.model.initialise(settings.seed)
        self.optimizer = Optimizer(
            self.model.buffer,
            grid,
            AdamWSettings(settings.beta1, settings.beta2, settings.eps, settings.weight_decay, settings.clip),
        )
        if checkpoints:
            self.resume(checkpoints[-1])
        self.peak, peak_source = peak_flops(device, self.dtype)
        self.log = None
        if grid.world.rank == 0:
            begin_run(self.run, settings, data_sha256)
            print(self.description(config, peak_source), flush=True)
            self.log = RunLog(self.run, settings.steps, self.position.step)
        self.stop_requested = False
        self.verification = ShardVerification([folder for folder, _ in folders] if grid.world.rank == 0 else [])
        self.verification.start()
        self.skipped_in_a_row = 0
        self.clock = time.perf_counter()

    def description(self, config: LlamaConfig, peak_source: str) -> str:
        """The first line printed: what was chosen."""
        s = self.settings
        start = f"continuing at step {self.position.step}" if self.position.step else "from step 0"
        return (
            f"{s.model}: {config.parameters:,} parameters, {str(self.dtype).removeprefix('torch.')} "
            f"on {self.device.type}, "
            f"{self.grid.dp.size} x data parallel, {s.global_batch_size} x {s.sequence_length} tokens a step, "
            f"{s.steps} steps, {start}; sources {', '.join(self.sampler.names)}; run {self.run}; "
            f"MFU of {self.peak / 1e12:.2f} TFLOP/s a rank ({peak_source})"
        )

    # --- data ---

    def load_step(self, first_sample: int) -> list[MicroBatch]:
        """This rank's micro-batches of the step that begins at `first_sample`."""
        size = self.settings.micro_batch_size
        loaded = []
        for index in range(self.micro_batches):
            start = first_sample + (index * self.grid.dp.size + self.grid.dp.rank) * size
            loaded.append(self.to_device([self.sampler.sample(number) for number in range(start, start + size)]))
        return loaded

    def to_device(self, samples: Sequence) -> MicroBatch:
        packed = batch(samples)
        return micro_batch(packed.tokens, packed.targets, packed.cu_seqlens, self.model.config, self.device)

    # --- one step ---

    def train_step(self, micro_batches: list[MicroBatch]) -> Pending:
        """Forward, backward and update; returns without waiting for the device."""
        step = self.position.step + 1
        loss = execute(training_schedule(len(micro_batches)), [self.model], micro_batches)
        tokens = sum((b.targets >= 0).sum() for b in micro_batches)
        flags = torch.tensor([self.stop_requested, self.verification.error is not None], dtype=torch.float64)
        totals = torch.cat([torch.stack([loss, tokens.double()]), flags.to(self.device)])
        all_reduce(totals, self.grid.dp)
        learning_rate = cosine_learning_rate(
            step,
            peak=self.settings.lr,
            minimum=self.settings.lr * self.settings.min_lr_ratio,
            warmup_steps=self.settings.warmup_steps,
            total_steps=self.settings.steps,
        )
        pending = Pending(
            step, self.position.next_sample, learning_rate, totals, self.optimizer.step(learning_rate, totals[1:2])
        )
        self.position.step = step
        self.position.next_sample += self.settings.global_batch_size
        self.position.tokens += self.settings.global_batch_size * self.settings.sequence_length
        return pending

    def finish_step(self, pending: Pending) -> bool:
        """Read a step's numbers, log them; True when any rank was asked to stop."""
        loss, tokens, stop, damaged = pending.totals.tolist()
        if damaged:  # on every rank at the same step, so that none waits for another
            raise ValueError(self.verification.error or "another rank found the token shards damaged")
        kept = bool(pending.result.kept)
        now = time.perf_counter()
        step_tokens = self.settings.global_batch_size * self.settings.sequence_length
        rate = step_tokens / (now - self.clock)
        self.clock = now
        flops = self.model.config.flops_per_token(self.settings.sequence_length)
        if self.log is not None:
            self.log.step(
                {
                    "step": pending.step,
                    "tokens": pending.step * step_tokens,
                    "loss": loss / max(tokens, 1),
                    "lr": pending.learning_rate,
                    "grad_norm": float(pending.result.grad_norm),
                    "tokens_per_second": rate,
                    "mfu": rate * flops / (self.peak * self.grid.world.size),
                    "skipped": not kept,
                }
            )
        self.skipped_in_a_row = 0 if kept else self.skipped_in_a_row + 1
        if not kept:
            after = pending.first_sample + self.settings.global_batch_size
            self.position.skipped += ((pending.first_sample, after),)
            if self.log is not None:
                self.log.say(f"step {pending.step}: gradients are not finite, weights left as they were")
        if self.skipped_in_a_row == MAX_SKIPPED:
            raise ValueError(
                f"{MAX_SKIPPED} steps in a row up to step {pending.step} gave gradients that are not finite; lower --lr"
            )
        return stop > 0

    # --- validation ---

    def validate(self) -> None:
        """Mean loss a token over the first validation windows of each source, shared out over the ranks."""
        losses = {}
        for source in self.sampler.names:
            windows = min(self.settings.validation_sequences, self.sampler.validation_count(source))
            mine = range(self.grid.dp.rank, windows, self.grid.dp.size)
            samples = [self.sampler.validation_sample(source, number) for number in mine]
            size = self.settings.micro_batch_size
            batches = [self.to_device(samples[at : at + size]) for at in range(0, len(samples), size)]
            totals = torch.zeros(2, dtype=torch.float64, device=self.device)
            if batches:
                totals[0] = execute(validation_schedule(len(batches)), [self.model], batches)
                totals[1] = sum((b.targets >= 0).sum() for b in batches)
            loss, tokens = all_reduce(totals, self.grid.dp).tolist()
            if tokens:
                losses[source] = loss / tokens
        if self.log is not None:
            self.log.validation(self.position.step, losses)
        self.clock = time.perf_counter()

    # --- checkpoints ---

    def save(self) -> None:
        """Write the checkpoint of the current step."""
        folder = self.run / "checkpoints" / f"step-{self.position.step:08d}"
        if folder.is_dir():
            return
        with publish(folder, self.grid) as temporary:
            if self.grid.world.rank == 0:
                save_model(self.model, temporary)
                self.tokenizer.save(temporary)
                write_state(
                    temporary / "training",
                    {
                        "schema": 1,
                        "step": self.position.step,
                        "next_sample": self.position.next_sample,
                        "tokens": self.position.tokens,
                        "skipped": self.position.skipped,
                        "seed": self.settings.seed,
                        "optimizer_steps": int(self.optimizer.steps),
                        "layout": {"tp": self.grid.tp.size, "pp": self.grid.pp.size, "dp": self.grid.dp.size},
                    },
                )
            save_optimizer(self.optimizer, temporary / "training")
        self.clock = time.perf_counter()

    def resume(self, folder: Path) -> None:
        """Take over moments, master weights and position of a checkpoint."""
        state = read_state(folder / "training")
        load_optimizer(self.optimizer, folder / "training")
        self.optimizer.steps.fill_(state["optimizer_steps"])
        skipped = tuple(tuple(pair) for pair in state["skipped"])
        self.position = Position(state["step"], state["next_sample"], state["tokens"], skipped)

    # --- the run ---

    def train(self) -> None:
        """Steps up to `--steps` or `--stop-step`, with validation and checkpoints on the way."""
        s = self.settings
        last = min(s.steps, s.stop_step or s.steps)
        if self.position.step == 0 and s.validation_every:
            self.validate()
        # On a GPU a step's numbers are read one step late; a CPU has them when train_step returns.
        lag = 1 if self.device.type == "cuda" else 0
        unread: deque[Pending] = deque()
        stopping = False
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as loader:
            upcoming: Future = loader.submit(self.load_step, self.position.next_sample)
            while self.position.step < last and not stopping:
                micro_batches = upcoming.result()
                upcoming = loader.submit(self.load_step, self.position.next_sample + s.global_batch_size)
                unread.append(self.train_step(micro_batches))
                while len(unread) > lag:
                    stopping = self.finish_step(unread.popleft()) or stopping
                step = self.position.step
                validating = s.validation_every and (step % s.validation_every == 0 or step == s.steps)
                saving = (s.checkpoint_every and step % s.checkpoint_every == 0) or step == last or stopping
                while unread and (validating or saving):
                    stopping = self.finish_step(unread.popleft()) or stopping
                if validating:
                    self.validate()
                if saving or stopping:
                    self.save()
            upcoming.cancel()
        if self.log is not None:
            self.log.close()
            print(
                f"step {self.position.step} of {s.steps}; checkpoint {checkpoint_folders(self.run)[-1]}; "
                f"picture {self.log.picture}"
            )

    def request_stop(self, *_: object) -> None:
        """Signal handler: finish the step at hand, save, leave."""
        self.stop_requested = True


@contextmanager
def stop_signals(handler) -> Iterator[None]:
    """SIGTERM and SIGINT (a queue's time limit, Ctrl-C) call `handler` inside the block."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def main(arguments: Sequence[str]) -> int:
    """Parse, start the processes, train. What a user can cause ends in one line, also in torchrun's own summary."""
    settings = parse(
        Settings, arguments, program="train.py", description="Continued pretraining of a Llama-family model."
    )
    handler = get_error_handler()
    handler.initialize()
    try:
        check_process_count(launched_processes()[2], settings.tp, settings.pp, "train.py " + " ".join(arguments))
        check(settings)
        device = start_processes("cuda" if torch.cuda.is_available() else "cpu", settings.timeout)
        grid = Grid.create(settings.tp, settings.pp)
        trainer = Trainer(settings, grid, device)
        with stop_signals(trainer.request_stop):
            trainer.train()
        barrier(grid.world)
    except (ValueError, OSError) as error:
        handler.record_exception(error)
        raise
    finally:
        stop_processes()
    return 0


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))

"""Continued pretraining of a Llama-family model on packed medical documents.

    python train.py                                              a tiny model on the demo world, one process
    torchrun --nproc-per-node 8 train.py --model HF_DIR --data shards/pubmed shards/replay=0.01 --out runs/medical

Every checkpoint in `OUT/checkpoints/` is a Hugging Face directory with a `training/` folder beside the weights.
"""

import shlex
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from data.sampler import Sampler, batch
from data.settings import parse, run_command
from model.config import LlamaConfig
from model.costs import stage_costs
from model.llama import Llama, MicroBatch, micro_batch
from parallel.checkpoint import checkpoint_folders
from parallel.comm import all_reduce, barrier
from parallel.executor import execute, sum_over_ranks
from parallel.grid import Grid, world_group
from parallel.instruction import Instruction
from parallel.launch import check_process_count, launched_processes, start_processes, stop_processes
from parallel.optimizer import AdamWSettings, Optimizer, cosine_learning_rate
from parallel.schedule import build, validation
from parallel.watch import PROCESS_GROUP_MARGIN, Watcher
from training.checkpoints import Checkpoints, Position, load_first_weights
from training.integrity import ShardVerification
from training.log import RunLog, peak_flops
from training.moment import Moment, Reading
from training.process import check_out_is_shared, check_ranks_agree, stop_signals
from training.run import begin_run, check_run_folder, describe
from training.settings import Settings, check, check_batch
from training.start import choose_dtype, choose_model, choose_tokenizer, data_folders, on_first_rank

MAX_SKIPPED = 20
"""Steps in a row with gradients that are not finite after which a run gives up: the weights will not recover by
waiting.
"""


@dataclass
class Pending:
    """A step that was issued and whose numbers the host has not read yet."""

    step: int
    first_sample: int
    learning_rate: float
    numbers: Reading
    """Over all ranks: sum of losses, predicted tokens, ranks asked to stop, ranks with a problem, gradient norm,
    whether the step was applied.
    """
    begin: Moment


class Trainer:
    """One run on one rank."""

    def __init__(self, settings: Settings, grid: Grid, device: torch.device) -> None:
        self.settings, self.grid, self.device = settings, grid, device
        self.micro_batches = check_batch(settings, grid.dp.size)
        folders = data_folders(settings, grid, device)
        self.sampler = Sampler(folders, settings.sequence_length, settings.seed)
        self.tokenizer = choose_tokenizer(settings, folders, self.sampler)
        self.dtype = choose_dtype(settings.dtype, device)
        description = describe(settings, folders, self.dtype)
        self.run = on_first_rank(lambda: check_run_folder(settings.out, description), grid, device)
        checkpoints = checkpoint_folders(self.run)
        start = str(checkpoints[-1]) if checkpoints else settings.model
        config, weights = choose_model(start, settings.sequence_length, self.tokenizer)
        self.schedule = self.training_schedule(config)
        self.grid = grid = grid.with_kv_replicas(config.num_kv_heads)
        self.model = Llama(
            config,
            dtype=self.dtype,
            device=device,
            grid=grid,
            gradients=True,
            recompute=settings.recompute,
            chunks=settings.chunks,
            pieces=settings.pieces or (2 if device.type == "cuda" else 1),
        )
        self.position = Position()
        if weights is not None:
            load_first_weights(self.model, weights)
        else:
            self.model.initialise(settings.seed)
        self.optimizer = Optimizer(
            self.model.buffer,
            grid,
            AdamWSettings(settings.beta1, settings.beta2, settings.eps, settings.weight_decay, settings.clip),
        )
        self.checkpoints = Checkpoints(self.run, self.model, self.optimizer, self.tokenizer, settings)
        if checkpoints:
            self.position = self.checkpoints.resume(checkpoints[-1])
        self.log = None
        if grid.world.rank == 0:
            self.peak, peak_source = peak_flops(device, self.dtype)
            begin_run(self.run, description)
            print(self.description(config, peak_source), flush=True)
            self.log = RunLog(self.run, settings.steps, self.position.step)
        self.lag = 1 if device.type == "cuda" else 0
        """Steps after which a step's numbers are read. A GPU is still busy when train_step returns, a CPU is not."""
        self.stop_requested = False
        self.verification = ShardVerification([folder for folder, _ in folders] if grid.world.rank == 0 else [])
        self.verification.start()
        self.skipped_in_a_row = 0
        self.clock = Moment(self.device)

    def description(self, config: LlamaConfig, peak_source: str) -> str:
        """The first line printed: what was chosen."""
        s = self.settings
        start = f"continuing at step {self.position.step}" if self.position.step else "from step 0"
        return (
            f"{s.model}: {config.parameters:,} parameters, {str(self.dtype).removeprefix('torch.')} "
            f"on {self.device.type}, "
            f"{self.grid.dp.size} x data parallel, {self.grid.tp.size} x tensor parallel, "
            f"{self.grid.pp.size} x pipeline parallel, "
            f"{s.global_batch_size} x {s.sequence_length} tokens a step, "
            f"{s.steps} steps, {start}; sources {', '.join(self.sampler.names)}; run {self.run}; "
            f"MFU of {self.peak / 1e12:.2f} TFLOP/s a rank ({peak_source})"
        )

    def training_schedule(self, config: LlamaConfig) -> list[Instruction]:
        """This rank's instructions of every step. ValueError for a model that cannot be split so."""
        s, stages = self.settings, self.grid.pp.size
        costs = stage_costs(
            config,
            stages,
            s.chunks,
            tokens=s.micro_batch_size * s.sequence_length,
            sequence_length=s.sequence_length,
            recompute=s.recompute,
            itemsize=self.dtype.itemsize,
        )
        return build(s.schedule, stages, self.micro_batches, s.chunks, costs)[self.grid.pp.rank]

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
        return micro_batch(
            packed.tokens,
            packed.targets,
            packed.cu_seqlens,
            self.model.config,
            self.device,
            self.model.sequence.multiple,
        )

    # --- one step ---

    def train_step(self, micro_batches: list[MicroBatch]) -> Pending:
        """Forward, backward and update; returns without waiting for the device."""
        step = self.position.step + 1
        self.model.buffer.begin_step(len(micro_batches))
        loss = execute(self.schedule, self.model.chunks, micro_batches, self.grid)
        tokens = sum((b.targets >= 0).sum() for b in micro_batches)
        flags = torch.zeros(2, dtype=torch.float64, device=self.device)  # a copy from the host would stop it
        for flag, raised in zip(flags, (self.stop_requested, self.problem() is not None), strict=True):
            flag.fill_(raised)
        totals = sum_over_ranks(loss, tokens, self.grid)
        all_reduce(flags, self.grid.world)
        learning_rate = cosine_learning_rate(
            step,
            peak=self.settings.lr,
            minimum=self.settings.lr * self.settings.min_lr_ratio,
            warmup_steps=self.settings.warmup_steps,
            total_steps=self.settings.steps,
        )
        result = self.optimizer.step(learning_rate, totals[1:2])
        numbers = Reading(torch.cat([totals, flags, result.grad_norm.double(), result.kept.double()]))
        pending = Pending(step, self.position.next_sample, learning_rate, numbers, self.clock)
        self.clock = numbers.moment
        self.position.step = step
        self.position.next_sample += self.settings.global_batch_size
        self.position.tokens += self.settings.global_batch_size * self.settings.sequence_length
        return pending

    def finish_step(self, pending: Pending) -> bool:
        """Read a step's numbers, log them; True when any rank was asked to stop."""
        loss, tokens, stop, problems, norm, kept = pending.numbers.read()
        if problems:  # on every rank at the same step, so that none waits for another
            raise ValueError(self.problem() or "another rank has a problem, which it reports")
        step_tokens = self.settings.global_batch_size * self.settings.sequence_length
        rate = step_tokens / pending.numbers.moment.seconds_since(pending.begin)
        flops = self.model.config.flops_per_token(self.settings.sequence_length)
        if self.log is not None:
            self.log.step(
                {
                    "step": pending.step,
                    "tokens": pending.step * step_tokens,
                    "loss": loss / max(tokens, 1),
                    "lr": pending.learning_rate,
                    "grad_norm": norm,
                    "tokens_per_second": rate,
                    "mfu": rate * flops / (self.peak * self.grid.world.size),
                    "skipped": kept == 0,
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

    def problem(self) -> str | None:
        """What a thread of this rank has found that ends the run."""
        return self.verification.error or self.checkpoints.error

    # --- validation ---

    def validate(self) -> None:
        """Mean loss a token over the first validation windows of each source, shared out over the ranks."""
        losses, s = {}, self.settings
        for source in self.sampler.names:
            windows = min(s.validation_sequences, self.sampler.validation_count(source))
            mine = range(self.grid.dp.rank, windows, self.grid.dp.size)
            samples = [self.sampler.validation_sample(source, number) for number in mine]
            size = s.micro_batch_size
            batches = [self.to_device(samples[at : at + size]) for at in range(0, len(samples), size)]
            loss = tokens = torch.zeros((), dtype=torch.float64, device=self.device)
            if batches:
                schedule = validation(self.grid.pp.size, len(batches), s.chunks)[self.grid.pp.rank]
                loss = execute(schedule, self.model.chunks, batches, self.grid)
                tokens = sum((b.targets >= 0).sum() for b in batches)
            loss, tokens = sum_over_ranks(loss, tokens, self.grid).tolist()
            if tokens:
                losses[source] = loss / tokens
        if self.log is not None:
            self.log.validation(self.position.step, losses)
        self.clock = Moment(self.device)

    # --- checkpoints ---

    def save(self) -> None:
        """Start writing the checkpoint of the current step. ValueError on every rank as of `Checkpoints.save`."""
        self.checkpoints.save(self.position, self.log.say if self.log is not None else lambda text: None)
        self.clock = Moment(self.device)

    # --- the run ---

    def train(self) -> None:
        """Steps up to `--steps` or `--stop-step`, with validation and checkpoints on the way."""
        s = self.settings
        last = min(s.steps, s.stop_step or s.steps)
        if self.position.step == 0 and s.validation_every:
            self.validate()
        unread: deque[Pending] = deque()
        stopping = False
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as loader:
            upcoming: Future = loader.submit(self.load_step, self.position.next_sample)
            while self.position.step < last and not stopping:
                micro_batches = upcoming.result()
                upcoming = loader.submit(self.load_step, self.position.next_sample + s.global_batch_size)
                unread.append(self.train_step(micro_batches))
                while len(unread) > self.lag:
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
        self.checkpoints.wait()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        """End the bar and draw the picture, also when the run failed; say where everything is when it did not."""
        if error_type is not None:
            self.checkpoints.cancel()
        if self.log is None:
            return
        self.log.close()
        if error_type is None:
            checkpoints = checkpoint_folders(self.run)
            print(
                f"step {self.position.step} of {self.settings.steps}; checkpoint {checkpoints[-1]}; "
                f"picture {self.log.picture}"
            )

    def request_stop(self, *_: object) -> None:
        """Signal handler: finish the step at hand, save, leave."""
        self.stop_requested = True


def main(arguments: Sequence[str]) -> int:
    """Parse, start the processes, train. An error is also recorded for torchrun, whose summary repeats it.

    With several processes an error inside the watched block does not come back: the watcher ends them all.
    """
    handler = get_error_handler()
    handler.initialize()
    try:
        settings = parse(
            Settings, arguments, program="train.py", description="Continued pretraining of a Llama-family model."
        )
        check_process_count(launched_processes()[2], settings.tp, settings.pp, "train.py " + shlex.join(arguments))
        check(settings)
        patience = settings.timeout + PROCESS_GROUP_MARGIN
        device = start_processes("cuda" if torch.cuda.is_available() else "cpu", patience)
        world = world_group()
        with Watcher(world, settings.timeout, settings.heartbeat_limit):
            check_ranks_agree(settings, world, device)
            check_out_is_shared(settings.out, world, device)
            trainer = Trainer(settings, Grid.create(settings.tp, settings.pp, patience), device)
            with stop_signals(trainer.request_stop), trainer:
                trainer.train()
            barrier(world, device)
    except Exception as error:
        handler.record_exception(error)
        raise
    finally:
        stop_processes()
    return 0


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))

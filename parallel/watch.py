"""A thread in each rank that knows when another one fails, dies or waits too long, and then ends this process.

Every second it writes a heartbeat (where the rank is, and the operation it waits in) and looks for a failure in the
store. Rank 0 reads everybody's heartbeat, the others rank 0's, so that the store serves a few requests a rank and
second. The first failure posted counts. Its rank alone prints, when the others have gone quiet, or rank 0 in the name
of a dead one: what stands last on the screen is the cause. Everybody leaves by `os._exit`, because the main thread may
be blocked outside Python and Python's own way out waits for it.

The watcher itself is watched: a second thread ends the process when the store gives no answer, because its machine has
frozen or the network is cut, and a timer outside Python does so when the thread cannot run, because something holds
the interpreter's lock.
"""

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from . import comm, launch
from .comm import CommunicationError, Group, spans

ROOT = Path(__file__).resolve().parents[1]
INTERVAL = 1.0
"""Seconds between heartbeats. A failure is noticed one interval late, and 1,000 ranks are 3,000 small requests to the
store a second.
"""
GRACE = 1.0
"""Seconds in which a rank may still come to an error of its own before it is ended."""
USER_ERROR_GRACE = 5.0
"""The same after a user error, which every rank finds by itself, if not at the same moment."""
PATIENCE = 8.0
"""Seconds for which the one that reports waits for the others to go quiet. Dead and stopped ranks never do."""
PROCESS_GROUP_MARGIN = 60.0
"""Seconds by which the groups' own timeouts must be longer than the watcher's: their errors do not say who is missing.
"""
CONNECT_TIMEOUT = 60.0
"""Seconds for a connection to the store, to which all ranks come at once."""


@dataclass(frozen=True)
class Failure:
    """What ended the job, as it stands in the store."""

    text: str
    reporter: int
    """The rank that prints it: the one that failed, or who found out where that one cannot speak."""
    exit_code: int = 1
    dead: tuple[int, ...] = ()

    @property
    def is_user_error(self) -> bool:
        return self.exit_code == 2


class Watcher:
    """Watches over the ranks while the block runs; an exception that leaves the block ends all of them.

    In a group of one it does nothing, and exceptions pass. Otherwise none returns from the block: the process prints
    its part and exits with 2 (ValueError and OSError: the user can help it), 130 (Ctrl-C) or 1.
    """

    def __init__(self, world: Group, timeout_seconds: float, heartbeat_limit_seconds: float) -> None:
        """`world`: all processes. `timeout_seconds`: how long an operation may take before it counts as a hang (the
        groups' own timeouts must be longer by `PROCESS_GROUP_MARGIN`). `heartbeat_limit_seconds`: how long a rank may
        show no sign of life.
        """
        self.world, self.timeout, self.limit = world, timeout_seconds, heartbeat_limit_seconds
        self.rank, self.host = world.rank, socket.gethostname()
        self.others = tuple(rank for rank in world.ranks if rank != self.rank)
        self.ended, self.failing, self.leaving = threading.Event(), threading.Event(), threading.Lock()
        self.parted = threading.Event()
        self.beats = self.answers = 0
        self.threads = [
            threading.Thread(target=target, name=f"watcher {target.__name__}", daemon=True)
            for target in (self._watch, self._guard)
        ]
        self.silence: dict[int, tuple[str, float]] = {}
        """Last heartbeat seen of each watched rank, and for how many seconds it has been that one."""

    def __enter__(self) -> "Watcher":
        if self.world.size > 1:
            watch, guard = self.threads
            self.store = launch.connect("watch", CONNECT_TIMEOUT)
            guard.start()
            self._beat()
            # Nobody reads a heartbeat before all are there: reading waits for what is missing.
            everyone = [f"heartbeat/{rank}" for rank in self.world.ranks]
            self._wait_for(everyone if self.rank == 0 else ["all here"], self.timeout)
            if self.rank == 0:
                self.store.set("all here", "")
            self._end_if_stuck()
            watch.start()
        return self

    def __exit__(self, error_type: type | None, error: BaseException | None, *_: object) -> None:
        if self.world.size == 1:
            return
        if error is not None:
            self.fail(error)
        self._finish()

    def fail(self, error: BaseException) -> NoReturn:
        """End all ranks because of `error`; raises it in a group of one.

        An error of communication is most often the echo of another rank's end. It counts as the cause only if no other
        shows within the heartbeat limit.
        """
        if self.world.size == 1:
            raise error
        self.failing.set()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):  # torchrun's, to who is left: we are on our way
                signal.signal(number, signal.SIG_IGN)
        own = self._describe(error)
        try:
            failure = self._await_cause() if isinstance(error, (CommunicationError, dist.DistError)) else None
            failure = failure or self._post(own)
        except dist.DistError:
            self._store_lost()
        if failure == own:
            get_error_handler().record_exception(error)  # torchrun's summary repeats it
        self._leave(failure, own.text if own.is_user_error else "")

    # --- the threads ---

    def _watch(self) -> None:
        before = time.monotonic()
        try:
            while not self.ended.wait(INTERVAL):
                self._end_if_stuck()
                self._beat()
                now = time.monotonic()
                failure = self._posted() or self._find_dead(now - before) or self._find_hang()
                before = now
                self.answers += 1
                if failure is not None:
                    self._end(failure)
        except dist.DistError:
            self._store_lost()
        except Exception as error:
            self.fail(error)

    def _guard(self) -> None:
        """End the process when the store is silent: a thread that asks it waits for ever."""
        answers, seconds = -1, 0.0
        while not self.parted.wait(INTERVAL):
            seconds = seconds + INTERVAL if self.answers == answers else 0.0
            answers = self.answers
            if seconds > self.limit:
                self._store_lost(wait=False)

    def _end_if_stuck(self) -> None:
        """End the process, showing where it is, if this is not called again: somewhat after the others have ended."""
        faulthandler.dump_traceback_later(self.limit + PATIENCE, exit=True, file=2)

    def _beat(self) -> None:
        """Write the heartbeat. A rank that is not seen to write another is dead, or stopped."""
        self.beats += 1
        self._write_state({"beat": self.beats, "operation": comm.waiting_in(), "place": _place()})

    def _write_state(self, state: dict) -> None:
        self.store.set(f"heartbeat/{self.rank}", json.dumps({"host": self.host} | state))

    def _read_states(self, ranks: tuple[int, ...]) -> list[str]:
        return [text.decode() for text in self.store.multi_get([f"heartbeat/{rank}" for rank in ranks])]

    def _find_dead(self, passed: float) -> Failure | None:
        """Post those whose heartbeat has not changed for too long, as far as this rank watches them.

        `passed`: seconds since the last look. No more than two intervals count: where this process was itself held up,
        so were perhaps the others.
        """
        watched = self.others if self.rank == 0 else (0,)
        for rank, text in zip(watched, self._read_states(watched), strict=True):
            last, seconds = self.silence.get(rank, ("", 0.0))
            same = text == last and "finished" not in json.loads(text)
            self.silence[rank] = (text, seconds + min(passed, 2 * INTERVAL) if same else 0.0)
        if all(seconds < self.limit for _, seconds in self.silence.values()):
            return None
        # Those that died together are not seen to at the same moment.
        dead = tuple(rank for rank, (_, seconds) in self.silence.items() if seconds > self.limit - 3 * INTERVAL)
        lines = []
        for rank in dead:
            state = json.loads(self.silence[rank][0])
            last = f"it waited in {state['operation']}" if state["operation"] else f"it was at {state['place']}"
            lines.append(f"rank {rank} on host {state['host']}: no sign of life for {self.limit:g} s; {last}")
        return self._post_finding(Failure("\n".join(lines), self.rank, dead=dead))

    def _find_hang(self) -> Failure | None:
        """Post what every rank waits in, when this one has waited for too long."""
        operation = comm.oldest_operation()
        if operation is None or time.monotonic() - operation.started < self.timeout:
            return None
        states = [json.loads(text) for text in self._read_states(self.world.ranks)]
        return self._post_finding(Failure(hang_report(states, self.timeout), self.rank))

    def _post_finding(self, finding: Failure) -> Failure:
        """The failure that counts: this one, unless another was first. torchrun's summary repeats this one."""
        failure = self._post(finding)
        if failure == finding:
            try:
                raise TimeoutError(finding.text)  # torch writes down the traceback of what is being handled
            except TimeoutError as error:
                get_error_handler().record_exception(error)
        return failure

    def _end(self, failure: Failure) -> None:
        """Let the main thread bring its own error for a moment; end the process if it does not."""
        if failure.reporter != self.rank:
            self.failing.wait(USER_ERROR_GRACE if failure.is_user_error else GRACE)
        if self.failing.is_set():
            time.sleep(2 * PATIENCE)  # more than its way out takes
        self._leave(failure)

    # --- the way out ---

    def _describe(self, error: BaseException) -> Failure:
        if isinstance(error, (ValueError, OSError)):
            return Failure(" ".join(str(error).split()) or type(error).__name__, self.rank, exit_code=2)
        operation = comm.waiting_in()
        text = "".join(traceback.format_exception(error)) + f"rank {self.rank} on host {self.host} failed"
        text += f"; it was in {operation}" if operation else ""
        return Failure(text, self.rank, exit_code=130 if isinstance(error, KeyboardInterrupt) else 1)

    def _post(self, failure: Failure) -> Failure:
        """The failure that counts: this one, unless another was first."""
        return _read_failure(self.store.compare_set("failure", "", json.dumps(asdict(failure))))

    def _posted(self) -> Failure | None:
        return _read_failure(self.store.get("failure")) if self.store.check(["failure"]) else None

    def _await_cause(self) -> Failure | None:
        """The failure of another rank, for which the thread goes on looking; None if none shows."""
        end = time.monotonic() + self.limit + 5 * INTERVAL
        while (failure := self._posted()) is None and time.monotonic() < end:
            self.answers += 1
            time.sleep(INTERVAL / 4)
        return failure

    def _leave(self, failure: Failure, user_error: str = "") -> NoReturn:
        """End this process. Whoever reports waits for the others to go quiet, prints, and exits as the first of all, so
        that torchrun takes it for the cause too. `user_error`: what this rank has found itself.
        """
        self.leaving.acquire()  # by the main thread or the watcher, whoever comes first; the other one stays here
        faulthandler.cancel_dump_traceback_later()
        try:
            if failure.reporter == self.rank:
                alive = [f"gone/{rank}" for rank in self.others if rank not in failure.dead]
                self._wait_until(lambda: self.store.check(alive), PATIENCE)
                _print(self._final_text(failure, alive))
                self.store.set("printed", "")
                if self.rank == launch.store_rank():
                    time.sleep(GRACE)  # whoever still asks a store that has ended makes torch print a page of C++
            else:
                if user_error:
                    _print(f"error: {user_error}")
                self.store.set(f"gone/{self.rank}", user_error)
                self._wait_until(lambda: self.store.check(["printed"]), 2 * PATIENCE)
                time.sleep(GRACE / 2)
        except dist.DistError:  # the store has ended with rank 0, and this is the end anyway
            if failure.reporter == self.rank:
                _print(failure.text)
        _exit(failure.exit_code)

    def _final_text(self, failure: Failure, alive: list[str]) -> str:
        """What stands last. A user error that not all ranks have found in the same words says whose it is."""
        if not failure.is_user_error:
            return failure.text
        common = self.store.check(alive) and all(t.decode() == failure.text for t in self.store.multi_get(alive))
        return f"error: {failure.text}" if common else f"error: rank {self.rank} on host {self.host}: {failure.text}"

    def _store_lost(self, wait: bool = True) -> NoReturn:
        """Without the store nobody can be asked; who kept it has failed. The lowest other rank says so.

        `wait`: let another thread that has begun to leave go on.
        """
        if not self.leaving.acquire(blocking=wait):
            _exit(1)
        keeper, (host, port) = launch.store_rank(), launch.meeting_point()
        if self.rank == (0 if keeper is None else 1):
            time.sleep(2 * INTERVAL)  # until the others know too: torch prints a page of C++ for each
            name = "torchrun" if keeper is None else f"rank {keeper}"
            _print(f"{name} on host {host} is gone: its store at port {port} gives no answer to rank {self.rank}")
        _exit(1)

    def _finish(self) -> None:
        """Leave in peace. The store's host goes last."""
        self.ended.set()
        self.threads[0].join()
        faulthandler.cancel_dump_traceback_later()
        try:
            self._write_state({"finished": True})
            if self.rank == launch.store_rank():
                self._wait_until(self._all_finished, self.limit)
            failure = self._posted()
        except dist.DistError:
            self._store_lost()
        if failure is not None:
            self._leave(failure)
        self.parted.set()

    def _all_finished(self) -> bool:
        if self.store.check(["failure"]):
            return True
        return all("finished" in json.loads(text) for text in self._read_states(self.others))

    def _wait_for(self, keys: list[str], seconds: float) -> None:
        if not self._wait_until(lambda: self.store.check(keys), seconds):
            raise TimeoutError(f"not all ranks have joined within {seconds:g} s")

    def _wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Ask the store until `condition` is met; False when it was not in time."""
        end = time.monotonic() + seconds
        while not (met := condition()) and time.monotonic() < end:
            self.answers += 1
            time.sleep(INTERVAL / 20)
        return met


def hang_report(states: list[dict], timeout_seconds: float) -> str:
    """Who waits in what: `states` are the heartbeats in rank order. Ranks in the same operation share a line, and those
    in none, for whom the others probably wait, come last with their place in the program.
    """
    waiting: dict[str, list[int]] = {}
    lines = []
    for rank, state in enumerate(states):
        if state.get("operation"):
            waiting.setdefault(state["operation"], []).append(rank)
        elif "finished" in state:
            lines.append(f"  rank {rank} on host {state['host']} has finished")
        else:
            lines.append(f"  rank {rank} on host {state['host']} waits in no operation; it is at {state['place']}")
    together = sorted(waiting.items(), key=lambda item: (-len(item[1]), item[1]))
    return "\n".join(
        [f"hang: an operation has not ended within {timeout_seconds:g} s (--timeout)"]
        + [f"  {'ranks' if len(ranks) > 1 else 'rank'} {spans(ranks)}: {operation}" for operation, ranks in together]
        + lines
    )


def _place() -> str:
    """Where the main thread is: the innermost line of this project's code, or of any where there is none."""
    frame = sys._current_frames()[threading.main_thread().ident]
    frames = []
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            frames.append((Path(frame.f_code.co_filename), frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    ours = [f for f in frames if f[0].is_relative_to(ROOT) and "site-packages" not in f[0].parts]
    path, line, function = (ours or frames)[0]
    return f"{path.relative_to(ROOT) if ours else path}:{line} in {function}"


def _read_failure(text: bytes) -> Failure:
    fields = json.loads(text)
    return Failure(**fields | {"dead": tuple(fields["dead"])})


def _print(text: str) -> None:
    """Past Python's buffers, whose locks a blocked thread may hold, and on a line of its own below a progress bar."""
    os.write(2, f"\n{text}\n".encode())


def _exit(code: int) -> NoReturn:
    if threading.current_thread() is threading.main_thread():
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)

"""Warm processes that become the ranks of one grid after another: starting Python and torch takes longer than a run."""

import faulthandler
import importlib
import os
import queue
import tempfile
import threading
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

TIMEOUT = 90
"""Seconds for which a rank waits for others."""
PATIENCE = TIMEOUT + 60
"""Seconds for which the tests wait for a rank: it says itself where it waited in vain."""


class Pool:
    """`size` processes. `run(function, n, **arguments)` calls a function of a module on n ranks that have joined.

    What a job changes in a module stays changed in its processes for the jobs that follow: it must put it back.
    """

    def __init__(self, size):
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        self.jobs = [context.Queue() for _ in range(size)]
        self.results = context.Queue()
        self.number = 0
        self.processes = [
            context.Process(target=_work, args=(rank, self.jobs[rank], self.results), daemon=True)
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def run(self, function, processes, **arguments):
        """`function` ("module:name") in `processes` ranks; their results in rank order. AssertionError with the ranks'
        tracebacks where one fails."""
        self.number += 1
        store = str(Path(self.folder.name) / f"store-{self.number}")
        for jobs in self.jobs[:processes]:
            jobs.put((function, processes, store, arguments))
        found = {}
        while len(found) < processes:
            try:
                rank, good, value = self.results.get(timeout=PATIENCE)
            except queue.Empty:
                self.close()
                raise AssertionError(f"ranks {sorted(set(range(processes)) - found.keys())} did not answer") from None
            found[rank] = good, value
        failed = [f"rank {rank}: {value}" for rank, (good, value) in sorted(found.items()) if not good]
        assert not failed, "\n".join(failed)
        return [found[rank][1] for rank in range(processes)]

    def close(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self.folder.cleanup()


def _end_with_parent():
    """A killed test run leaves nobody who would end its processes."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(rank, jobs, results):
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    while True:
        function, processes, store, arguments = jobs.get()
        faulthandler.dump_traceback_later(TIMEOUT)
        try:
            if processes > 1:
                dist.init_process_group(
                    "gloo",
                    store=dist.FileStore(store, processes),
                    rank=rank,
                    world_size=processes,
                    timeout=timedelta(seconds=TIMEOUT),
                )
            module, name = function.split(":")
            results.put((rank, True, getattr(importlib.import_module(module), name)(**arguments)))
        except BaseException:  # a failed pytest.raises is no Exception; `run` raises it where the test waits
            results.put((rank, False, traceback.format_exc()))
        finally:
            faulthandler.cancel_dump_traceback_later()
            if dist.is_initialized():
                dist.destroy_process_group()

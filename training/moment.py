"""Numbers and times of a device that runs behind the host, read without making the host wait for newer work."""

import time

import torch
from torch import Tensor


class Moment:
    """The point in the device's work at which it was made. On a CPU: now."""

    def __init__(self, device: torch.device) -> None:
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        else:
            self.event, self.time = None, time.perf_counter()

    def wait(self) -> None:
        """Return when the device has come here."""
        if self.event is not None:
            self.event.synchronize()

    def seconds_since(self, earlier: "Moment") -> float:
        """Seconds from one moment to the other on the device; both must have been reached."""
        if self.event is not None:
            return earlier.event.elapsed_time(self.event) / 1000
        return self.time - earlier.time


class Reading:
    """A few numbers on their way to the host. `values`: a device tensor that may be overwritten afterwards."""

    def __init__(self, values: Tensor) -> None:
        if values.is_cuda:
            self.host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.host.copy_(values, non_blocking=True)
        else:
            self.host = values.clone()
        self.moment = Moment(values.device)

    def read(self) -> list[float]:
        """The numbers; waits for the work up to here only, not for what was issued since."""
        self.moment.wait()
        return self.host.tolist()

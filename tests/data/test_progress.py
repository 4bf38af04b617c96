"""What a bar and a log file say while a pass runs."""

import io

import pytest

from data.progress import SECONDS_BETWEEN_LINES, Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_log_file_gets_a_line_a_minute_and_one_at_the_end(clock):
    stream = io.StringIO()
    with Progress("read and clean", 10_000 * 2_000_000, stream=stream, clock=clock) as progress:
        for _ in range(10_000):
            clock.now += 0.05
            progress.add(10, 2_000_000)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10_000 * 0.05 // SECONDS_BETWEEN_LINES + 1
    assert lines[0] == "read and clean: 12 % of 20,000.0 MB, 200 documents/s, 40.0 MB/s, 0:07:20 left"
    assert lines[-1] == "read and clean: 100 % of 20,000.0 MB, 200 documents/s, 40.0 MB/s"


def test_what_an_earlier_run_did_is_done_but_not_in_the_rates(clock):
    stream = io.StringIO()
    with Progress("read", 100_000_000, stream=stream, clock=clock) as progress:
        clock.now += 30  # looking up old results is not work of this run
        progress.add(5_000, 50_000_000, resumed=True)
        assert progress.rates() == ""
        clock.now += 10
        progress.add(1_000, 10_000_000)
        assert progress.rates() == "100 documents/s, 1.0 MB/s, 0:00:40 left"
        progress.add(1_000, 40_000_000, resumed=True)
        assert progress.rates() == "100 documents/s, 1.0 MB/s"
    assert stream.getvalue() == "read: 100 % of 100.0 MB, 90 % by an earlier run, 100 documents/s, 1.0 MB/s\n"


def test_parts_have_no_megabytes(clock):
    stream = io.StringIO()
    with Progress("find duplicates", 4, unit="partitions", stream=stream, clock=clock) as progress:
        clock.now += 3
        progress.add(0, 1)
        assert progress.rates() == "0:00:09 left"
        clock.now += SECONDS_BETWEEN_LINES
        progress.add(0, 2)
    assert stream.getvalue().splitlines()[0] == "find duplicates: 75 % of 4 partitions, 0:00:21 left"


def test_a_terminal_gets_a_bar_of_one_line(clock):
    stream = Terminal()
    with Progress("read and clean", 4_000_000, stream=stream, clock=clock) as progress:
        for _ in range(4):
            clock.now += 1
            progress.add(500, 1_000_000)
    shown = stream.getvalue().rstrip("\n")
    assert "\n" not in shown
    assert shown.rpartition("\r")[2].startswith("read and clean: 100%|")
    assert "500 documents/s, 1.0 MB/s" in shown


def test_nothing_to_do_and_a_pass_that_breaks_off(clock):
    stream = io.StringIO()
    with Progress("read", 0, stream=stream, clock=clock):
        pass
    assert stream.getvalue() == "read: 100 % of 0.0 MB\n"
    broken = io.StringIO()
    with pytest.raises(KeyError), Progress("read", 5, stream=broken, clock=clock):
        raise KeyError
    assert broken.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (90, "0:01:30"), (90_000, "25:00:00")])
def test_durations(seconds, text):
    assert duration(seconds) == text

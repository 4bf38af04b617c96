"""The checker and the simulation find what is wrong with broken lists."""

import dataclasses

import pytest

from parallel.schedule import COMPUTE, Costs, Instruction, Kind, build, validation
from parallel.simulate import check, peak_bytes, simulate

STAGES, MICRO_BATCHES, CHUNKS = 3, 6, 2


def lists_of(name="zb"):
    return build(name, STAGES, MICRO_BATCHES, CHUNKS, Costs.uniform(STAGES, CHUNKS))


def places(instructions, kind):
    return [index for index, step in enumerate(instructions) if step.kind is kind]


def overtaken_send(lists):
    first, second = places(lists[0], Kind.SEND_FORWARD)[2:4]
    lists[0].insert(second, lists[0].pop(first))


def swap_receives(lists):
    first, second = places(lists[1], Kind.RECEIVE_BACKWARD)[2:4]
    lists[1][first], lists[1][second] = lists[1][second], lists[1][first]


def drop(kind, number=3, rank=1):
    def broken(lists):
        del lists[rank][places(lists[rank], kind)[number]]

    return broken


def repeat(kind, number=3, rank=1):
    def broken(lists):
        index = places(lists[rank], kind)[number]
        lists[rank].insert(index, lists[rank][index])

    return broken


def to_the_end(kind, number=0, rank=1):
    def broken(lists):
        lists[rank].append(lists[rank].pop(places(lists[rank], kind)[number]))

    return broken


def to_the_start(kind, number=-1, rank=1):
    def broken(lists):
        lists[rank].insert(0, lists[rank].pop(places(lists[rank], kind)[number]))

    return broken


def wrong_peer(lists):
    index = places(lists[0], Kind.SEND_FORWARD)[0]
    lists[0][index] = dataclasses.replace(lists[0][index], peer=2)


BROKEN = {
    "overtaken send": (overtaken_send, "meets the RECEIVE for"),
    "swapped receives": (swap_receives, "RECEIVE"),
    "dropped receive": (drop(Kind.RECEIVE_FORWARD), "rank 1: FORWARD .* has no RECEIVE before it"),
    "receive behind its use": (to_the_end(Kind.RECEIVE_FORWARD), "rank 1: FORWARD .* has no RECEIVE before it"),
    "receive twice": (repeat(Kind.RECEIVE_BACKWARD), "transfers that no pass needs"),
    "dropped send": (drop(Kind.SEND_BACKWARD), "rank 1: SEND_BACKWARD .* is missing"),
    "send before its pass": (to_the_start(Kind.SEND_FORWARD), "rank 1: SEND_FORWARD .* stands before the pass"),
    "wrong peer": (wrong_peer, "rank 0: SEND_FORWARD .* with rank 1 is missing"),
    "dropped forward": (drop(Kind.FORWARD), "rank 1: FORWARD .* just once"),
    "dropped backward": (drop(Kind.BACKWARD), "rank 1: BACKWARD .* just once"),
    "backward twice": (repeat(Kind.BACKWARD), "rank 1: BACKWARD .* just once"),
    "weight twice": (repeat(Kind.WEIGHT), "rank 1: WEIGHT .* just once"),
    "weights needed late": (to_the_end(Kind.WEIGHTS_NEEDED), "WEIGHTS_NEEDED .* of chunk 0 is misplaced"),
    "weights needed twice": (repeat(Kind.WEIGHTS_NEEDED, 0), "of chunk 0 is misplaced"),
    "never complete": (drop(Kind.GRADIENTS_COMPLETE, 0), "GRADIENTS_COMPLETE of chunk 1 is misplaced"),
    "complete too early": (to_the_start(Kind.GRADIENTS_COMPLETE), "GRADIENTS_COMPLETE of chunk 0 is misplaced"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_faults_are_found(fault):
    broken, words = BROKEN[fault]
    lists = lists_of()
    check(lists, MICRO_BATCHES, CHUNKS)
    broken(lists)
    with pytest.raises(ValueError, match=words):
        check(lists, MICRO_BATCHES, CHUNKS)


def test_another_number_of_micro_batches_is_found():
    with pytest.raises(ValueError, match="micro-batch 6, chunk 0 does not stand"):
        check(lists_of(), MICRO_BATCHES + 1, CHUNKS)
    with pytest.raises(ValueError, match="micro-batch 5, chunk 0 does not stand"):
        check(lists_of(), MICRO_BATCHES - 1, CHUNKS)
    with pytest.raises(ValueError, match="BACKWARD of micro-batch 0, chunk 0 does not stand"):
        check(lists_of(), MICRO_BATCHES, CHUNKS, training=False)
    with pytest.raises(ValueError, match="BACKWARD of micro-batch 0, chunk 0 does not stand"):
        check(validation(STAGES, MICRO_BATCHES, CHUNKS), MICRO_BATCHES, CHUNKS)


@pytest.mark.parametrize(
    ("order", "fault"),
    [
        ("F0.0 F0.1 B0.0 B0.1", "BACKWARD of micro-batch 0, chunk 0"),  # its gradient comes from chunk 1
        ("F0.1 F0.0 B0.1 B0.0", "FORWARD of micro-batch 0, chunk 1"),
        ("F0.0 F0.1 B0.1 B1.1", "BACKWARD of micro-batch 1, chunk 1"),
        ("F0.0 F0.1 W0.1 B0.1", "WEIGHT of micro-batch 0, chunk 1"),
    ],
)
def test_passes_stand_behind_what_they_need(order, fault):
    instructions = [Instruction(Kind(word[0]), int(word[1]), int(word[3])) for word in order.split()]
    with pytest.raises(ValueError, match=f"rank 0: {fault} stands before what it needs"):
        simulate([instructions], Costs.uniform(1, 2))


def test_a_deadlock_names_who_waits_for_what():
    """Rank 0 sends its activations only after a gradient that needs them."""
    costs = Costs.uniform(2)
    first, second = build("1f1b", 2, 1, 1, costs)
    first.append(first.pop(places(first, Kind.SEND_FORWARD)[0]))
    with pytest.raises(
        ValueError,
        match="deadlock; waiting: rank 0: BACKWARD of micro-batch 0, chunk 0; rank 1: FORWARD of micro-batch 0, chunk 0",
    ):
        simulate([first, second], costs)


def test_a_channel_in_another_order_is_a_deadlock():
    """Transfers match by order alone: the first SEND waits for the first RECEIVE, posted too late here."""
    costs = Costs.uniform(2)
    first, second = build("1f1b", 2, 2, 1, costs)
    lone = [step for step in second if step.kind is not Kind.RECEIVE_FORWARD]
    lone.insert(0, Instruction(Kind.RECEIVE_FORWARD, 1, 0, 0))
    lone.append(Instruction(Kind.RECEIVE_FORWARD, 0, 0, 0))
    with pytest.raises(ValueError, match=r"deadlock; waiting: .*rank 1: FORWARD of micro-batch 0"):
        simulate([first, lone], costs)


def test_a_send_that_nobody_takes():
    costs = Costs.uniform(2)
    first, second = build("1f1b", 2, 1, 1, costs)
    first.append(Instruction(Kind.SEND_FORWARD, 0, 0, 1))
    with pytest.raises(ValueError, match="SEND_FORWARD from rank 0 to rank 1 and its receives differ in number"):
        simulate([first, second], costs)


def test_times_of_a_small_pipeline():
    """Two ranks, one micro-batch: F 2, transfer 1, F 3, B 5 + W 7, transfer 1, B 11 + W 13."""
    costs = Costs((2, 3), (11, 5), (13, 7), (1, 1), (1, 1))
    timeline = simulate(build("1f1b", 2, 1, 1, costs), costs, transfer_time=1)
    times = [[(one.instruction.kind.value, one.start, one.end) for one in passes] for passes in timeline.passes]
    assert times == [[("F", 0, 2), ("B", 19, 43)], [("F", 3, 6), ("B", 6, 18)]]
    assert timeline.total == 43
    assert timeline.bubble == pytest.approx(1 - 41 / 86)


def test_a_channel_carries_one_transfer_at_a_time():
    costs = Costs.uniform(2)
    first, second = validation(2, 3, 1)
    second.sort(key=lambda step: step.kind is not Kind.RECEIVE_FORWARD)  # all are posted at once
    timeline = simulate([first, second], costs, transfer_time=10)
    assert [one.start for one in timeline.passes[0]] == [0, 1, 2]
    assert [one.start for one in timeline.passes[1]] == [11, 21, 31]


def test_a_transfer_starts_when_its_receive_is_posted():
    """One pass before its use: the second one beside the first pass."""
    timeline = simulate(validation(2, 2, 1), Costs.uniform(2, forward=4), transfer_time=3)
    assert [one.start for one in timeline.passes[1]] == [7, 11]
    timeline = simulate(validation(2, 2, 1), Costs.uniform(2, forward=4), transfer_time=6)
    assert [one.start for one in timeline.passes[1]] == [10, 16]


def test_bytes_of_a_hand_made_order():
    """Two micro-batches of 10 bytes, 16 where put off: F F B(0 put off) B W; the second B frees its 10 itself."""
    costs = Costs((1,), (1,), (1,), (10,), (16,))
    order = [Instruction(Kind(letter), i) for letter, i in (("F", 0), ("F", 1), ("B", 0), ("B", 1), ("W", 0))]
    assert all(step.kind in COMPUTE for step in order)
    assert peak_bytes([order], costs) == [26]
    assert peak_bytes([order[:2] + order[3:4] + order[2:3] + order[4:]], costs) == [20]

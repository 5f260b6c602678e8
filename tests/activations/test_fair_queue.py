from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ctd_guardrail.activations.fair_queue import FairQueue

BUDGET = 10


def queue_of(costs: list[int]) -> FairQueue[int]:
    queue: FairQueue[int] = FairQueue()
    for number, cost in enumerate(costs):
        queue.push(number, cost)
    return queue


def drain(queue: FairQueue[int]) -> list[list[int]]:
    batches = []
    while queue:
        batches.append(queue.take(BUDGET))
    return batches


def greedy(costs: list[int], order: list[int]) -> dict[int, int]:
    """Return the batch that each item is in where batches are filled in one order."""
    batch, spent, found = 0, 0, {}
    for number in order:
        if spent and spent + costs[number] > BUDGET:
            batch, spent = batch + 1, 0
        spent += costs[number]
        found[number] = batch
    return found


def test_what_fits_is_one_batch_with_the_cheapest_first() -> None:
    assert drain(queue_of([4, 1, 3, 1])) == [[1, 3, 2, 0]]


def test_a_cheap_item_waits_for_one_batch_of_dear_ones_and_no_more() -> None:
    assert drain(queue_of([9, 9, 9, 9, 2, 2])) == [[0], [4, 5], [1], [2], [3]]


def test_a_dear_item_gets_its_turn_among_cheap_ones_that_never_end() -> None:
    queue = queue_of([5, 5, 50])
    seen: list[int] = []
    for number in range(3, 40):
        queue.push(number, 9)
        seen += queue.take(BUDGET)
    assert seen.index(2) <= 5


def test_room_that_is_left_is_filled() -> None:
    assert drain(queue_of([6, 8, 3, 1])) == [[3, 2, 0], [1]]


def test_what_is_cleared_is_gone() -> None:
    queue = queue_of([3, 1])
    assert queue.clear() == [0, 1]
    assert not queue
    queue.push(7, 2)
    assert drain(queue) == [[7]]


@given(st.lists(st.integers(1, 15), min_size=1, max_size=40))
def test_nothing_starves_and_no_turn_is_wasted(costs: list[int]) -> None:
    batches = drain(queue_of(costs))
    numbers = [number for batch in batches for number in batch]
    assert sorted(numbers) == list(range(len(costs)))
    place = {number: i for i, batch in enumerate(batches) for number in batch}
    by_arrival = greedy(costs, list(range(len(costs))))
    by_cost = greedy(costs, sorted(range(len(costs)), key=costs.__getitem__))
    for number in range(len(costs)):
        assert place[number] <= 2 * by_arrival[number]
        assert place[number] <= 2 * by_cost[number] + 1
    for i, batch in enumerate(batches):
        spent = sum(costs[number] for number in batch)
        assert spent <= BUDGET or len(batch) == 1
        later = [costs[number] for number in numbers if place[number] > i]
        assert not later or spent + min(later) > BUDGET

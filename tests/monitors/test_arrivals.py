from ctd_guardrail.monitors.arrivals import ArrivalOrder
from ctd_guardrail.monitors.conversations import Request


def request(name: str, at: float, calls: int = 0) -> Request:
    return Request(name, "digest", (), calls, is_placed=True, at=at)


def names(requests: list[Request]) -> list[str]:
    return [each.conversation for each in requests]


def test_requests_are_handed_on_in_order_of_their_arrival() -> None:
    order = ArrivalOrder()
    for at, name in enumerate("abc"):
        order.begin(name, "digest", float(at))
    assert order.end(request("b", 1.0)) == []
    assert names(order.end(request("a", 0.0))) == ["a", "b"]
    assert names(order.end(request("c", 2.0))) == ["c"]


def test_one_whose_arrival_was_lost_is_handed_on_in_order_of_its_end() -> None:
    order = ArrivalOrder()
    order.begin("a", "digest", 0.0)
    assert order.end(request("lost", 1.0)) == []
    assert names(order.end(request("a", 0.0))) == ["a", "lost"]


def test_one_whose_end_was_lost_holds_the_others_back_for_ten_minutes() -> None:
    order = ArrivalOrder()
    order.begin("lost", "digest", 0.0)
    assert order.end(request("a", 599.0)) == []
    assert names(order.end(request("b", 600.0))) == ["a", "b"]
    assert names(order.end(request("lost", 0.0))) == ["lost"]


def test_equal_requests_are_all_handed_on() -> None:
    order = ArrivalOrder()
    for _ in range(2):
        order.begin("a", "digest", 0.0)
    assert len(order.end(request("a", 0.0, 1))) == 1
    assert len(order.end(request("a", 0.0, 0))) == 1

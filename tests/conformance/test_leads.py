"""What beats need of a broker: a lead, records in bulk, and messages that are sent once."""

from __future__ import annotations

import pytest

from minicelery.broker import Broker
from minicelery.limits import HELD, ONCE
from tests.conformance.conftest import MakeBroker
from tests.conformance.messages import call
from tests.waiting import wait_until


def test_one_of_two_leads_until_it_steps_down(make_broker: MakeBroker) -> None:
    mine, yours = make_broker(), make_broker()
    wait_until(lambda: mine.lead("x", "me", 30) == "me")  # a busy server tells later
    assert yours.lead("x", "you", 30) != "you"
    assert mine.lead("x", "me", 30) == "me"
    wait_until(lambda: yours.lead("another", "you", 30) == "you")
    assert yours.leader("x") in ("me", "somebody") and yours.leader("nobody's") == ""
    mine.step_down("x", "me")
    wait_until(lambda: yours.lead("x", "you", 30) == "you")


def test_many_records_are_kept_at_once(broker: Broker) -> None:
    records = {f"key{number}": f"value{number}".encode() for number in range(1500)}
    broker.remember_all("topic", records, 60)
    broker.remember_all("topic", {"key0": b"new"}, 60)
    assert broker.recall("topic") == {**records, "key0": b"new"}


def test_a_message_under_a_key_that_lets_one_pass_is_sent_once(broker: Broker) -> None:
    if not hasattr(broker, "limits"):
        pytest.skip("this broker keeps no keys")
    sent = call()
    sent.unique = (f"{ONCE}key", 60.0)
    assert broker.publish([sent]) is None
    assert broker.publish([sent]) == {sent.id: HELD}
    assert broker.publish([sent, call()]) == {sent.id: HELD}
    assert broker.size("q") == 2

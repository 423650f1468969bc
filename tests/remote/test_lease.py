"""The lease at a URL: one holder, refusal of another by name, takeover of a dead one, stores without conditions."""

import time
from datetime import timedelta

import pytest

from fmcache.errors import Busy, StoreUnavailable
from fmcache.remote import lease as leases
from fmcache.remote.lease import leased
from fmcache.remote.objects import connect


@pytest.fixture
def objects(server):
    return connect("bucket", "study")


def test_a_second_holder_is_refused_by_name_and_a_freed_lease_is_taken(objects):
    with leased(objects, "a.lock"):
        with (
            pytest.raises(Busy, match="another process") as refused,
            leased(objects, "a.lock"),
        ):
            pass
        assert "s3://bucket/study/a.lock" in refused.value.problem
        assert "process" in refused.value.found
        with leased(objects, "b.lock"):
            pass
    for _ in range(2):
        with leased(objects, "a.lock"):
            pass


def test_the_lease_of_a_dead_process_expires_and_one_that_shows_life_does_not(objects, monkeypatch):
    monkeypatch.setattr(leases, "STALE_S", 2.0)
    monkeypatch.setattr(leases, "BEAT_S", 100.0)
    leases.Lease(objects, "a.lock")  # it shows no life
    with pytest.raises(Busy, match="another process"), leased(objects, "a.lock"):
        pass
    time.sleep(3.1)  # the clock of a store has whole seconds
    monkeypatch.setattr(leases, "BEAT_S", 0.3)
    with leased(objects, "a.lock"):
        time.sleep(3.1)
        with pytest.raises(Busy, match="another process"), leased(objects, "a.lock"):
            pass


def test_the_age_of_a_lease_is_by_the_clock_of_the_store_and_asking_leaves_nothing(objects, monkeypatch):
    leases.Lease(objects, "a.lock")._done.set()  # held, and it shows no life
    with pytest.raises(Busy, match="another process"), leased(objects, "a.lock"):
        pass
    facts = type(objects).facts

    def later(self, key):  # the store says that more time has passed than this machine does
        found = facts(self, key)
        return found._replace(modified=found.modified + timedelta(seconds=leases.STALE_S))

    monkeypatch.setattr(type(objects), "facts", later)
    with leased(objects, "a.lock"):
        assert list(objects.below("")) == ["a.lock"]


def test_a_holder_that_was_taken_over_learns_who_did_it(objects, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    with pytest.raises(Busy, match="no longer held by this process"), leased(objects, "a.lock"):
        objects.write("a.lock", leases._encoded(leases.Stated(beat=7)))
        time.sleep(1.0)


@pytest.mark.parametrize("header", ["HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"])
def test_a_store_that_ignores_conditions_is_refused_and_holds_no_lease(server, objects, header):
    server.drop = (header,)
    with pytest.raises(StoreUnavailable, match="no conditional writes") as refused, leased(objects, "a.lock"):
        pass
    assert "folder" in refused.value.next_step
    assert objects.below("") == {}


def test_a_store_that_knows_no_conditions_is_refused(server, objects):
    server.fail = lambda method, _: ("501 Not Implemented", "NotImplemented") if method == "PUT" else None
    with pytest.raises(StoreUnavailable, match="no conditional writes"), leased(objects, "a.lock"):
        pass

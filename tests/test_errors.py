"""The tree of errors."""

import pickle

import pytest

from fmcache.errors import FmcacheError, NoRoom


def every_error(kind=FmcacheError):
    yield kind
    for child in kind.__subclasses__():
        yield from every_error(child)


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_tree_of_the_docstring_and_can_be_pickled(kind):
    import fmcache.errors

    assert kind.__name__ in fmcache.errors.__doc__
    error = pickle.loads(pickle.dumps(kind("what", expected="a", found="b", next_step="c")))  # noqa: S301
    assert type(error) is kind
    assert str(error) == "what\n  expected: a\n  found: b\n  next: c"


def test_no_room_is_an_os_error_with_our_message():
    with pytest.raises(OSError, match="disk"):
        raise NoRoom("disk is small")

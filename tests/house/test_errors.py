"""Errors cross process borders whole, and say who, what and what to do."""

import pickle

import pytest

from operators.errors import Reject, Retry, RuvError, Skip, Stop, happened

SAMPLES = [
    Retry("memory", "no answer in 2 s", "try again", 2.5, 429),
    Reject("route", "no tier 'x'", "use 'auto'", 404, "model", "model_not_found"),
    Skip("judge", "no JSON", "mend the producer"),
    Stop("generate", "checksum differs", "install again"),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda e: type(e).__name__)
def test_they_survive_pickling_with_every_field(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == f"{error.who}: {error.got}; {error.remedy}"


def test_what_happened_is_told_without_another_remedy():
    assert happened(SAMPLES[0]) == "memory: no answer in 2 s"
    assert happened(KeyError("x")) == "KeyError: 'x'"


def test_every_error_is_one_of_the_four():
    found, todo = set(), [RuvError]
    while todo:
        for cls in todo.pop().__subclasses__():
            found.add(cls.__name__)
            todo.append(cls)
    assert found == {"Retry", "Reject", "Skip", "Stop"}

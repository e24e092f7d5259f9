"""The one door where kafka-python's errors become ours. Names instead of classes: only ``kafka.py`` imports ``kafka``.

What kafka-python calls retriable is ``Retry``; so are the faults of ``PASSING``, which it does not call so. The
caller's mistakes are ``Reject``. What is left needs a person (rights, versions, settings): ``Stop``.
"""

from __future__ import annotations

import random

from operators.errors import Reject, Retry, RuvError, Stop

TOO_LARGE = frozenset({"MessageSizeTooLargeError", "RecordListTooLargeError"})
MISTAKES = frozenset(
    {
        "InvalidRecordError",
        *("InvalidTopicError", "InvalidPartitionsError", "InvalidGroupIdError", "InvalidCommitOffsetSizeError"),
        *("OffsetMetadataTooLargeError", "TopicAlreadyExistsError"),
    }
)
PASSING = frozenset(
    {
        # The cluster is not well, or is being changed.
        *("UnknownError", "BrokerNotAvailableError", "KafkaStorageError", "LogDirNotFoundError", "CorruptRecordError"),
        *("QuotaViolationError", "ReassignmentInProgressError", "StaleBrokerEpochError", "NewLeaderElectedError"),
        *("UnknownBrokerIdError", "BrokerIdNotRegisteredError", "LogTruncationError", "OffsetOutOfRangeError"),
        *("OffsetMovedToTieredStorageError", "StaleControllerEpochError", "KafkaProtocolError", "ConnectionError"),
        # Our clock or the cluster's is wrong: each attempt gets the time of its own moment.
        "InvalidTimestampError",
        # The idempotent producer lost count: the next call makes a new one.
        *("OutOfOrderSequenceNumberError", "DuplicateSequenceNumberError", "InvalidProducerEpochError"),
        *("UnknownProducerIdError", "InvalidProducerIdMappingError", "ProducerFencedError"),
        # Somebody joined a group of our name: offsets can be kept again when they have left.
        *("UnknownMemberIdError", "IllegalGenerationError", "RebalanceInProgressError", "CommitFailedError"),
        *("FencedInstanceIdError", "FencedMemberEpochError", "StaleMemberEpochError", "GroupSubscribedToTopicError"),
    }
)
AGAIN_S = 1.0
"""Seconds after which it is worth trying again, give or take half: clients must not come back all at once."""


def translated(who: str, error: Exception) -> RuvError:
    """Our error for ``error``, one of ``kafka.errors``; a subclass counts as what it derives from."""
    names = {cls.__name__ for cls in type(error).__mro__}
    got = str(error)[:500] or type(error).__name__
    if names & TOO_LARGE:
        return Reject(who, got, "send less at once, or raise the limit of the cluster", status=413)
    if names & MISTAKES:
        return Reject(who, got, "change the event or the topic: the cluster will never take this one")
    if getattr(error, "retriable", False) or names & PASSING:
        again_s = AGAIN_S * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
        return Retry(who, got, "the cluster is away or busy: try again", retry_after_s=again_s)
    return Stop(who, got, "check events.kafka, the user's rights and the cluster's version")

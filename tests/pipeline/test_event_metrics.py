"""What waits for whom, in Prometheus' format."""

import contextlib

from prometheus_client.parser import text_string_to_metric_families

from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, create_topics
from pipeline import event_metrics


def test_the_lag_of_every_group_is_told_as_prometheus_reads_it(tmp_path):
    with contextlib.closing(SqliteLog(tmp_path / "events.db")) as log:
        log.open()
        create_topics(log, 2)
        for i in range(6):
            partition, offset = log.append(INTERACTIONS, f"t|s{i}", b"{}", {})
        log.commit("judge", INTERACTIONS, partition, offset + 1)
        log.append(JUDGEMENTS, "t|s", b"{}", {})
        said = event_metrics.text(event_metrics.of_log(log))
        done = offset + 1
    (family,) = text_string_to_metric_families(said)
    assert (family.name, family.type) == ("ruvllm_lag_events", "gauge")
    lags = {(sample.labels["group"], sample.labels["topic"]): sample.value for sample in family.samples}
    assert lags["judge", INTERACTIONS] == 6 - done
    assert lags["writeback", JUDGEMENTS] == lags["learn", JUDGEMENTS] == 1


def test_nothing_is_told_of_a_log_that_is_closed(tmp_path):
    log = SqliteLog(tmp_path / "events.db")
    log.open()
    log.close()
    assert event_metrics.of_log(log) == []

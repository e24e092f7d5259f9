"""The file of a spool: an embedded event log from which the oldest events are taken out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from operators.stores.sqlite_log import SqliteLog

ASIDE = ".aside"
"""Ends the names of those topics of the file that hold what the log will never take; a person may look at them."""


class SpoolFile(SqliteLog):
    """Topics are made as they come, with one partition each: in it the events of a topic stay in order."""

    def put(self, topic: str, items: Sequence[tuple[str, bytes, Mapping[str, str]]]) -> None:
        """Keep ``items``, all or none; durable when it returns. ``Retry`` when the file or the disk is full."""
        if topic not in self._partitions:
            self.create_topic(topic, 1)
        self.append_many(topic, items)

    def waiting(self) -> dict[str, int]:
        """Topic → events that wait for the log."""
        rows = self._rows("SELECT topic, count(*) FROM events GROUP BY topic ORDER BY topic")
        return {topic: count for topic, count in rows if not topic.endswith(ASIDE)}

    def empty(self) -> bool:
        """Whether nothing waits for the log."""
        asked = "SELECT EXISTS (SELECT 1 FROM events WHERE substr(topic, ?) != ?)"
        return not self._rows(asked, (-len(ASIDE), ASIDE))[0][0]

    def remove(self, topic: str, below: int) -> None:
        """Remove the events of ``topic`` before offset ``below``: the log has them."""
        with self._write() as db:
            db.execute('DELETE FROM events WHERE topic = ? AND "offset" < ?', (topic, below))

    def set_aside(self, topic: str, offset: int) -> None:
        """Let one event wait no longer, but keep it. In its place, for the file may be full."""
        with self._write() as db:
            changed = (topic + ASIDE, topic, offset)
            db.execute('UPDATE events SET topic = ? WHERE topic = ? AND "offset" = ?', changed)

    def used_bytes(self) -> int:
        """Bytes of the file that are in use."""
        pages, free, size = (
            self._rows(f"PRAGMA {name}")[0][0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

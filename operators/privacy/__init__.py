"""Personal data out of texts, before they are remembered, logged or sent: ``mask.mask`` is the only door."""

Span = tuple[int, int]
"""Start and end of a finding in a text."""

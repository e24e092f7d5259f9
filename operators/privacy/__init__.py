"""Personal data out of texts, before they are remembered, logged or sent: ``mask.mask`` is the only door."""

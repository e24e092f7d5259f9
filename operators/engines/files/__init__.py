"""Files of models: their digests, how they are opened and fetched."""

"""The steps of ``ingest``: parse, chunk, embed, write."""

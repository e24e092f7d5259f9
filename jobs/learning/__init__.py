"""The consumer loop of ``learn`` and what it reads."""

"""The commands of ``replay`` and the window of the log that they read."""

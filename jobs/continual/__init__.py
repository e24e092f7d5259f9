"""The streams, learners and peers of ``evaluate_continual``."""

"""Questions, answers and report of ``evaluate_live``."""

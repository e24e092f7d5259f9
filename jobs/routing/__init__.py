"""The contest of routers of ``evaluate_router``: ours, its peers, metrics and plot."""

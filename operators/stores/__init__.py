"""What keeps data: vectors, graph, snapshot of the graph, event log. Stages see only ``ports``."""

"""The small learned networks: FastGRNN router and graph attention, each as numpy (serving) and torch (training)."""

"""What runs models: engines generate and score text, encoders turn text into vectors. Stages see only ``ports``."""

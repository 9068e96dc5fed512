"""What is in the file? Checkpoint ⇄ Model: the only reader and writer of weights."""

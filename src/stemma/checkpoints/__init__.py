"""Read and write checkpoints: files to models and back."""

"""The atlas: pages in a browser, each with a JSON twin. It renders what the application answers, and nothing else."""

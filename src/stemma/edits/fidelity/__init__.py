"""Which inputs of a layer matter (subset fidelity, importance scores), and how what remains is refitted (ModHiFi)."""

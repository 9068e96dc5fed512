"""Subset fidelity in closed form, the statistics that it needs, and refits of what is left (ModHiFi)."""

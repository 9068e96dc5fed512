"""Class unlearning: which weights change, how strongly (ModHiFi-U)."""

"""Which unit of one model is which of the other: maps between two models, found and applied."""

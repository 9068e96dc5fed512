"""Does B come from A? Two models → Evidence, by tests that each know what independence looks like."""

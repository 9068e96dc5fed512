"""The model stores of a machine, read in place: what they hold, under which names, and what could not be taken."""

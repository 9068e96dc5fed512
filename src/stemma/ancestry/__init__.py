"""Who comes from whom? Evidence → Trace, Lineage."""

"""Report pages: every function returns bytes, which the caller writes."""

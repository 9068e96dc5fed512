"""Registries that are exchanged: exported to a file, imported, subscribed to, and compared.

What another registry says is kept apart from what this one found itself, and is never taken for it.
"""

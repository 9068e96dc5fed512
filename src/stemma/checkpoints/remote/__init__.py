"""Models on servers: the names of a hub, byte ranges of files over HTTP, and a folder that stands for a repository."""

from stemma.checkpoints.remote.names import RemoteName, is_remote, parse, place, without_queries

__all__ = ["RemoteName", "is_remote", "parse", "place", "without_queries"]

"""Integrity of what is known from other registries: every statement has its digest, and the index is of the newest."""

import zlib
from collections.abc import Iterator

import sqlalchemy as sa

from stemma.errors import ExchangeError
from stemma.registry import records, schema
from stemma.registry.exchange import statements
from stemma.registry.exchange.statements import MODEL

Problem = tuple[str, str, str]
"""Kind, subject and message of a finding."""


def problems(connection: sa.Connection) -> Iterator[Problem]:
    """What is wrong with receipts, statements, and the index of the models that they are about."""
    for row in connection.execute(sa.select(schema.receipt)):
        if records.bytes_digest(row.record.encode()) != row.record_digest:
            yield "record", f"receipt {row.id}", f"receipt {row.id} was altered: its content does not match its digest"
    newest: dict[tuple[int, str], tuple[str, str, int]] = {}
    for row in connection.execute(sa.select(schema.statement), execution_options={"yield_per": 100}):
        wrong = _wrong(row)
        if wrong:
            yield "record", f"statement {row.id}", f"statement {row.id} was altered: {wrong}. Import it again"
        if row.kind == MODEL:
            at = row.origin_id, row.key
            newest[at] = max(newest.get(at, ("", "", 0)), (row.revision, row.digest, row.id))
    k = schema.known_model.c
    indexed = sa.select(k.origin_id, k.name, k.revision, k.statement_digest, k.statement_id)
    found = {(r[0], r[1]): (r[2], r[3], r[4]) for r in connection.execute(indexed)}
    for origin, name in sorted({at for at, _ in newest.items() ^ found.items()}):
        yield "index", name, f"the index of models known from other registries is wrong about {name!r} ({origin})"


def _wrong(row: sa.Row) -> str:
    try:
        text = zlib.decompress(row.content).decode()
        if records.bytes_digest(text.encode()) != row.digest:
            return "its content does not match its digest"
        one = statements.parse(text)
    except (zlib.error, UnicodeDecodeError):
        return "its content is damaged"
    except ExchangeError as e:
        return str(e)
    return "" if (one.kind, one.key, one.order) == (row.kind, row.key, row.revision) else "its columns do not match it"

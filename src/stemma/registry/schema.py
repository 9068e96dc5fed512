"""The tables, and the numbered migrations that create them.

Rows are only ever added; a correction is a new row. `live`, `tensor_key`, `unit_key` and `sketch_bits` are indexes:
they can be derived from the other tables, and `check` compares them.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import sqlalchemy as sa

from stemma.errors import UnusableRegistryError

APPLICATION_ID = 0x53544D41
"""Marks a SQLite file as a Stemma registry (`STMA`, at byte 68 of the file)."""

metadata = sa.MetaData()

migration = sa.Table(
    "migration",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("applied_at", sa.Text, nullable=False),
)

blob = sa.Table(
    "blob",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("content", sa.LargeBinary, comment="NULL where the bytes lie in the folder of blobs"),
)

content = sa.Table(
    "content",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False, unique=True, comment="of the model"),
    sa.Column("names_free_digest", sa.Text, nullable=False, index=True),
    sa.Column("manifest", sa.Text, nullable=False, comment="digest of the blob that lists the tensors"),
)

model = sa.Table(
    "model",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, index=True),
    sa.Column("digest", sa.Text, nullable=False, index=True),
    sa.Column("removed", sa.Boolean, nullable=False, comment="true for a tombstone"),
    sa.Column("record", sa.Text, nullable=False, comment="canonical JSON of the ModelRecord"),
    sa.Column("record_digest", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

live = sa.Table(
    "live",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("model_id", sa.Integer, sa.ForeignKey("model.id"), nullable=False),
    sa.Column("content_id", sa.Integer, sa.ForeignKey("content.id"), nullable=False, index=True),
)

tensor_key = sa.Table(
    "tensor_key",
    metadata,
    sa.Column("key", sa.BigInteger, primary_key=True, comment="first 8 bytes of the tensor's digest"),
    sa.Column("content_id", sa.Integer, sa.ForeignKey("content.id"), primary_key=True),
    sqlite_with_rowid=False,
)

unit_key = sa.Table(
    "unit_key",
    metadata,
    sa.Column("key", sa.BigInteger, primary_key=True, comment="of a hidden unit, see the fingerprint `unit-keys`"),
    sa.Column("content_id", sa.Integer, sa.ForeignKey("content.id"), primary_key=True, index=True),
    sqlite_with_rowid=False,
)

spec = sa.Table(
    "spec",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("content", sa.Text, nullable=False, comment="canonical JSON of the Spec"),
)

fingerprint = sa.Table(
    "fingerprint",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("model_digest", sa.Text, nullable=False),
    sa.Column("spec_digest", sa.Text, nullable=False),
    sa.Column("blob_digest", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("record_digest", sa.Text, nullable=False),
    sa.Index("fingerprint_of_model", "model_digest", "spec_digest"),
    sqlite_autoincrement=True,
)

sketch_bits = sa.Table(
    "sketch_bits",
    metadata,
    sa.Column("spec_id", sa.Integer, sa.ForeignKey("spec.id"), primary_key=True),
    sa.Column("content_id", sa.Integer, sa.ForeignKey("content.id"), primary_key=True),
    sa.Column("bits", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

evidence = sa.Table(
    "evidence",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("a", sa.Text, nullable=False),
    sa.Column("b", sa.Text, nullable=False),
    sa.Column("spec_digest", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("record_digest", sa.Text, nullable=False),
    sa.Index("evidence_of_pair", "a", "b", "spec_digest"),
    sqlite_autoincrement=True,
)

functional_sketch = sa.Table(
    "functional_sketch",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("model_digest", sa.Text, nullable=False),
    sa.Column("network_digest", sa.Text, nullable=False),
    sa.Column("probes_digest", sa.Text, nullable=False),
    sa.Column("spec_digest", sa.Text, nullable=False),
    sa.Column("blob_digest", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("record_digest", sa.Text, nullable=False),
    sa.Index("sketch_of_model", "model_digest", "probes_digest", "spec_digest"),
    sa.Index("sketch_of_network", "network_digest", "probes_digest", "spec_digest"),
    sqlite_autoincrement=True,
)

family_tree = sa.Table(
    "family_tree",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False, comment="`lineage`, or `drawing` for where its models are drawn"),
    sa.Column("blob_digest", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("record_digest", sa.Text, nullable=False),
    sa.Index("family_tree_of_kind", "kind", "id"),
    sqlite_autoincrement=True,
)

scan = sa.Table(
    "scan",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("place", sa.Text, nullable=False, comment="the store: its kind and folder"),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("record_digest", sa.Text, nullable=False),
    sa.Index("ix_scan_place", "place", postgresql_using="hash"),  # paths may be longer than a sorted index takes
    sqlite_autoincrement=True,
)

identity = sa.Table(
    "identity",
    metadata,
    sa.Column("identity", sa.Text, primary_key=True, comment="random; tells exports of this registry from others"),
    sa.Column("name", sa.Text, nullable=False, comment="how it calls itself in exports"),
)

origin = sa.Table(
    "origin",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("identity", sa.Text, nullable=False, unique=True, comment="of the other registry, as it states it"),
    sa.Column("name", sa.Text, nullable=False, unique=True, comment="its name here"),
    sa.Column("signed_by", sa.Text, comment="SHA-256 of the pinned public key; NULL where it does not sign"),
    sa.Column("added_at", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

receipt = sa.Table(
    "receipt",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("origin_id", sa.Integer, sa.ForeignKey("origin.id"), nullable=False, index=True),
    sa.Column("record", sa.Text, nullable=False, comment="what was imported, from where, and who signed it"),
    sa.Column("record_digest", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

statement = sa.Table(
    "statement",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("origin_id", sa.Integer, sa.ForeignKey("origin.id"), nullable=False),
    sa.Column("receipt_id", sa.Integer, sa.ForeignKey("receipt.id"), nullable=False, index=True),
    sa.Column("kind", sa.Text, nullable=False, comment="`model`, `evidence`, `tree` or `edge`"),
    sa.Column("key", sa.Text, nullable=False, comment="what it is about: a name, or digest of a pair and a method"),
    sa.Column("revision", sa.Text, nullable=False, comment="the largest of a key counts"),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False, comment="canonical JSON, compressed"),
    sa.UniqueConstraint("origin_id", "digest"),
    sa.Index("statement_of_key", "origin_id", "kind", "key"),
    sqlite_autoincrement=True,
)

known_model = sa.Table(
    "known_model",
    metadata,
    sa.Column("origin_id", sa.Integer, sa.ForeignKey("origin.id"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True, comment="in the other registry"),
    sa.Column("statement_id", sa.Integer, sa.ForeignKey("statement.id"), nullable=False, index=True),
    sa.Column("revision", sa.Text, nullable=False),
    sa.Column("statement_digest", sa.Text, nullable=False),
    sa.Column("removed", sa.Boolean, nullable=False, comment="true for a tombstone"),
    sa.Column("digest", sa.Text, nullable=False, index=True, comment="of the model"),
    sa.Column("names_free_digest", sa.Text, index=True),
    sa.Column("bits", sa.LargeBinary, comment="of its weight sketch, by the method of this version"),
)

known_tensor = sa.Table(
    "known_tensor",
    metadata,
    sa.Column("key", sa.BigInteger, primary_key=True, comment="first 8 bytes of the tensor's digest"),
    sa.Column("statement_id", sa.Integer, sa.ForeignKey("statement.id"), primary_key=True, index=True),
    sqlite_with_rowid=False,
)

subscription = sa.Table(
    "subscription",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("address", sa.Text, nullable=False, unique=True),
    sa.Column("origin_id", sa.Integer, sa.ForeignKey("origin.id"), nullable=False),
    sa.Column("etag", sa.Text, comment="of the file that was read last, as the server or the file system states it"),
    sa.Column("file_digest", sa.Text, nullable=False, comment="of the file that was read last"),
    sa.Column("refreshed_at", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
"""The only rows beside `origin` and the indexes that are changed in place: they say what was fetched last."""

EXCHANGE = (identity, origin, receipt, statement, known_model, known_tensor, subscription)
"""What is known from other registries; apart from the tables of this one, so that nobody else writes into those."""


def fit_to_postgresql(tables: Iterable[sa.Table]) -> None:
    """Let the columns of tables mean on PostgreSQL what they mean in SQLite: text by code points, 64-bit numbers."""
    for column in (c for table in tables for c in table.columns):
        if isinstance(column.type, sa.Text):
            column.type = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
        elif type(column.type) is sa.Integer:
            column.type = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


fit_to_postgresql(metadata.tables.values())


def _m001_models(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[migration, blob, content, model, live, tensor_key])


def _m002_fingerprints(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[spec, fingerprint, sketch_bits])


def _m003_evidence(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[evidence])


def _m004_functional_sketches(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[functional_sketch])


def _m005_scans(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[scan])


def _m006_family_trees(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[family_tree])


def _m007_exchange(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=list(EXCHANGE))


def _m008_unit_keys(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[unit_key])


MIGRATIONS: tuple[tuple[str, Callable[[sa.Connection], None]], ...] = (
    ("models", _m001_models),
    ("fingerprints", _m002_fingerprints),
    ("evidence", _m003_evidence),
    ("functional sketches", _m004_functional_sketches),
    ("scans", _m005_scans),
    ("family trees", _m006_family_trees),
    ("exchange", _m007_exchange),
    ("unit keys", _m008_unit_keys),
)
"""Applied in order, each once; one that has been released is never edited."""


def version(connection: sa.Connection) -> int:
    """Number of the last applied migration, 0 for an empty database."""
    if not sa.inspect(connection).has_table("migration"):
        return 0
    return connection.execute(sa.select(sa.func.max(migration.c.number))).scalar() or 0


def refuse_newer(stored_version: int, where: str) -> None:
    """Raise if the schema is newer than this code."""
    if stored_version > len(MIGRATIONS):
        raise UnusableRegistryError(
            f"the registry {where} has schema {stored_version}, but this version of Stemma supports "
            f"{len(MIGRATIONS)}. Update "
            "Stemma"
        )


def apply_next(connection: sa.Connection, number: int) -> None:
    """Apply migration `number` (from 1) and record it, in the caller's transaction."""
    name, step = MIGRATIONS[number - 1]
    step(connection)
    applied = datetime.now(UTC).isoformat(timespec="seconds")
    connection.execute(migration.insert().values(number=number, name=name, applied_at=applied))

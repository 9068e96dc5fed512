"""Export a registry, import another one, and subscribe to it."""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from stemma.checkpoints.privacy import public_address
from stemma.errors import ExchangeError, UnknownNameError
from stemma.registry import blobs, rows, schema
from stemma.registry.database import AbstractDatabase
from stemma.registry.exchange.differences import Holdings, export_holdings, known_digests, own_holdings
from stemma.registry.exchange.download import Fetched, fetched, is_remote, local_path
from stemma.registry.exchange.merging import Acceptance, Imported, drop_statements, import_file
from stemma.registry.exchange.own_statements import OwnStatements, check_names, created, own_identity
from stemma.registry.exchange.sections import Section, check_registry_name, write_section
from stemma.verification.signatures.keys import PrivateKey


@dataclass(frozen=True, slots=True)
class Subscription:
    """An address that another registry publishes its export at.

    Attributes:
        registry: Name of the registry here.
        address: Where it publishes.
        signed_by: SHA-256 of the pinned public key; None where it does not sign.
        refreshed_at: When it was read last: UTC, ISO 8601.
        etag: Of the version that was read last.
        identity: Identity of the registry.
    """

    registry: str
    address: str
    signed_by: str | None
    refreshed_at: str
    etag: str | None
    identity: str


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What became of a subscription.

    Attributes:
        subscription: The subscription.
        imported: What was imported; None where nothing changed, or nothing could be read.
        downloaded: Bytes that were fetched.
        error: What is wrong; empty where nothing is.
    """

    subscription: Subscription
    imported: Imported | None
    downloaded: int
    error: str = ""


class Exchange:
    """What a registry tells others, and is told by them."""

    def __init__(self, database: AbstractDatabase, folder: blobs.AbstractBlobs) -> None:
        """Use the tables and blobs of a registry."""
        self._database = database
        self._folder = folder

    def export(
        self, path: Path, names: Sequence[str] = (), name: str | None = None, key: PrivateKey | None = None
    ) -> Section:
        """Write what this registry knows itself to a file.

        Args:
            path: The file; replaced when everything is written.
            names: Models, live or removed; all if empty.
            name: How this registry calls itself from now on.
            key: Signs the export.

        Returns:
            What was written.

        Raises:
            UnknownNameError: If there was never a model of a name.
        """
        if name is not None:
            check_registry_name(name)
        from stemma import __version__

        identity, called = self._identity(name)
        header = {"identity": identity, "name": called, "stemma_version": __version__, "complete": not names}
        with self._database.reading() as connection, _written(path) as out:
            check_names(connection, names)
            told = OwnStatements(connection, self._folder, frozenset(names))
            return write_section(out, {**header, "created": created(connection)}, told, told.left_out, key)

    def _identity(self, name: str | None) -> tuple[str, str]:
        c = schema.identity.c
        with self._database.reading() as connection:
            found = connection.execute(sa.select(c.identity, c.name)).first()
        if found is not None and name in (None, found.name):
            return found.identity, found.name
        with self._database.writing() as connection:
            return own_identity(connection, name)

    def import_from(self, address: str, accept: Acceptance) -> list[Imported]:
        """Import an export from a file or an address, all of it or nothing; see `merging.import_file`."""
        with fetched(address) as file:
            assert file.path is not None
            return import_file(self._database, file.path, accept, _shown(address))

    # Differences

    def holdings(self, title: str) -> Holdings:
        """The models that this registry enrolled itself."""
        return own_holdings(self._database, title)

    def export_holdings(self, address: str, accept: Acceptance) -> Holdings:
        """The models in an export at an address, which is checked as if it were imported."""
        with fetched(address) as file:
            assert file.path is not None
            return export_holdings(file.path, accept)

    def known_digests(self, identity: str) -> set[str]:
        """Digests of the models that are known from a registry."""
        return known_digests(self._database, identity)

    # Subscriptions

    def subscriptions(self) -> tuple[Subscription, ...]:
        """All of them, sorted by the names of the registries."""
        with self._database.reading() as connection:
            found = connection.execute(_select().order_by(schema.origin.c.name)).mappings()
            return tuple(Subscription(**row) for row in found)

    def subscribe(self, address: str, accept: Acceptance) -> Refreshed:
        """Import an export, and remember where it is published.

        The key that signed it is pinned: an export with another key, or without one, is an error from then on.

        Args:
            address: http, https, or a file.
            accept: Which exports are accepted.

        Returns:
            What was imported.

        Raises:
            ExchangeError: If there is no export of one other registry, or it is subscribed to already.
        """
        address = address if is_remote(address) else str(local_path(address).absolute())
        if any(s.address == address for s in self.subscriptions()):
            raise ExchangeError(f"{_shown(address)} is subscribed to already. Run: stemma registry refresh")
        with fetched(address) as file:
            assert file.path is not None
            found = import_file(self._database, file.path, replace(accept, one=True), _shown(address))
            if found[0].own:
                raise ExchangeError(f"{_shown(address)} holds an export of this registry itself")
            with self._database.writing() as connection:
                o = schema.origin.c
                origin = connection.execute(sa.select(o.id).where(o.identity == found[0].section.identity)).scalar_one()
                values = {"address": address, "origin_id": origin, **_version(file, found[0])}
                connection.execute(schema.subscription.insert().values(**values))
        return Refreshed(self._one(address), found[0], file.downloaded)

    def refresh(self, subscription: Subscription, accept: Acceptance) -> Refreshed:
        """Read a subscription again, if it changed; an error is returned, and changes nothing."""
        try:
            with fetched(subscription.address, subscription.etag) as file:
                if file.path is None:
                    return Refreshed(subscription, None, 0)
                where = _shown(subscription.address)
                found = import_file(self._database, file.path, accept, where, subscription.identity)[-1]
                with self._database.writing() as connection:
                    s = schema.subscription.c
                    here = s.address == subscription.address
                    connection.execute(schema.subscription.update().where(here).values(**_version(file, found)))
        except ExchangeError as e:
            return Refreshed(subscription, None, 0, str(e))
        return Refreshed(self._one(subscription.address), found, file.downloaded)

    def forget(self, name: str) -> int:
        """Drop everything that is known from another registry, and the subscription to it.

        Args:
            name: Its name here, or the address of the subscription.

        Returns:
            Number of models that were known from it.

        Raises:
            UnknownNameError: If nothing is known from there.
        """
        with self._database.writing() as connection:
            o, sub = schema.origin.c, schema.subscription.c
            at = sa.select(sub.origin_id).where(sub.address == name)
            found = connection.execute(sa.select(o.id).where(sa.or_(o.name == name, o.id.in_(at)))).scalar()
            if found is None:
                known = ", ".join(connection.execute(sa.select(o.name).order_by(o.name)).scalars()) or "none yet"
                raise UnknownNameError(f"nothing is known from a registry '{name}'. Registries that are known: {known}")
            k = schema.known_model.c
            live = sa.select(sa.func.count()).where(k.origin_id == found, k.removed == sa.false())
            models = connection.execute(live).scalar_one()
            drop_statements(connection, found)
            connection.execute(schema.subscription.delete().where(sub.origin_id == found))
            connection.execute(schema.origin.delete().where(o.id == found))
        return models

    def _one(self, address: str) -> Subscription:
        with self._database.reading() as connection:
            query = _select().where(schema.subscription.c.address == address)
            return Subscription(**connection.execute(query).mappings().one())


def _select() -> sa.Select:
    o, s = schema.origin.c, schema.subscription.c
    columns = sa.select(o.name.label("registry"), s.address, o.signed_by, s.refreshed_at, s.etag, o.identity)
    return columns.select_from(schema.subscription).join(schema.origin, o.id == s.origin_id)


def _version(file: Fetched, found: Imported) -> dict[str, Any]:
    return {"etag": file.etag, "file_digest": found.section.digest, "refreshed_at": rows.timestamp()}


def _shown(address: str) -> str:
    """An address as it may be shown and kept in a receipt: no password, and of a path only the name."""
    return public_address(address) if is_remote(address) else local_path(address).name


@contextlib.contextmanager
def _written(path: Path) -> Any:
    """A file that gets its name when the block ends without an error."""
    if path.is_dir():
        raise ExchangeError(f"{path} is a folder. Give the file to write")
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    except OSError as e:
        raise ExchangeError(f"{path} cannot be written: {e.strerror or e}") from None
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(partial).unlink()
        raise

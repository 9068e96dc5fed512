"""Follow what other registries publish. Requests, answers and documents of `stemma registry subscribe` and its kin."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stemma.application.document import Document, Progress, Schema
from stemma.application.import_registry import ImportedPart, acceptance, imported_part, without_secrets
from stemma.errors import UnknownNameError

if TYPE_CHECKING:
    from stemma.registry.exchange.exchange import Refreshed, Subscription
    from stemma.registry.exchange.known_models import Origin


@dataclass(frozen=True, kw_only=True)
class SubscribeRequest:
    """What `stemma registry subscribe`, `refresh`, `forget` and `known` are asked.

    Attributes:
        task: Which of them.
        address: Address, or name of a registry; all of them if null.
        public_key: Files of public keys, one of which must have signed; none is asked for if empty.
        name: Name of the other registry here; the one it gives itself if null.
        registry: Registry; the default one if null.
    """

    task: Literal["subscribe", "refresh", "forget", "known"]
    address: str | None = None
    public_key: tuple[str, ...] = ()
    name: str | None = None
    registry: str | None = None


@dataclass(frozen=True, slots=True)
class KnownRegistryPart:
    """Another registry that something is known from.

    Attributes:
        registry: Its name here.
        identity: What tells it from other registries.
        signed_by: SHA-256 of the pinned public key; null where it does not sign.
        models: Number of models that are known from it.
        since: When something was first known from it: UTC, ISO 8601.
        subscriptions: Addresses that are subscribed to, without passwords.
        refreshed_at: When one of these was read last: UTC, ISO 8601; null without one.
    """

    registry: str
    identity: str
    signed_by: str | None
    models: int
    since: str
    subscriptions: tuple[str, ...]
    refreshed_at: str | None


@dataclass(frozen=True, slots=True)
class RefreshedPart:
    """What became of one subscription.

    Attributes:
        registry: Name of the other registry here.
        status: Whether anything was new.
        downloaded: Bytes that were fetched; 0 where the address says that nothing changed.
        imported: What was imported; null where nothing was.
        error: What is wrong; empty where nothing is.
    """

    registry: str
    status: Literal["new", "unchanged", "failed"]
    downloaded: int
    imported: ImportedPart | None
    error: str


@dataclass(frozen=True, kw_only=True)
class SubscriptionsDocument(Document):
    """Other registries, and what became of the subscriptions.

    Attributes:
        registries: Every registry that something is known from.
        refreshed: Subscriptions that were made or read again.
        forgotten: Number of models that are no longer known; null where nothing was to be forgotten.
        failed: Number of subscriptions that could not be read.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.registry-known", 1)

    asked: SubscribeRequest
    registries: tuple[KnownRegistryPart, ...]
    refreshed: tuple[RefreshedPart, ...]
    forgotten: int | None
    failed: int


@dataclass(frozen=True, kw_only=True)
class SubscriptionsAnswer:
    """Other registries, and what became of the subscriptions.

    Attributes:
        request: What was asked.
        origins: Every registry that something is known from.
        subscriptions: All subscriptions.
        refreshed: Subscriptions that were made or read again.
        forgotten: Number of models that are no longer known; None where nothing was to be forgotten.
    """

    request: SubscribeRequest
    origins: "tuple[Origin, ...]"
    subscriptions: "tuple[Subscription, ...]"
    refreshed: "tuple[Refreshed, ...]" = ()
    forgotten: int | None = None

    @property
    def failed(self) -> int:
        """Number of subscriptions that could not be read."""
        return sum(1 for one in self.refreshed if one.error)

    def document(self) -> dict[str, Any]:
        """The document that `stemma registry known --json` and its kin print."""
        return SubscriptionsDocument.of(
            without_secrets(self.request), registries=tuple(map(self._registry, self.origins)),
            refreshed=tuple(map(_refreshed, self.refreshed)), forgotten=self.forgotten, failed=self.failed,
        ).to_dict()  # fmt: skip

    def _registry(self, origin: "Origin") -> KnownRegistryPart:
        from stemma.checkpoints.privacy import public_address

        mine = [s for s in self.subscriptions if s.registry == origin.name]
        addresses = tuple(public_address(s.address) if "://" in s.address else s.address for s in mine)
        last = max((s.refreshed_at for s in mine), default=None)
        return KnownRegistryPart(
            origin.name, origin.identity, origin.signed_by, origin.models, origin.added_at, addresses, last
        )


def _refreshed(one: "Refreshed") -> RefreshedPart:
    imported = None if one.imported is None else imported_part(one.imported)
    status = "failed" if one.error else "new" if one.imported is not None and one.imported.new else "unchanged"
    return RefreshedPart(one.subscription.registry, status, one.downloaded, imported, one.error)


def subscriptions(request: SubscribeRequest, progress: Progress | None = None) -> SubscriptionsAnswer:
    """Subscribe to a registry, read subscriptions again, forget a registry, or list what is known.

    Args:
        request: What is to be done.
        progress: Told what is being done.

    Returns:
        The other registries, and what became of the subscriptions.

    Raises:
        UnknownNameError: If nothing is known from the registry, or subscribed to, that is named.
    """
    from stemma.registry import Registry

    accept = acceptance(request.public_key, request.name)
    with Registry(request.registry) as registry:
        exchange, refreshed, forgotten = registry.exchange, list["Refreshed"](), None
        if request.task == "subscribe":
            refreshed = [exchange.subscribe(request.address or "", accept)]
        elif request.task == "refresh":
            chosen = _chosen(exchange.subscriptions(), request.address)
            for i, one in enumerate(chosen):
                if progress is not None:
                    progress(f"reading {one.registry}", i, len(chosen))
                refreshed.append(exchange.refresh(one, accept))
        elif request.task == "forget":
            forgotten = exchange.forget(request.address or "")
        return SubscriptionsAnswer(
            request=request, origins=registry.known.origins(), subscriptions=exchange.subscriptions(),
            refreshed=tuple(refreshed), forgotten=forgotten,
        )  # fmt: skip


def _chosen(found: "Sequence[Subscription]", name: str | None) -> "Sequence[Subscription]":
    if name is None:
        return found
    chosen = [s for s in found if name in (s.registry, s.address)]
    if not chosen:
        known = ", ".join(s.registry for s in found) or "none yet"
        raise UnknownNameError(f"there is no subscription to '{name}'. Subscriptions: {known}")
    return chosen

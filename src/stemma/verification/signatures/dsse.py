"""Signed statements: DSSE envelopes (Dead Simple Signing Envelope, version 1), as in-toto and cosign read them.

What is signed is the pre-authentication encoding of type and payload: "DSSEv1", then both with their lengths. The name
of a key beside a signature is only a hint, and every signature is tried. A payload whose base64 is not the one way to
write it is refused, so that no byte of it can change unseen.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from stemma.errors import SigningError
from stemma.verification.signatures.keys import PrivateKey, PublicKey

IN_TOTO = "application/vnd.in-toto+json"
"""Type of a payload that is an in-toto statement."""

MAX_SIGNATURES = 100
"""Signatures of an envelope that are looked at."""


def encoding(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def envelope(payload: bytes, key: PrivateKey, payload_type: str = IN_TOTO) -> bytes:
    """A payload with its signature.

    Args:
        payload: What is signed.
        key: Private key.
        payload_type: Media type of the payload.

    Returns:
        The envelope: JSON.
    """
    signature = key.sign(encoding(payload_type, payload))
    signatures = [{"keyid": key.public.identity, "sig": base64.b64encode(signature).decode()}]
    made = {"payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": signatures}
    return json.dumps(made, indent=2).encode() + b"\n"


def opened(content: Mapping[str, Any], key: PublicKey) -> bytes | None:
    """The payload of an envelope that was signed with a key.

    Args:
        content: The envelope, parsed.
        key: Public key of the signer that is trusted.

    Returns:
        The payload; None where no signature in the envelope was made with this key.

    Raises:
        SigningError: If this is no envelope, or holds something else than an in-toto statement.
    """
    kind, signatures = content.get("payloadType"), content.get("signatures")
    if kind != IN_TOTO:
        raise SigningError(f"the envelope holds {str(kind)[:60]!r} and not an in-toto statement")
    if not isinstance(signatures, list) or not signatures or len(signatures) > MAX_SIGNATURES:
        raise SigningError("the envelope has no signature, or too many")
    payload = canonical(content.get("payload"))
    message = encoding(kind, payload)
    for entry in signatures:
        if isinstance(entry, dict) and key.has_signed(message, canonical(entry.get("sig"))):
            return payload
    return None


def canonical(text: Any) -> bytes:
    """The bytes that a text holds in base64.

    Args:
        text: The text.

    Returns:
        The bytes.

    Raises:
        SigningError: If it is not base64, or not in the one canonical form of it.
    """
    try:
        found = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        found = b""
    if not found or base64.b64encode(found).decode() != text:
        raise SigningError("the envelope is damaged: a part of it is not in canonical base64")
    return found

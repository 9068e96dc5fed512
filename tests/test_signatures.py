"""Signatures: the reference tools verify what Stemma signs, Stemma verifies theirs, and no bit can change unseen."""

import base64
import copy
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints import Run, arrays_of
from stemma.application.sign import SignRequest, sign
from stemma.application.verify_signature import VerifySignatureRequest, verify_signature
from stemma.checkpoints.file_hashes import hash_files
from stemma.errors import MisuseError, NotAModelError, SigningError, UnreadableModelError

pytest.importorskip("cryptography", reason="the extra `standards` is not installed")
pytest.importorskip("model_signing", reason="the extra `standards` is not installed")

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from stemma.verification.signatures.dsse import encoding, envelope, opened
from stemma.verification.signatures.keys import PublicKey, read_private_key, read_public_key
from stemma.verification.signatures.signed_files import _of_folder

pytestmark = pytest.mark.anywhere

KEYS: dict[str, Callable[[], Any]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
}


def write_key(folder: Path, name: str, key: Any) -> Path:
    """A pair of PEM files; the path of the private one."""
    private = folder / f"{name}.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    private.with_suffix(".pub").write_bytes(public)
    return private


@pytest.fixture(params=list(KEYS))
def key(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_key(tmp_path, request.param, KEYS[request.param]())


@pytest.fixture
def p256(tmp_path: Path) -> Path:
    return write_key(tmp_path, "signer", KEYS["p256"]())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(arrays_of(0), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def verified(path: Path, key: Path, *signatures: Path) -> bool | None:
    given = tuple(map(str, signatures)) or None
    asked = VerifySignatureRequest(path=str(path), public_key=str(key.with_suffix(".pub")), signatures=given)
    return verify_signature(asked).good


def flipped(content: bytes, place: int, bit: int = 0) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


# Envelopes


def twin_encoding(kind: str, payload: bytes) -> bytes:
    """The pre-authentication encoding, written once more from the specification."""
    parts = [b"DSSEv1", str(len(kind.encode())).encode(), kind.encode(), str(len(payload)).encode(), payload]
    return b" ".join(parts)


def test_the_encoding_is_that_of_the_specification() -> None:
    example = encoding("http://example.com/HelloWorld", b"hello world")
    assert example == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    rng = np.random.default_rng(0)
    for n in (0, 1, 9, 10, 1000):
        payload = rng.bytes(n)
        assert encoding("application/ü", payload) == twin_encoding("application/ü", payload)


def test_another_library_verifies_an_envelope(key: Path) -> None:
    signer = pytest.importorskip("securesystemslib.signer", reason="the package securesystemslib is not installed")
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError

    content = json.loads(envelope(b'{"a": 1}', read_private_key(key)))
    public = read_public_key(key.with_suffix(".pub"))
    for entry in content["signatures"]:  # it names keys in its own way
        entry["keyid"] = "theirs"
    theirs = signer.SSlibKey.from_crypto(public.material, keyid="theirs")
    assert set(Envelope.from_dict(copy.deepcopy(content)).verify([theirs], 1)) == {"theirs"}
    stranger = signer.SSlibKey.from_crypto(KEYS["ed25519"]().public_key(), keyid="theirs")
    with pytest.raises(VerificationError):
        Envelope.from_dict(copy.deepcopy(content)).verify([stranger], 1)


def test_an_envelope_of_another_library_is_verified(key: Path) -> None:
    signer = pytest.importorskip("securesystemslib.signer", reason="the package securesystemslib is not installed")
    from securesystemslib.dsse import Envelope

    private, public = read_private_key(key), read_public_key(key.with_suffix(".pub"))
    theirs = Envelope(b'{"b": 2}', "application/vnd.in-toto+json", {})
    theirs.sign(signer.CryptoSigner(private.material))
    content = theirs.to_dict()
    assert content["signatures"][0]["keyid"] != public.identity  # it names keys in its own way
    assert opened(content, public) == b'{"b": 2}'


def is_refused(content: dict[str, Any], public: PublicKey) -> bool:
    try:
        return opened(content, public) is None
    except SigningError:
        return True


def test_every_bit_of_payload_type_and_signature_counts(key: Path) -> None:
    public = read_public_key(key.with_suffix(".pub"))
    content = json.loads(envelope(b'{"_type": "x"}', read_private_key(key)))
    assert opened(content, public) == b'{"_type": "x"}'

    for field in ("payload", "payloadType"):
        text = content[field].encode()
        for place in range(len(text)):
            for bit in range(7):
                assert is_refused({**content, field: flipped(text, place, bit).decode("latin-1")}, public), (
                    field,
                    place,
                    bit,
                )
    (entry,) = content["signatures"]
    text = entry["sig"].encode()
    for place in range(len(text)):
        for bit in range(7):
            changed = {**entry, "sig": flipped(text, place, bit).decode("latin-1")}
            assert is_refused({**content, "signatures": [changed]}, public), (place, bit)


@pytest.mark.parametrize(
    "signatures", [None, [], {}, "x", [None], [{}], [{"sig": None}], [{"sig": "QQ=="}], [{"sig": ["a"]}] * 2]
)
def test_damaged_envelopes_are_refused(p256: Path, signatures: Any) -> None:
    public = read_public_key(p256.with_suffix(".pub"))
    content = json.loads(envelope(b"{}", read_private_key(p256)))
    assert is_refused({**content, "signatures": signatures}, public)


def test_one_good_signature_among_others_is_enough_and_signing_repeats(key: Path, tmp_path: Path) -> None:
    other = read_private_key(write_key(tmp_path, "other", KEYS["p256"]()))
    private = read_private_key(key)
    assert envelope(b"{}", private) == envelope(b"{}", private)
    content = json.loads(envelope(b"{}", private))
    both = {**content, "signatures": json.loads(envelope(b"{}", other))["signatures"] + content["signatures"]}
    assert opened(both, private.public) == opened(both, other.public) == b"{}"


# Keys


def test_wrong_keys_are_told_apart(tmp_path: Path, p256: Path) -> None:
    short = write_key(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    curve = write_key(tmp_path, "koblitz", ec.generate_private_key(ec.SECP256K1()))
    locked = tmp_path / "locked.pem"
    encrypted = BestAvailableEncryption(b"secret")
    locked.write_bytes(KEYS["p256"]().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encrypted))
    (tmp_path / "no.pem").write_bytes(b"no key")
    (tmp_path / "long.pem").write_bytes(b"x" * 200_000)
    for path, why in (
        (short, "another kind"), (curve, "another kind"), (locked, "encrypted"), (tmp_path / "no.pem", "not a private"),
        (tmp_path / "long.pem", "too large"), (tmp_path / "gone.pem", "no key file"),
        (p256.with_suffix(".pub"), "not a private"),
    ):  # fmt: skip
        with pytest.raises(SigningError, match=why):
            read_private_key(path)
    for path, why in ((p256, "private key"), (short.with_suffix(".pub"), "another kind")):
        with pytest.raises(SigningError, match=why):
            read_public_key(path)


# Weights


def test_the_reference_tool_verifies_what_stemma_signs(p256: Path, model: Path) -> None:
    from model_signing import verifying

    answer = sign(SignRequest(path=str(model), key=str(p256)))
    assert answer.signature == model / "model.sig"
    assert answer.files == ("config.json", "model.safetensors")
    reference = verifying.Config().use_elliptic_key_verifier(public_key=p256.with_suffix(".pub"))
    reference.verify(model, answer.signature)
    assert verified(model, p256) is True
    (model / "config.json").write_text("{ }")
    with pytest.raises(ValueError, match=r"config\.json"):
        reference.verify(model, answer.signature)
    assert verified(model, p256) is False


def test_stemma_verifies_what_the_reference_tool_signs(p256: Path, model: Path) -> None:
    from model_signing import hashing, signing

    signing.Config().use_elliptic_key_signer(private_key=p256).sign(model, model.with_name("theirs.sig"))
    assert verified(model, p256, model.with_name("theirs.sig")) is True
    (model / "new.bin").write_bytes(b"1")
    assert verified(model, p256, model.with_name("theirs.sig")) is False
    blake = hashing.Config().use_file_serialization(hashing_algorithm="blake3")
    partial = hashing.Config().set_ignored_paths(paths=[Path("new.bin")])
    for config, good in ((blake, True), (partial, None)):
        signer = signing.Config().use_elliptic_key_signer(private_key=p256).set_hashing_config(config)
        signer.sign(model, model.with_name("more.sig"))
        assert verified(model, p256, model.with_name("more.sig")) is good
        content = json.loads(model.with_name("more.sig").read_bytes())
        content["verificationMaterial"]["x509CertificateChain"] = content["verificationMaterial"].pop("publicKey")
        model.with_name("more.sig").write_text(json.dumps(content))
        assert verified(model, p256, model.with_name("more.sig")) is False


def test_a_flipped_bit_of_weights_or_signature_is_noticed(p256: Path, model: Path) -> None:
    sign(SignRequest(path=str(model), key=str(p256)))
    weights, bundle = model / "model.safetensors", model / "model.sig"
    content, signature = weights.read_bytes(), bundle.read_bytes()
    rng = np.random.default_rng(0)
    for place in (0, len(content) - 1, *rng.integers(0, len(content), 6)):
        weights.write_bytes(flipped(content, int(place), int(rng.integers(8))))
        assert verified(model, p256) is False
    weights.write_bytes(content)
    inside = json.loads(signature)["dsseEnvelope"]
    for part in (inside["payload"], inside["signatures"][0]["sig"]):
        start = signature.index(part.encode())
        for offset in (0, len(part) - 3, len(part) - 1, *rng.integers(0, len(part), 12)):
            for bit in (0, 1, 4):
                bundle.write_bytes(flipped(signature, start + int(offset), bit))
                assert verified(model, p256) is False, (offset, bit)
    bundle.write_bytes(signature)
    assert verified(model, p256) is True


def test_files_that_are_added_removed_or_renamed_are_noticed(p256: Path, model: Path, tmp_path: Path) -> None:
    sign(SignRequest(path=str(model), key=str(p256)))
    for name, change in {
        "added": lambda m: (m / "extra.bin").write_bytes(b"1"),
        "removed": lambda m: (m / "config.json").unlink(),
        "renamed": lambda m: (m / "config.json").rename(m / "config2.json"),
        "below": lambda m: ((m / "sub").mkdir(), (m / "sub" / "w.bin").write_bytes(b"1")),
    }.items():
        copy = tmp_path / name
        shutil.copytree(model, copy)
        assert verified(copy, p256) is True
        change(copy)
        assert verified(copy, p256) is False, name


def test_another_key_an_unsigned_model_and_no_signature_are_no_pass(key: Path, p256: Path, model: Path) -> None:
    assert verified(model, p256) is None
    sign(SignRequest(path=str(model), key=str(p256)))
    assert verified(model, key) is False
    for content in (b"", b"{}", b"[]", b'{"dsseEnvelope": 1}', b'{"payload": "e30="}', b"\xff" * 9, b"[" * 100_000):
        (model / "model.sig").write_bytes(content)
        assert verified(model, p256) is False


def test_a_single_file_is_signed_beside_itself(p256: Path, model: Path) -> None:
    file = model / "model.safetensors"
    answer = sign(SignRequest(path=str(file), key=str(p256)))
    assert answer.signature.name == "model.safetensors.sig"
    assert verified(file, p256) is True
    assert verified(model / "config.json", p256) is None
    file.write_bytes(flipped(file.read_bytes(), 100))
    assert verified(file, p256) is False


def test_what_cannot_be_signed_is_said(tmp_path: Path, p256: Path, model: Path) -> None:
    edwards = write_key(tmp_path, "edwards", KEYS["ed25519"]())
    with pytest.raises(SigningError, match="Ed25519"):
        sign(SignRequest(path=str(model), key=str(edwards)))
    with pytest.raises(NotAModelError):
        sign(SignRequest(path=str(tmp_path / "gone"), key=str(p256)))
    with pytest.raises(MisuseError, match=r"\.sig"):
        sign(SignRequest(path=str(model), key=str(p256), out=str(model / "model.safetensors")))
    (model / "link.bin").symlink_to(model / "config.json")
    with pytest.raises(SigningError, match="cannot be signed"):
        sign(SignRequest(path=str(model), key=str(p256)))


# Statements


@pytest.fixture
def enrolled(run: Run, model: Path, tmp_path: Path) -> Path:
    pytest.importorskip("in_toto_attestation", reason="the extra `standards` is not installed")
    other = tmp_path / "models" / "other"
    other.mkdir(parents=True)
    save_file(arrays_of(1), other / "model.safetensors")
    (other / "config.json").write_text('{"a": 1}')
    assert run("add", model, tmp_path / "models")[0] == 0
    return other


@pytest.mark.parametrize("name", ["intoto", "cyclonedx", "spdx"])
@pytest.mark.first(2)
def test_a_signed_statement_is_tied_to_the_files(
    run: Run, enrolled: Path, model: Path, key: Path, name: str
) -> None:  # fmt: skip
    out, public = model / f"{name}.dsse.json", key.with_suffix(".pub")
    code, shown, err = run("export", "model", "--format", name, "--sign", key, "--out", out)
    assert (code, err) == (0, "")
    assert "signed" in shown
    code, shown, _ = run("verify", "signature", model, "--public-key", public)
    assert code == 0
    assert shown.startswith("signed and unchanged")
    payload = json.loads(base64.b64decode(json.loads(out.read_bytes())["payload"]))
    real = {f.name: f.sha256 for f in hash_files(model)}
    assert {s["name"]: s["digest"]["sha256"] for s in payload["subject"]} == real
    (model / "extra.bin").write_bytes(b"1")
    code, shown, _ = run("verify", "signature", model, "--public-key", public)
    assert code == 1
    assert shown.startswith("unsigned")
    assert "extra.bin" in shown
    (model / "extra.bin").unlink()
    weights = model / "model.safetensors"
    weights.write_bytes(flipped(weights.read_bytes(), -1 % weights.stat().st_size))
    code, shown, _ = run("verify", "signature", model, "--public-key", public)
    assert code == 1
    assert shown.startswith("NOT as signed")
    assert "model.safetensors" in shown


def test_a_file_that_was_signed_and_is_gone_is_missed(run: Run, enrolled: Path, model: Path, p256: Path) -> None:
    assert run("export", "model", "--format", "intoto", "--sign", p256, "--out", model / "s.dsse.json")[0] == 0
    assert verified(model, p256) is True
    (model / "config.json").unlink()
    assert verified(model, p256) is False


@pytest.mark.parametrize("keep", [(), ("--keep-weights",)])
def test_files_that_were_exchanged_are_not_signed_for_those_that_were_examined(
    run: Run, enrolled: Path, model: Path, p256: Path, tmp_path: Path, keep: tuple[str, ...]
) -> None:
    assert run("add", model, "--replace", *keep)[0] == 0
    save_file(arrays_of(77), model / "model.safetensors")
    out = tmp_path / "s.dsse.json"
    now = hash_files(model / "model.safetensors")[0].sha256
    code, _, err = run("export", "model", "--format", "intoto", "--sign", p256, "--out", out)
    assert (code, out.exists()) == (1, False)
    assert "hold other weights by now" in err
    code = run("export", "--all", "--format", "intoto", "--sign", p256, "--out", out)[0]
    assert code == (1 if keep else 0)  # without a copy it is not drawn, and the statement is about the others
    assert verified(model / "model.safetensors", p256, out) is not True if out.exists() else keep
    shown = json.loads(run("export", "model", "--format", "cyclonedx")[1])
    assert now not in json.dumps(shown)
    assert "do not hold the weights that were examined" in json.dumps(shown)


def test_one_statement_about_all_models_holds_for_each(
    run: Run, enrolled: Path, model: Path, p256: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all.dsse.json"
    assert run("export", "--all", "--format", "intoto", "--sign", p256, "--out", out)[0] == 0
    assert verified(model, p256, out) is True
    assert verified(enrolled, p256, out) is True
    assert verified(model / "config.json", p256, out) is True
    shutil.copy(enrolled / "config.json", model / "config.json")  # a part of the one in the other
    assert verified(model, p256, out) is False


def test_the_document_says_what_was_checked(run: Run, model: Path, p256: Path) -> None:
    public = p256.with_suffix(".pub")
    code, out, _ = run("verify", "signature", model, "--public-key", public, "--json")
    document = json.loads(out)
    assert (code, document["good"]) == (1, None)
    assert "unsigned" in document["checks"][0]["reason"]
    code, out, _ = run("sign", model, "--key", p256, "--json")
    assert (code, json.loads(out)["files"]) == (0, ["config.json", "model.safetensors"])
    code, out, _ = run("verify", "signature", model, "--public-key", public, "--json")
    assert (code, json.loads(out)["good"]) == (0, True)
    code, _, err = run("verify", "signature", model, "--public-key", p256)
    assert code == 1
    assert "private key" in err


@pytest.mark.slow
def test_the_check_of_an_edit_reports_the_signature(run: Run, tmp_path: Path, p256: Path) -> None:
    pytest.importorskip("torch", reason="the extra `networks` is not installed")
    from edited_networks import trained
    from stemma.checkpoints.save import save

    save(trained("mlp"), tmp_path / "net")
    smaller, words = tmp_path / "smaller", ("--parent", tmp_path / "net", "--probes", "noise:n=64", "--json")
    assert run("prune", tmp_path / "net", "--ratio", ".3", "--probes", "noise:n=64", "--out", smaller)[0] == 0

    def outcome(*more: object) -> tuple[int, bool | None, list[bool | None]]:
        code, out, _ = run("verify", "edit", smaller, *words, *more)
        document = json.loads(out)
        return code, document["good"], [c["good"] for c in document["checks"] if c["check"] == "signature"]

    public = p256.with_suffix(".pub")
    assert outcome() == (0, True, [])
    assert outcome("--public-key", public) == (1, False, [False])  # asked for, and not there
    sign(SignRequest(path=str(smaller), key=str(p256)))
    assert outcome() == (0, None, [None])  # there, and not checked
    assert outcome("--public-key", public) == (0, True, [True])
    (smaller / "README.md").write_text("another story")
    assert outcome("--public-key", public) == (1, False, [False])


def test_links_to_folders_are_no_way_in(tmp_path: Path, model: Path, p256: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (model / "unet").symlink_to(elsewhere)
    with pytest.raises(UnreadableModelError, match="link to a folder"):
        hash_files(model)


def test_names_that_are_not_utf8_are_escaped_and_two_are_never_one(tmp_path: Path) -> None:
    import os

    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/a\xff.bin")).write_bytes(b"1")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert [f.name for f in hash_files(tmp_path)] == ["a\\udcff.bin"]
    (tmp_path / "a\\udcff.bin").write_bytes(b"2")
    assert len(hash_files(tmp_path)) == 2
    findings = list(_of_folder(tmp_path, tmp_path / "s", [("a\\udcff.bin", hash_files(tmp_path)[1].sha256)]))
    assert False in {f.good for f in findings}


def test_hashes_are_those_of_the_bytes(model: Path) -> None:
    (model / ".git").mkdir()
    (model / ".git" / "x").write_bytes(b"1")
    (model / "sub").mkdir()
    (model / "sub" / "w.bin").write_bytes(struct.pack("<d", 1.0))
    found = hash_files(model)
    assert [f.name for f in found] == ["config.json", "model.safetensors", "sub/w.bin"]
    assert found[2].size == 8
    assert hash_files(model / "gone") == ()

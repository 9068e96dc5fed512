"""Models without weights: what services are sent, what their answers become, and every way that they fail."""

import base64
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from checkpoints import Run
from services import Service, endless, reply, serving, status, truncated
from stemma.application.compare import CompareRequest, compare
from stemma.checkpoints.model import Model
from stemma.errors import EndpointError, MisuseError, StemmaError, UnknownNameError, UnreadableModelError
from stemma.fingerprints.evaluation import compute_outputs
from stemma.kinship.function.partition_agreement import PartitionAgreement
from stemma.networks.endpoints import Budget, Endpoint, answered_model, ask, read_recorded
from stemma.networks.endpoints.protocols import word_label
from stemma.probes import Probes
from stemma.probes.text import read_lines
from stemma.registry import Registry
from stemma.workspace import Workspace

pytestmark = pytest.mark.anywhere

INPUTS = np.random.default_rng(0).random((40, 1, 4, 4), np.float32)
PROBES = Probes.of(INPUTS)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5)).eval()


def scores(seed: int, inputs: Any) -> np.ndarray:
    with torch.no_grad():
        return network(seed)(torch.tensor(np.asarray(inputs, np.float32))).numpy()


def logits(body: dict[str, Any]) -> dict[str, Any]:
    return {"logits": scores(3, body["inputs"]).tolist()}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(logits) as found:
        yield found


def asked(service: Service, query: str = "", most: int = 1000, inputs: np.ndarray = INPUTS, **how: Any):
    waits: list[float] = []
    told: list[str] = []
    endpoint = Endpoint.parse(f"{service.url}/predict{query}")
    how.setdefault("sleep", waits.append)
    found = ask(endpoint, inputs, Budget(most), told.append, **how)
    return found, waits, told


def test_the_answers_are_those_of_the_network_and_are_asked_once(service: Service) -> None:
    found, _, told = asked(service)
    expected = scores(3, INPUTS)
    np.testing.assert_allclose(found.outputs, expected, atol=1e-6)
    assert sum(len(b["inputs"]) for b in service.asked) == 44  # four are asked twice
    assert told == [f"asking 127.0.0.1:{service.port}/predict: 44 queries, about 0.0 MB to send"]
    count = len(service.asked)
    again, _, told = asked(service, most=0)
    assert (len(service.asked), told) == (count, [])
    np.testing.assert_array_equal(again.outputs, found.outputs)
    assert "40 answers were kept from earlier" in again.notes[0]
    asked(service, inputs=np.concatenate([INPUTS, INPUTS[:2] + 1]), most=2)  # only what is new
    model = answered_model("svc", "endpoint:x", INPUTS, found.outputs)
    np.testing.assert_allclose(compute_outputs(model, PROBES.take([5, 1])), expected[[5, 1]], atol=1e-6)
    assert not model.network.differentiable
    assert model.digest == model.names_free_digest == "blackbox:svc"
    with pytest.raises(StemmaError, match="known by its answers to these probes only"):
        compute_outputs(model, Probes.of(INPUTS + 1))


@pytest.mark.parametrize("send", ["json", "npz", "png"])
def test_every_way_to_send_inputs_and_every_kind_of_answer(service: Service, send: str) -> None:
    pixels = np.round(INPUTS * 255).astype(np.uint8).astype(np.float32) / 255

    def read(body: dict[str, Any]) -> np.ndarray:
        if send == "npz":
            return np.load(io.BytesIO(base64.b64decode(body["npz"])))["inputs"]
        if send == "png":
            from PIL import Image

            images = [Image.open(io.BytesIO(base64.b64decode(i))) for i in body["images"]]
            return np.stack([np.asarray(i, np.float32)[None] / 255 for i in images])
        return np.array(body["inputs"], body["dtype"])

    expected = scores(3, pixels)
    shares = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    names = "abcde"
    for kind, answer, want in (
        ("probabilities", lambda s: (np.exp(s) / np.exp(s).sum(1, keepdims=True)).tolist(), np.log(shares)),
        ("labels", lambda s: s.argmax(1).tolist(), expected.argmax(1)[:, None]),
        ("labels", lambda s: [names[i].upper() for i in s.argmax(1)], expected.argmax(1)[:, None]),
        ("outputs", lambda s: s.tolist(), expected),
    ):
        service.answers = lambda body, k=kind, a=answer: {k: a(scores(3, read(body)))}
        service.asked.clear()
        query = f"?send={send}&batch=16&v={kind}{answer(expected[:1])}&classes={','.join(names)}"
        found, *_ = asked(service, query, inputs=pixels)
        np.testing.assert_allclose(found.outputs, want, atol=1e-5)
        assert [len(next(iter(b.values()))) for b in service.asked if send != "npz"] in ([], [16, 16, 8, 4])


def test_words_are_labels_that_do_not_depend_on_what_else_was_answered() -> None:
    assert word_label(" Yes.\n", ()) == word_label("yes", ()) != word_label("no", ())
    assert 0 <= word_label("\ud800", ()) < 2**52
    assert [word_label(t, ("yes", "no")) for t in ("Yes, it is", "no", "perhaps", "")] == [0, 1, 2, 2]
    assert word_label("north-west", ("north", "north-west")) == 1


def chat(body: dict[str, Any]) -> dict[str, Any]:
    text = body["messages"][0]["content"]
    said = "Yes" if len(text) % 2 else "No"
    choice: dict[str, Any] = {"message": {"content": said + "."}}
    if body.get("logprobs"):
        top = [{"token": said, "logprob": -0.1}, {"token": "No" if said == "Yes" else "Yes", "logprob": -2.5},
               {"token": " y", "logprob": -5.0}, {"token": "the", "logprob": -9.0}]  # fmt: skip
        choice["logprobs"] = {"content": [{"top_logprobs": top}]}
    return {"choices": [choice]}


def test_a_chat_service_is_asked_in_words(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text("".join(f"{'é' * i} is a question?\n" for i in range(1, 9)))
    probes = read_lines(file)
    service.answers = chat
    endpoint = Endpoint.parse(f"{service.url}/v1?model=some-model")
    assert endpoint.protocol == "chat"
    found = ask(endpoint, probes.inputs, Budget(12), lambda _: None)
    assert [b["messages"][0]["content"] for b in service.asked[:8]] == file.read_text().splitlines()
    assert {b["model"] for b in service.asked} == {"some-model"}
    assert {b["temperature"] for b in service.asked} == {0}
    assert found.outputs.shape == (8, 1)
    assert len(set(found.outputs[:, 0])) == 2
    with_classes = Endpoint.parse(f"chat+{service.url}/v1?model=m&classes=yes,no")
    found = ask(with_classes, probes.inputs, Budget(12), lambda _: None)
    yes = np.array([len(t) % 2 for t in file.read_text().splitlines()], bool)
    assert found.outputs.shape == (8, 2)
    assert (found.outputs.argmax(1) == np.where(yes, 0, 1)).all()
    own, other = math.log(math.exp(-0.1) + math.exp(-5)), math.log(math.exp(-2.5) + math.exp(-5))
    np.testing.assert_allclose(found.outputs[yes][0], [own, -2.5], atol=1e-6)
    np.testing.assert_allclose(found.outputs[~yes][0], [other, -0.1], atol=1e-6)
    service.faults.append(status(400, b"no logprobs here"))  # a service that has none is asked without
    plain = ask(Endpoint.parse(f"chat+{service.url}/v2?model=m&classes=yes,no"), probes.inputs[:2], Budget(99), print)
    assert plain.outputs.shape == (2, 1)
    with pytest.raises(MisuseError, match="asked in words: give --probes FILE"):
        ask(endpoint, INPUTS, Budget(99), print)


def test_a_busy_service_is_waited_for_and_every_try_is_counted(service: Service) -> None:
    service.faults += [status(429, Retry_After="7"), status(500), truncated, status(503, Retry_After="99999999")]
    found, waits, _ = asked(service, "?batch=44")
    np.testing.assert_allclose(found.outputs, scores(3, INPUTS), atol=1e-6)
    assert waits == [7.0, 1.0, 2.0, 60.0]
    service.faults += [status(500)] * 5
    with pytest.raises(
        EndpointError, match=r"does not answer after 5 tries \(status 500\)\. What was answered is kept"
    ):
        asked(service, "?v=2")
    service.faults += [status(500)] * 2
    with pytest.raises(EndpointError, match="--max-queries 44 allows no more: requests had to be repeated"):
        asked(service, "?v=3&batch=8", most=44)
    before = len(service.asked)
    with pytest.raises(EndpointError, match="would be asked 44 times, more than --max-queries 43 allows"):
        asked(service, "?v=4", most=43)
    assert len(service.asked) == before
    found, *_ = asked(service, "?v=3&batch=8", most=20)  # goes on where the budget ended
    np.testing.assert_allclose(found.outputs, scores(3, INPUTS), atol=1e-6)


def slow(handler: Any) -> None:
    import time

    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'{"logits": [[1, 2', "does not answer in JSON"),
        (b"\xff\xfe<html>", "does not answer in JSON"),
        (b"[" * 100_000, "does not answer in JSON"),
        ([1, 2], "answers with list, not an object"),
        ({"error": "no"}, "answers with error: one of logits, probabilities, labels is needed"),
        ({"logits": [[1.0, 2.0]] * 3}, "inputs with 3 rows of logits"),
        ({"logits": "many"}, "inputs with str of logits"),
        (b'{"logits": [%s]}' % b", ".join([b"[NaN, 1]"] * 8), "NaN or infinite"),
        (b'{"logits": [%s]}' % b", ".join([b"[1e999, 1]"] * 8), "NaN or infinite"),
        (b'{"logits": [%s]}' % b", ".join([b"[1%s, 1]" % (b"0" * 400)] * 8), "no numbers"),
        ({"logits": [[[1.0]]] * 8}, "shape [1, 1]"),
        ({"logits": [[1.0]] * 8}, "two classes at least"),
        ({"logits": [[1.0, "x"]] * 8}, "no numbers"),
        ({"logits": [[1.0, [2.0]]] * 8}, "no numbers"),
        ({"probabilities": [[0.9, 0.9]] * 8}, "do not add up to 1"),
        ({"probabilities": [[-0.5, 1.5]] * 8}, "negative"),
        ({"labels": [-1] * 8}, "neither a word nor a class number"),
        ({"labels": [1.5] * 8}, "neither a word nor a class number"),
        ({"labels": [True] * 8}, "neither a word nor a class number"),
        ({"labels": [1 << 60] * 8}, "neither a word nor a class number"),
    ],
)
def test_a_wrong_answer_is_one_sentence_and_is_not_kept(service: Service, answer: Any, said: str) -> None:
    right, service.answers = service.answers, lambda body: answer
    with pytest.raises(EndpointError) as error:
        asked(service, "?batch=8")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    service.answers = right
    found, *_ = asked(service, "?batch=8")
    np.testing.assert_allclose(found.outputs, scores(3, INPUTS), atol=1e-6)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(401, b"bad key \x1b[31m<script>"), "refuses the request: status 401: bad key [31m<script>"),
        (status(404, b"x" * 100_000), "refuses the request: status 404: xxx"),
        (status(307, Location="http://169.254.169.254/"), "answers with a redirect, which is not followed"),
        (status(200, b"\x1f\x8b", Content_Encoding="gzip"), "compressed form that was not asked for"),
        (endless, "answers with more than 32 MiB"),
    ],
)
def test_what_a_service_may_not_do(service: Service, fault: Callable, said: str) -> None:
    service.faults.append(fault)
    with pytest.raises(EndpointError) as error:
        asked(service)
    assert said in str(error.value)
    assert len(str(error.value)) < 400
    assert len(service.asked) == 1


def test_a_slow_answer_ends_at_the_timeout(service: Service) -> None:
    service.faults += [slow] * 5
    with pytest.raises(EndpointError, match="does not answer after 5 tries"):
        asked(service, timeout=0.15)


def test_answers_by_chance_are_found_and_small_differences_told(service: Service) -> None:
    count = iter(range(1000))
    service.answers = lambda body: {"labels": [next(count) % 7 for _ in body["inputs"]]}
    with pytest.raises(EndpointError, match=r"is not deterministic: [34] of 4 inputs that were asked twice"):
        asked(service, "?v=labels")
    service.answers = lambda body: {"logits": (scores(3, body["inputs"]) + 1e-4 * (next(count) % 3)).tolist()}
    found, *_ = asked(service, "?v=jitter&batch=40")
    assert "not quite deterministic: scores of the same input differ by up to 0.0" in found.notes[0]
    width = iter([5, 4, 5, 5, 5, 5, 5, 5])
    service.answers = lambda body: {"logits": scores(3, body["inputs"])[:, : next(width)].tolist()}
    with pytest.raises(EndpointError, match="answers in several shapes: logits of 4, 5 numbers"):
        asked(service, "?v=widths&batch=20")


def test_the_key_comes_from_its_variable_and_goes_nowhere_else(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    asked(service)
    assert "Authorization" not in service.headers[0]
    asked(service, "?key=MY_KEY&v=2")
    assert service.headers[-1]["Authorization"] == "Bearer sk-very-secret"
    service.faults.append(lambda handler: reply(handler, 403, str(handler.headers).encode()))  # it repeats all it got
    np.savez(tmp_path / "p.npz", inputs=INPUTS)
    text = f"endpoint:{service.url}/predict?key=MY_KEY&v=3"
    code, out, err = run("fingerprint", text, "--method", "outputs", "--probes", tmp_path / "p.npz")
    assert code == 1
    assert "Bearer …" in err
    answer = run("fingerprint", text, "--method", "outputs", "--probes", tmp_path / "p.npz", "--json")
    assert answer[0] == 0
    assert "sk-very-secret" not in "".join((*answer[1:], out, err))
    kept = (tmp_path / "cache" / "answers.sqlite").read_bytes()
    assert b"sk-very-secret" not in kept
    assert (tmp_path / "cache" / "answers.sqlite").stat().st_mode & 0o077 == 0
    with pytest.raises(EndpointError, match="the environment variable NONE_SUCH holds no key"):
        asked(service, "?key=NONE_SUCH&v=4")
    with pytest.raises(EndpointError, match="the key would be readable on its way"):
        Endpoint.parse("http://example.org/x?key=MY_KEY").secret()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp://h/x", "is no address of a service"), ("https://", "is no address"), ("", "is no address"),
        ("https://h:0/x", "is no address"), ("https://h:x/x", "is no address"), ("https://[::1/x", "is no address"),
        ("https://u:pw@h/x", "holds a password"), ("https://h/x?api_key=abc", "looks like a secret"),
        ("https://h/x?access_token=abc", "looks like a secret"), ("https://h/x?key=sk-12 3", "not the key itself"),
        ("chat+https://h/v1", "add ?model=NAME"), ("https://h/x?send=xml", "is no way to send inputs"),
        ("https://h/x?batch=0", "is no number of inputs"), ("https://h/x?classes=a,A", "two or more different words"),
        ("file:///etc/passwd", "is no address"), ("classifier+file:///etc/passwd", "is no address"),
    ],
)  # fmt: skip
def test_addresses_that_are_none_are_misuse_and_are_not_repeated(text: str, said: str) -> None:
    with pytest.raises(MisuseError) as error:
        Endpoint.parse(text)
    assert said in str(error.value)
    for secret in ("pw", "abc", "sk-12"):
        assert secret not in str(error.value)


def test_the_protocol_is_seen_in_the_address() -> None:
    for text, protocol, url in (
        ("https://h/predict", "classifier", "https://h/predict"),
        ("https://h/predict?model=m", "chat", "https://h/predict/chat/completions"),
        ("https://h/v1/?model=m&region=eu", "chat", "https://h/v1/chat/completions?region=eu"),
        ("https://h/v1/chat/completions?model=m", "chat", "https://h/v1/chat/completions"),
        ("classifier+https://h/v1?batch=3&send=npz", "classifier", "https://h/v1"),
    ):
        found = Endpoint.parse(text)
        assert (found.protocol, found.url) == (protocol, url)
    assert Endpoint.parse("https://h/v1?model=m").name == "h/v1/chat/completions m"
    same, other = (Endpoint.parse(f"https://h/x?batch={n}") for n in (1, 2))
    assert same.identity == other.identity != Endpoint.parse("https://h/x?classes=a,b").identity


def test_labels_alone_decide_by_their_partition(service: Service, tmp_path: Path) -> None:
    inputs = np.random.default_rng(1).normal(0, 2, (400, 1, 4, 4)).astype(np.float32)
    probes = Probes.of(inputs)
    service.answers = lambda body: {"labels": scores(3, body["inputs"]).argmax(1).tolist()}
    found, *_ = asked(service, inputs=inputs)
    suspect = answered_model("svc", "endpoint:x", inputs, found.outputs)

    def recorded(seed: int) -> Model:
        return answered_model(f"net{seed}", "python:net", inputs, scores(seed, inputs))

    controls = [recorded(100 + i) for i in range(19)]
    workspace = Workspace(Registry(tmp_path / "r.db"))
    parent, stranger = recorded(3), recorded(4)
    related = workspace.compare(parent, suspect, 0.05, probes, controls)
    assert (related.verdict, related.function.statistic) == ("related", PartitionAgreement.name)
    assert related.weights.verdict.value == "inconclusive"
    assert related.open_questions[0]["why"] == "net3 and svc have no weights, only their answers are known"
    other = workspace.compare(stranger, suspect, 0.05, probes, controls)
    assert other.verdict == "inconclusive"
    same_name = workspace.compare(answered_model("svc", "x", inputs, found.outputs), suspect, 0.05)
    assert same_name.verdict == "inconclusive"  # one name is not one model


def test_recorded_answers_are_checked_against_the_probes(tmp_path: Path) -> None:
    def held(**arrays: np.ndarray) -> Path:
        file = tmp_path / f"f{len(list(tmp_path.iterdir()))}.npz"
        np.savez(file, **arrays)
        return file

    outputs = scores(3, INPUTS)
    digest = np.array(str(PROBES.digest))
    read = read_recorded(held(outputs=outputs, probes_digest=digest), 40, PROBES.digest)
    np.testing.assert_array_equal(read, outputs)
    assert read_recorded(held(labels=outputs.argmax(1)), 40, PROBES.digest).shape == (40, 1)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and nothing else")
    for file, said in (
        (held(outputs=outputs, probes_digest=np.array("sha256:" + "0" * 64)), "answers to other probes than these"),
        (held(outputs=outputs[:7]), "one row of numbers for each of 40 probes"),
        (held(outputs=outputs[:, 0]), "one row of numbers for each"),
        (held(outputs=np.full((40, 2), np.nan)), "NaN or infinite"),
        (held(labels=outputs.argmax(1) - 9), "no class numbers"),
        (held(labels=outputs), "no class numbers"),
        (held(other=outputs), "an array 'outputs' or 'labels' is needed"),
        (held(outputs=np.array([["a", "b"]] * 40)), "one row of numbers"),
        (held(outputs=np.array(["x"], object)), "cannot be read as an .npz"),
        (tmp_path / "bad.npz", "cannot be read as an .npz"),
    ):
        with pytest.raises(UnreadableModelError) as error:
            read_recorded(file, 40, PROBES.digest)
        assert said in str(error.value), said


def test_the_commands_take_models_without_weights(service: Service, tmp_path: Path, run: Run) -> None:
    probes = tmp_path / "p.npz"
    np.savez(probes, inputs=INPUTS)
    for i in range(8):
        np.savez(tmp_path / f"o{i}.npz", outputs=scores(i, INPUTS), probes_digest=np.array(str(PROBES.digest)))
    text = f"endpoint:{service.url}/predict"
    code, out, err = run("fingerprint", text, "--method", "outputs", "--probes", probes, "--out", tmp_path / "rec.npz")
    assert code == 0, err
    assert "44 queries" in err
    controls = [word for i in (4, 5, 6, 7) for word in ("--null", f"outputs:{tmp_path / f'o{i}.npz'}")]
    how = ("--probes", probes, "--max-queries", 0, "--alpha", "0.2")
    code, out, err = run("compare", text, "--outputs", tmp_path / "rec.npz", *how, *controls, "--json")
    found = json.loads(out)
    assert (code, found["verdict"], found["weights"]["verdict"]) == (0, "related", "inconclusive")
    assert found["not_tested"][0]["what"] == "weights-gone"
    assert found["b"] == {"name": "rec", "digest": "blackbox:rec"}
    assert "queries" not in err
    code, out, err = run("compare", text, f"outputs:{tmp_path / 'o0.npz'}", *how, *controls, "--fail-on", "copy")
    assert code == 3
    assert "have no weights, only their answers are known" in err
    code, out, err = run("distance", text, "--outputs", tmp_path / "rec.npz", "--probes", probes, "--json")
    assert (code, json.loads(out)["method"], json.loads(out)["value"]) == (0, "outputs", pytest.approx(0, abs=1e-6))
    save_file({"a.weight": np.ones((8, 8), np.float32)}, tmp_path / "m.safetensors")
    code, out, err = run("trace", text, "--against", tmp_path / "m.safetensors", "--probes", probes, "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "inconclusive")
    for words, said in (
        (("compare", text, "--probes", probes), "give B, or --outputs FILE"),
        (("compare", text, text, "--outputs", probes, "--probes", probes), "both are given"),
        (("compare", text, text), "is compared by its answers alone: give --probes P"),
        (("trace", "--outputs", tmp_path / "gone.npz", "--probes", probes), "there is no file"),
        (("fingerprint", text), "has no weights: --method outputs --probes P records its answers"),
        (("distance", "endpoint:nonsense", text, "--probes", probes), "is no address of a service"),
    ):
        code, out, err = run(*words)
        assert code == 2, (words, err)
        assert said in err.replace("\n", " "), err


def test_a_stranger_cannot_make_a_server_ask(service: Service) -> None:
    text = f"endpoint:{service.url}/predict"
    with pytest.raises(UnknownNameError):  # as the web page asks: nobody is told, so nobody is asked
        compare(CompareRequest(a=text, b=text, probes="noise:n=4"))
    assert service.asked == []

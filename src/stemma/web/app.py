"""The routes of the atlas. Every page has a JSON twin at its address: `Accept: application/json`, or `?format=json`."""

import json
import threading
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Form, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse

from stemma.application.command_lines import command_line
from stemma.application.compare import CompareRequest
from stemma.application.enrolled_models import ListRequest, list_models
from stemma.application.explain import ExplainRequest
from stemma.application.lineage import LineageAnswer, LineageRequest
from stemma.application.policies import Ruling
from stemma.application.show import ShowRequest, show_model
from stemma.application.trace import TraceRequest
from stemma.errors import MisuseError, StemmaError, UnknownNameError
from stemma.export.pages.render import ATLAS, PAGES, render_page, render_template, stylesheet
from stemma.registry.database import without_password
from stemma.types import Lineage
from stemma.types.text import plain
from stemma.web.atlas import Atlas, question_key
from stemma.web.guard import Guard
from stemma.web.jobs import ENDED, Busy, Job, Jobs
from stemma.web.settings import Settings
from stemma.web.uploads import TooLarge, receive
from stemma.workspace.catalogue import ORDERS, Catalogue
from stemma.workspace.workspace import ALPHA

STATIC = Path(__file__).with_name("static")

PAGE_SIZE = 50
"""Models on one page of the list."""

_KINDS = {"trace": TraceRequest, "compare": CompareRequest, "explain": ExplainRequest, "lineage": LineageRequest}


def create_app(settings: Settings) -> Any:
    """The atlas as an ASGI application.

    Args:
        settings: What is served, and to whom.

    Returns:
        The application; requests pass its guard first.
    """
    atlas, jobs = Atlas(settings), Jobs(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        threading.Thread(target=atlas.warm_up, daemon=True).start()
        yield
        jobs.close()
        atlas.registry.close()

    app = FastAPI(title="Stemma atlas", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.atlas, app.state.jobs = atlas, jobs
    _add_errors(app)
    _add_registry(app, atlas)
    _add_questions(app, atlas, jobs)
    _add_jobs(app, atlas, jobs)
    _add_files(app)
    return Guard(app, settings)


def _add_errors(app: FastAPI) -> None:
    async def refuse(request: Request, error: Exception) -> Response:
        status = (
            404 if isinstance(error, UnknownNameError) else 413 if isinstance(error, TooLarge)
            else 400 if isinstance(error, MisuseError) else 500
        )  # fmt: skip
        return _error(request, status, str(error))

    async def unexpected(request: Request, error: Exception) -> Response:
        return _error(request, 500, f"{type(error).__name__} (unexpected, probably a bug in Stemma): {error}")

    async def busy(request: Request, error: Exception) -> Response:
        return _error(request, 503, "so many questions wait already that this one was not taken: ask again later")

    async def unwritable(request: Request, error: Exception) -> Response:
        why = error.strerror if isinstance(error, OSError) else ""
        return _error(request, 500, f"a file beside the registry cannot be written or read: {why or 'unknown reason'}")

    async def unclear(request: Request, error: Exception) -> Response:
        what = ", ".join(str(e["loc"][-1]) for e in getattr(error, "errors", list)())
        return _error(request, 400, f"the address lacks something, or something in it is no such value: {what}")

    async def not_found(request: Request, error: Exception) -> Response:
        return _error(request, 404, f"there is no page at {request.url.path}")

    app.add_exception_handler(StemmaError, refuse)
    app.add_exception_handler(Busy, busy)
    app.add_exception_handler(Exception, unexpected)
    app.add_exception_handler(OSError, unwritable)
    app.add_exception_handler(404, not_found)
    app.add_exception_handler(RequestValidationError, unclear)


def _error(request: Request, status: int, sentence: str) -> Response:
    if _wants_json(request):
        return _json({"error": plain(sentence)}, status)
    return _html(render_template("error.html", ATLAS, status=status, sentence=sentence), status)


def _add_registry(app: FastAPI, atlas: Atlas) -> None:
    """The list, a model, and the family tree."""
    registry = atlas.settings.registry

    @app.get("/")
    def models(
        request: Request, search: str = "", license: str = "", family: str = "", sort: str = "name",
        reverse: bool = False, page: int = 1,
    ) -> Response:  # fmt: skip
        asked = ListRequest(
            search=search, license=license or None, family=family or None, sort=_order(sort), reverse=reverse,
            limit=PAGE_SIZE, offset=PAGE_SIZE * (max(page, 1) - 1), registry=registry,
        )  # fmt: skip
        if _wants_json(request):
            return _json(list_models(asked, atlas.catalogue()).document())
        template = "models-rows.html" if request.headers.get("hx-request") else "models.html"
        return _html(atlas.page((template, *asdict(asked).items()), lambda known: _models(template, asked, known)))

    @app.get("/model")
    def model(request: Request, name: str) -> Response:
        asked = ShowRequest(name=name, registry=registry)
        if _wants_json(request):
            return _json(show_model(asked, atlas.catalogue()).document())
        return _html(atlas.page(("model", name), lambda known: _model("model.html", asked, known)))

    @app.get("/tree/model")
    def tree_model(name: str) -> Response:
        asked = ShowRequest(name=name, registry=registry)
        return _html(atlas.page(("tree-model", name), lambda known: _model("tree-model.html", asked, known)))

    @app.get("/tree")
    def tree(request: Request) -> Response:
        known = atlas.catalogue()
        asked = LineageRequest(registry=registry, alpha=None if known.alpha == ALPHA else known.alpha)
        if _wants_json(request):
            return _json(LineageAnswer(request=asked, result=_with_undrawn(known), ruling=Ruling()).document())
        command = command_line("lineage", asked)
        return _html(render_template("tree.html", ATLAS, catalogue=known, command=command))

    @app.get("/tree/drawing")
    def drawing() -> Response:
        return Response(atlas.drawing(), media_type="application/json")


def _with_undrawn(known: Catalogue) -> Lineage:
    """The tree as it was drawn last; models that are not in it are listed as not tested."""
    why = "it is enrolled and not in the family tree that was drawn last. Draw it with: stemma lineage"
    entries = tuple({"what": "not-drawn", "model": name, "why": why} for name in known.undrawn)
    return replace(known.lineage, not_tested=(*known.lineage.not_tested, *entries))


def _order(sort: str) -> Any:
    if sort not in ORDERS:
        raise MisuseError(f"{sort!r} is no order: use {', '.join(ORDERS)}")
    return sort


def _models(template: str, asked: ListRequest, known: Any) -> bytes:
    answer = list_models(asked, known)
    licences = sorted({e.licence for e in known.entries if e.licence}, key=str.casefold)
    page = asked.offset // PAGE_SIZE + 1
    pages = max(1, -(-answer.total // PAGE_SIZE))
    undrawn = set(known.undrawn)
    families = {r.name: 0 if r.name in undrawn else len(known.family(r.name)) for r in answer.result}
    return render_template(
        template, ATLAS, answer=answer, asked=asked, licences=licences[:200], page=page, pages=pages, orders=ORDERS,
        families=families, command=command_line("list", asked), size=PAGE_SIZE,
    )  # fmt: skip


def _model(template: str, asked: ShowRequest, known: Any) -> bytes:
    document = show_model(asked, known).document()
    return render_template(template, ATLAS, document=document, command=command_line("show", asked))


def _add_questions(app: FastAPI, atlas: Atlas, jobs: Jobs) -> None:
    """Forms that ask something, and where they are sent."""
    registry = atlas.settings.registry and without_password(atlas.settings.registry)  # questions are kept on disk

    def ask(kind: str, request: Mapping[str, Any], folder: Path | None = None) -> Job:
        key = question_key(kind, request, atlas.registry.state())
        known = jobs.answered(key) if folder is None else None
        return known or jobs.ask(kind, request, f"uploaded {key}" if folder else key, folder)

    @app.get("/trace")
    def trace_form(request: Request) -> Response:
        known = atlas.catalogue()
        values = {"recent": jobs.recent(10), "searched": len(known.entries), "most": atlas.settings.max_upload}
        if _wants_json(request):
            return _json({"questions": [_state(job) for job in jobs.recent(atlas.settings.kept)]})
        return _html(render_template("trace-form.html", ATLAS, **values))

    @app.post("/trace")
    async def trace_upload(request: Request) -> Response:
        announced = request.headers.get("content-length", "")
        most = atlas.settings.max_upload
        if announced.isdigit() and int(announced) > most:
            raise TooLarge(f"the upload has {int(announced):,} bytes, and this atlas takes {most:,}. "
                           "Trace the file on the command line")  # fmt: skip
        with jobs.receiving() as folder:
            files = await receive(request.stream(), request.headers.get("content-type", ""), folder / "files",
                                  most, atlas.settings.patience)  # fmt: skip
            model = files[0].name if len(files) == 1 else "."
            job = await run_in_threadpool(ask, "trace", {"model": model, "registry": registry}, folder)
        return _see(request, job)

    @app.get("/compare")
    def compare_form(request: Request, a: str = "", b: str = "") -> Response:
        return _asked_or_form(request, "compare", {"a": a, "b": b})

    @app.get("/explain")
    def explain_form(request: Request, parent: str = "", child: str = "") -> Response:
        return _asked_or_form(request, "explain", {"parent": parent, "child": child})

    def _asked_or_form(request: Request, kind: str, places: dict[str, str]) -> Response:
        """The answer if it is known for the present registry, else the form that asks for it."""
        known = jobs.answered(question_key(kind, {**places, "registry": registry}, atlas.registry.state()))
        if known is not None and all(places.values()):
            return _job(request, known)
        if _wants_json(request):
            return _json({"error": f"not asked yet: send a POST to /ask with kind={kind} and the two models"}, 404)
        own = request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")  # a foreign link starts nothing
        return _html(render_template("pair-form.html", ATLAS, kind=kind, places=places, asks_itself=own))

    @app.post("/ask")
    def ask_form(
        request: Request, kind: str = Form(), model: str = Form(""), a: str = Form(""), b: str = Form(""),
        parent: str = Form(""), child: str = Form(""),
    ) -> Response:  # fmt: skip
        given = {"trace": {"model": model}, "compare": {"a": a, "b": b}, "explain": {"parent": parent, "child": child},
                 "lineage": {}}.get(kind)  # fmt: skip
        if given is None:
            raise MisuseError(f"{kind!r} is no question: ask one of {', '.join(_KINDS)}")
        known = atlas.catalogue()
        for name in given.values():  # a path would open any file of this machine to whoever reaches the atlas
            if name not in known.by_name:
                raise UnknownNameError(f"there is no enrolled model '{name}': pages ask about those, and about uploads")
        return _see(request, ask(kind, {**given, "registry": registry}))


def _see(request: Request, job: Job) -> Response:
    """Where the answer will be."""
    if _wants_json(request):
        return _json(_state(job), 202)
    if request.headers.get("hx-request"):
        return Response(headers={"HX-Redirect": f"/jobs/{job.id}"})
    return RedirectResponse(f"/jobs/{job.id}", 303)


def _add_jobs(app: FastAPI, atlas: Atlas, jobs: Jobs) -> None:
    """Questions on their way, and their answers."""

    def found(id: str) -> Job:
        job = jobs.get(id)
        if job is None:
            raise UnknownNameError("there is no question of this number: it may have been forgotten. Ask again")
        return job

    @app.get("/jobs/{id}")
    def job(request: Request, id: str) -> Response:
        return _job(request, found(id))

    @app.get("/jobs/{id}/progress")
    def progress(id: str) -> Response:
        job = found(id)
        page = _html(render_template("progress.html", ATLAS, job=job))
        if job.state in ENDED:
            page.headers["HX-Refresh"] = "true"
        return page

    @app.post("/jobs/{id}/cancel")
    def cancel(request: Request, id: str) -> Response:
        job = found(id)
        jobs.cancel(job)
        return _see(request, job)

    @app.post("/jobs/{id}/again")
    def again(request: Request, id: str) -> Response:
        return _see(request, jobs.again(found(id)))


def _job(request: Request, job: Job) -> Response:
    """An answer as its page, or how far it is."""
    content = job.document
    if _wants_json(request):
        if content is not None:
            return Response(content, media_type="application/json")
        return _json(_state(job), 200 if job.state in ENDED else 202)
    if content is None:
        return _html(render_template("job.html", ATLAS, job=job, error=job.error))
    document = json.loads(content)
    if document["schema"]["name"] not in PAGES:
        return RedirectResponse("/tree", 303)
    command = command_line(job.kind, _KINDS[job.kind](**job.request))
    return _html(render_page(document, command, ATLAS))


def _state(job: Job) -> dict[str, Any]:
    what, done, total = job.progress
    return {"id": job.id, "kind": job.kind, "asked": dict(job.request), "state": job.state, "error": job.error or None,
            "progress": {"what": plain(what), "done": done, "total": total}, "answer": f"/jobs/{job.id}"}  # fmt: skip


def _add_files(app: FastAPI) -> None:
    @app.get("/static/{name:path}")
    def static(name: str) -> Response:
        if name == "style.css":
            return Response(stylesheet(), media_type="text/css", headers={"cache-control": "max-age=300"})
        allowed = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}
        if name not in allowed:
            return PlainTextResponse("there is no such file\n", 404)
        return FileResponse(allowed[name], headers={"cache-control": "max-age=300"})

    @app.get("/favicon.ico")
    def icon() -> Response:
        return RedirectResponse("/static/icon.svg", 301)


def _wants_json(request: Request) -> bool:
    asked = request.query_params.get("format")
    accept = request.headers.get("accept", "")
    return asked == "json" or (asked is None and "application/json" in accept and "text/html" not in accept)


def _json(content: Any, status: int = 200) -> Response:
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"  # as the command line prints it
    return Response(text, status, media_type="application/json")


def _html(page: bytes, status: int = 200) -> Response:
    return Response(page, status, media_type="text/html; charset=utf-8")

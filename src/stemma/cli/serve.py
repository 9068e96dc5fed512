"""`stemma serve`: the atlas in a browser."""

from typing import Annotated

import typer

from stemma.cli.options import RegistryUrl

MEBIBYTE = 1 << 20


def serve(
    registry: RegistryUrl = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDR", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=1, max=65535, help="Port to listen on.")] = 7433,
    max_upload: Annotated[
        int, typer.Option("--max-upload", metavar="MIB", min=1, help="Largest upload in MiB.")
    ] = 16384,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Questions answered at once.")] = 2,
) -> None:
    """Show the registry in a browser: models, family tree, traces.

    Only this machine can reach the pages, unless --host says otherwise; then a token is needed, which is printed.
    """
    import secrets
    from dataclasses import replace
    from pathlib import Path

    from stemma.cli.output import show, warn
    from stemma.web.serve import run
    from stemma.web.settings import Settings

    settings = Settings(
        registry=registry if registry is None or "://" in registry else str(Path(registry).absolute()),
        host=host, port=port, max_upload=max_upload * MEBIBYTE, max_jobs=jobs,
    )  # fmt: skip
    if not settings.is_local:
        settings = replace(settings, token=secrets.token_urlsafe(24))
        warn("warning: others can reach these pages. Whoever has the address with its token can read the registry "
             "and have files traced; the connection is not encrypted")  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/" + (f"?token={settings.token}" if settings.token else "")
    run(settings, lambda: show(f"The atlas is at {address}", "It ends with Ctrl-C."))

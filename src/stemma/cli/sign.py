"""`stemma sign`: a signature of a model's files."""

from pathlib import Path
from typing import Annotated

import typer

from stemma.cli.options import Json, word

SHOWN = 8
"""Files that are listed before the rest is counted."""


def sign(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint file or folder.")],
    key: Annotated[
        Path, typer.Option("--key", metavar="KEY.pem", show_default=False, help="The private key: ECDSA, in PEM.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.sig",
            show_default=False,
            help="Where the signature is written. [default: model.sig in the folder, or FILE.sig beside a file]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign the files of a model.

    Writes a signature in the format of OpenSSF Model Signing over every file of a checkpoint.
    """
    from stemma.application import sign as application
    from stemma.cli.layout import findings, lines_of, verdict_text
    from stemma.cli.output import show, show_json
    from stemma.cli.pages import writable
    from stemma.export.answers import typed_as

    writable("--out", out)
    answer = application.sign(application.SignRequest(path=str(path), key=str(key), out=word(out)))
    if as_json:
        show_json(answer.document())
        return
    n = len(answer.files)
    shown = ", ".join(answer.files[:SHOWN]) + (f" and {n - SHOWN:,} more" if n > SHOWN else "")
    rows = [("files", path.name if answer.files == (".",) else shown, ""), ("signature", str(answer.signature), ""),
            ("key", f"{answer.signed_by[:16]}…", "SHA-256 of the public key")]  # fmt: skip
    closing = [("meaning", "whoever has the public key can see whether a file was changed since", ""),
               ("next", f"stemma verify signature {typed_as(path)} --public-key KEY.pem", "")]  # fmt: skip
    answer_line = verdict_text("signed", f": {n:,} file{'' if n == 1 else 's'} of {path}")
    show(lines_of(answer_line), "", findings(rows), "", findings(closing))

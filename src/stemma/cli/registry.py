"""`stemma registry`: a registry as a whole."""

import typer

from stemma.cli.registry_migrate import migrate

app = typer.Typer(help="Move a whole registry from one place to another.", no_args_is_help=True)
app.command("migrate")(migrate)

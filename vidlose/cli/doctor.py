"""`vidlose doctor`."""

import typer

from vidlose.cli import options


def doctor(context: typer.Context, json: options.Json = False) -> None:
    """Show what this machine offers, and what is missing."""
    context.obj.json = json
    from vidlose.recipes import doctor as recipe

    context.obj.close()
    recipe.doctor(print_json=json)

"""Writes the help of every command of `encodec-fast` into the page that asks for it, out of the commands themselves."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from encodec_fast.cli import app
from encodec_fast.cli.app import EXIT_CODES

PLACE = "<!-- commands: written by docs/hooks/command_tables.py -->"
PROGRAM = "encodec-fast"


def on_page_markdown(markdown: str, *, page: Page, config: Any, files: Files) -> str:
    """Returns the page with the commands in their place."""
    return markdown.replace(PLACE, commands_markdown()) if PLACE in markdown else markdown


def commands_markdown() -> str:
    """Returns a section for each command: what it does, its arguments and options as tables, examples; then the exit codes."""
    group: Any = typer.main.get_command(app)
    lines = [line for name, command in group.commands.items() for line in _section(name, command)]
    lines += [
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---:|---|",
        *(f"| {code} | {_text(said)} |" for code, said in EXIT_CODES.items()),
    ]
    return "\n".join(lines)


def _section(name: str, command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = [each.metavar + "..." * (each.nargs != 1) for each in arguments]
    usage = [word if each.required else f"[{word}]" for word, each in zip(usage, arguments)]
    yield from (f"## {name} {{ #{PROGRAM}-{name} }}", "", _text(command.help), "")
    yield from ("```text", " ".join([PROGRAM, name, *usage, "[OPTIONS]"]), "```", "")
    panels: dict[str, list[Any]] = {}
    for each in command.params:
        if not each.hidden:
            panels.setdefault("Arguments" if each in arguments else each.rich_help_panel or "Options", []).append(each)
    for panel, parameters in panels.items():
        yield from (f"**{panel}**", "", "| name | what | default |", "|---|---|---|")
        yield from (f"| {_names(each)} | {_text(each.help or '')} | {_default(each)} |" for each in parameters)
        yield ""
    yield from _examples(command.epilog)


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    names = [f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts)]
    return ", ".join(names) + (f" `{parameter.metavar}`" if parameter.metavar and not parameter.is_flag else "")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if parameter.secondary_opts:
        return f"`{(parameter.opts if value else parameter.secondary_opts)[0]}`"
    if value is None or value is False or value in ((), []):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _examples(epilog: str) -> Iterator[str]:
    """Yields what stands before the exit codes, which all commands share: lines of commands as code, others as prose."""
    examples = [part for part in epilog.partition("[bold]Exit codes")[0].split("\n\n") if part and not part.startswith("[bold]")]
    commands = [part for part in examples if PROGRAM in part]
    yield from ("```bash", *(re.sub(r"  +\((.*)\)$", r"  # \1", part) for part in commands), "```", "")
    yield from (f"{_text(part)}\n" for part in examples if part not in commands)


def _text(help_text: str) -> str:
    """Returns the words of a help text, of which a table or a tag would take some for its own."""
    return re.sub(r"[|*_\\]", r"\\\g<0>", html.escape(help_text, quote=False))

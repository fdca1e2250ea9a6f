"""The page that --help prints: groups with their options, keys with their values and meanings.

The meaning of a key is the comment behind it in conf/, or in the config class of a plugin.
"""

import ast
import contextlib
import dataclasses
import inspect
import io
import re
import shutil
import textwrap
import tokenize
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from gpt2ckpt.config.compose import Composed, conf_directory, group_options, spelled
from gpt2ckpt.config.options import CALLBACK, HELP, OPTIONS, Option

LINE = re.compile(r"(?P<key>\w+):(?:\s.*?)?\s# (?P<meaning>.+)")
COLUMN, WIDEST = 32, 100


def page(root: str, composed: Composed, config_dir: Path | None) -> str:
    """Return the help page of the command `root`, with the values of a composed config."""
    width = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
    choices = {
        group: str(name)
        for group, name in composed.hydra.runtime.choices.items()
        if not str(group).startswith("hydra/")
    }
    lines = [composed.hydra.help.header, ""]
    if choices:
        lines.append("Groups, chosen with GROUP=NAME:")
        for group, chosen in reversed(choices.items()):
            now = f" (now {chosen})" if chosen != "None" else ""
            names = ", ".join(group_options(group, config_dir))
            if not names:
                continue
            lines += textwrap.wrap(
                f"{group}: {names}{now}", width, initial_indent="  ", subsequent_indent="      "
            )
        lines.append("")
    lines.append("Keys, set with KEY=VALUE (shown with their present values):")
    keys = dict(composed.values)
    own = {key: value for key, value in keys.items() if not isinstance(value, dict)}
    lines += _block("", {k: v for k, v in own.items() if k not in choices}, root, "", width)
    for group, value in keys.items():
        if isinstance(value, dict):
            parts = {f"{group}.{name}": part for name, part in value.items()}
            for name, part in parts.items() if group == CALLBACK else [(group, value)]:
                lines += _block(name, part, root, choices.get(group, ""), width)
    return "\n".join([*lines, "", *_ending(root, choices)])


def meanings(folder: str, first: str = "") -> dict[str, str]:
    """Return the meaning of each key of a group; without `folder`, of the command's own keys.

    Comments in the file `first` (an option, or a command) override those of other options.
    """
    files = sorted((conf_directory() / folder).glob("*.yaml" if folder else f"{first}.yaml"))
    files.sort(key=lambda file: file.stem != first)
    found: dict[str, str] = {}
    for file in files:
        for match in map(LINE.fullmatch, file.read_text(encoding="utf-8").splitlines()):
            if match:
                found.setdefault(match["key"], match["meaning"])
    return found


def meanings_of(option: Option) -> dict[str, str]:
    """Return the meaning of each key of an option, from its config class.

    It is the help of a setting, or the comment behind a field, also of a class that it inherits.
    """
    found: dict[str, str] = {}
    for cls in reversed([c for c in option.config.__mro__ if dataclasses.is_dataclass(c)]):
        with contextlib.suppress(OSError, TypeError, SyntaxError):  # no source, as in a notebook
            found |= _comments(textwrap.dedent(inspect.getsource(cls)))
    parts = dataclasses.fields(option.config)
    return found | {part.name: text for part in parts if (text := part.metadata.get(HELP))}


def _comments(source: str) -> dict[str, str]:
    """Return the comments behind the fields of a class."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    [cls] = ast.parse(source).body
    return {
        node.target.id: comments[line]
        for node in getattr(cls, "body", [])
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if (line := node.end_lineno) in comments
    }


def _block(group: str, values: dict[str, Any], root: str, chosen: str, width: int) -> list[str]:
    known = meanings(group, chosen) if group else meanings("", root)
    if option := OPTIONS.get(group.partition(".")[0], {}).get(str(values.get("kind"))):
        known |= meanings_of(option) if not option.is_built_in else {}
    prefix = f"{group}." if group else ""
    lines = [""] if values else []
    for key, value in values.items():
        if key != "kind":
            is_missing = value == MISSING
            shown, more = ("VALUE", "required: ") if is_missing else (spelled(value), "")
            lines += _row(f"{prefix}{key}={shown}", more + known.get(key, ""), width)
    return lines


def _row(label: str, text: str, width: int) -> list[str]:
    indent = " " * COLUMN
    wrapped = textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    if len(label) + 3 > COLUMN or not wrapped:
        return [f"  {label}", *wrapped]
    return [f"  {label}".ljust(COLUMN) + wrapped[0][COLUMN:], *wrapped[1:]]


def _ending(root: str, choices: dict[str, str]) -> list[str]:
    lines = []
    if "data" in choices:
        other = "data=text" if choices["data"] != "text" else "data=embedded"
        lines.append(f"To list the keys of a different option, add the option: {other} --help")
    if root == "train":
        lines += [
            "-m KEY=A,B starts a sweep; --cfg job prints the composed config as YAML.",
            "--config-dir=DIR adds a folder of your own config files; --config-name=NAME chooses",
            "a file of this folder that extends train.yaml.",
        ]
    if root == "prepare":
        lines.append("data=text and data=embedded are tokenized; data=tokens is tokenized already.")
    install = f'eval "$(gpt2ckpt-{root} -sc install=bash)"'
    return [
        *lines,
        f"For tab completion in bash, run: {install}",
        "--hydra-help lists Hydra's flags.",
    ]

"""Links in the documentation refer to existing files, and its commands compose."""

import re
import shlex
from pathlib import Path

import pytest

from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.plugins import load, switched_on
from gpt2ckpt.config.registry import ROOTS
from gpt2ckpt.config.strings import quote_strings
from gpt2ckpt.drill import split_overrides

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*/*.md")])
COMMAND = re.compile(r"^(?:\$ )?python -m gpt2ckpt\.(\w+)(.*)$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_refer_to_existing_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def hydra_commands() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        if page.name == "extending.md":  # its commands are executed: test_extending.py
            continue
        for module, rest in COMMAND.findall(page.read_text()):
            overrides = shlex.split(rest.replace("…", ""), comments=True)
            if module in ROOTS:
                found.append((module, [word for word in overrides if "=" in word]))
    return found


@pytest.mark.parametrize(("module", "overrides"), hydra_commands(), ids=str)
def test_documented_commands_compose(
    module: str, overrides: list[str], restored_plugins: None
) -> None:
    single = [word if set("['") & set(word) else word.split(",")[0] for word in overrides]
    given = [override for override in single if "WHAT" not in override]
    load(switched_on(given, None, module))
    overrides = quote_strings(given, module, multirun=False)
    if module == "drill":
        own, overrides = split_overrides(overrides)
        compose_config("drill", own)
    compose_config("train" if module == "drill" else module, overrides)


def test_architecture_page_lists_every_module() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    tree, _, rest = page.partition("## Where is")
    layers = page.partition("## checkpoint/")[2]
    listed = {"": re.findall(r"\b(\w+\.py)", tree)}
    listed |= {"checkpoint": re.findall(r"`(\w+\.py)`", layers)}
    for folder, files in re.findall(r"^\| `(\w+)/` \| (.*) \|$", rest, re.MULTILINE):
        listed[folder] = re.findall(r"`(\w+\.py)`", files)
    package = ROOT / "gpt2ckpt"
    existing: dict[str, set[str]] = {"": set()}
    for path in package.rglob("*.py"):
        folder = path.parent.relative_to(package).as_posix().removeprefix(".")
        existing.setdefault(folder, set()).add(path.name)
    assert {folder: {*files} for folder, files in listed.items()} == {
        folder: files - {"__init__.py"} for folder, files in existing.items()
    }
    for name in re.findall(r"`(\w+/\w+\.py)`", page):
        assert (package / name).exists(), name


def test_documentation_contains_commands() -> None:
    assert len(hydra_commands()) > 10

"""The plugins of a run: recorded in its checkpoints, and required to use them."""

from pathlib import Path

from gpt2ckpt.checkpoint.state import CheckpointMeta, PluginIdentity
from gpt2ckpt.config.compose import spelled
from gpt2ckpt.config.options import OPTIONS, PLUGINS, Plugin, options_in, plugin_of
from gpt2ckpt.config.replay import Change, Values
from gpt2ckpt.errors import ConfigError

SHOWN = 8  # digits of a digest in a message


def plugins_in_use(frozen: Values) -> list[PluginIdentity] | None:
    """Return the plugins with an option in a config; None if all options are built-in."""
    used: dict[str, list[str]] = {}
    for option in options_in(frozen):
        if not option.is_built_in:
            used.setdefault(plugin_of(option), []).append(f"{option.group}.{option.name}")
    identities = []
    for name, options in used.items():
        plugin = PLUGINS.get(name, Plugin(name))
        identity = PluginIdentity(
            module=name, version=plugin.version, source=plugin.source, options=options
        )
        identities.append(identity)
    return identities or None


def require_plugins(path: Path, state: CheckpointMeta) -> None:
    """Raise ConfigError if an option in use is not registered, as its plugin is not switched on.

    Nothing is imported: the names come from a file.
    """
    recorded = state.plugins or []
    lacking = [
        (plugin.module, name)
        for plugin in recorded
        for name in plugin.options
        if not _is_registered(name)
    ]
    if not lacking:
        return
    module, name = lacking[0]
    group, _, option = name.partition(".")
    if module in PLUGINS:
        raise ConfigError(
            f"{path} uses {group} {option!r} of the plugin {module}, which is switched on but no "
            f"longer has it: restore {group} {option!r} in {module}"
        )
    used = ", ".join(f"{group.replace('.', ' ', 1)}" for _, group in lacking)
    raise ConfigError(
        f"{path} uses plugins that are not switched on ({used}): add "
        f"{plugins_override([plugin.module for plugin in recorded])}"
    )


def plugins_override(modules: list[str]) -> str:
    """Return the override that switches on plugins beside those that commands have to name now."""
    return f"plugins={spelled(list(dict.fromkeys([*named_plugins(), *modules])))}"


def named_plugins() -> list[str]:
    """Return the plugins that are switched on in this process and not by an entry point."""
    return [name for name, plugin in PLUGINS.items() if not plugin.is_installed]


def changed_plugins(frozen: Values, state: CheckpointMeta) -> list[Change]:
    """Return a change for each plugin in use that is not as it was when the state was saved."""
    now = {plugin.module: plugin for plugin in plugins_in_use(frozen) or []}
    changes = []
    for saved in state.plugins or []:
        current = now.get(saved.module)
        if current is None:
            others = [p for p in now.values() if set(p.options) & set(saved.options)]
            if others:
                change = Change(f"plugin of {saved.options[0]}", saved.module, others[0].module)
                changes.append(change)
        elif (current.version, current.source) != (saved.version, saved.source):
            change = Change(f"plugin {saved.module}", _described(saved), _described(current))
            changes.append(change)
    return changes


def _is_registered(name: str) -> bool:
    group, _, option = name.partition(".")
    return option in OPTIONS.get(group, {})


def _described(plugin: PluginIdentity) -> str:
    version = f"version {plugin.version}, " if plugin.version else ""
    return f"{version}source {plugin.source[:SHOWN]}" if plugin.source else f"{version}no source"

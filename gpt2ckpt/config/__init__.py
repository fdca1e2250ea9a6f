"""The typed schema, the registry of what a config may build, composing, freezing, replaying."""

"""The file system: durable writes, kernel locks, links. No idea what the files hold."""

"""The file system: durable writes, disk usage, kernel locks, links, permissions."""

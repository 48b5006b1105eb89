"""Where tightfit keeps what must survive: records in a database, bytes in a folder or an object store."""

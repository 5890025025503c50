"""Parts of every learned codec: identity, symbols, streams, entropy coding."""

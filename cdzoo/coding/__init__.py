"""What every learned codec is made of: identity, symbols, streams, entropy coding."""

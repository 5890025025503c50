"""Parts of every learned codec: identity, symbols, streams, entropy coding.

* ``base`` is the class of all codecs. A codec describes its parts once, to a coder of ``symbols``.
* ``symbols`` quantizes, writes or reads the symbols, by ``rans`` with ``tables``.
* ``streams`` and ``cdz_format`` turn the bytes of the parts into ``.cdz`` streams, and back.
* ``identity`` computes the fingerprint.
"""

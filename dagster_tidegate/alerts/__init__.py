"""Sends alerts through Apprise. Needs the extra `alerts`.

`snapshot` reads the store, `conditions` and `rules` decide what to send (pure), `sender` and
`targets` deliver it, and `loop` runs all of it.
"""

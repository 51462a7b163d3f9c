"""The tables, and all SQL. Does not import Dagster.

The functions of this package take a connection of a `database.Store` first, and where they need it
the database's time (`now`, UTC), so that several of them form one transaction:

    with store.begin() as conn:
        holds.place(conn, store.now(conn), target, ...)

Those that write need `store.begin()`; those that read work with `store.read()` too.
"""

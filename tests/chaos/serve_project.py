"""The code location of the chaos of `tidegate serve`: its runs wait in the queue."""

import dagster as dg

rounds = dg.DynamicPartitionsDefinition(name="rounds")


@dg.op
def send() -> None: ...


@dg.job(partitions_def=rounds)
def letters() -> None:
    send()


@dg.job
def postcard() -> None:
    send()


defs = dg.Definitions(jobs=[letters, postcard])

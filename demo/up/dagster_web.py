"""The state of a deployment, from the GraphQL API of its webserver."""

import json
import urllib.error
import urllib.request
from typing import Any

QUERY = """
query Up {
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
  workspaceOrError {
    __typename
    ... on PythonError { message }
    ... on Workspace {
      locationEntries {
        name loadStatus locationOrLoadError { __typename ... on PythonError { message } }
      }
    }
  }
}
"""
PARTITIONS = """
query Partitions {
  workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError {
    ... on RepositoryLocation { repositories { partitionSets {
      pipelineName
      partitionsOrError(limit: 3, reverse: true) { ... on Partitions { results { name } } }
    } } }
  } } } }
}
"""
AT_WORK = """
query AtWork {
  runsOrError(filter: {statuses: [STARTING, STARTED, CANCELING]}) { ... on Runs { count } }
}
"""
TIMEOUT_S = 10.0


class LocationError(Exception):
    """A code location failed to load; the message is Dagster's."""


def answers(url: str) -> bool:
    """Return whether a server responds at `url`, with any status."""
    try:
        urllib.request.urlopen(url, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def all_healthy(url: str, token: str | None = None) -> bool:
    """Return whether every code location is loaded and every daemon is healthy.

    Raises:
        LocationError: If a code location failed to load.
    """
    try:
        data = _ask(url, QUERY, token)
    except OSError:
        return False
    workspace = data["workspaceOrError"]
    if workspace["__typename"] == "PythonError":
        raise LocationError(workspace["message"])
    entries = workspace["locationEntries"]
    for entry in entries:
        location = entry["locationOrLoadError"]
        if location is not None and location["__typename"] == "PythonError":
            raise LocationError(f"code location {entry['name']}: {location['message']}")
    loaded = bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)
    daemons = data["instance"]["daemonHealth"]["allDaemonStatuses"]
    return loaded and all(daemon["healthy"] for daemon in daemons if daemon["required"])


def recent_partition(url: str, job: str) -> str:
    """Return the third newest partition of a job: its schedule will not start that one.

    Raises:
        LookupError: If there is no such job, or it has no partitions.
    """
    for entry in _ask(url, PARTITIONS)["workspaceOrError"]["locationEntries"]:
        for repository in entry["locationOrLoadError"]["repositories"]:
            for partition_set in repository["partitionSets"]:
                names = [p["name"] for p in partition_set["partitionsOrError"].get("results", [])]
                if partition_set["pipelineName"] == job and names:
                    return min(names)
    raise LookupError(f"no job {job!r} with partitions at {url}")


def running_runs(url: str, token: str | None = None) -> int:
    """Return the number of runs that have left the queue and not ended.

    Raises:
        OSError: If the webserver is unreachable.
    """
    return _ask(url, AT_WORK, token)["runsOrError"]["count"]


def _ask(url: str, query: str, token: str | None = None) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {token}"} if token else {}),
        },
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        return json.load(response)["data"]

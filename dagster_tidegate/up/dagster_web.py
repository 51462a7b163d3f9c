"""What Dagster's webserver says of the processes around it, over its GraphQL API."""

import json
import urllib.error
import urllib.request

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
TIMEOUT_S = 10.0


class LocationError(Exception):
    """A code location can't be loaded; the message is Dagster's."""


def answers(url: str) -> bool:
    """Return whether a server answers at `url`, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def all_well(url: str) -> bool:
    """Return whether every code location is loaded and every daemon alive.

    Args:
        url: Address of the webserver.

    Returns:
        False while something is still starting.

    Raises:
        LocationError: If a code location can't be loaded.
    """
    request = urllib.request.Request(
        f"{url}/graphql",
        data=json.dumps({"query": QUERY}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            data = json.load(response)["data"]
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

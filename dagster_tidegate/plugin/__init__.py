"""What authors of Dagster projects use: campaigns, the resource and the sensors."""

from dagster_tidegate.dagster_api.library import register

register()

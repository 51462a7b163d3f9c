# The one image of a deployment: code location, runs, web pages, daemon and migrations.
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY dagster_tidegate dagster_tidegate
RUN /venv/bin/pip install --no-cache-dir -c constraints.txt 'pip>=25.1' \
    && /venv/bin/pip install --no-cache-dir -c constraints.txt \
        '.[alerts,docker,k8s,otel,postgres,webserver]' --group deployment \
    && find /venv -name __pycache__ -prune -exec rm -rf {} +

FROM python:3.11.14-slim-bookworm
RUN useradd --uid 1000 --create-home dagster \
    && install -d -o dagster -g dagster /home/dagster/storage /data/leads
COPY --from=build /venv /venv
WORKDIR /project
# What belongs to this deployment; the plugin is in the environment.
COPY demo demo
COPY pipelines pipelines
COPY resources resources
COPY sensors sensors
COPY deploy deploy
# A volume that is mounted there for the first time begins with these.
COPY --chown=dagster:dagster pipelines/leads /data/leads
ENV PATH=/venv/bin:$PATH \
    DAGSTER_HOME=/home/dagster \
    PYTHONUNBUFFERED=1
USER 1000:1000
CMD ["tidegate", "--help"]

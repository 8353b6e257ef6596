# The site: pages, API, sockets, and with other commands the migrations and the sweeper. Holds no torch.
#
#   docker build -f docker/web.Dockerfile -t arborist-web .
ARG BASE=python:3.11-slim
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ARBORIST_DATA_DIR=/data
RUN useradd --system --uid 10001 --create-home arborist && install -d -o arborist -g arborist /data /exports

WORKDIR /app
COPY pyproject.toml README.md LICENSE manage.py ./
COPY client client
COPY trainer trainer
COPY webapp webapp
COPY templates templates
# Editable: the templates and the static files lie beside the packages.
RUN pip install --no-cache-dir --editable .

USER arborist
RUN python manage.py collectstatic --noinput

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "uvicorn", "webapp.asgi:application", "--host", "0.0.0.0", "--port", "8000", "--http", "h11", "--h11-max-incomplete-event-size", "65536", "--ws-max-size", "65536", "--no-access-log", "--no-server-header", "--timeout-graceful-shutdown", "7"]

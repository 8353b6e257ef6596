# A worker: takes runs from one queue and trains them.
#
#   CPU    docker build -f docker/worker.Dockerfile -t arborist-worker .
#   CUDA   docker build -f docker/worker.Dockerfile -t arborist-worker-cuda \
#              --build-arg BASE=python:3.11 --build-arg EXTRAS=train,gpu .
#          The wheels bring the CUDA libraries; the machine brings the driver (NVIDIA Container Toolkit). The full
#          base image has the compiler that Triton calls. Start it with --queues gpu.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG EXTRAS=train
ARG TORCH_INDEX_URL=

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ARBORIST_DATA_DIR=/data OMP_NUM_THREADS=1
RUN useradd --system --uid 10001 --create-home arborist && install -d -o arborist -g arborist /data /exports

WORKDIR /app
COPY pyproject.toml ./
# First and pinned, so that nothing else chooses a build; a layer of its own, as it is by far the largest.
RUN pip install --no-cache-dir ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch==2.13.0
COPY README.md LICENSE manage.py ./
COPY client client
COPY trainer trainer
COPY webapp webapp
COPY workers workers
COPY templates templates
COPY docker/worker_health.py docker/
RUN pip install --no-cache-dir --editable ".[${EXTRAS}]"

USER arborist
VOLUME /data
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "docker/worker_health.py"]
CMD ["celery", "--app", "workers.celery:app", "worker", "--hostname", "worker@%h", "--pool", "prefork", "--concurrency", "1", "--queues", "cpu", "--loglevel", "INFO", "--without-gossip", "--without-mingle"]

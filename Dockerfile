# syntax=docker/dockerfile:1
# Image of the service: `docker build -t tightfit/tightfit-service .`

# The build stage has pip and its caches; only the finished environment leaves it.
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python -m venv /opt/tightfit
ENV PATH=/opt/tightfit/bin:$PATH

# PyTorch's own index has builds without CUDA, some gigabytes smaller. Point this elsewhere for a mirror.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt ./
RUN pip install -c constraints.txt --extra-index-url "$TORCH_INDEX" torch==2.13.0+cpu

# Dependencies come before the source, so that a change of code does not install them again.
COPY pyproject.toml ./service.toml
COPY clients/python/pyproject.toml ./client.toml
RUN python -c "import tomllib; \
needed = [line for name in ('service.toml', 'client.toml') for line in tomllib.load(open(name, 'rb'))['project']['dependencies']]; \
print(*(line for line in needed if not line.startswith(('tightfit==', 'torch=='))), sep='\n')" > requirements.txt \
 && pip install -c constraints.txt -r requirements.txt

# The code last; its dependencies are there already, so pip is told not to look for them.
COPY clients/python clients/python
COPY pyproject.toml LICENSE README.md ./
COPY service service
RUN pip install --no-deps ./clients/python .

# The final stage has Python and the environment, no compiler, no pip cache, no source tree.
FROM python:3.11-slim-bookworm
# libgomp is what torch and ONNX Runtime run their threads with.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1=12.* \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp tightfit \
 && install --directory --owner=tightfit --group=tightfit /var/lib/tightfit
COPY --from=build /opt/tightfit /opt/tightfit

# Libraries that cache on first use look at HOME; the root file system may be read-only.
ENV PATH=/opt/tightfit/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TIGHTFIT_LISTEN=0.0.0.0:50051 \
    TIGHTFIT_METRICS_LISTEN=0.0.0.0:9464 \
    TIGHTFIT_DATA_DIR=/var/lib/tightfit
# By number, so that Kubernetes can prove it is not root.
USER 10001:10001
WORKDIR /var/lib/tightfit
VOLUME /var/lib/tightfit
EXPOSE 50051 9464

# Asks the gRPC health service, as the chart's probes do.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import grpc; from grpc_health.v1 import health_pb2, health_pb2_grpc; \
reply = health_pb2_grpc.HealthStub(grpc.insecure_channel('127.0.0.1:50051')).Check(health_pb2.HealthCheckRequest(), timeout=8); \
raise SystemExit(reply.status != health_pb2.HealthCheckResponse.SERVING)"]

# SIGTERM drains: running calls and the present unit of work end before the process does.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "tightfit_service"]
CMD ["serve"]

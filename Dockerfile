# syntax=docker/dockerfile:1
# Image of the service: `docker build -t tightfit/tightfit-service .`; docs/kubernetes.md names the arguments.

# A release gives the digest too: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# The build stage has pip and its caches; only the finished environment leaves it.
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python -m venv /opt/tightfit
ENV PATH=/opt/tightfit/bin:$PATH

# Dependencies come before the source, so that a change of code does not install them again: what the lock
# file names, by version and hash.
COPY requirements.lock ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-deps --require-hashes -r requirements.lock

# PyTorch's own indexes have a build without CUDA, some gigabytes smaller, and one for each CUDA:
# --build-arg TORCH=2.13.0+cu130 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
# An empty index leaves the choice to pip's configuration (--secret id=pip,src=pip.conf).
ARG TORCH=2.13.0+cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "torch==$TORCH"

# More extras by name, with spaces between: --build-arg EXTRAS="postgres ray". The lock file has those of the default;
# otel and ray have lock files of their own. Further ones are installed by version, without hashes.
ARG EXTRAS=postgres
COPY requirements-*.lock ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    for extra in $EXTRAS; do \
      if [ -f "requirements-$extra.lock" ]; then \
        pip install --no-deps --require-hashes -r "requirements-$extra.lock" || exit 1; \
      fi; \
    done
COPY pyproject.toml ./service.toml
COPY clients/python/pyproject.toml ./client.toml
COPY deploy/image/dependencies.py ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python dependencies.py service.toml client.toml --extras "$EXTRAS" > requirements.txt \
 && pip install -c constraints.txt -r requirements.txt

# The code last; its dependencies are there already, so pip is told not to look for them.
COPY clients/python clients/python
COPY pyproject.toml LICENSE README.md ./
COPY service service
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-deps ./clients/python . \
 && pip check

# The list of what is in the image is made by a tool that is not in it.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m venv /opt/sbom \
 && /opt/sbom/bin/pip install -c constraints.txt cyclonedx-bom==7.5.0 \
 && /opt/sbom/bin/cyclonedx-py environment --output-reproducible \
      --output-file /opt/tightfit/sbom.cdx.json /opt/tightfit/bin/python

# What nothing imports at run time: headers and static libraries of torch, and the installers.
RUN rm -rf /opt/tightfit/lib/python3*/site-packages/torch/include \
           /opt/tightfit/lib/python3*/site-packages/torch/share \
 && find /opt/tightfit -name '*.a' -delete \
 && pip uninstall --yes pip

# The final stage has Python and the environment, no compiler, no pip cache, no source tree.
FROM ${PYTHON_IMAGE}
# libgomp is what torch and ONNX Runtime run their threads with.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1=12.* \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp tightfit \
 && install --directory --owner=tightfit --group=tightfit /var/lib/tightfit
COPY --from=build /opt/tightfit /opt/tightfit

ARG VERSION=0.1.0
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="tightfit-service" \
      org.opencontainers.image.description="gRPC service that compresses trained models to fit a device's budget" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      io.tightfit.sbom="/opt/tightfit/sbom.cdx.json"

# Libraries that cache on first use look at HOME; the root file system may be read-only.
ENV PATH=/opt/tightfit/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TIGHTFIT_LISTEN=0.0.0.0:50051 \
    TIGHTFIT_METRICS_LISTEN=0.0.0.0:9464 \
    TIGHTFIT_HEALTH_LISTEN=127.0.0.1:50052 \
    TIGHTFIT_DATA_DIR=/var/lib/tightfit
# By number, so that Kubernetes can prove it is not root.
USER 10001:10001
WORKDIR /var/lib/tightfit
VOLUME /var/lib/tightfit
EXPOSE 50051 9464

# Asks the port that has health alone: it speaks no TLS and wants no token, whatever the other one does.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, grpc; from grpc_health.v1 import health_pb2, health_pb2_grpc; \
address = os.environ['TIGHTFIT_HEALTH_LISTEN'].replace('0.0.0.0', '127.0.0.1'); \
reply = health_pb2_grpc.HealthStub(grpc.insecure_channel(address)).Check(health_pb2.HealthCheckRequest(), timeout=8); \
raise SystemExit(reply.status != health_pb2.HealthCheckResponse.SERVING)"]

# SIGTERM drains: running calls and the present unit of work end before the process does.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "tightfit_service"]
CMD ["serve"]

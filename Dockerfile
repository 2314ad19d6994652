# The digest of the base image: deploy/pin-images writes it. Without it nothing is built.
ARG PYTHON_DIGEST
FROM python:3.13.9-slim-bookworm@${PYTHON_DIGEST} AS build
RUN python -m venv --without-pip /opt/holdfast
WORKDIR /src
# The tools that build, each file of them checked against its hash too.
COPY deploy/build.lock deploy/
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: \
      --requirement deploy/build.lock
COPY pyproject.toml requirements.lock ./
# Of the lock only what the services need; every file is checked against its hash.
RUN uv pip install --python /opt/holdfast/bin/python --no-cache --compile-bytecode --require-hashes \
      --constraint requirements.lock --requirement pyproject.toml
COPY README.md LICENSE ./
COPY services services
COPY schemas schemas
COPY alerts/runbooks alerts/runbooks
RUN uv build --no-build-isolation --wheel --out-dir /tmp/wheel \
 && uv pip install --python /opt/holdfast/bin/python --no-cache --compile-bytecode --no-deps /tmp/wheel/*.whl

FROM python:3.13.9-slim-bookworm@${PYTHON_DIGEST}
RUN useradd --system --uid 10001 --no-create-home holdfast
COPY --from=build /opt/holdfast /opt/holdfast
ENV PATH=/opt/holdfast/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /etc/holdfast
ENTRYPOINT ["holdfast"]
CMD ["--help"]

# An image that shards and trains, for Kubernetes or any engine of containers.
#
#   docker build -t foreframe:0.1.0 --build-arg COMMIT=$(git rev-parse HEAD) .
#   docker run --rm foreframe:0.1.0 --help
#   docker run --rm --gpus all --shm-size 16g -v $PWD:/work foreframe:0.1.0 train configs/train/tiny-cpu.yaml
#
# torch's wheels bring CUDA's libraries; of the host only the driver is needed. For nodes without GPUs, a tenth of
# the size: --build-arg PIP_EXTRA_INDEX_URL=… with the CPU index that PyTorch's installation page names.
# Another base needs Debian's or Ubuntu's apt, and Python 3.11 or newer in it: --build-arg BASE=nvidia/cuda:…
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
# hadolint ignore=DL3008
RUN python3 -c 'import venv, ensurepip' || { \
      apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && \
      rm -rf /var/lib/apt/lists/*; }
RUN python3 -m venv /opt/foreframe
ENV PATH=/opt/foreframe/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# Libraries first: this layer stays until a pin changes. Both kinds of node; `ray[default]` has the server to
# which KubeRay and `ray job submit` hand jobs.
ARG EXTRAS=data,scenes,train
ARG MORE=ray[default]
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; found = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [each for name in '${EXTRAS}'.split(',') for each in found['optional-dependencies'][name]]; \
print(*found['dependencies'], *extras, *'${MORE}'.split(','), sep='\n')" > requirements.txt && \
    python -m pip install --constraint constraints.txt --requirement requirements.txt

# What the image is made of: `provenance.json` of a run that it trains tells the commit, and `frozen.json` says so.
ARG COMMIT
COPY README.md LICENSE ./
COPY data_pipeline data_pipeline
COPY pretrain pretrain
COPY launch launch
COPY configs configs
RUN python -m pip install --no-deps . && \
    python -I -c "import json, launch, pathlib, sys; \
found = {'commit': sys.argv[1] or None, 'patch': None, 'untracked': None, 'num_untracked': None}; \
pathlib.Path(launch.__path__[0], 'frozen.json').write_text(json.dumps(found))" "${COMMIT}"

FROM ${BASE}
ARG COMMIT
LABEL org.opencontainers.image.title=foreframe org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.revision=${COMMIT}
# wget: KubeRay before 1.6 asks Ray with it whether it is well.
# Ubuntu's images from 24.04 have a user and a group `ubuntu` of the number 1000, which make room.
# hadolint ignore=DL3008
RUN apt-get update && \
    { python3 --version || apt-get install -y --no-install-recommends python3; } && \
    apt-get install -y --no-install-recommends wget && \
    rm -rf /var/lib/apt/lists/* && \
    { ! old=$(getent passwd 1000) || userdel --remove "${old%%:*}"; } && \
    { ! old=$(getent group 1000) || groupdel "${old%%:*}"; } && \
    groupadd --gid 1000 foreframe && \
    useradd --uid 1000 --gid 1000 --create-home foreframe && \
    install -d -o foreframe -g foreframe /work
COPY --from=build /opt/foreframe /opt/foreframe
ENV PATH=/opt/foreframe/bin:$PATH PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["foreframe"]
CMD ["--help"]

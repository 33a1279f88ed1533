# The command encodec-fast, for CPUs:
#
#   docker build -t encodec-fast .
#   docker run --rm encodec-fast demo
#   docker run --rm -v "$PWD:/data" -v encodec-fast-cache:/cache -u "$(id -u):$(id -g)" encodec-fast tokenize recordings --out codes
#
# For NVIDIA GPUs: PyPI's torch is the CUDA build, and Triton compiles its launchers where it runs:
#
#   docker build -t encodec-fast:gpu --build-arg TORCH_INDEX_URL=https://pypi.org/simple \
#       --build-arg RUNTIME_PACKAGES="ffmpeg gcc libc6-dev" .
#   docker run --rm --gpus all encodec-fast:gpu info
#
# EXTRAS takes those of pyproject.toml, such as [ray,fsspec].

FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source

# torch first, by itself: it is the largest layer, and an edit of the package leaves it as it is.
# Without its dependencies, for an index of torch may lack their pinned versions; the next step installs them.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY constraints.txt ./
RUN pip install --no-deps --index-url "$TORCH_INDEX_URL" -c constraints.txt torch

ARG EXTRAS=
COPY LICENSE MANIFEST.in README.md pyproject.toml setup.py ./
COPY encodec_fast encodec_fast
COPY kernels kernels
# setup.py goes on without a compiler's engine; an image without it would be a slow one that nobody notices
RUN pip install -c constraints.txt ".$EXTRAS" && ls /opt/venv/lib/python3*/site-packages/encodec_fast/kernels/cpu/encodec_cpu.so


FROM python:3.12-slim
ARG RUNTIME_PACKAGES="ffmpeg"
RUN apt-get update && apt-get install -y --no-install-recommends $RUNTIME_PACKAGES && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
# Models are kept in /cache. All may write there, for `docker run -u` names a user that the image doesn't know.
ENV PATH=/opt/venv/bin:$PATH HOME=/cache HF_HOME=/cache/huggingface
RUN useradd --system --no-create-home --home-dir /cache encodec && mkdir /cache /data && chmod 1777 /cache /data
USER encodec
WORKDIR /data
ENTRYPOINT ["encodec-fast"]
CMD ["--help"]

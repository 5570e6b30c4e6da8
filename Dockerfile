# glmtune in an image, with the versions that `make` installs.
#
#   docker build --tag glmtune .                         # torch with its CUDA packages
#   docker build --tag glmtune:cpu --build-arg BASE=ubuntu:24.04 --build-arg TORCH_BACKEND=cpu .
#
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" --volume "$PWD:/workspace" \
#     glmtune train DATA_DIR MODEL CONFIG
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/workspace" glmtune:cpu data formats
#
# `/workspace` is the folder that commands run in; --user makes you the owner of what they write there. What is kept between
# commands (encoded rows, the model `demo`) is kept with `--env GLMTUNE_CACHE=/workspace/.cache`. Nothing secret goes into
# the image: give a token to the run alone, with `--env HF_TOKEN`.

# Only the driver's interface: torch brings its own CUDA libraries.
ARG BASE=nvidia/cuda:12.8.1-base-ubuntu24.04
FROM ${BASE}
# Which torch: empty takes the index's own, which has CUDA on Linux; `cpu` is a tenth of its size.
ARG TORCH_BACKEND=

# A compiler, since Triton and DeepSpeed compile what they need when it is first used.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home glmtune

ENV VIRTUAL_ENV=/opt/glmtune PATH=/opt/glmtune/bin:$PATH
WORKDIR /src
COPY .ci/constraints.txt .ci/constraints.txt
RUN python3 -m venv /opt/glmtune && pip install --no-cache-dir --constraint .ci/constraints.txt uv
# torch first, because DeepSpeed's setup looks for it; and in a layer of its own, which stays when the code changes.
RUN uv pip install --no-cache --constraint .ci/constraints.txt ${TORCH_BACKEND:+--torch-backend $TORCH_BACKEND} torch
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY glmtune glmtune
RUN uv pip install --no-cache --constraint .ci/constraints.txt '.[report,serve,schema]'

USER glmtune
WORKDIR /workspace
# A user of the host's number has no home here.
ENV HOME=/tmp
ENTRYPOINT ["glmtune"]
CMD ["--help"]

# docker build -t trainer .
# docker build -t trainer:cuda --build-arg BASE=IMAGE .     IMAGE has torch for CUDA, such as those of pytorch/pytorch
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" trainer train data=files data.train=my.csv
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" -p 8000:8000 trainer serve run=runs/demo host=0.0.0.0
#
# Add --gpus all for CUDA, and --shm-size=1g for loader.workers. Without --user the files belong to user 1000.
# With a base that has torch, that torch is kept; otherwise the CPU build is installed.
ARG BASE=python:3.12-slim

FROM python:3.12-slim AS wheel
RUN pip install --no-cache-dir "build>=1.3"
COPY . /source
RUN python -m build --wheel --outdir /wheel /source

FROM ${BASE}
# Some bases mark the packages of their Python as the system's own; in an image nobody else uses them.
ENV PIP_BREAK_SYSTEM_PACKAGES=1
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -c "import torch" 2>/dev/null || pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch>=2.11"
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir "$(ls /wheel/*.whl)[serve]" && rm -r /wheel
# Bases of Ubuntu already have a user 1000. A number lets Kubernetes see that it is not root.
RUN useradd --create-home --non-unique --uid 1000 trainer && mkdir -p /work && chown 1000 /work && chmod 1777 /home/trainer
# A user of --user has no entry in /etc/passwd, and so neither a home for the cache nor a name.
ENV HOME=/home/trainer USER=trainer
USER 1000
WORKDIR /work
ENTRYPOINT ["trainer"]

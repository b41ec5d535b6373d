# docker build -t trainer .
# docker build -t trainer:cuda --build-arg BASE=IMAGE .     IMAGE has torch for CUDA, such as those of pytorch/pytorch
# docker run --rm -v "$PWD:/work" trainer train data=files data.train=my.csv     (add --gpus all for CUDA)
#
# With a base that has torch, that torch is kept; otherwise the CPU build is installed.
ARG BASE=python:3.12-slim

FROM python:3.12-slim AS wheel
RUN pip install --no-cache-dir build
COPY . /source
RUN python -m build --wheel --outdir /wheel /source

FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -c "import torch" 2>/dev/null || pip install --no-cache-dir --index-url "${TORCH_INDEX}" torch
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir "$(ls /wheel/*.whl)[serve]" && rm -r /wheel
RUN useradd --create-home --uid 1000 trainer && mkdir /work && chown trainer /work
USER trainer
WORKDIR /work
ENTRYPOINT ["trainer"]

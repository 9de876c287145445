# megafuser on GPUs: NVIDIA's PyTorch image, which brings CUDA, NCCL, PyTorch, Transformer Engine and Apex.
#
#   docker build -t megafuser .
#   docker run --gpus all --ipc=host -v "$PWD:/work" megafuser warmup --config config.yaml
#   docker run --gpus all --ipc=host -v "$PWD:/work" --entrypoint torchrun megafuser \
#       --nproc-per-node 8 -m megafuser warmup --config config.yaml
#   MEGAFUSER_CONTAINER=… sbatch slurm/warmup.sh        (slurm/README.md: A container)
#
# The first is one process on one GPU, the second one on each of eight.
#
# This image was never built: no machine with Docker and a network to NVIDIA's registry was at hand. The base's name and
# its version of PyTorch (2.10) are from its release notes; that its Transformer Engine fits is checked while building.
ARG BASE=nvcr.io/nvidia/pytorch:25.12-py3
FROM ${BASE}

# megatron-core 0.16 takes Transformer Engine 2.9 to 2.11; with another, take another base.
RUN python -c "from importlib.metadata import version; from packaging.version import Version; \
    found = Version(version('transformer_engine')); \
    assert Version('2.9.0a0') <= found < Version('2.12'), f'Transformer Engine {found}: take another BASE'"

WORKDIR /opt/megafuser
COPY setup.py pyproject.toml constraints.txt README.md LICENSE ./
COPY megafuser megafuser
COPY tools tools
# PyTorch and what else the base has stay as they are (its own /etc/pip/constraint.txt says so); of the tested versions,
# those of what computes, converts and tokenizes are taken.
RUN grep -E '^(megatron-core|transformers|tokenizers|safetensors|omegaconf)==' constraints.txt > /tmp/constraints.txt \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt '.[serve,eval,datasets,dedup]' \
    && python -c "import torch; assert torch.version.cuda, 'PyTorch was replaced by a build without CUDA'"

WORKDIR /work
ENTRYPOINT ["megafuser"]
CMD ["--help"]

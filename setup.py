"""Packaging: the dependencies of the project, and its kernels installable on their own as `materia.kernels`.

The commands (`train.py`, `eval.py`, `python -m data`) run from the checkout. PyPI's name `kernels` belongs to Hugging
Face, so outsiders get ours under `materia`.
"""

from setuptools import setup

setup(
    name="materia",
    version="0.1.0",
    description="Medical literature in, a medical language model out: curation, continued pretraining, evaluation",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=["materia.kernels"],
    package_dir={"materia.kernels": "kernels"},
    package_data={"materia.kernels": ["tiles.json"]},
    install_requires=[
        "torch>=2.11,<2.14",
        "triton>=3.6,<3.8; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "numpy>=1.26",
        "safetensors>=0.5",
        "sentencepiece>=0.2",
        "tokenizers>=0.21",
        "lxml>=5.3",
        "selectolax>=0.3.27",
        "ftfy>=6.3",
        "zstandard>=0.23",
        "orjson>=3.10",
        "xxhash>=3.5",
        "tqdm>=4.66",
        "pypdfium2>=4.30",
        "py3langid>=0.4",
        "rensa>=0.5",
        "isal>=1.7",
        "matplotlib>=3.9",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "transformers>=5.0",
            "protobuf>=5",
            "ruff>=0.9",
            "psutil>=6",
            "mpi4py>=4",
            "mpich>=4.3",
            "gigatoken>=0.10",
        ],
        "fast-tokenizer": ["gigatoken>=0.10"],
        "mpi": ["mpi4py>=4", "mpich>=4.3"],
        "peers": ["transformers>=5.0", "liger-kernel>=0.6"],
    },
)

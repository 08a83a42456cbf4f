"""Packages that pyproject.toml cannot name: `configs/` goes into the wheel as `grounding_dino/configs`."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
config_folders = [ROOT / "configs", *(p for p in sorted((ROOT / "configs").rglob("*")) if p.is_dir())]
configs = {".".join(("grounding_dino", *f.relative_to(ROOT).parts)): str(f.relative_to(ROOT)) for f in config_folders}

setup(
    packages=find_namespace_packages(include=["grounding_dino", "grounding_dino.*"]) + list(configs),
    package_dir=configs,
    package_data={
        "": ["*.yaml", "*.css", "*.txt", "*.json", "*.cpp", "*.cu", "*.cuh", "*.h", "*.safetensors", "py.typed"],
    },
)

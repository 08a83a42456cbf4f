"""Packages that pyproject.toml cannot name: in the wheel `configs/` is `grounding_dino/configs`, `demo/pictures/` is
`grounding_dino/examples`."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
config_folders = [ROOT / "configs", *(p for p in sorted((ROOT / "configs").rglob("*")) if p.is_dir())]
configs = {".".join(("grounding_dino", *f.relative_to(ROOT).parts)): str(f.relative_to(ROOT)) for f in config_folders}
folders = {**configs, "grounding_dino.examples": "demo/pictures"}

setup(
    packages=find_namespace_packages(include=["grounding_dino", "grounding_dino.*"]) + list(folders),
    package_dir=folders,
    package_data={
        "": ["*.yaml", "*.css", "*.txt", "*.json", "*.cpp", "*.cu", "*.cuh", "*.h", "*.safetensors", "py.typed"],
        "grounding_dino.examples": ["*.jpg"],
    },
)

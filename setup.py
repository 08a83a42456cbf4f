"""Packages that pyproject.toml cannot name: in the wheel `configs/` is `grounding_dino/configs`, and `demo/pictures` is
`grounding_dino/example_pictures`."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
config_folders = [ROOT / "configs", *(p for p in sorted((ROOT / "configs").rglob("*")) if p.is_dir())]
elsewhere = {".".join(("grounding_dino", *f.relative_to(ROOT).parts)): str(f.relative_to(ROOT)) for f in config_folders}
elsewhere["grounding_dino.example_pictures"] = "demo/pictures"

sources = ["*.cpp", "*.cu", "*.cuh", "*.h"]

setup(
    packages=find_namespace_packages(include=["grounding_dino", "grounding_dino.*"]) + list(elsewhere),
    package_dir=elsewhere,
    package_data={"": [*sources, "*.yaml", "*.css", "*.txt", "*.json", "*.jpg", "*.safetensors", "py.typed"]},
)

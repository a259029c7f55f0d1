"""Every package says what lives in it, what does not, and who may import it."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PACKAGES = sorted(path.parent for path in SOURCE.glob("fftmoe/**/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda folder: ".".join(folder.relative_to(SOURCE).parts))
def test_a_package_describes_itself_in_at_least_two_sentences(package: Path):
    described = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    sentences = re.findall(r"\.(?=\s+[A-Z`]|$)", described)
    assert len(sentences) >= 2, described

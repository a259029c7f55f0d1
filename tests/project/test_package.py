"""The wheel, made from the sdist, works where nothing else of the project is."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path, **environment: str) -> str:
    own = {**os.environ, **environment}
    own.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From the sdist, as an index would make it; the tools of the build are the ones that are installed."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    assert [path.suffixes[-2:] for path in folder.glob("*.tar.gz")] == [[".tar", ".gz"]]
    [found] = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_its_recipes_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"fftmoe", f"fftmoe-{wheel.name.split('-')[1]}.dist-info"}
    assert {path.name for path in (ROOT / "recipes").glob("*.yaml")} <= {Path(name).name for name in names}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".so"))]
    assert any(name.endswith("py.typed") for name in names)
    templates = {path.name for path in (ROOT / "src" / "fftmoe" / "report" / "templates").iterdir()}
    assert {f"fftmoe/report/templates/{name}" for name in templates} <= set(names)


@pytest.mark.slow
def test_it_is_installed_and_works_in_a_separate_environment(wheel: Path, tmp_path: Path):
    """Its dependencies, gigabytes of them, are those of this environment; the package is not."""
    venv.create(tmp_path / "env")  # this environment's pip installs into it
    python = tmp_path / "env" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # After its own folder, so that the package is the one that was installed.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import fftmoe; print(fftmoe.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(own)
    make_page = """from fftmoe.report.page import report_page
from fftmoe.report.record import RunRecord
print(report_page(RunRecord({}, [], {})).html)"""
    assert run(python, "-c", make_page, cwd=tmp_path).startswith("<!doctype html>")
    fftmoe = tmp_path / "env" / "bin" / "fftmoe"
    assert "Deploy on many machines" in run(fftmoe, "--help", cwd=tmp_path)
    assert '"tiers"' in run(fftmoe, "plan", "quickstart", "--json", cwd=tmp_path, FFTMOE_CACHE=str(tmp_path / "cache"))

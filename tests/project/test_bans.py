"""What no line of the package does: run text, unpickle, trust a model's code, or hand a line to a shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "pty", "imp"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "runpy.run_module"} | {
    f"yaml.{name}" for name in ("load", "load_all", "unsafe_load", "full_load", "safe_load", "safe_load_all")
}
LOADS = {
    "torch.load",
    "torch.jit.load",
    "numpy.load",
    "np.load",
    "pandas.read_pickle",
    "pd.read_pickle",
    "torch.hub.load",
}
KEYWORDS = {
    "trust_remote_code": True,
    "weights_only": False,
    "allow_pickle": True,
    "shell": True,
    "use_safetensors": False,
}
FIXED = {"trust_remote_code", "use_safetensors"}  # never a variable


def banned(source: str) -> Iterator[str]:
    """What is wrong with a module, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {reason}" for reason in _banned_call(node))


def _banned_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in CALLS | LOADS:
        yield name
    for keyword, wrong in KEYWORDS.items():
        value = given.get(keyword)
        if isinstance(value, ast.Constant) and value.value is wrong:
            yield f"{keyword}={wrong}"
        if keyword in FIXED and value is not None and not isinstance(value, ast.Constant):
            yield f"{keyword} is {ast.unparse(value)}"
    # transformers asks at a terminal unless this is set. PEFT has no such argument: neither the model, nor the
    # configuration of an adapter, whose class calls its parent's.
    if name.split(".")[-1] in ("from_pretrained", "from_config") and name.split(".")[0] not in ("PeftModel", "super()"):
        if "trust_remote_code" not in given:
            yield f"{name} without trust_remote_code=False"


def test_no_module_does_what_is_banned():
    found = {str(path.relative_to(SOURCE)): list(banned(path.read_text())) for path in FILES}
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as c",
        "eval('1')",
        "exec(text)",
        "__import__(name)",
        "os.system('ls')",
        "yaml.load(text, Loader)",
        "yaml.safe_load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "f(allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(a, trust_remote_code=True)",
        "AutoModel.from_pretrained(a, trust_remote_code=b)",
        "transformers.AutoConfig.from_pretrained(a)",
        "auto.from_pretrained(a, trust_remote_code=False, use_safetensors=False)",
    ],
)
def test_a_banned_line_is_found(line: str):
    assert list(banned(f"x = 1\n{line}"))


def test_the_search_reads_the_package():
    assert len(FILES) > 100
    assert not list(banned("re.compile('a')\nauto.from_pretrained(a, trust_remote_code=False)\nyaml.safe_dump(a)"))

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
    of_peft = ("PeftModel", "adapter_config", "super()")
    if name.split(".")[-1] in ("from_pretrained", "from_config") and name.split(".")[0] not in of_peft:
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


# JSON is written by one module, which knows what the readers refuse

WRITERS = {"dump", "dumps", "JSONEncoder"}
OF_OBJECTS = {"model_dump_json", "to_json"}
OTHER_JSON = {"orjson", "ujson", "simplejson", "rapidjson"}


def writes_json(source: str) -> Iterator[str]:
    """Where a module writes JSON itself, or gets what does, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "") == "json":
            yield from (f"{node.lineno}: {alias.name}" for alias in node.names if alias.name in WRITERS)
        if isinstance(node, ast.Import):
            yield from (f"{node.lineno}: {alias.name}" for alias in node.names if alias.name in OTHER_JSON)
            yield from (f"{node.lineno}: json as {a.asname}" for a in node.names if a.name == "json" and a.asname)
        if isinstance(node, ast.Attribute):
            own = node.attr in WRITERS and ast.unparse(node.value) == "json"
            yield from [f"{node.lineno}: {ast.unparse(node)}"] if own or node.attr in OF_OBJECTS else []


def test_json_is_written_by_one_module():
    found = {str(path.relative_to(SOURCE)): list(writes_json(path.read_text())) for path in FILES}
    assert {path for path, lines in found.items() if lines} == {"fftmoe/strict.py"}, found


@pytest.mark.parametrize(
    "line",
    [
        "json.dumps({})",
        "json.dump({}, file)",
        "write = json.dumps",
        "from json import dumps",
        "from json import dumps as text",
        "import json as j",
        "import orjson",
        "class Own(json.JSONEncoder): ...",
        "recipe.model_dump_json()",
    ],
)
def test_each_way_to_write_json_is_found(line: str):
    assert list(writes_json(line))


def test_reading_json_is_no_writing():
    assert not list(writes_json("import json\njson.loads(text)\nyaml.dump(values)\nrecipe.model_dump()"))

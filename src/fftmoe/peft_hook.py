"""Registers the adapter when PEFT is imported, by whoever: it takes seconds, and much of the package works without."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTERS = "fftmoe.adapter"  # on import


def register_with_peft() -> None:
    """Now if PEFT has been imported, and otherwise as soon as it is."""
    if "peft" in sys.modules:
        import_module(REGISTERS)
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


class _PeftFinder(MetaPathFinder):
    """Finds PEFT where the others do. It stays: being looked for, as transformers does, is not being imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(Loader):
    """PEFT's own loader, and the registration after it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        import_module(REGISTERS)  # which, being half-way through its own import of PEFT, will register at its end

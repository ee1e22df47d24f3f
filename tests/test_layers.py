"""Imports go downwards only, and modules stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import medrl

ROOT = Path(medrl.__file__).parent
LOWER = {
    "types": set(),
    "errors": {"types"},
    "geometry": {"types"},
    "data": {"types", "geometry"},
    "rewards": {"types", "geometry"},
    "tasks": {"types", "geometry", "data", "rewards"},
    "environment": {"types", "tasks"},
    "networks": {"types", "geometry"},
    "returns": {"types"},
    "experience": {"types", "returns"},
    "rollout": {"types", "returns"},
    "agents": {"types", "networks", "returns", "experience", "rollout"},
}
EVERY = {*LOWER}
LOWER["gym"] = EVERY - {"agents", "networks", "returns", "experience", "rollout"}
LOWER["inference"] = EVERY
LOWER["training"] = EVERY | {"inference"}
MODULES = sorted(ROOT.rglob("*.py"))


def layer(module: str) -> str:
    """Of ``medrl.geometry.boxes`` it is geometry."""
    return module.split(".")[1]


def imports(path: Path) -> set[str]:
    """Layers of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: write imports in full"
            modules = [f"medrl.{a.name}" for a in node.names] if node.module == "medrl" else [node.module]
        elif isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        else:
            continue
        found |= {layer(m) for m in modules if m.startswith("medrl.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path):
    here = path.relative_to(ROOT).with_suffix("").parts[0]
    if here not in LOWER:  # a module at the top, as the command line: it may import all, and nothing below imports it
        assert path.parent == ROOT, f"{here} has no layer: give it one in this test and in the README"
        return
    above = imports(path) - LOWER.get(here, set()) - {here}
    assert not above, f"{path.name} in {here} imports {sorted(above)} from above"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_one_idea(path):
    assert len(path.read_text().splitlines()) <= 300, f"{path.name}: more than 300 lines want a second room"


def test_tasks_and_agents_never_meet():
    for path in MODULES:
        here = path.relative_to(ROOT).parts[0]
        if here == "tasks":
            assert "agents" not in imports(path)
        if here == "agents":
            assert not imports(path) & {"tasks", "environment", "data", "rewards"}

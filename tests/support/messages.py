"""Every message that the package can raise or warn with, as its source has it; what is filled in at run time is "…"."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "unroll_wrap"
# Raised for callers of their own, which put the text into a message that is listed.
INSIDE = {
    "compiled.py",
    "effects.py",
    "functions.py",
    "inductor.py",
    "program.py",
    "operations.py",
    "recording.py",
    "step_inputs.py",
}


def text(node, constants):
    """The string that an expression makes, or None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text(v, constants) if isinstance(v, ast.Constant) else "…" for v in node.values)
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    return None


def messages():
    """Text by place, of every `raise Error(text)` and `warnings.warn(text)`, and of sentences in module constants."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assigned = [
            node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        ]
        constants = {node.targets[0].id: text(node.value, {}) for node in assigned}
        for node in ast.walk(tree):
            returned = isinstance(node, ast.Return) and isinstance(node.value, ast.Call)
            call = node.exc if isinstance(node, ast.Raise) else node.value if returned else node
            said = isinstance(node, ast.Raise) or getattr(getattr(node, "func", None), "attr", "") == "warn"
            # An error that the caller raises.
            said = said or (returned and getattr(call.func, "id", "").endswith("Error"))
            if said and isinstance(call, ast.Call) and call.args and path.name not in INSIDE:
                message = text(call.args[0], constants)
                if message:
                    found[f"{path.relative_to(PACKAGE)}:{node.lineno}"] = message
        sentences = {name: value for name, value in constants.items() if value and value.endswith(".") and " " in value}
        found |= {f"{path.relative_to(PACKAGE)}:{name}": value for name, value in sentences.items()}
    return found


if __name__ == "__main__":
    for place, message in messages().items():
        print(f"{place}\n    {message}")

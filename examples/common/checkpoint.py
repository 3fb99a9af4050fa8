"""Checkpoints from which a killed run goes on bit for bit."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from common.files import replacing


class Stateful(Protocol):
    """A module or an optimizer."""

    def state_dict(self) -> Any:
        """Returns the state to save."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Takes the state back."""


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message says why and what to do."""


def save(path: Path, config: Mapping[str, Any], parts: Mapping[str, Stateful], progress: Mapping[str, Any]) -> None:
    """Everything that the next update depends on, and what has been measured so far, in one atomic file.

    Args:
        path: The file to write.
        config: The run's configuration in plain values; a reader with another one is refused.
        parts: Networks and optimizers by name.
        progress: Whatever else the run carries on with: step, history, snapshots, seconds.
    """
    state = {
        "config": dict(config),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "progress": dict(progress),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }
    # torch answers a full disk with an error of its own, and adds one while that one passes.
    contents = io.BytesIO()
    torch.save(state, contents)
    with replacing(path) as file:
        file.write(contents.getbuffer())


def load(path: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The saved state, or None where there is no file.

    Args:
        path: The file to read.
        config: The configuration of the run that wants it.

    Returns:
        What `save` wrote, on the CPU.

    Raises:
        CheckpointError: The file is damaged or belongs to another configuration.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["config"]
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({type(error).__name__}). Give --restart to train this "
            f"grid anew, or another --out."
        ) from error
    differences = [
        f"{name} is {saved.get(name)!r} there and {config.get(name)!r} here"
        for name in sorted({*saved, *config})
        if saved.get(name) != config.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{path} belongs to another configuration: {'; '.join(differences)}. Give the same options as "
            f"then, another --out, or --restart to throw these runs away."
        )
    return state


def resume(path: Path, config: Mapping[str, Any], parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """Puts networks, optimizers and random generators back, where there is a checkpoint.

    Args:
        path: The file to read.
        config: The configuration of the run that wants it.
        parts: The same names as were saved.

    Returns:
        The saved `progress`, or that of a run that has not begun.
    """
    state = load(path, config)
    if state is None:
        return {"update": 0, "history": [], "snapshots": {}, "seconds": 0.0}
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return dict(state["progress"])

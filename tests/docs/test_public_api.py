"""What semantic versioning speaks of: a name that vanishes, or an argument, is noticed here first."""

import inspect
import re
from pathlib import Path

import pytest

import unroll_wrap

ROOT = Path(__file__).parents[2]
# A line for each public name, with its arguments in order. A change here is one of the interface: see CONTRIBUTING.md.
WARNING = "a category of warnings"
API = {
    "Compiled": "",
    "Diagnosis": "steps d_losses g_loss first_term second_term share cosine ratio seconds peak_bytes growths spread "
    "names",
    "EvalMode": WARNING,
    "Extrapolate": "factor",
    "FiniteDifference": "eps central",
    "FreshState": WARNING,
    "LogitsExpected": WARNING,
    "Objective": "d_loss g_loss",
    "PartialDetach": WARNING,
    "PartlyFrozen": WARNING,
    "Prediction": "steps seconds bytes seconds_per_step bytes_per_step measured seconds_at_zero",
    "Recompute": "every",
    "SecondTermMissing": WARNING,
    "Store": "",
    "Truncate": "steps backward",
    "UnrollWarning": WARNING,
    "UnrolledDiscriminatorLoss": "generator optimizer g_loss d_loss options",
    "UnrolledGeneratorLoss": (
        "discriminator optimizer d_loss g_loss steps resample stop_gradient average backward "
        "grad_transform param_transform average_gradients"
    ),
    "UnrolledLoss": (
        "player optimizer player_loss loss steps resample stop_gradient average backward "
        "grad_transform param_transform average_gradients"
    ),
    "UnrolledSequence": "updates loss asker order options",
    "UpdateRule": "",
    "Verification": "value real_value tolerance slopes problems cuts notes",
    "clip_grad_norm": "max_norm norm_type",
    "clip_grad_value": "clip_value",
    "detach": "tensor",
    "diagnose": "unrolled batch wrt repeats options",
    "hinge": None,
    "is_unrolling": "",
    "least_squares": None,
    "minimax": None,
    "no_grad": "",
    "non_saturating": None,
    "predict": "unrolled batch steps wrt options",
    "register_rule": "optimizer rule",
    "relativistic": None,
    "verify": "unrolled batch wrt options",
    "wasserstein": None,
}
METHODS = {
    "UnrolledGeneratorLoss.__call__": "self batch d_loss g_loss resample steps kwargs",
    "Diagnosis.scalars": "self prefix",
    "Diagnosis.plot": "self ax",
    "UpdateRule.init": "self param",
    "UpdateRule.update": "self param grad state",
}


def arguments(function):
    return " ".join(inspect.signature(function).parameters)


def test_the_names():
    """All that is exported, and nothing else."""
    assert sorted(unroll_wrap.__all__) == sorted(API)
    assert all(hasattr(unroll_wrap, name) for name in API)


@pytest.mark.parametrize("name", [name for name, kind in API.items() if kind not in (None, WARNING)])
def test_the_arguments(name):
    assert arguments(getattr(unroll_wrap, name)) == API[name]


def test_the_warnings():
    """One filter for all, and one for each."""
    kinds = [getattr(unroll_wrap, name) for name, kind in API.items() if kind is WARNING]
    assert len(kinds) == 7 and all(issubclass(kind, unroll_wrap.UnrollWarning) for kind in kinds)
    assert issubclass(unroll_wrap.UnrollWarning, UserWarning)


@pytest.mark.parametrize("name", METHODS)
def test_the_methods(name):
    kind, method = name.split(".")
    assert arguments(getattr(getattr(unroll_wrap, kind), method)) == METHODS[name]


@pytest.mark.parametrize("name", [name for name, signature in API.items() if signature is None])
def test_the_objectives(name):
    """Pairs that unpack into the constructor."""
    d_loss, g_loss = getattr(unroll_wrap, name)
    assert callable(d_loss) and callable(g_loss)


def test_every_name_is_in_the_reference():
    """And no name that is not there."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: unroll_wrap\.(\w+)$", text, re.MULTILINE)) == sorted(API)


def test_one_version_everywhere():
    """The package's own, the citation's, and an entry in the changelog."""
    version = unroll_wrap.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_package_says_that_it_is_typed():
    """The marker is beside the code, and torch is the only dependency."""
    assert (Path(unroll_wrap.__file__).parent / "py.typed").exists()
    assert '\ndependencies = ["torch>=2.6"]\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")

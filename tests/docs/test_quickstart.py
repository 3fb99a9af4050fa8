"""The notebook: its cells run in order, as one session, with fewer updates than a reader's."""

import json
from pathlib import Path

import matplotlib
import pytest
import torch

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def cells():
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


@pytest.fixture(autouse=True)
def without_display():
    matplotlib.use("agg")
    yield
    matplotlib.pyplot.close("all")


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_every_cell_runs():
    """With 20 updates instead of a thousand; the pictures are drawn, the report passes."""
    names = {"__name__": "quickstart"}
    for number, cell in enumerate(cells()):
        code = "".join(cell["source"])
        if number == 0:
            assert code.count("UPDATES, BATCH, RATE = 1000, 512") == 1
            code = code.replace("= 1000, 512", "= 20, 32")
        exec(compile(code, f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    assert names["report"].passed and names["found"].steps == 5
    assert len(matplotlib.pyplot.get_fignums()) == 3
    assert all(torch.isfinite(p).all() for p in names["G"].parameters())


def test_it_shows_what_a_run_gave():
    """As committed it has its outputs, three pictures among them, and no error."""
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not any(output["output_type"] == "error" for output in outputs)
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))

"""What the pages say is so: their code runs, their picture and tables are what scripts make."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys

import h5py
import nbclient
import nbformat
import pytest

import hamming_engine as he


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


def test_the_code_in_the_readme_runs(root, tmp_path):
    program = "\n".join(blocks((root / "README.md").read_text(), "python"))
    *first, last = program.split("import h5py\n")
    assert first
    program = "".join(first) + 'docs.export("docs.h5")\nimport h5py\n' + last
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    with h5py.File(tmp_path / "docs.h5") as file:
        assert file["ids"].asstr()[5] == "doc-5"


def test_the_ten_lines_are_about_ten(root):
    first = blocks((root / "README.md").read_text(), "python")[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 10


def test_links_lead_somewhere(root):
    for page in (root / "README.md", root / "benchmarks" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


def test_the_picture_is_what_its_script_draws(root):
    script = root / "notebooks" / "figures" / "pipeline.py"
    assert runpy.run_path(str(script))["draw"]() == script.with_suffix(".svg").read_text()


def test_the_tables_are_those_of_the_results(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    report = runpy.run_path(str(root / "benchmarks" / "report.py"))
    page = (root / "benchmarks" / "README.md").read_text()
    assert report["page"](page) == page


@pytest.mark.parametrize(
    "command",
    [
        "flat.py --sweeps one --bits 64 --rows 3000 --queries 1 5 --k 3 --quick --contestants "
        "hamming_engine 'numpy bitwise_count'",
        "packing.py --rows 500 --seconds 0",
        "streaming.py --rows 70000 --bits 1024 --queries 3 --seconds 0 --rounds 1",
        "asymmetric.py --rows 3000 --bits 64 --quick",
        "quality.py --data demo --quick",
        "finetuning.py --quick",
    ],
)
def test_benchmarks_run(root, tmp_path, command):
    """Small, and without peers, which are not installed where tests run."""
    output = tmp_path / "result.json"
    name, *arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable, str(root / "benchmarks" / name), *arguments, "--output", str(output)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"contestant": "hamming_engine"' in output.read_text() or name != "flat.py"
    assert json.loads(output.read_text())["machine"]["processor"]


def test_targets_are_met_or_missed_by_what_was_measured(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    tables = runpy.run_path(str(root / "benchmarks" / "quality_tables.py"))

    def searched(family, data, oversample, recall):
        return {
            "family": family,
            "data": data,
            "oversample": oversample,
            "method": "" if family.startswith("faiss") else "asymmetric",
            "recall": {"value": recall},
        }

    result = {
        "search": [
            searched("rabitq, itq", "cranfield-minilm", 1, 0.80),
            searched("rabitq, itq", "cranfield-minilm", 2, 0.9599),
            searched("rabitq, itq", "debian-minilm", 1, 0.7),
            searched("faiss RaBitQfs", "debian-minilm", 1, 0.7001),
        ],
        "encoding": [
            {
                "data": "synthetic-768",
                "family": "itq",
                "n_fitted": 50_000,
                "fit_seconds": 60.5,
                "rows_per_second": {"1": 1.0},
            }
        ],
    }
    verdicts = {one.what: one.verdict for one in tables["quality_targets"](result)}
    assert verdicts["recall@10, rabitq, itq, Cranfield MiniLM, 1x"] == "met"
    assert verdicts["recall@10, rabitq, itq, Cranfield MiniLM, 2x"] == "**missed**"
    assert verdicts["recall@10, rabitq, itq, Cranfield MiniLM, 4x"] == "not measured"
    against = "recall@10, rabitq, itq, Debian + WordNet, {}x: not below faiss RaBitQfs"
    assert verdicts[against.format(1)] == "**missed**"
    assert verdicts[against.format(2)] == "not measured"
    assert verdicts["s, itq is fitted to 50,000 rows of synthetic-768"] == "**missed**"


@pytest.mark.parametrize(
    ("name", "variable", "n_figures", "last_words"),
    [
        ("benchmarks", "N_ROWS", 3, "3,000 codes of 384 bits"),
        ("quality", "N_TEXTS", 6, None),
        ("training", "N_TEXTS", 3, None),
    ],
)
def test_the_notebooks_run(root, name, variable, n_figures, last_words):
    """From top to bottom, small; and they are there with their outputs, none of them an error."""
    path = root / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    figures = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(figures) == n_figures
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, "3000")
        patch.setenv("PYTHONPATH", str(root))
        client = nbclient.NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}
        )
        client.execute()
    assert last_words is None or last_words in code[-1].outputs[0].text


@pytest.mark.parametrize("name", ["quality", "training"])
def test_the_prose_of_notebooks_has_no_numbers(root, name):
    notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
    prose = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.findall(r"\b\d[\d.,]*", prose) == []


def test_public_docstrings_name_shapes_and_errors():
    for thing in (
        he.pack_signs,
        he.unpack_codes,
        he.search,
        he.FlatIndex.add,
        he.Collection.create,
        he.Collection.append,
        he.Collection.search,
        he.Collection.export,
    ):
        for section in ("Parameters", "Raises"):
            assert re.search(rf"{section}\n +-{{3,}}", thing.__doc__), thing

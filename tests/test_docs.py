"""What the pages say is so: their code runs, their picture and tables are what scripts make."""

import os
import re
import runpy
import subprocess
import sys

import h5py

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


def test_the_tables_are_those_of_the_results(root):
    report = runpy.run_path(str(root / "benchmarks" / "report.py"))
    page = (root / "benchmarks" / "README.md").read_text()
    assert report["page"](page) == page


def test_the_benchmark_runs(root, tmp_path):
    """Small, and against nobody: peers are not installed where tests run."""
    output = tmp_path / "flat.json"
    small = [
        "--rows",
        "3000",
        "--bits",
        "64",
        "--queries",
        "1",
        "5",
        "--k",
        "3",
        "--seconds",
        "0",
        "--rounds",
        "1",
    ]
    small.append("--no-first-search")
    subprocess.run(
        [
            sys.executable,
            str(root / "benchmarks" / "flat.py"),
            *small,
            "--contestants",
            "hamming_engine",
            "--output",
            str(output),
        ],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert '"contestant": "hamming_engine"' in output.read_text()


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

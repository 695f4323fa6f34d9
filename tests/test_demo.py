"""The demo and the command line, as a user runs them."""

import re
import subprocess
import sys

import pytest

import hamming_engine as he
from hamming_engine import demo
from hamming_engine.cli import main


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hamming_engine", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return run(
        "demo", "remove a directory tree", "url encode a query string", "--keep", folder
    ), folder


def test_demo_answers_and_compares(demonstration):
    done, folder = demonstration
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split("\n? ")[1:]
    assert len(answers) == 2
    assert "urllib.parse.urlencode" in answers[1]
    table = re.findall(
        r"^(\S.*?)\s{2,}([\d,]+)(?:\s+([\d,]+))?\s+(\d+\.\d+)\s+(\d\.\d+)$", done.stdout, re.M
    )
    recall = {label: float(value) for label, *_, value in table}
    assert len(recall) == 9
    assert recall["float32, NumPy product"] == 1
    assert recall["int8, every row scored"] > 0.98
    assert 0.4 < recall["signs by Hamming distance"] < recall["signs by float query"]
    assert recall["signs by float query"] < recall["local search"]
    assert recall["signs by float query"] < recall["signs, float16 re-rank x4"]
    assert recall["signs, float16 re-rank x4"] < recall["local search, re-rank x4"] <= 1
    with he.Collection.open(folder / "python-docs.hme") as docs:
        assert len(docs) > 5_000


def test_info_and_export(demonstration, tmp_path):
    _, folder = demonstration
    done = run("info", folder / "python-docs.hme")
    assert done.returncode == 0
    assert re.search(r"^dim +256$", done.stdout, re.M)
    assert run("export", folder / "python-docs.hme", tmp_path / "docs.h5").returncode == 0
    with he.Collection.open(tmp_path / "docs.h5") as docs:
        assert docs.info()["ids"] == "utf8"


def test_errors_are_a_line_and_a_status(tmp_path, capsys):
    assert main(["info", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err == (
        f"hamming_engine: no collection at {tmp_path / 'nothing'}: it does not exist\n"
    )
    with pytest.raises(SystemExit):
        main(["no such command"])


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'hamming_engine[demo]'")):
        demo.load_model()


def test_corpus_has_distinct_names():
    texts = demo.corpus()
    assert len({text.name for text in texts}) == len(texts) > 5_000
    assert all(text.body.strip() for text in texts)

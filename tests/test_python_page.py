"""The examples of docs/python.md run, in order, as one program."""

import re
from pathlib import Path

from corpus import folder_of_notes, tiny_settings

import audiogen

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
SMALL = [
    "backbone.dim=8",
    "backbone.num_layers=1",
    "backbone.num_heads=2",
    "training.crop_frames=16",
    "training.evaluations=2",
    "training.sample_seconds=0.1",
    *(f"frontend.{name}={value}" for name, value in tiny_settings("melvq").items()),
]


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    """Guards against a page of yesterday's interface: a shape, a name or an argument that is no more. Only the budget
    of training is replaced, by four steps of a small model."""
    monkeypatch.chdir(tmp_path)
    folder_of_notes(tmp_path / "recordings", [8000] * 6)
    code = "".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S))
    assert code.count("minutes=10") == 1
    names = {"SMALL": SMALL}
    exec(compile(code.replace("minutes=10", "steps=4, device='cpu', overrides=SMALL"), str(PAGE), "exec"), names)
    assert repr(names["frontend"]) in PAGE.read_text(encoding="utf-8")
    assert names["wav"].shape == (1, 1, 5000) and names["wavs"].shape[:2] == (2, 1)
    K, V = names["run"].frontend.spec.num_codebooks, names["run"].frontend.spec.codebook_size
    assert names["logits"].shape[:2] == (2, K) and names["logits"].shape[3] == V
    said = capsys.readouterr().out
    assert re.search(r"^samples/\d+ torch.Size\(\[1, 800\]\)$", said, re.M)
    assert repr(audiogen.load_run("runs/mine")) in said

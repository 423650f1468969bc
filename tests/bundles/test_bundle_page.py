"""The page of a bundle: its code runs as shown, its numbers are those of the counts, user text is escaped."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fmcache.scores.dice import dice
from fmcache.scores.run_files import read_run
from fmcache.specs import FitSpec


@pytest.fixture
def page(bundle):
    return (bundle / "README.md").read_text(encoding="utf-8")


def test_the_code_without_fmcache_runs_as_shown(bundle, page, opened, tmp_path):
    tile = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for path in bundle.iterdir():
        (tmp_path / path.name).symlink_to(path)
    Image.fromarray(tile).save(tmp_path / "tile.png")
    code = re.findall(r"```python\n(.*?)```", page, re.S)[0]
    assert "fmcache" not in code
    script = code + "\nnp.save('labels.npy', labels.numpy())\n"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), opened(tile[None])[0].argmax(axis=1))


def test_dice_of_the_run_is_that_of_its_counts(fitted, page):
    counts = read_run(fitted.run_folder()).counts.filter(split="test")
    summed = counts.group_by("label", maintain_order=True).agg("tp", "fp", "fn").rows()
    per_label = [dice(np.array([[sum(one) for one in parts]]))[0] for _, *parts in summed]
    table = page.partition("## Validation")[2].partition("Dice in percent")[0]
    shown = [float(row.split(" | ")[-3]) for row in table.splitlines()[4:] if row]
    assert len(per_label) == 3
    np.testing.assert_allclose(shown, [100 * value for value in (*per_label, np.mean(per_label))], atol=0.005)


def test_user_text_is_escaped_and_licences_are_stated(page):
    assert page.startswith("# Tiny \\*ViT\\* on Drawn \\<tiles>, study toy, seed 1\n")
    assert "| 0 | tumour \\| \\*bed\\* | `#d55e00` |" in page
    assert "CC-BY-NC-ND-4.0 (https://example.org/tiny)" in page
    assert "For research only." in page
    assert "[@fmcache]" in page


def test_a_page_without_encoder_weights_does_not_describe_files_that_are_not_there(fitted, tmp_path):
    folder = fitted.export(tmp_path / "out", decoder_only=True)
    text = (folder / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.]+\.(?:pt|npy|yaml|json|onnx|safetensors|bib))`", text))
    assert named == {path.name for path in folder.iterdir()} - {"README.md", "SHA256SUMS"}
    assert "The weights of the encoder are not in it" in text


def test_a_page_says_that_the_decoder_was_trained_in_another_precision(fitted, page, tmp_path):
    rounded = "trained and tested the decoder in bfloat16"
    assert rounded not in page
    fit = FitSpec(seeds=1, epochs=1, batch=3, validate_epochs=1, precision="bfloat16")
    fitted.fit(name="rounded", encoders=("raw-pixels",), fit=fit)
    fitted.export(tmp_path / "bundle", encoder="raw-pixels", study="rounded", seed=0, decoder_only=True)
    assert rounded in (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")

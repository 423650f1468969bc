"""fmcache encoders list, show and check, on terminals of several widths."""

import pytest
import torch
import yaml
from safetensors.torch import save, save_file
from typer.testing import CliRunner

from fmcache.cli import app
from fmcache.encoders.cards import GROUPS, card_names, read_card

TINY = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}


def run(arguments, columns):
    return CliRunner().invoke(app, ["encoders", *map(str, arguments)], env={"COLUMNS": str(columns)})


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_list_shows_every_licence_whole_at_any_width(columns):
    listed = run(["list"], columns)
    assert listed.exit_code == 0
    assert "…" not in listed.stdout
    assert max(map(len, listed.stdout.splitlines())) <= columns
    assert ":;" not in listed.stdout  # headings of groups are no encoders without properties
    assert [line.strip() for line in listed.stdout.splitlines() if line.strip() in GROUPS] == list(GROUPS)
    for name in card_names():
        assert name in listed.stdout
        assert read_card(name).licence in listed.stdout


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("name", ["kaiko-vitl14", "random-vits16", "timm:vit_small_patch16_224"])
def test_show_fits_the_terminal_and_what_it_prints_is_the_card(tmp_path, name, columns):
    shown = run(["show", name], columns)
    assert shown.exit_code == 0
    for line in shown.stdout.splitlines():
        assert len(line) <= columns or len(line.split()) <= 2, line  # an address is not broken
    (tmp_path / "mine.yaml").write_text(shown.stdout)
    card = read_card(str(tmp_path / "mine.yaml"))
    if not name.startswith("timm:"):
        assert card == read_card(name)
    else:
        assert (card.architecture, card.width, card.patch) == ("vit_small_patch16_224", 384, 16)


@pytest.fixture
def write_card(tmp_path):
    """Write the card of a tiny vision transformer, with some keys changed; return its path."""

    def write(name, **changes):
        card = {
            "name": name, "title": name, "architecture": "vit_tiny_patch16_224", "arguments": TINY, "patch": 16,
            "width": 48, "prefix_tokens": 1, "mean": [0.5] * 3, "std": [0.5] * 3,
            "weights": {"file": f"{name}.safetensors"},
        } | changes  # fmt: skip
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(card))
        return path

    return write


@pytest.fixture
def weights():
    """Weights of the tiny vision transformer."""
    import timm

    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY).state_dict()


@pytest.mark.parametrize("columns", [80, 200])
def test_one_file_that_cannot_be_read_is_one_row(write_card, weights, tmp_path, columns):
    sunk = save(weights | {"norm.bias": torch.full((48,), torch.nan)})
    files = {"cut": save(weights)[:-9], "sunk": sunk, "sound": save(weights)}
    for name, content in files.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    (tmp_path / "torn.yaml").write_text("name: [")
    cards = [*map(write_card, files), tmp_path / "torn.yaml"]
    checked = run(["check", *cards, "--device", "cpu", "--threads", "1", "--work", tmp_path / "work"], columns)
    assert checked.exit_code == 1
    assert checked.stdout.count("FAILED") == 3
    assert "48 x 32 x 32, finite" in checked.stdout
    assert "cut.safetensors cannot be read: it is truncated or corrupt" in checked.stderr
    assert "norm.bias (48 of 48)" in checked.stderr
    assert "torn.yaml is not valid YAML" in checked.stderr


def test_offline_the_page_of_a_gated_encoder_is_named(write_card, tmp_path):
    card = write_card("mine", gated=True, weights={"repo": "someone/mine", "file": "no.bin"})
    checked = run(["check", card, "--offline", "--device", "cpu", "--work", tmp_path / "work"], 80)
    assert checked.exit_code == 1
    assert "not asked" in checked.stdout
    assert "the hub must not be asked" in checked.stderr
    assert "accept the licence at https://huggingface.co/someone/mine" in checked.stderr
    assert "--weights FILE" in checked.stderr


def test_the_way_out_of_surplus_keys_works_for_a_model_of_timm(weights, tmp_path):
    """What the message says, typed: a card from `show`, with the line, passed as the encoder."""
    import timm

    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    save_file({f"trunk.{key}": tensor for key, tensor in state.items()} | {"pool.q": torch.ones(2)}, tmp_path / "w.any")
    flags = ["--weights", tmp_path / "w.any", "--device", "cpu", "--threads", "1", "--work", tmp_path / "work"]
    refused = run(["check", "timm:vit_tiny_patch16_224", *flags], 80)
    assert "`drop: [head., pool.]`" in refused.stderr
    assert "`fmcache encoders show timm:vit_tiny_patch16_224 > mine.yaml`" in refused.stderr
    shown = run(["show", "timm:vit_tiny_patch16_224"], 80).stdout
    (tmp_path / "mine.yaml").write_text(shown.replace("drop: [head.]", "drop: [head., pool.]"))
    assert run(["check", tmp_path / "mine.yaml", *flags], 80).exit_code == 0

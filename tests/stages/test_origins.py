"""fit compares the card and the weights of an encoder, as they are now, with what its cache was made from."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from fmcache.cache.reader import open_cache
from fmcache.cli import app
from fmcache.encoders.load import load_encoder
from fmcache.errors import CacheMismatch, SpecError
from fmcache.identity import sha256_file
from fmcache.scores.run_files import find_runs, read_run
from fmcache.specs import EncoderChoice, Recipe, read_recipe
from fmcache.stages import places
from fmcache.stages.extract import extract
from fmcache.stages.fit import fit
from fmcache.stages.flags import Flags
from fmcache.stages.identities import CARD_FIELDS
from fmcache.strict import builtins

CARD = {
    "name": "tiny", "title": "Tiny ViT", "architecture": "vit_tiny_patch16_224",
    "arguments": {"img_size": 32, "depth": 1, "embed_dim": 12, "num_heads": 2}, "patch": 16, "width": 12,
    "prefix_tokens": 1, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "weights": {"file": "w.safetensors"},
}  # fmt: skip
STUDY = {
    "name": "toy", "tile_px": 32, "views": {"count": 2}, "decoder": {"width": 4},
    "fit": {"seeds": 1, "epochs": 1, "batch": 1},
}  # fmt: skip


def write_weights(path, seed):
    model = load_encoder(EncoderChoice(str(path.parent / "random.yaml")), torch.device("cpu")).module
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in model.state_dict().items()}
    if path.suffix == ".json":
        parts = [f"{path.name}-{i}.safetensors" for i in (1, 2)]
        names = {name: parts[i % 2] for i, name in enumerate(state)}
        for part in parts:
            save_file({name: state[name] for name in names if names[name] == part}, path.with_name(part))
        path.write_text(json.dumps({"weight_map": names}))
    else:
        save_file(state, path)


class Place:
    """A folder with a manifest, cards and weights, and the commands that run there."""

    def __init__(self, folder):
        self.folder, self.work = folder, folder / "work"

    def card(self, file="card.yaml", **changes):
        card = {key: value for key, value in (CARD | changes).items() if value is not None}
        (self.folder / file).write_text(yaml.safe_dump(card))
        return str(self.folder / file)

    def study(self, *encoders):
        (self.folder / "study.yaml").write_text(yaml.safe_dump(STUDY | {"encoders": list(encoders)}))
        return "--recipe", self.folder / "study.yaml"

    def run(self, command, *arguments):
        manifest = ["--manifest", self.folder / "data_manifest.yaml", "--work", self.work]
        flags = ["--device", "cpu", "--threads", "1", *manifest] if command != "report" else manifest[2:]
        return CliRunner().invoke(app, [command, *map(str, (*arguments, *flags))])

    def fit(self, *arguments):
        return self.run("fit", *arguments)

    def rows(self):
        parts = [read_run(path) for path in find_runs(places.results(self.work), "toy")]
        return {part.record.encoder.name: part.record.encoder for part in parts}


@pytest.fixture(scope="module")
def make(drawn):
    """The function that makes a `Place` of a folder."""

    def place_of(folder):
        drawn(folder, 1, 1, 1, side=32)
        place = Place(folder)
        place.card()
        place.card("random.yaml", weights=None, random_weights=True)
        write_weights(folder / "w.safetensors", 1)
        return place

    return place_of


@pytest.fixture(scope="module")
def extracted(tmp_path_factory, make):
    place = make(tmp_path_factory.mktemp("toy"))
    done = place.run("extract", *place.study("card.yaml"))
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture
def place(extracted, make):
    """The place where the encoder of a card file has been extracted, as it was then."""
    yield extracted
    make(extracted.folder)
    extracted.study("card.yaml")
    for folder in (places.results(extracted.work), extracted.folder / "moved"):
        shutil.rmtree(folder, ignore_errors=True)


def found_by_cache(place):
    return place.study()


def in_the_recipe(place):
    return place.study("card.yaml")


CHANGES = {
    "name": "other",
    "kind": "texture",
    "architecture": "vit_small_patch16_224",
    "arguments": CARD["arguments"] | {"num_heads": 3},
    "patch": 8,
    "width": 24,
    "prefix_tokens": 0,
    "mean": [0.5, 0.5, 0.4],
    "std": [0.2, 0.2, 0.3],
    "random_weights": True,
}
TEXTURE = {"kind": "texture", "architecture": "", "arguments": {}, "width": 30, "prefix_tokens": 0, "weights": None}


@pytest.mark.parametrize("found", [found_by_cache, in_the_recipe])
@pytest.mark.parametrize("field", CHANGES)
def test_every_field_of_a_card_that_is_in_the_identity_is_named_when_it_changed(place, field, found):
    changes = {"kind": TEXTURE, "random_weights": {"random_weights": True, "weights": None}}
    place.card(**changes.get(field, {field: CHANGES[field]}))
    refused = place.fit(*found(place))
    assert refused.exit_code == 1
    assert f"encoder.{field}" in refused.stderr
    assert "--recompute" in refused.stderr
    assert place.rows() == {}


def test_the_test_above_knows_every_field():
    assert {*CARD_FIELDS, "random_weights"} == CHANGES.keys()
    place = {**CARD, "title": "x"}
    assert place.keys() - CARD_FIELDS == {"title", "weights"}


def test_what_is_no_part_of_the_identity_may_change(place):
    place.card(title="Another title", licence="MIT", notes="none")
    done = place.fit(*in_the_recipe(place))
    assert done.exit_code == 0, done.output
    assert place.rows().keys() == {"tiny"}
    assert "sha256" not in done.output


@pytest.mark.parametrize("found", [found_by_cache, in_the_recipe])
def test_another_file_under_the_name_of_the_weights_is_refused_until_the_old_one_is_back(place, found):
    then, file = sha256_file(place.folder / "w.safetensors"), place.folder / "w.safetensors"
    write_weights(file, 2)
    refused = place.fit(*found(place))
    assert refused.exit_code == 1
    assert "was made with other weights" in refused.stderr
    assert then in refused.stderr and sha256_file(file) in refused.stderr
    assert "--as NAME" in refused.stderr
    write_weights(file, 1)
    assert place.fit(*found(place)).exit_code == 0


def test_other_weights_in_the_recipe_are_refused(place):
    write_weights(place.folder / "new.safetensors", 2)
    refused = place.fit(*place.study({"name": "card.yaml", "weights": "new.safetensors"}))
    assert refused.exit_code == 1
    assert f"({place.folder / 'new.safetensors'})" in refused.stderr


@pytest.mark.parametrize("found", [found_by_cache, in_the_recipe])
def test_when_the_weights_are_not_here_it_is_said_what_the_results_rest_on(place, found):
    then = sha256_file(place.folder / "w.safetensors")
    (place.folder / "moved").mkdir()
    (place.folder / "w.safetensors").rename(place.folder / "moved" / "w.safetensors")
    done = place.fit(*found(place))
    assert done.exit_code == 0, done.output
    told = [line for line in done.stdout.splitlines() if then in line]
    assert len(told) == 1
    assert "w.safetensors was not found, so it was not compared" in told[0]


def test_a_card_that_is_not_here_is_told(place):
    (place.folder / "card.yaml").unlink()
    done = place.fit(*found_by_cache(place))
    assert done.exit_code == 0, done.output
    assert f"its card {place.folder / 'card.yaml'} was not found" in done.stdout


def test_the_report_tells_the_weights_by_the_record_and_not_by_the_recipe(place):
    then = sha256_file(place.folder / "w.safetensors")
    done = place.fit(*place.study({"name": "card.yaml", "weights": "gone.safetensors"}))
    assert done.exit_code == 0, done.output
    line = f"gone.safetensors was not found, so it was not compared: the cache was made with weights of sha256 {then}"
    assert line in done.stdout
    assert place.run("report").exit_code == 0
    page = (places.reports(place.work) / "toy" / "report.md").read_text()
    assert "gone" not in page
    assert f"weights w.safetensors, sha256 {then}" in page.replace("\\", "")


def test_two_weights_of_one_encoder_stand_side_by_side_under_names_of_their_own(place):
    write_weights(place.folder / "new.safetensors", 2)
    study = place.study("card.yaml", {"name": "card.yaml", "weights": "new.safetensors", "as": "mine"})
    for command in ("extract", "fit"):
        done = place.run(command, *study)
        assert done.exit_code == 0, done.output
    rows = place.rows()
    assert {name: row.display for name, row in rows.items()} == {"mine": "mine", "tiny": "Tiny ViT"}
    assert rows["mine"].weights_sha256 == sha256_file(place.folder / "new.safetensors")
    shown = place.run("report").stdout
    assert "mine" in shown and "Tiny ViT" in shown
    by_cache = place.fit(*place.study())
    assert by_cache.exit_code == 0 and "2 caches" in by_cache.stdout
    write_weights(place.folder / "new.safetensors", 3)
    refused = place.fit(*place.study())
    assert "toy · mine" in refused.stderr and "toy · tiny" not in refused.stderr


def test_a_name_can_be_given_on_the_command_line(place):
    write_weights(place.folder / "new.safetensors", 2)
    card, own = place.folder / "card.yaml", ("--as", "typed")
    done = place.run("extract", *place.study(), "--encoder", card, "--weights", place.folder / "new.safetensors", *own)
    assert done.exit_code == 0, done.output
    assert place.fit(*place.study(), "--encoder", "typed").exit_code == 0
    assert place.rows().keys() == {"typed"}
    assert "--as needs exactly one encoder" in str(place.run("extract", "--all", *own).exception)


def test_random_weights_are_called_so_under_any_name(tmp_path, make):
    place = make(tmp_path)
    study = place.study({"name": "card.yaml", "random_weights": True, "as": "dry"})
    assert place.run("extract", *study).exit_code == place.fit(*study).exit_code == 0
    assert {name: row.display for name, row in place.rows().items()} == {"dry-random": "dry (random weights)"}


@pytest.mark.parametrize("twice", [["uni", "uni"], ["uni", {"name": "uni", "weights": "x"}]])
def test_an_encoder_listed_twice_is_refused_with_the_way_out(place, twice):
    with pytest.raises(SpecError, match=r"an encoder is listed twice: uni; .*as: NAME"):
        read_recipe(place.study(*twice)[1])


def test_two_card_files_of_one_name_are_refused_with_the_way_out(place):
    place.card("copy.yaml", title="Copy")
    for command in ("extract", "fit"):
        refused = place.run(command, *place.study("card.yaml", "copy.yaml"))
        assert "are called 'tiny'" in str(refused.exception)
        assert "as: NAME" in str(refused.exception)


@pytest.mark.parametrize("name", ["view-bank", "a/b", "../x", ".hidden", "a b"])
def test_names_that_can_be_no_folder_of_an_encoder_are_refused(place, name):
    with pytest.raises(SpecError, match=r"encoders\[0\]"):
        read_recipe(place.study({"name": "uni", "as": name})[1])


def test_the_name_of_another_encoder_is_refused():
    with pytest.raises(SpecError, match="another encoder has this name"):
        places.encoder_key(EncoderChoice("uni", alias="virchow2"))


def test_without_a_name_recipes_and_choices_are_recorded_as_before():
    assert builtins(EncoderChoice("uni")) == {"name": "uni", "weights": "", "random_weights": False}
    assert builtins(Recipe(encoders=("uni",)))["encoders"] == ("uni",)


def test_weights_in_several_files_are_compared_by_their_index(tmp_path, make):
    place = make(tmp_path)
    index = tmp_path / "w.index.json"
    write_weights(index, 1)
    study = place.study({"name": "card.yaml", "weights": index.name})
    assert place.run("extract", *study).exit_code == place.fit(*study).exit_code == 0
    lost = tmp_path / f"{index.name}-2.safetensors"
    lost.rename(tmp_path / "aside")
    assert "w.index.json was not found, so it was not compared" in place.fit(*study).stdout
    (tmp_path / "aside").rename(lost)
    write_weights(index, 2)
    assert "was made with other weights" in place.fit(*study).stderr


def test_of_a_model_of_timm_it_is_said_what_only_timm_knows(tmp_path, make):
    place = make(tmp_path)
    study = place.study("timm:resnet10t")
    assert place.run("extract", *study, "--encoder", "timm:resnet10t", "--random-weights").exit_code == 0
    done = place.fit(*place.study())
    assert done.exit_code == 0, done.output
    assert "timm-resnet10t-random: patch, width, prefix_tokens, mean and std come from timm" in done.stdout


@pytest.fixture
def hub(tmp_path, make):
    """A cache of weights that came from a hub, in its record; a hub is no part of what is tested."""
    place = make(tmp_path)
    repo = {"repo": "someone/tiny", "file": "w.safetensors"}
    card = place.card("hub.yaml", name="hub", weights=repo)
    place.card("hub.yaml", name="hub")
    assert place.run("extract", *place.study("hub.yaml")).exit_code == 0
    place.card("hub.yaml", name="hub", weights=repo)
    return place, card


def held(place, sha256):
    lock = places.weights_lock(place.work)
    lock.write_text(yaml.safe_dump({"someone/tiny/w.safetensors": {"revision": "a" * 40, "sha256": sha256}}))


def test_weights_of_the_hub_are_compared_by_what_the_lock_holds(hub):
    place, _ = hub
    then = sha256_file(place.folder / "w.safetensors")
    held(place, then)
    done = place.fit(*place.study("hub.yaml"))
    assert done.exit_code == 0, done.output
    line = f"tiny/w.safetensors was not found, so it was not compared: the cache was made with weights of sha256 {then}"
    assert f"someone/{line}" in done.stdout
    held(place, "0" * 64)
    refused = place.fit(*place.study("hub.yaml"))
    assert refused.exit_code == 1
    assert "weights.lock.yaml" in refused.stderr and "0" * 64 in refused.stderr


def test_a_recorded_file_of_the_hub_is_compared_itself(hub, monkeypatch):
    place, _ = hub
    fetched = place.folder / "snapshots" / ("a" * 40) / "w.safetensors"
    fetched.parent.mkdir(parents=True)
    shutil.copy(place.folder / "w.safetensors", fetched)
    monkeypatch.setattr("fmcache.encoders.weights.download_weights", lambda *_: fetched)
    own = place.study({"name": "hub.yaml", "as": "again"})
    assert place.run("extract", *own).exit_code == 0
    done = place.fit(*own)
    assert done.exit_code == 0 and "compared" not in done.stdout, done.output
    write_weights(place.folder / "w.safetensors", 5)
    shutil.copy(place.folder / "w.safetensors", fetched)
    assert f"({fetched})" in place.fit(*own).stderr


def test_the_choice_of_a_teacher_is_in_the_record_of_the_cache_and_not_in_its_identity(tmp_path, make):
    place = make(tmp_path)
    from safetensors.torch import load_file

    state = load_file(tmp_path / "w.safetensors")
    torch.save({"teacher": state, "student": {k: v + 1 for k, v in state.items()}}, tmp_path / "both.pth")
    assert place.run("extract", *place.study({"name": "card.yaml", "weights": "both.pth"})).exit_code == 0
    (path,) = (place.work / "cache" / "toy" / "tiny").glob("*.zarr")
    header = open_cache(path, "tokens", {}).header
    (note,) = header.about["origin"]["notes"]
    assert "the teacher is used" in note
    assert "teacher" not in json.dumps(header.identity)


def test_a_stage_called_from_python_refuses_as_the_command_does(place):
    from fmcache.manifest import Manifest

    recipe = read_recipe(place.study("card.yaml")[1])
    manifest = Manifest(place.folder / "data_manifest.yaml")
    flags = Flags(place.work, device="cpu", threads=1)
    place.card(mean=[0.1, 0.1, 0.1])
    (failure,) = fit(recipe, manifest, flags, lambda _: None)
    assert isinstance(failure.error, CacheMismatch)
    assert isinstance(extract(recipe, manifest, flags, lambda _: None)[0].error, CacheMismatch)

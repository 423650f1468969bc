"""The recipe that `fmcache init` writes: every field of `Recipe` with its default, its meaning and its allowed values.

Names, defaults, ranges and allowed values come from the types in `fmcache.specs`; only the descriptions are here. A
field without a description raises an error, so that a new field cannot be forgotten.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import yaml
from msgspec import inspect

from fmcache.specs import EncoderChoice, Recipe
from fmcache.strict import builtins

FOLDED = {"\x85", "\u2028", "\u2029"}
"""Unicode line breaks. The YAML dumper may leave them as they are; the reader then turns them into spaces."""
WORDS = {
    "name": "name of the study in folders, tables and figures: letters, digits, '.', '_' and '-'. If you change a "
    "value, change the name too: results of another recipe with the same name are refused",
    "question": "the question of the study; the report begins with it",
    "expect": "the result that you expect; free text, shown in the report",
    "datasets": "datasets of the manifest (`fmcache data list`), for example [demo]; []: the manifest's default",
    "folds": "train every seed on each fold of the dataset (`fmcache data split --folds`) instead of its fixed split",
    "subset": "train on the listed subset of this size (`fmcache data split --subsets`); 0: on all training tiles",
    "encoders": "encoders to compare (`fmcache encoders list`), for example [uni, raw-pixels]. An entry is a name, or "
    "a mapping with the keys below, for example {name: uni, weights: mine.pth, as: uni-mine}",
    "encoders.name": "name of a card, a card file (mine.yaml), or timm:NAME; required",
    "encoders.weights": "file or folder of weights, relative to this recipe; '': those that the card names",
    "encoders.random_weights": "dry run: random weights, labelled as such in every table and figure",
    "encoders.as": "another name for folders, tables and figures, to compare two weights files of one encoder",
    "tile_px": "edge of the tiles that encoders get, in pixels; images of another size are resized",
    "views": "random changes of the training tiles. View 0 is the tile itself; all encoders see the same views",
    "views.count": "random views of a training tile, in addition to view 0; encoders run once over each",
    "views.seed": "seed of the random views",
    "views.rotate_deg": "largest rotation in degrees, in both directions",
    "views.flip": "mirror half of the views",
    "views.scale": "largest zoom factor, in and out; 1: no zoom",
    "views.shear_deg": "largest shear in degrees, in both directions",
    "views.translate": "largest shift as a share of the tile, in all directions",
    "views.brightness": "largest change of brightness as a share; 0.2: factors 0.8 to 1.2",
    "views.contrast": "largest change of contrast as a share",
    "views.saturation": "largest change of saturation as a share",
    "views.hue": "largest change of hue as a share of the colour circle",
    "views.outside": "the mask where a view reaches beyond the tile: not counted (ignore), or reflected like the image",
    "grid": "if tile_px is not a multiple of an encoder's patch size: resize the view to the nearest multiple (fit), "
    "add reflected pixels (pad), or cut pixels off (crop)",
    "taps": "layers to take tokens from: last (after the final norm), the output of a block counted from 1 ('6'), or "
    "this output after the final norm ('6+norm'). Each has its own cache and its own decoders, unless decoder.kind is "
    "multi-tap; for example ['6', last]",
    "precision": "number format in which encoders run; published: the format that each card names",
    "store": "number format of cached tokens: float16, float32, or one of them with only N mantissa bits, which "
    "needs less disk: float16-round1 to float16-round9, float32-round1 to float32-round19",
    "decoder": "the light decoder, the same for every encoder",
    "decoder.kind": "the paper's decoder (paper), the same with group normalisation in its blocks (paper-norm), a "
    "linear probe with logits resized to the tile (linear), or the paper's decoder on the sum of all taps (multi-tap)",
    "decoder.width": "channels inside the decoder; a linear probe has none",
    "decoder.bias": "how the biases of the logits start: at random, or at the logarithms of the labels' shares of the "
    "training pixels (label-shares)",
    "fit": "how a decoder is trained",
    "fit.seeds": "number of seeds: each decoder is trained once per seed; the report shows the spread between seeds",
    "fit.epochs": "epochs of one training run",
    "fit.batch": "views in a batch",
    "fit.learning_rate": "learning rate at the start of each cosine",
    "fit.restart_epochs": "epochs of one cosine, from learning_rate down to 0; then the next cosine starts",
    "fit.validate_epochs": "epochs between two validations; the weights with the best validation are tested",
    "fit.passes_per_epoch": "views of each training tile that an epoch uses",
    "fit.standardise": "scale tokens to mean 0 and standard deviation 1 in each channel, over the training tiles "
    "(channel), or leave them as they are (none)",
    "fit.cross_entropy_weight": "weight of the cross-entropy in the loss",
    "fit.dice_weight": "weight of the Dice loss in the loss",
    "fit.precision": "number format of the decoder's operations. float32: on a GPU with inputs of convolutions rounded "
    "to TF32, as PyTorch does; float32-ieee: never rounded; bfloat16: faster on a GPU, not on a CPU",
    "dice": "how the Dice of a label combines the test tiles: pixels of all tiles summed (pooled), the mean over tiles "
    "(per_tile), or the formula of the PUMA challenge (puma)",
    "boundary": "also score how much of the boundaries of labels agrees within this distance, for example '2 um' (the "
    "dataset must state its um per pixel) or '4 px' (of tile_px); '': do not",
    "sweep": "values of any of the fields above by dotted name, for example "
    "{fit.passes_per_epoch: [1, 5], decoder.width: [32, 256]}. Every combination is one study, and one report compares "
    "them. Caches are shared where no field changes them. {}: no sweep",
}
"""What each field means, by its path in the file; keys of an entry of `encoders` are below ``encoders.``."""

HEAD = """\
# A recipe: all settings that can change a result. Every field is listed with its default; the defaults are the
# paper's protocol. If you delete a line, its default is used. Workers, folders and device are flags of the commands.
# fmcache plan RECIPE estimates the cost of a recipe; fmcache run RECIPE runs it.
"""
COLUMN, WIDTH = 30, 118
_TOGETHER = re.compile(r"`[^`]*`|\{[^}]*\}|\[[^]]*\]|\([^)]*\)")  # text that must stay on one line of a comment
_NO_BREAK = "\N{NO-BREAK SPACE}"


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as YAML text: every field with its value and a comment. Reading it gives an equal recipe."""
    return HEAD + "\n" + "\n".join(_lines(Recipe, recipe, "", "")) + "\n"


def _lines(kind: type[msgspec.Struct], value: msgspec.Struct, path: str, indent: str) -> Iterator[str]:
    """Yield the lines of a struct's fields; `path` is the key of the struct and a dot, or empty."""
    for field in _fields(kind):
        key, inner = f"{path}{field.encode_name}", getattr(value, field.name)
        start = f"{indent}{field.encode_name}:"
        if isinstance(field.type, inspect.StructType):
            yield from _commented(start, WORDS[key])
            yield from _lines(field.type.cls, inner, f"{key}.", indent + "  ")
        else:
            yield from _commented(f"{start} {_yaml(builtins(inner))}", WORDS[key] + _allowed(field))
        if key == "encoders":
            yield from _entry_lines(f"{key}.")


def _entry_lines(path: str) -> Iterator[str]:
    """Yield the keys of an encoder's entry as comments, because the default recipe has no entry."""
    for field in _fields(EncoderChoice):
        default = "" if field.default is msgspec.NODEFAULT else f" {_yaml(field.default)}"
        words = WORDS[path + field.encode_name] + _allowed(field)
        yield from _commented(f"#   {field.encode_name}:{default}", words)


def _fields(kind: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    return cast(inspect.StructType, inspect.type_info(kind)).fields


def _commented(start: str, words: str) -> Iterator[str]:
    """Yield a line with its comment beside it, or below it if the line is long; the comment is wrapped."""
    kept = _TOGETHER.sub(lambda found: found[0].replace(" ", _NO_BREAK), words)
    wrapped = textwrap.wrap(kept, WIDTH - COLUMN - 2, break_long_words=False, break_on_hyphens=False)
    first, *rest = (line.replace(_NO_BREAK, " ") for line in wrapped)
    if len(start) < COLUMN:
        yield f"{start:<{COLUMN}}# {first}"
    else:
        yield start
        rest = [first, *rest]
    yield from (f"{'':<{COLUMN}}# {line}" for line in rest)


def _yaml(value: Any) -> str:
    """Return a value as YAML on one line, in quotes if it would otherwise be read as something else."""
    for as_it_is in (True, False):
        text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=as_it_is, width=float("inf"))
        if not FOLDED & set(text):
            break
    return text.removesuffix("\n").removesuffix("\n...")


def _allowed(field: inspect.Field) -> str:
    """Return the values or the range that a field allows, as the end of its comment; empty if any text is allowed."""
    kind = field.type.item_type if isinstance(field.type, inspect.VarTupleType) else field.type
    if isinstance(kind, inspect.LiteralType):
        others = [str(value) for value in kind.values if value != field.default]
        return f". One of: {', '.join([str(field.default), *others])}"
    if isinstance(kind, inspect.BoolType):
        return "; true or false"
    if not isinstance(kind, inspect.IntType | inspect.FloatType):
        return ""
    low = f"above {kind.gt}" if kind.gt is not None else f"{kind.ge} or more"
    if kind.le is not None:
        return f" ({kind.ge} to {kind.le})"
    return f" ({low}, below {kind.lt})" if kind.lt is not None else f" ({low})"

"""A study from Python: runs what the commands run, and returns results as tables, datasets and torch modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fmcache.errors import FmcacheError, ResultsNotFound, SpecError
from fmcache.manifest import Manifest, Split
from fmcache.remote.copies import local_work
from fmcache.specs import Recipe, read_recipe, variants
from fmcache.stages import at_url, places
from fmcache.stages.flags import Failure, Flags

if TYPE_CHECKING:
    import polars as pl

    from fmcache.cache.reader import Cache
    from fmcache.decoders.batches import TokenGrids
    from fmcache.decoders.fitted import FittedDecoder


class Study:
    """A recipe with its manifest and working folder; reads and writes the same files as the command line.

    Parameters
    ----------
    recipe
        A recipe, or the path of its YAML file.
    work, manifest
        The working folder (or a URL, such as ``s3://BUCKET/PREFIX``), and the file that lists datasets.
    device, threads, workers, offline
        As the flags of the commands: they change no number beyond rounding. `workers` is a number of processes, or the
        address of a Dask scheduler (`--dask`).
    say
        Called with each line that the commands would print; None: nothing is printed.
    progress
        The stream on which progress is shown; None: progress is not shown.

    Raises
    ------
    SpecError, ManifestError
        When recipe or manifest cannot be read.
    """

    def __init__(
        self,
        recipe: Recipe | Path | str,
        work: Path | str = "work",
        manifest: Path | str = "data_manifest.yaml",
        *,
        device: str = "auto",
        threads: int = 0,
        workers: int | str = 0,
        offline: bool = False,
        say: Callable[[str], None] | None = None,
        progress: TextIO | None = None,
    ) -> None:
        self.recipe = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe))
        self.manifest = Manifest(Path(manifest))
        # a program cannot be asked whether a large sweep is meant
        self._flags = Flags(local_work(work), device, threads, workers, offline=offline, yes=True)
        self._say, self._progress = say or (lambda _: None), progress

    def __repr__(self) -> str:
        return f"Study({self.recipe.name!r}, work={str(self._flags.work)!r})"

    def variants(self) -> tuple[Study, ...]:
        """Return the studies of a sweep, one for each setting; only itself when the recipe has no sweep."""
        return tuple(map(self._like, variants(self.recipe)))

    def extract(self, *, recompute: bool = False) -> None:
        """Run the encoders over all views and cache their token grids; existing views are kept.

        Raises
        ------
        FmcacheError
            When an encoder failed. It is raised at the end, after all other encoders have run.
        """
        from fmcache.stages.extract import extract

        with self._progress_shown():
            _raise(extract(self.recipe, self.manifest, self._flags._replace(recompute=recompute), self._say))

    def fit(self, *, recompute: bool = False) -> None:
        """Train a decoder for every encoder and seed from the cached grids; finished runs are kept.

        Raises
        ------
        FmcacheError
            When an encoder failed. It is raised at the end, after all other encoders were fitted.
        """
        from fmcache.stages.fit import fit

        with self._progress_shown():
            _raise(fit(self.recipe, self.manifest, self._flags._replace(recompute=recompute), self._say))

    def report(self) -> Path:
        """Write tables and figures, and return the Markdown page.

        Raises
        ------
        ResultsNotFound
            When nothing was fitted.
        FmcacheError
            When results are damaged. It is raised at the end, after all other runs were reported.
        """
        from fmcache.stages.report import report

        at_url.fetch_results(self._flags.work)
        (*_, written) = report(places.results(self._flags.work), places.reports(self._flags.work), self.recipe.name)
        if written.damaged:
            raise written.damaged[0]
        return written.path

    def results(self) -> pl.DataFrame:
        """Return the counts of all runs: dataset, encoder, fold, seed, split, tile, label, tp, fp, fn.

        `fold` is null for a dataset's fixed split; tp, fp and fn are pixels. Every file is checked against its
        checksum.

        Raises
        ------
        ResultsNotFound
            When nothing was fitted.
        ResultsCorrupt, ResultsMismatch
            When files of a run are damaged, or a later fmcache wrote them.
        """
        from fmcache.scores.results import results_table
        from fmcache.scores.run_files import find_runs, read_run

        self._check_one()
        at_url.fetch_results(self._flags.work)
        runs = [read_run(folder) for folder in find_runs(places.results(self._flags.work), self.recipe.name)]
        if not runs:
            raise ResultsNotFound(
                f"nothing was fitted for recipe {self.recipe.name!r} in {self._flags.work}", next_step="study.fit()"
            )
        return results_table(runs)

    def dice(self, split: Split = "test") -> pl.DataFrame:
        """Return the Dice of each run and label on a split: dataset, encoder, fold, seed, label, dice (0 to 1).

        Tiles are combined as the recipe says (`Recipe.dice`). Dice is null for a label without a pixel in the
        truth of the run's tiles. Raises the errors of `results`.
        """
        from fmcache.scores.results import dice_table

        return dice_table(self.results(), split, self.recipe.dice)

    def grids(self, dataset: str, encoder: str, split: Split, *, fold: int | None = None, tap: str = "") -> TokenGrids:
        """Return the cached grids and masks of a split, in memory, as a torch Dataset.

        Its items are views, tile by tile: tokens (channel, row, col) float32 and mask (y, x) uint8, 255 where the truth
        is unknown. Training tiles have all views except the untouched one; other tiles have the untouched one only.

        Parameters
        ----------
        encoder
            Name of the encoder in tables and folders.
        fold
            A fold of the dataset; None for its fixed split.
        tap
            A tap of the recipe. '': what the decoder reads, which is all taps, channel after channel, if it joins them;
            otherwise ``last``.

        Raises
        ------
        CacheNotFound, CacheUnsealed, CacheMismatch, CacheCorrupt
            When there is no complete, sound cache of the encoder for this recipe, or manifest, card or weights are not
            those that it was made from.
        SpecError, ManifestError
            When there is no such dataset, fold or split.
        """
        from fmcache.decoders.batches import JoinedTaps, load_token_grids
        from fmcache.demand import demand_of
        from fmcache.runtime.devices import pick_device
        from fmcache.stages.inputs import open_masks, open_taps

        self._check_one()
        work, recipe = self._flags.work, self.recipe
        demand = demand_of(recipe, dataset, self.manifest.dataset(dataset))
        if fold not in demand.splits or split not in ("train", "val", "test"):
            raise SpecError(
                f"recipe {recipe.name!r} has no fold {fold}, split {split!r} of {dataset!r}",
                expected=f"fold {' or '.join(map(str, demand.splits))}; train, val or test",
            )
        taps = (tap,) if tap else recipe.taps if recipe.decoder.joins_taps else ("last",)
        at_url.fetch_masks(recipe, demand, work)
        at_url.fetch_tokens(recipe, demand, encoder, taps, work)
        masks = open_masks(recipe, demand, work)
        caches = open_taps(recipe, demand, encoder, taps, masks, work)
        for cache in caches:
            self._check_origin(cache, encoder)
        tokens = JoinedTaps(caches) if len(caches) > 1 else caches[0]
        views = range(1, recipe.views.count + 1) if split == "train" else range(1)
        tiles, device = demand.splits[fold].of(split), pick_device(self._flags.device)
        return load_token_grids(tokens, masks, tiles, views, device, places.results(work))

    def decoder(self, dataset: str, encoder: str, seed: int, *, fold: int | None = None) -> FittedDecoder:
        """Return the decoder of a run with its best weights, in evaluation mode: tokens to logits.

        It takes cached tokens (view, channel, row, col) float32, and standardises them if the run did; logits are
        (view, label, y, x). The files of the run are checked against their checksums.

        Raises
        ------
        ResultsNotFound, ResultsCorrupt, ResultsMismatch
            When there is no such run, its files are damaged, or a later fmcache wrote them.
        """
        from fmcache.decoders.fitted import load_decoder
        from fmcache.scores.run_files import WEIGHTS, read_record, run_folder

        self._check_one()
        at_url.fetch_results(self._flags.work)
        folder = run_folder(places.results(self._flags.work), self.recipe.name, dataset, encoder, seed, fold)
        return load_decoder(folder / WEIGHTS, read_record(folder))

    def predict(
        self,
        slides: Path | str,
        dataset: str,
        encoder: str,
        *,
        seed: int | None = None,
        all_seeds: bool = False,
        into: Path | str | None = None,
        overlap: float = 0.5,
        mpp_of_slide: float | None = None,
        cache_tokens: bool = False,
    ) -> Path:
        """Write label maps of a slide or of a folder of slides, and return their folder; complete maps are kept.

        Without a seed, the median one by validation Dice predicts. With `cache_tokens`, the tokens of the slides are
        kept, and maps by other seeds or decoders need no encoder. The other settings of ``fmcache predict`` have their
        defaults.

        Raises
        ------
        ResultsNotFound, ResultsCorrupt, ResultsMismatch
            When there is no such run, its files are damaged, or a map there was made in another way.
        FmcacheError
            When a slide failed. It is raised at the end, after all other slides.
        """
        from fmcache.stages.predict import predict
        from fmcache.stages.predict_request import PredictRequest
        from fmcache.stages.run_choice import RunQuery

        self._check_one()
        request = PredictRequest(
            Path(slides),
            RunQuery(self.recipe.name, encoder, dataset, seed, None, all_seeds),
            into=Path(into) if into else None,
            overlap=overlap,
            mpp_of_slide=mpp_of_slide,
            manifest=self.manifest.path,
            cache_tokens=cache_tokens,
        )
        with self._progress_shown():
            folder, failures = predict(request, self._flags, self._say)
        _raise(failures)
        return folder

    def _check_origin(self, tokens: Cache, encoder: str) -> None:
        from fmcache.remembered import Remembered
        from fmcache.stages.origins import check_origin

        work, remembered = self._flags.work, Remembered(places.remembered(self._flags.work))
        chosen = places.encoder_keys(self.recipe).get(encoder)
        for line in check_origin(tokens, encoder, chosen, self.recipe, places.weights_lock(work), remembered.sha256):
            self._say(f"{encoder}: {line}")
        remembered.keep()

    def _like(self, recipe: Recipe) -> Study:
        other = object.__new__(Study)
        other.__dict__ |= self.__dict__ | {"recipe": recipe}
        return other

    def _check_one(self) -> None:
        if self.recipe.sweep:
            raise SpecError(
                f"recipe {self.recipe.name!r} has a sweep: it is one study for each setting",
                next_step="use one of study.variants()",
            )

    @contextmanager
    def _progress_shown(self) -> Iterator[None]:
        from fmcache.runtime.progress import SILENT, progress_to

        with progress_to(self._progress or SILENT):
            yield


def _raise(failures: Sequence[Failure]) -> None:
    """Raise the error of the first failure, with a note for each failure."""
    if not failures:
        return
    error: FmcacheError = failures[0].error
    for failure in failures:
        error.add_note(f"{failure.dataset} · {failure.encoder}: {failure.error.problem}")
    raise error

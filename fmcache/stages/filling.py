"""Fill mask caches and token caches: find missing shards, report their size, write them, seal the cache."""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import torch

from fmcache.cache.encoding import store_of
from fmcache.cache.layout import raw_bytes
from fmcache.cache.writer import Writer, open_writer
from fmcache.encoders.building import CPU
from fmcache.encoders.cards import SUFFIXES, Weights, precision_of
from fmcache.encoders.load import Encoder
from fmcache.encoders.taps import LAST, check_taps, grid_at, width_at
from fmcache.errors import Busy, FmcacheError, NoRoom
from fmcache.grid import GridGeometry
from fmcache.manifest import AnyDataset, FileDataset
from fmcache.runtime import runners
from fmcache.runtime.admission import Sees
from fmcache.runtime.devices import Where, using_threads, versions, where
from fmcache.runtime.progress import progress
from fmcache.runtime.sizes import size_text
from fmcache.scores.records import EncoderInfo
from fmcache.shortage import naming_shortage
from fmcache.specs import EncoderChoice
from fmcache.stages import at_url, places
from fmcache.stages.extract_request import ExtractRequest
from fmcache.stages.identities import mask_identity, tokens_identity, with_encoder
from fmcache.stages.origins import origin_of, weights_name
from fmcache.stages.scale import is_recorded, scale_of, sides_of, without_side
from fmcache.stages.shards import (
    LESS_MEMORY,
    EncoderSetup,
    LoadedEncoder,
    ShardBundle,
    ShardTask,
    Target,
    ViewSource,
    bundles,
    load,
    write_mask_shards,
    write_token_shards,
)
from fmcache.strict import builtins

H = TypeVar("H")
Read = tuple[tuple[str, Path], ...]
WAIT_S = 0.5


def fill_masks(asked: ExtractRequest) -> None:
    """Write the missing shards of a dataset's mask cache; raises the errors of `fmcache.stages.extract.extract`."""
    with using_threads(asked.flags.threads):
        _fill_masks(asked)


def fill_encoder(asked: ExtractRequest, choice: EncoderChoice, make_mask_cache: Callable[[], None]) -> None:
    """Load an encoder and write the missing shards of its caches for a dataset; free the encoder at the end.

    `make_mask_cache` is called after the encoder is loaded. So a user without access to the weights sees the error
    before masks are rendered.
    """
    with using_threads(asked.flags.threads):
        _fill_encoder(asked, choice, make_mask_cache)


def _fill_masks(asked: ExtractRequest) -> None:
    recipe, demand, path = asked.recipe, asked.demand, asked.mask_cache_path
    name, dataset, source = demand.name, demand.dataset, _source(asked)
    identity = mask_identity(recipe, name, dataset, asked.hashes)
    scale = scale_of(dataset)
    about = {"versions": versions("fmcache", "opencv-python-headless", "pillow")} | scale
    item, title = (recipe.tile_px, recipe.tile_px), f"{name} · mask cache"
    # existing shards were checked against the um/px that the manifest stated at that time: check the tiles again
    if scale["view_mpp"] and not asked.flags.recompute and not is_recorded(path, dataset):
        for entry in demand.entries:
            source.tile(entry)

    @contextmanager
    def opened() -> Iterator[Writer]:
        recompute = asked.flags.recompute
        with (
            at_url.writing(path, recompute=recompute),
            open_writer(path, "view_bank", identity, item, "uint8", demand.views, about, recompute=recompute) as writer,
        ):
            yield writer

    with _when_free(opened, title, asked.say) as writer:
        at = where("cpu", asked.flags.threads, asked.flags.workers)
        work = _Work(title, title, source, source, write_mask_shards, _read(asked), at)
        _fill(asked, [writer], (), work)
        lacking = without_side(recipe, demand, asked.hashes, path)
        writer.record(scale | sides_of(lacking, asked.hashes, path, source.side_px))


def _fill_encoder(asked: ExtractRequest, choice: EncoderChoice, make_mask_cache: Callable[[], None]) -> None:
    recipe, flags, name = asked.recipe, asked.flags, asked.demand.name
    at, lock = where(flags.device, flags.threads, flags.workers), places.weights_lock(flags.work)
    # with workers, this process needs only shapes and hashes: each worker loads its own encoder
    device, compiled = (CPU, False) if flags.workers else (torch.device(at.device), flags.compiled)
    with naming_shortage(f"{name} · {choice.name}", LESS_MEMORY):
        encoder = load(choice, device, offline=flags.offline, lock=lock, compiled=compiled)
        card = encoder.card
        grid = GridGeometry(recipe.tile_px, card.patch, recipe.grid)
        check_taps(encoder, recipe.taps, grid)
        make_mask_cache()
        setup = EncoderSetup(
            _source(asked), choice, grid, precision_of(recipe.precision, card, at.device != "cpu"), recipe.store,
            at.device, at.threads, flags.offline, lock, flags.compiled,
        )  # fmt: skip
        title = f"{name} · {_info(encoder, choice, LAST).display}"
        with ExitStack() as stack:
            writers = [stack.enter_context(_token_writer(asked, setup, encoder, tap, at.name)) for tap in recipe.taps]
            encoding = None if flags.workers else LoadedEncoder(setup, encoder)
            read = _read(asked, choice, encoder)
            del encoder
            work = _Work(title, f"{name} · {choice.name}", setup, encoding, write_token_shards, read, at)
            _fill(asked, writers, recipe.taps, work)


def _source(asked: ExtractRequest) -> ViewSource:
    bare: AnyDataset = msgspec.structs.replace(asked.demand.dataset, tiles=())
    return ViewSource(asked.folder, asked.demand.name, bare, asked.recipe.tile_px, asked.recipe.views)


def _read(asked: ExtractRequest, choice: EncoderChoice | None = None, encoder: Encoder | None = None) -> Read:
    """Return what tasks of a dataset read: files and folders, by what they are.

    Weights of the hub are left out: each worker finds or downloads them itself, pinned by the lock file.
    """
    found: list[tuple[str, Path]] = [("manifest", asked.manifest)]
    if isinstance(asked.demand.dataset, FileDataset):
        found.append(("folder of the tiles", asked.folder / asked.demand.dataset.root))
    if choice and choice.name.endswith(SUFFIXES):
        found.append(("card", Path(choice.name)))
    if choice and encoder and encoder.weights and (choice.weights or not (encoder.card.weights or Weights()).repo):
        found.append(("weights", encoder.weights))
    return tuple(found)


@contextmanager
def _when_free(
    opened: Callable[[], AbstractContextManager[Writer]], title: str, say: Callable[[str], None]
) -> Iterator[Writer]:
    """Open a cache that all processes need; wait while another process writes it."""
    with ExitStack() as held:
        while True:
            try:
                writer = held.enter_context(opened())
                break
            except Busy:
                if title:
                    say(f"{title}: another process is writing it; waiting until that process ends")
                title = ""
                time.sleep(WAIT_S)
        yield writer


@contextmanager
def _token_writer(
    asked: ExtractRequest, setup: EncoderSetup, encoder: Encoder, tap: str, device: str
) -> Iterator[Writer]:
    recipe, flags, demand, choice = asked.recipe, asked.flags, asked.demand, setup.choice
    path = places.tokens_path(flags.work, demand.name, places.encoder_key(choice), recipe, tap)
    identity = with_encoder(
        tokens_identity(recipe, demand.name, asked.hashes, tap), builtins(encoder.card), encoder.weights_sha256,
        encoder.random_weights, setup.precision,
    )  # fmt: skip
    about = {
        "device": device,
        "compiled": flags.compiled,
        "versions": versions("fmcache", "torch", "timm", "opencv-python-headless", "pillow"),
        "origin": builtins(origin_of(choice, encoder.card, encoder.weights, encoder.notes)),
        "encoder": builtins(_info(encoder, choice, tap)),
    }
    at, store = grid_at(encoder, tap, setup.grid), store_of(recipe.store)
    item = (width_at(encoder, tap), at.side, at.side)
    with (
        at_url.writing(path, recompute=flags.recompute),
        open_writer(
            path,
            "tokens",
            identity,
            item,
            store.dtype,
            demand.views,
            about,
            recompute=flags.recompute,
            compressor=store.compressor,
        ) as writer,
    ):
        yield writer


def _info(encoder: Encoder, choice: EncoderChoice, tap: str) -> EncoderInfo:
    """Return the facts about an encoder for tables and figures; each tap except the last is a separate entry."""
    card, kind, key = encoder.card, "block" if encoder.axes == "tokens" else "stage", places.encoder_key(choice)
    title = choice.alias or card.title
    name, title = (key, title) if tap == LAST else (f"{key}@{tap}", f"{title}, {kind} {tap}")
    patch = card.patch if tap == LAST else encoder.taps[int(tap.partition("+")[0]) - 1].patch
    return EncoderInfo(
        name, title, encoder.params, width_at(encoder, tap), patch, card.control, encoder.random_weights,
        encoder.weights_sha256, card.licence, card.citation, weights_name(choice, card, encoder.weights),
    )  # fmt: skip


class _Work(NamedTuple):
    """How shards are written: `setup` for worker processes; `shared`, the opened setup, for this process.

    `read` is what tasks read, for workers on other machines; `at` is where tasks run.
    """

    title: str
    of: str
    setup: runners.Setup[Any]
    shared: Any
    write: Callable[[Any, Sequence[ShardTask], runners.Tick], None]
    read: Read
    at: Where


def _fill(asked: ExtractRequest, writers: Sequence[Writer], taps: Sequence[str], work: _Work) -> None:
    """Write the missing shards of caches with the same views. One task covers the same views in all these caches.

    Shards of different taps may hold different numbers of views. Then the views go through the encoder once for each
    such number. Without workers, this process writes all tasks as one pipeline: it prepares the next task while the
    current one runs. With workers, each process gets one bundle of tasks at a time, and writes it as such a pipeline.
    """
    first, title, say = writers[0], work.title, asked.say
    by_views: dict[tuple[str, int, int], list[Target]] = {}
    size = 0
    for writer in writers:
        missing = writer.missing()
        size += raw_bytes(missing, writer.layout.view_bytes)
        for shard in missing:
            views = (writer.header.tiles[shard.tile], shard.first, shard.stop)
            by_views.setdefault(views, []).append(Target(writer.path, shard, writer.header.fingerprint))
    wanted, passes = sum(first.demand), sum(stop - start for _, start, stop in by_views)
    todo = len({(tile, view) for tile, start, stop in by_views for view in range(start, stop)})
    if not by_views and all(writer.header.state == "sealed" for writer in writers):
        say(f"{title}: complete, {wanted} views")
        return
    free = shutil.disk_usage(first.path.parent).free
    shapes = Counter("x".join(str(n) for n in writer.layout.item) for writer in writers)
    layout = " + ".join(shape + (f" at {n} taps" if n > 1 else "") for shape, n in shapes.items())
    say(f"{title}: {todo} of {wanted} views of {layout}, at most {size_text(size)}; {size_text(free)} free on disk")
    if size > free:
        raise NoRoom(
            f"{first.path} does not fit on the disk",
            expected=f"{size_text(size)} free; compression usually makes the cache smaller",
            found=f"{size_text(free)} free",
            next_step="free disk space, choose another working folder with --work, or use fewer views",
        )
    for writer in writers:
        writer.begin()
    by_id = {entry.id: entry for entry in asked.demand.entries}
    tap_of = {writer.path: tap for writer, tap in zip(writers, taps, strict=False)}
    tasks = [
        ShardTask(work.of, tuple(targets), by_id[tile], tuple(tap_of[one.path] for one in targets if tap_of))
        for (tile, _, _), targets in by_views.items()
    ]
    with (
        _recording_cost(writers, work.at.name if taps else ""),
        progress(title, wanted - todo + passes, "views", done=wanted - todo) as tick,
    ):
        if asked.flags.workers:
            groups = [(work.setup, bundles(tasks, work.at.processes))]
            one = functools.partial(_write_bundle, work.write)
            sees = Sees(work.read, (("working folder", asked.flags.work), ("cache folder", first.path.parent)))
            with closing(runners.run(one, groups, tick, asked.flags.workers, sees)) as ended:
                for _ in ended:
                    pass
        elif tasks:
            with naming_shortage(title, LESS_MEMORY):
                work.write(work.shared, tasks, tick)
    for writer in writers:
        writer.seal()


@contextmanager
def _recording_cost(writers: Sequence[Writer], device: str) -> Iterator[None]:
    """Record in the header of each cache the wall time of the body, and the views that it wrote, also if it fails.

    Both are added to those of earlier commands. A process that is killed records nothing: neither its time nor its
    views. Caches of several taps that are written in one pass share its time: each records all of it. The time
    includes reading tiles and, with workers, starting them.
    """
    start, missing = time.monotonic(), [_views(writer) for writer in writers] if device else []
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, FmcacheError):  # the first error is the one to report
            _record_cost(writers, missing, time.monotonic() - start, device)
        raise
    _record_cost(writers, missing, time.monotonic() - start, device)


def _record_cost(writers: Sequence[Writer], missing: Sequence[int], seconds: float, device: str) -> None:
    for writer, before in zip(writers, missing, strict=False):
        if views := before - _views(writer):
            earlier = writer.header.about.get("extraction") or {"seconds": 0.0, "views": 0, "device": device}
            devices = dict.fromkeys([*earlier["device"].split(" + "), device])
            cost = {"seconds": round(earlier["seconds"] + seconds, 3), "views": earlier["views"] + views}
            writer.record({"extraction": cost | {"device": " + ".join(devices)}})


def _views(writer: Writer) -> int:
    return sum(shard.weight for shard in writer.missing())


def _write_bundle(
    write: Callable[[H, Sequence[ShardTask], runners.Tick], None], shared: H, bundle: ShardBundle, tick: runners.Tick
) -> Sequence[None]:
    """Write the shards of a bundle in a worker process. The shards are the only result, so it returns no items."""
    write(shared, bundle.tasks, tick)
    return ()

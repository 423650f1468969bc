"""Faults: a file is damaged, as disks and people do; the next commands must report it or give the same numbers."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from torturing.commands import Done, run
from torturing.study import (
    FETCHED,
    HUB,
    MANIFEST,
    REPORT,
    VERIFY,
    State,
    Study,
    compared,
    differing,
    extract,
    fit,
    state_of,
)

LS = "cache ls"
KINDS = {
    "shard": r"\.zarr/\w+/c/",
    "group": r"\.zarr/zarr\.json$",
    "array": r"\.zarr/\w+/zarr\.json$",
    "checksums": r"checksums-\w+\.bin$",
    "filling record": r"/filling/",
    "lock file": r"(^|/)\.[^/]*\.lock$",
    "weights lock": r"weights\.lock\.yaml$",
    "weights": rf"^{HUB}/.*safetensors$",
    "hashes": r"hashes\.json$",
    "run.json": r"run\.json$",
    "counts": r"counts\.parquet$",
    "curve": r"curve\.parquet$",
    "decoder": r"decoder\.safetensors$",
    "predictions": r"predictions\.parquet$",
    "report": r"^work/report/",
    "manifest": rf"^{re.escape(MANIFEST)}$",
    "dataset lock": rf"^{re.escape(FETCHED)}$",
    "image": r"^(mine|got)/images/",
    "mask": r"^(mine|got)/masks/",
}
USERS = ("manifest", "dataset lock", "image", "mask", "weights", "weights lock")
"""Files that fmcache cannot make again: the user restores them when a message names them."""
DAMAGES = ("flip", "overwrite", "zero", "cut", "empty", "remove", "swap")
TEXTS = (".json", ".yaml")
OTHER_TEXTS = (b"{}", b"[]", b"null", b"3", b'"x"', b'{"format": 1}', b"[" * 100_000, b"\xff\xfe\x00", b"a: &a [*a]")
"""More contents for damaged text files: valid JSON or YAML with a wrong meaning, and broken text."""
SETS, STAGES = {"mine": 0.5, "got": 0.4, "toy": 0.1}, {"reported": 0.45, "extracted": 0.35, "half": 0.2}
TURNS = 3
_MESSAGE = re.compile(
    r"^error: |^ +next: |^note: |[1-9]\d* problems|damaged|trained again|left out|is missing|cannot be read",
    re.MULTILINE,
)


class Outcome(NamedTuple):
    """Outcome of a fault: one of the three verdicts, whether the repair restored all files, and a text if it is bad."""

    what: str
    verdict: str
    repaired: bool
    why: str


def fault(study: Study, random: np.random.Generator) -> Outcome:
    """Damage a file of a random kind, run what a user would run next, judge, and do what the messages say."""
    dataset = str(random.choice(list(SETS), p=list(SETS.values())))
    stage = str(random.choice(list(STAGES), p=list(STAGES.values())))
    start = study.at(f"{dataset}.{stage}")
    clean = study.at(f"{dataset}.reported")
    kind = str(random.choice([kind for kind, names in KINDS.items() if any(re.search(names, name) for name in start)]))
    files = [name for name in start if re.search(KINDS[kind], name) and _concerns(name, dataset)]
    if not files:  # drawn tiles have no image files
        return fault(study, random)
    name = str(random.choice(files))
    study.put_back(f"{dataset}.{stage}")
    damage = _damage(study, start, files, name, random)
    what = f"{dataset}.{stage}: {kind} {name}: {damage}"
    steps = [extract(f"{dataset}.yaml"), fit(f"{dataset}.yaml")]
    if random.random() < 0.5:
        steps.insert(0, VERIFY)
    if stage == "extracted" and random.random() < 0.3:
        steps = steps[-1:]  # straight to fit
    always = kind == "report" or random.random() < 0.1
    done = _run(study, [*steps, LS], clean, always)
    verdict, why = _judged(done, _found(study, clean), clean, kind)
    repaired, last, crash = _repaired(study, dataset, kind, name, start, clean, done)
    if crash and verdict == "detected":
        verdict, why = "tracebacks", crash
    if not repaired:
        why += f"\n    not repaired: {last}"
    return Outcome(f"{what}; then {', '.join(step.split()[0] for step in steps)}", verdict, repaired, why)


def _run(study: Study, steps: list[str], clean: State, always: bool = False) -> list[Done]:
    """Run commands, and a report if results changed: it is slow, and equal results give an equal report."""
    done = [run(study.folder, step) for step in steps]
    found = _found(study, clean)
    if always or differing(compared(found, _is_output), compared(clean, _is_output)):
        done.append(run(study.folder, REPORT))
    return done


def _found(study: Study, clean: State) -> State:
    """Return the state of a study; if it has no report but its results equal those of `clean`, add `clean`'s report."""
    found = state_of(study.folder)
    reported = {name: content for name, content in clean.items() if name.startswith("work/report/")}
    same = not differing(compared(found, _is_of_runs), compared(clean, _is_of_runs))
    return found | reported if same and not any(name.startswith("work/report/") for name in found) else found


def _concerns(name: str, dataset: str) -> bool:
    return not re.match("(mine|got)/", name) or name.startswith(f"{dataset}/")


def _damage(study: Study, start: State, files: list[str], name: str, random: np.random.Generator) -> str:
    """Damage a file; return a description of the damage."""
    path, content = study.folder / name, bytearray(start[name])
    how = str(random.choice([*DAMAGES, "other text", "later"] if name.endswith(TEXTS) else DAMAGES))
    if how in ("other text", "later"):
        later = re.sub(rb'("?(?:zarr_)?format"?): \d+', rb"\1: 99", content)
        text = later if how == "later" else OTHER_TEXTS[random.integers(len(OTHER_TEXTS))]
        path.write_bytes(text)
        return f"{how} {text[:20]!r}"
    others = [other for other in files if start[other] != start[name]]
    if how == "swap" and others:
        other = str(random.choice(others))
        path.write_bytes(start[other])
        (study.folder / other).write_bytes(start[name])
        return f"swapped with {other}"
    if how == "remove":
        path.unlink()
        return "removed"
    if not content:
        path.write_bytes(random.bytes(20))
        return "20 bytes into an empty file"
    at = int(random.integers(len(content)))
    if how == "empty":
        content.clear()
    elif how == "cut":
        del content[at:]
    elif how in ("overwrite", "zero"):
        size = min(int(random.integers(1, 65)), len(content) - at)
        content[at : at + size] = random.bytes(size) if how == "overwrite" else bytes(size)
    else:
        how, bit = "flip", int(random.integers(8))
        content[at] ^= 1 << bit
    path.write_bytes(content)
    return f"{how} at {at} of {len(start[name])}" if bytes(content) != start[name] else "nothing"


def _judged(done: list[Done], found: State, clean: State, kind: str) -> tuple[str, str]:
    """Return the verdict on messages and files, and its reason if the verdict is bad."""
    if crash := _crash(done):
        return "tracebacks", crash
    numbers = differing(compared(found, _is_number), compared(clean, _is_number))
    wrong = [name for name in numbers if name in found and name in clean]
    later = [one for one in done if one.arguments[0] in ("fit", "report")]
    if wrong and not any(one.code or _MESSAGE.search(one.text) for one in later):
        return "silent", f"other numbers in {', '.join(wrong[:4])}"
    if any(one.code or _MESSAGE.search(one.text) for one in done):
        return "detected", ""
    outputs = differing(compared(found, _is_output), compared(clean, _is_output))
    other = numbers if kind in ("manifest", "dataset lock") else outputs
    return ("silent", f"changed or missing: {', '.join(other[:4])}") if other else ("detected", "")


def _crash(done: list[Done]) -> str:
    crashed = (one for one in done if one.traceback)
    return next((f"{' '.join(one.arguments)}: {one.code}: {one.text[-1500:]}" for one in crashed), "")


def _is_number(name: str) -> bool:
    return name.endswith((".parquet", "decoder.safetensors"))


def _is_of_runs(name: str) -> bool:
    return name.startswith("work/results/")


def _is_output(name: str) -> bool:
    return name.startswith(("work/results/", "work/report/"))


def _repaired(
    study: Study, dataset: str, kind: str, name: str, start: State, clean: State, done: list[Done]
) -> tuple[bool, str, str]:
    """Do what the messages say, up to `TURNS` times; return whether all files are restored, the last text, a crash."""
    last = crash = ""
    for turn in range(TURNS + 1):
        found = _found(study, clean)
        other = differing(compared(found), compared(clean))
        if not other:
            return True, "", crash
        text = "\n".join(one.text for one in done)
        last = f"{', '.join(other[:4])}\n{_messages(text)}"
        if turn == TURNS:
            break
        done = _follow(study, dataset, kind, name, start, clean, text)
        crash = crash or _crash(done)
    return False, last, crash


def _follow(study: Study, dataset: str, kind: str, name: str, start: State, clean: State, text: str) -> list[Done]:
    """Do what the messages say: restore the user's files, remove caches beyond repair, run all steps again."""
    named = [file for file in start if file in text and any(re.search(KINDS[user], file) for user in USERS)]
    if kind in USERS and (named or "restore" in text or name.rpartition("/")[2] in text):
        for file, content in start.items():
            if any(re.search(KINDS[user], file) for user in USERS):
                path = study.folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.is_file() or path.read_bytes() != content:
                    path.write_bytes(content)
    done = []
    for block in re.split(r"^(?=error: |work/\S+\.zarr: )", text, flags=re.MULTILINE):
        if "cache rm" in block and (cache := re.search(r"work/cache/\S+?\.zarr", block)):
            done.append(run(study.folder, f"cache rm --yes {cache[0]}"))
    again = " --recompute" if "--recompute" in text else ""
    steps = [VERIFY, extract(f"{dataset}.yaml") + again * ("cache" in text), fit(f"{dataset}.yaml") + again]
    return done + _run(study, steps, clean)


def _messages(text: str) -> str:
    lines = [line for line in text.splitlines() if _MESSAGE.search(line)]
    return "\n".join(f"      {line}" for line in dict.fromkeys(lines))[:1500]

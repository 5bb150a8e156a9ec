# PYTHON_ARGCOMPLETE_OK
"""Train and evaluate: ``python -m action.train [--config FILE] [--data DIR] ...`` (``--help-all``: every setting)."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path

import torch

from action import log
from action.choices import SETTINGS, settings_of
from action.cli import choose_device, config_parser, load_config, run, save_config, to_config
from action.commands import program
from action.config import RunConfig, RunSplitConfig, TrainConfig
from action.data.dataset import open_dataset
from action.data.fingerprint import load_fingerprint, save_fingerprint
from action.data.split import load_split, save_split
from action.environment import add_start, describe_start
from action.errors import InputError
from action.evaluate import evaluate
from action.experiment import check_output, choose_output, load_data, make_trainer, resolve
from action.overwrite import check_replaceable, clear
from action.ranks import ALONE, Ranks
from action.ranks.start import jobs, started
from action.report import write_report
from action.run_folder import RunFolder


def train(config: TrainConfig, *, resume: bool = False, overwrite: bool = False, ranks: Ranks = ALONE) -> RunFolder:
    """One run from data to summary.

    Args:
        config: settings; what is left open is filled in.
        resume: continue the run in ``config.output`` from its latest checkpoint.
        overwrite: replace the run in ``config.output``.
        ranks: the processes that train it together.

    Raises:
        InputError: see the message; nothing has been written then.
        OtherRankFailed: another process says why.
    """
    ranks.wait_at_most(config.timeout)
    with ranks.in_turn():  # the first one may have to write the phantom
        if resume and config.data is not None and not Path(config.data).expanduser().is_dir():
            raise InputError(f"the run's data folder {config.data} does not exist: if it has moved, give --data")
        device = choose_device(config.device)
        if device.type == "cuda" and ranks.world > 1:
            if config.device not in ("auto", "cuda"):
                raise InputError(f"device '{config.device}' is one GPU for {ranks.world} processes: use auto")
            torch.cuda.set_device(device)
        log.check_installed(config.loggers)
        if ranks.first:
            check_output(config)
        settings = resolve(config)
    folder = RunFolder(settings.output)
    with ExitStack() as stack:
        with ranks.together():
            if ranks.first:
                folder.check_free(resume=resume, overwrite=overwrite)
                stack.enter_context(folder.owned())
                folder.check_free(resume=resume, overwrite=overwrite)  # again: another process may have been faster
                if overwrite:
                    check_replaceable(folder, _inputs(settings))
        # The first process fills the cache, from which the others take what it has prepared.
        with ranks.in_turn() if settings.cache else ranks.together():
            if resume:
                check_same(settings, folder, moved=True)
            begun = resume and (folder.latest.is_file() or folder.previous.is_file())
            data = load_data(settings, load_fingerprint(folder.fingerprint) if begun else None)
            if resume and folder.split.is_file() and load_split(folder.split) != data.split:
                raise InputError(
                    f"{folder.split} differs from the split of {settings.data} now: the data set has changed"
                )
            trainer = make_trainer(settings, data, folder, device, ranks)
        if resume:
            with ranks.in_turn():  # a damaged checkpoint is replaced by the one before it
                trainer.resume()
        starters = jobs(ranks)
        ranks.compare(settings=settings, split=data.split, data=trainer.data_description, step=trainer.step)
        if ranks.first:
            if overwrite:
                clear(folder)
            folder.remove_partials()
            folder.checkpoints.mkdir(exist_ok=True)
            save_config(settings, folder.config)
            save_split(data.split, folder.split)
            save_fingerprint(data.fingerprint, folder.fingerprint)
            add_start(folder.environment, describe_start(device, ranks.world, trainer.step))
            if starters:
                folder.job.write_text("\n".join(starters), encoding="utf-8")
        split = data.split
        print(
            f"{settings.method} on {settings.data}: {len(split.labeled)} labelled ({', '.join(split.labeled)}), "
            f"{len(split.unlabeled)} unlabelled, {len(split.validation)} validation, {len(split.test)} test patients; "
            f"{device}; run folder {folder.root}"
        )
        with ranks.together():
            loggers = stack.enter_context(log.started(settings, folder, trainer.step)) if ranks.first else None
        with ranks.alike():
            trainer.fit(loggers)
        if loggers:
            loggers.figure(trainer.step, "progress", folder.progress)
            if data.test:
                summary = evaluate(folder, data.test, device)
                loggers.figure(trainer.step, "overlays", folder.overlays)
                if (dice := summary["mean"]["dice"]) is not None:
                    loggers.log(trainer.step, {"test_dice": dice})
            else:
                print(f"no patient tests this run: {program('predict')} {folder.root} IMAGES -o DIR segments others")
            print(f"its page: {write_report(folder)}")
            folder.job.unlink(missing_ok=True)
    return folder


def _inputs(config: RunConfig) -> list[Path]:
    """Files and folders that a run reads."""
    files = [Path(config.data)] + ([Path(config.split.file)] if config.split.file else [])
    for case in open_dataset(Path(config.data), config.format).cases:
        files += case.files
    return files


def check_same(config: RunConfig, folder: RunFolder, *, moved: bool = False) -> None:
    """Refuse to go on with a run, or to take its results, under other settings than its own.

    Where a run and its cache are, what it runs on, what shows its numbers, how long its processes wait, how often it is
    evaluated and what is set for other methods may change; anything else would give other numbers.

    Args:
        config: settings.
        folder: of the run.
        moved: whether the data and the file of their split may be elsewhere than they were; what they hold is compared
            by whoever says so.

    Raises:
        InputError: names the setting and both values.
    """
    saved = load_config(folder.config)
    others = {group for groups in SETTINGS.values() for group in groups} - set(settings_of(config.method))
    free = {"output", "cache", "device", "loggers", "timeout", "evaluation", *others} | ({"data"} if moved else set())
    for field in dataclasses.fields(RunConfig):
        ours, theirs = getattr(config, field.name), getattr(saved, field.name)
        if field.name == "split":
            ours, theirs = (_comparable(split, moved) for split in (ours, theirs))
        if field.name not in free and ours != theirs:
            raise InputError(
                f"{folder.root} holds a run with other settings: {field.name} is {ours}, but {folder.config} says "
                f"{theirs}; leave the flag out, or choose another --output"
            )


def _comparable(split: RunSplitConfig, moved: bool) -> RunSplitConfig:
    return dataclasses.replace(split, file="" if moved or not split.file else str(Path(split.file).resolve()))


def main(arguments: list[str]) -> None:
    """The command line of ``python -m action.train``."""
    with started() as ranks:
        with ranks.together():
            parser = config_parser()
            parser.add_argument("--resume", action="store_true", help="continue an interrupted run in --output")
            parser.add_argument("--overwrite", action="store_true", help="replace the run in --output")
            parsed = parser.parse_args(arguments)
            config = to_config(parser, parsed)
        # Started again after a failure, it goes on with what it has begun, and with nothing else.
        starters = jobs(ranks)
        again = ranks.first_says(RunFolder(choose_output(config)).begun_by(starters))
        resume = parsed.resume or again
        with ranks.together():
            saved = RunFolder(choose_output(config)).config
            if resume and saved.is_file():
                # The run's own settings are the defaults of its continuation.
                config = to_config(parser, parser.parse_args(["--config", str(saved), *arguments]))
        train(config, resume=resume, overwrite=parsed.overwrite and not again, ranks=ranks)


if __name__ == "__main__":
    run(main)

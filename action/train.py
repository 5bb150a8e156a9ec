"""Train and evaluate: ``python -m action.train [--config FILE] [--data DIR] ...`` (``--help`` lists every setting)."""

from __future__ import annotations

import dataclasses

from action.cli import choose_device, config_parser, load_config, run, save_config, to_config
from action.config import TrainConfig
from action.data.split import load_split, save_split
from action.errors import InputError
from action.evaluate import evaluate
from action.experiment import load_data, make_trainer, resolve
from action.run_folder import RunFolder


def train(config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> RunFolder:
    """One run from data to summary.

    Args:
        config: settings; ``resolve`` fills in what is left open.
        resume: continue the run in ``config.output`` from its latest checkpoint.
        overwrite: replace the run in ``config.output``.

    Raises:
        InputError: see the message; nothing has been written then.
    """
    config = resolve(config)
    device = choose_device(config.device)
    folder = RunFolder(config.output)
    folder.check_free(resume=resume, overwrite=overwrite)
    if resume:
        check_same(config, folder)
    data = load_data(config)
    if resume and folder.split.is_file() and load_split(folder.split) != data.split:
        raise InputError(f"{folder.split} differs from the split of {config.data} now: the data set has changed")
    trainer = make_trainer(config, data, folder, device)
    if resume:
        trainer.resume()
    folder.create(overwrite=overwrite)
    save_config(config, folder.config)
    save_split(data.split, folder.split)
    print(
        f"{config.method} on {config.data}: {len(data.split.labeled)} labelled ({', '.join(data.split.labeled)}), "
        f"{len(data.split.unlabeled)} unlabelled, {len(data.split.validation)} validation, "
        f"{len(data.split.test)} test patients; {device}; run folder {folder.root}"
    )
    trainer.fit()
    evaluate(config, folder, data.test, device)
    return folder


def check_same(config: TrainConfig, folder: RunFolder) -> None:
    """Refuse to go on with a run, or to take its results, under other settings than its own.

    Where a run is, what it runs on and how often it is evaluated may change; anything else would give other numbers.

    Args:
        config: resolved settings.

    Raises:
        InputError: names the setting and both values.
    """
    saved = load_config(folder.config)
    for field in dataclasses.fields(TrainConfig):
        ours, theirs = getattr(config, field.name), getattr(saved, field.name)
        if field.name not in {"output", "device", "evaluation"} and ours != theirs:
            raise InputError(
                f"{folder.root} holds a run with other settings: {field.name} is {ours}, but {folder.config} says "
                f"{theirs}; leave the flag out, or choose another --output"
            )


def main(arguments: list[str]) -> None:
    parser = config_parser("python -m action.train", __doc__)
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in --output")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --output")
    parsed = parser.parse_args(arguments)
    if parsed.resume and parsed.output and (saved := RunFolder(parsed.output).config).is_file():
        # The run's own settings are the defaults of its continuation.
        parsed = parser.parse_args(["--config", str(saved), *arguments])
    train(to_config(parser, parsed), resume=parsed.resume, overwrite=parsed.overwrite)


if __name__ == "__main__":
    run(main)

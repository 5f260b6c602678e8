"""Worth of delegation on real data: this package's probes and protocol beside those of arXiv 2604.14251.

``python -m benchmarks.paper.run PLAN --data FOLDER --to OUT`` runs every setting of a plan over many seeds, with every
expert. It writes one file of results for each setting. ``--docs docs`` then writes the figures of all settings to
``docs/benchmarks/paper-*.csv`` and draws their pictures into ``docs/images``.

``benchmarks/paper/settings.yml`` is the plan of docs/benchmarks.md. The paper's own models are in
``config_examples/paper/plan.yml``.

Each seed draws rows, trains both probes, certifies every budget and evaluates every method on the remaining rows.
Activations are computed once, into the cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.paper.material import Material, load_material
from benchmarks.paper.plan import Plan, Setting, load_plan
from benchmarks.paper.publish import publish
from benchmarks.paper.results import Result, read_results, write_results
from benchmarks.paper.sharing import shared_fits
from benchmarks.paper.trial import Outcome, draw, evaluate_scores, train_and_score
from calibrate.compute.cache import open_cache
from calibrate.compute.progress import progress_bars
from ctd_guardrail.activations.base_model import load_base_model
from ctd_guardrail.errors import ConfigError, CtdError

_ENDING = ".json.gz"


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = _parse(arguments)
    plan = load_plan(options.plan)
    if options.seeds:
        run_plan(plan, _chosen(plan, options.settings), options)
    files = [options.to / f"{_stem(setting)}{_ENDING}" for setting in plan.settings]
    results = [result for file in files if file.exists() for result in read_results(file)]
    if options.docs and results:
        publish(options.docs, results, recipes=plan.mean_recipes, token_recipes=plan.token_recipes)


def run_plan(plan: Plan, settings: Sequence[Setting], options: argparse.Namespace) -> None:
    """Run settings and write their files."""
    cache = open_cache(options.cache.expanduser())
    engine = load_base_model(plan.base.spec, device=plan.base.device)
    with progress_bars(Console(stderr=True)) as progress, shared_fits():
        for setting in settings:
            material = load_material(plan, setting, engine, folder=options.data, cache=cache, progress=progress)
            for results in run_setting(plan, setting, material, seeds=options.seeds, progress=progress):
                write_results(options.to / f"{_stem(setting)}{_ENDING}", results)
    engine.close()


def run_setting(
    plan: Plan, setting: Setting, material: Material, *, seeds: int, progress: Progress
) -> Iterator[list[Result]]:
    """Yield results for every expert and recipe, and for the first recipe with a refitted safety probe.

    Results of all seeds so far come after each seed, so that a stopped run keeps them. A recipe runs over all seeds, or
    over the number in the plan.
    """
    first, *others = plan.mean_recipes
    variants = [(first, False), (first, True), *((recipe, False) for recipe in (*others, *setting.token_recipes))]
    outcomes: dict[tuple[str, str, bool], list[Outcome]] = {}
    bar = progress.add_task(setting.name, total=seeds)
    for seed in range(seeds):
        drawn = draw(material, setting, seed=seed)
        for (expert, scores), (recipe, refit) in product(material.experts.items(), variants):
            if seed >= plan.seeds.get(recipe, seeds):
                continue
            with_paper = recipe == first and not refit
            scored = train_and_score(
                material, scores, drawn, plan.recipes[recipe], refit=refit, seed=seed, with_binary=with_paper
            )
            outcome = evaluate_scores(scored, delta=plan.delta, seed=seed, with_paper=with_paper)
            outcomes.setdefault((expert, recipe, refit), []).append(outcome)
        progress.advance(bar)
        yield [_result(setting, *key, of_seeds) for key, of_seeds in outcomes.items()]


def _result(setting: Setting, expert: str, recipe: str, refit: bool, of_seeds: Sequence[Outcome]) -> Result:  # noqa: FBT001  # a key
    name = setting.refit if refit else setting.name
    return Result.of_seeds(name or "", expert, recipe, of_seeds, refit_of=setting.name if refit else None)


def _chosen(plan: Plan, names: Sequence[str] | None) -> list[Setting]:
    known = [setting.name for setting in plan.settings]
    for name in names or ():
        if name not in known:
            raise ConfigError(f"there is no setting {name!r}", hint=f"Choose from {', '.join(known)}")
    return [setting for setting in plan.settings if names is None or setting.name in names]


def _stem(setting: Setting) -> str:
    return setting.name.replace(" ", "_")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path, metavar="PLAN", help="YAML file of base model, experts and settings")
    parser.add_argument("--data", type=Path, default=Path(), metavar="FOLDER", help="folder of relative paths")
    parser.add_argument(
        "--to", type=Path, required=True, metavar="OUT", help="folder of the results, one file a setting"
    )
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="run only these")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="0: only write CSV files and pictures")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/ctd-guardrail"), help="folder for activations")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="write CSV files and pictures below this folder")
    options = parser.parse_args(arguments)
    if options.seeds < 0:
        parser.error("--seeds is at least 0")
    return options


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CtdError as error:
        sys.exit(f"error: {error}")

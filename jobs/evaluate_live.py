"""Does the running service get better? ``ruvllm evaluate live`` asks it, lets it learn, and asks again.

    python -m jobs.evaluate_live [--questions 300] [--fresh 150] [--seed 0] [--feedback judge|truth] [--force]
                                 [--json OUT] [--data-dir DIR] [--profile NAME] [--set KEY=VALUE]

1 remember  the facts of all questions (``live.questions``) go into an empty memory of a service of its own
2 ask       the first questions through the router, which explores; with ``--feedback truth`` its user says which
            answers were right (``live.answers``), else the judge alone says what it thinks
3 learn     wait until every verdict is there and learned from; see what the gate said of each candidate
4 again     fresh questions, asked of every tier by name, then through the router that takes its best choice: with the
            weights it started from, and with those that learned. With ``--force`` the newest candidate stands in for
            one that the gate let through, if it let none; the report says so
5 report    what each way to choose is worth on the same fresh questions (``live.report``)

The memory stays as it is meanwhile (no answer is written back), so what changes is the router. All is asked at
temperature 0, every question in a session of its own. ``cadence`` has the settings that let so few questions teach.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rich.console import Console

from jobs.live.answers import right
from jobs.live.questions import MOST, Made, Question, make
from jobs.live.report import Turns, differences, fixed_and_oracle, outcomes, policies, table, verdicts
from jobs.live.service import WHO, Answer, LiveService, new_folder
from operators.errors import Reject, RuvError
from operators.learning.gate import GATE
from operators.networks.fastgrnn import SHARPNESS

MAX_TOKENS = 24
"""Tokens of an answer at most: the small tier needs a whole sentence."""
BATCH = 4
"""Judgements of a partition that are learned from together: of so few, few may be left over at the end."""
QUIET = (
    *("http.port=0", "binding=inproc", "writeback.enabled=false", "maintain.enabled=false"),
    *("promotion.poll_s=0.1", "judge_job.poll_s=0.1"),
)
Say: TypeAlias = Callable[[str], None]
Asked: TypeAlias = list[tuple[Question, Answer, bool]]
"""Questions with their answers, and whether those are right."""


def cadence(questions: int) -> tuple[str, ...]:
    """Settings with which ``questions`` questions are enough to learn from, where a service would take thousands.

    More exploring, smaller batches, more steps on each, a candidate after every eighth of the questions, a larger share
    held out for fewer to measure with, and no watching of a candidate that passed. Judge and learner are waited for, so
    they do not step back.
    """
    return (
        *("route.deterministic=false", "route.epsilon=0.4", "judge_job.nice=0", "learn.nice=0", "learn.poll_s=0.1"),
        *("learn.enabled=true", f"learn.batch={BATCH}", f"learn.save_turns={BATCH}", "learn.learner.rounds=16"),
        *(
            f"learn.candidate_turns={max(BATCH, questions // 8)}",
            f"learn.learner.gather={max(8, min(64, questions // 4))}",
        ),
        *("learn.holdout.share=0.3", f"promotion.gate.min_turns={max(2, questions // 10)}"),
        *("promotion.automatic=true", "promotion.shadow_events=0", "promotion.canary_events=0"),
    )


CALM = ("route.deterministic=true", "route.epsilon=0.0", "learn.enabled=false", "judge_job.enabled=false")
"""Settings of the second service: the router takes its best choice, and nothing changes."""


def evaluate(given: argparse.Namespace, folder: Path, say: Say) -> dict[str, Any]:
    """All five steps, in ``folder``. Raises ``Stop`` when the service ends, or waits in vain."""
    first, fresh = make(given.seed, (given.questions, given.fresh))
    sets = (*QUIET, *cadence(given.questions), *given.overrides)
    with LiveService(given.profile, sets, folder, given.patience) as service:
        asked, learned = _first_phase(service, first, fresh, given, say)
    start, chosen, forced = _chosen(learned["router"], given.force)
    with LiveService(given.profile, (*sets, *CALM), folder, given.patience) as service:
        by_name, routed = _second_phase(service, fresh, {"prior": start, "learned": chosen}, forced, given, say)
        settings = service.settings
    names = [tier.name for tier in settings.tiers]
    prices = {tier.name: tier.cost / max(one.cost for one in settings.tiers) for tier in settings.tiers}
    weight = settings.route.cost_weight / SHARPNESS
    tiers = {name: _turns(found, prices) for name, found in by_name.items()}
    routers = {name: _turns(found, prices) for name, found in routed.items()}
    all_ = {**fixed_and_oracle(tiers, weight), **routers}
    pairs = [("learned", "prior"), ("learned", "best-fixed"), ("prior", "best-fixed"), ("oracle", "best-fixed")]
    return {
        "questions": {"first": given.questions, "fresh": given.fresh, "seed": given.seed},
        "feedback": given.feedback,
        "settings": [*sets, "then:", *CALM],
        "tiers": names,
        "cost_weight": weight,
        "checkpoints": {"prior": start, "learned": chosen, "forced": forced},
        "candidates": learned["candidates"],
        "first": _first_report(asked, prices, weight),
        "policies": policies(all_, names, weight),
        "differences": differences(all_, pairs, weight),
        "outcomes": outcomes([question.kind for question in fresh.questions], tiers, routers),
        "verdicts": verdicts(learned["scores"], _truth(asked), _who(asked), settings.promotion.gate.good),
        "same_answers": _same(by_name, routed),
        "notes": _notes(start, chosen, forced, learned["candidates"]),
        "turns": [_told(*one) for one in asked],
        "fresh": {name: [_told(*one) for one in found] for name, found in (by_name | routed).items()},
    }


def _first_phase(
    service: LiveService, first: Made, fresh: Made, given: argparse.Namespace, say: Say
) -> tuple[Asked, dict[str, Any]]:
    """Steps 1 to 3."""
    service.remember([*first.facts, *fresh.facts])
    say(f"remembered {len(first.facts) + len(fresh.facts)} facts")
    asked: Asked = []
    truth = given.feedback == "truth"
    for number, question in enumerate(first.questions):
        answer = service.ask(question.text, "auto", MAX_TOKENS, f"{given.seed} first {number}")
        good = right(question, _text(answer))
        asked.append((question, answer, good))
        if truth:
            service.rate(answer, good)
        _progress(say, "asked", len(asked), len(first.questions))
    ids = [answer["ruvllm"]["interaction_id"] for _, answer, _ in asked]
    by = {"model", "user"} if truth else {"model"}
    wanted = len(ids) * len(by)
    with service.log() as log:

        def there() -> int:
            found = service.verdicts(log)
            return sum(one in found.get(id_, {}) for id_ in ids for one in by)

        say(f"waiting for {wanted} verdicts")
        service.until(there, lambda count: count == wanted, f"{wanted} verdicts")
        say("waiting for the learner")
        service.until(lambda: service.unlearned(log, "learn"), lambda left: max(left) < BATCH, "end of learning")
        found = service.verdicts(log)
    scores = np.array([_score(found[id_]["model"].score) for id_ in ids])
    router = service.router()
    versions = [row["version"] for row in router["versions"] if row["passed"] is not None]
    candidates = [_candidate(version, service.checkpoint(version)) for version in reversed(versions)]
    return asked, {"scores": scores, "router": router, "candidates": candidates}


def _second_phase(
    service: LiveService, fresh: Made, versions: dict[str, str], forced: bool, given: argparse.Namespace, say: Say
) -> tuple[dict[str, Asked], dict[str, Asked]]:
    """Step 4: what the tiers answered by name, and what the routers did."""
    names = [tier.name for tier in service.settings.tiers]
    by_name: dict[str, Asked] = {name: [] for name in names}
    routed: dict[str, Asked] = {name: [] for name in versions}
    for router, version in versions.items():
        service.let_decide(version, force=forced and router == "learned")
        # by name in the same breath as through the first router: whatever else the machine does then slows both
        asks = [("auto", routed[router]), *((name, by_name[name]) for name in names if router == "prior")]
        for done, question in enumerate(fresh.questions, start=1):
            for model, found in asks:
                answer = service.ask(question.text, model, MAX_TOKENS, f"{given.seed} fresh {done} {router} {model}")
                if answer["ruvllm"]["route"]["checkpoint"] != version:
                    got = f"{answer['ruvllm']['route']['checkpoint']} decided, not {version}"
                    raise Reject(WHO, got, "promote nothing while the evaluation runs")
                found.append((question, answer, right(question, _text(answer))))
            _progress(say, f"fresh, {router}", done, len(fresh.questions))
    return by_name, routed


def _chosen(router: dict[str, Any], force: bool) -> tuple[str, str, bool]:
    """The weights at the start, those that learned, and whether these were refused by the gate."""
    start, active = router["versions"][-1]["version"], router["rollout"]["active"]
    newest = router["versions"][0]["version"]
    if active == start and newest != start and force:
        return start, newest, True
    return start, active, False


def _notes(start: str, chosen: str, forced: bool, candidates: Sequence[dict[str, Any]]) -> list[str]:
    if forced:
        return [f"FORCED: the gate refused every candidate; {chosen}, the newest, was promoted all the same"]
    if not candidates:
        return ["nothing was learned: too few turns were held out to measure a candidate with; ask more questions"]
    if chosen == start:
        return ["the gate refused every candidate, so 'learned' is the prior; --force shows the newest all the same"]
    return [f"'learned' is {chosen}, which the gate let through"]


def _candidate(version: str, manifest: dict[str, Any]) -> dict[str, Any]:
    metrics = manifest["metrics"]
    about = {name: metrics[name] for name in ("judgements", "steps")}
    return {"version": version, "parent": manifest["parent"], **about, **metrics[GATE]}


def _first_report(asked: Asked, prices: dict[str, float], weight: float) -> dict[str, Any]:
    """What was asked while it learned, by the checkpoint that decided."""
    by: dict[str, Asked] = {}
    for one in asked:
        by.setdefault(one[1]["ruvllm"]["route"]["checkpoint"], []).append(one)
    made = {version: _turns(found, prices) for version, found in by.items()}
    return policies(made, list(prices), weight)


def _turns(asked: Asked, prices: dict[str, float]) -> Turns:
    return Turns(
        tier=tuple(_who(asked)),
        right=_truth(asked).astype(np.float64),
        cost=np.array([prices[tier] for tier in _who(asked)]),
        seconds=np.array([answer["seconds"] for _, answer, _ in asked]),
    )


def _same(by_name: dict[str, Asked], routed: dict[str, Asked]) -> dict[str, float]:
    """Router → share of its answers that are, to the letter, what the same tier answered by name."""
    named = {name: [_text(answer) for _, answer, _ in found] for name, found in by_name.items()}
    return {
        router: float(np.mean([_text(one[1]) == named[one[1]["model"]][i] for i, one in enumerate(found)]))
        for router, found in routed.items()
    }


def _told(question: Question, answer: Answer, good: bool) -> dict[str, Any]:
    route = answer["ruvllm"]["route"]
    about = {name: route[name] for name in ("checkpoint", "reason", "confidence", "probabilities")}
    asked = {"kind": question.kind, "question": question.text, "truth": question.truth}
    return {**asked, "tier": answer["model"], "answer": _text(answer), "right": good, **about}


def _text(answer: Answer) -> str:
    return str(answer["choices"][0]["message"]["content"])


def _who(asked: Asked) -> list[str]:
    return [answer["model"] for _, answer, _ in asked]


def _truth(asked: Asked) -> Any:
    return np.array([good for _, _, good in asked], bool)


def _score(score: float | None) -> float:
    return float("nan") if score is None else score


def _progress(say: Say, what: str, done: int, of: int) -> None:
    if done % 25 == 0 or done == of:
        say(f"{what}: {done} of {of}")


def check(given: argparse.Namespace) -> None:
    """Raises ``Reject`` for options that can't be, before anything is started."""
    if min(given.questions, given.fresh) < 1 or given.questions + given.fresh > MOST:
        raise Reject(WHO, f"{given.questions} questions and {given.fresh} fresh ones", f"give 1 to {MOST} together")
    if given.json is not None and not given.json.parent.is_dir():
        raise Reject(WHO, f"no folder {given.json.parent} for the report", "make it, or name another --json")


def main(args: Sequence[str] | None = None) -> None:
    """The command line at the top of this file."""
    parser = argparse.ArgumentParser(prog="jobs.evaluate_live", description="Does the running service get better?")
    parser.add_argument("--questions", type=int, default=300, help="questions to learn from")
    parser.add_argument("--fresh", type=int, help="questions to measure with; half as many if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the questions")
    parser.add_argument("--feedback", choices=("judge", "truth"), default="judge", help="who says what was right")
    parser.add_argument("--force", action="store_true", help="measure the newest candidate even if the gate refuses")
    parser.add_argument("--json", type=Path, metavar="OUT", help="the report there, too, with every turn")
    parser.add_argument("--data-dir", type=Path, help="an empty folder to keep it all in; else it is removed")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds to wait while nothing happens")
    parser.add_argument("--profile")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="KEY=VALUE, as often as needed")
    given = parser.parse_args(args)
    given.fresh = max(1, given.questions // 2) if given.fresh is None else given.fresh
    console = Console(stderr=True, highlight=False)
    try:
        check(given)
        with contextlib.ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ruvllm-live-")))
            report = evaluate(given, new_folder(given.data_dir, scratch), console.print)
        if given.json is not None:
            given.json.write_text(json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    except RuvError as error:
        sys.exit(str(error))
    print(table(report))


if __name__ == "__main__":
    main()

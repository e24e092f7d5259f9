"""Text that speaks to a model instead of to a person: orders, role marks, planted triggers, hidden or encoded ones.

A few patterns a trick, in the languages most often seen, each with its reason. They are a net for the crude and the
copied, not a proof: who paraphrases gets through, which is why remembered answers are also quoted as data (prompts.py).
Every gap in a pattern is bounded, so time is linear in the text.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote

from operators.privacy.fold import fold

_MANY = r"(?:\W{1,3}\w{1,20}){0,5}?\W{1,3}"
_OVERRIDES = (
    rf"\b(?:ignor(?:e|ing)|disregard|forget|overrid(?:e|ing)|bypass|do not follow|don't follow|stop following){_MANY}"
    r"(?:instructions?|rules|prompts?|guidelines|directives|orders|guardrails|everything (?:above|before))\b"
    rf"|\b(?:ignorier\w{{0,4}}|vergiss|vergesst|missacht\w{{0,4}}|übergeh\w{{0,4}}){_MANY}"
    r"(?:anweisung|regeln|vorgabe|instruktion|befehl)"
    rf"|\b(?:ignore[zr]?|oublie[zr]?|ne tene?z pas compte){_MANY}(?:instructions?|consignes|règles)\b"
    rf"|\b(?:ignor[ae]d?|olvid[ae]d?|omit[ae]|descart[ae]){_MANY}(?:instrucciones|reglas|indicaciones|órdenes)\b"
    rf"|\b(?:ignor[ai]|dimentic[ah]i?|trascura){_MANY}(?:istruzioni|regole)\b"
    rf"|\b(?:ignore|esqueça|desconsidere){_MANY}(?:instruções|regras)\b"
    rf"|\b(?:negeer|vergeet){_MANY}(?:instructies|regels|opdrachten)\b"
    rf"|\b(?:zignoruj|zapomnij|pomiń){_MANY}(?:instrukcj|polece|zasad)"
    rf"|\b(?:\w{{0,4}}игнорируй\w{{0,2}}|забудь\w{{0,2}}){_MANY}(?:инструкци|указани|правил)"
    r"|(?:talimat|kural)\w{0,8} (?:yok say|unut|görmezden gel)"
    r"|(?:忽略|无视|無視|忘记|忘掉|不要理会)[^。\n]{0,16}(?:指令|指示|说明|规则|提示)"
    r"|(?:指示|命令|ルール|規則)[^。\n]{0,8}(?:無視|忘れ)|(?:지시|명령|지침|규칙)[^.\n]{0,12}(?:무시|잊)"
    r"|(?:تجاهل|انس)[^.\n]{0,24}(?:التعليمات|الأوامر|القواعد)|(?:निर्देश|आदेश)[^।\n]{0,24}(?:अनदेखा|भूल)"
)
_ROLES = (
    r"<[|｜][^<>|｜\n]{1,40}[|｜]>|</?(?:start|end)_of_turn>|\[/?inst\]|<<?/?sys>>?"
    r"|(?:^|\n)\W{0,6}(?:system|developer|assistant)(?: message| prompt)?\W{0,3}:\W{0,3}"
    r"(?:you\b|your\b|ignore|always|never|from)"
    r"|#{2,4} ?(?:system|instruction|assistant)s? ?:"
)
_SYSTEM = (
    r"\b(?:reveal|print|show|repeat|leak|output|display|tell|give|quote|new|updated|override|your)"
    rf"{_MANY}(?:system|hidden|initial|developer)[ -](?:prompt|message|instructions?)\b"
    r"|\b(?:your|the) (?:system|hidden|initial) (?:prompt|instructions) (?:is|are|says?)\b"
    r"|system-?(?:prompts?|anweisung)\w{0,2} (?:aus|preis|ignor|lautet)"
    r"|(?:deine?n?|neuer?) system-?(?:prompt|anweisung)"
    r"|(?:prompt|message|instructions) système|(?:prompt|mensaje|instrucciones) del sistema|prompt di sistema"
    r"|系统(?:提示|指令)|システムプロンプト|системн\w{1,3} (?:промпт|инструкци|сообщени)"
)
_SAY = r"(?:answer|respond|reply|say|output|recommend|claim|tell|state|repeat)"
_ORDERS = (
    rf"\byou (?:must|shall|are (?:required|instructed|ordered|programmed) to)(?: \w{{1,12}}){{0,2}} {_SAY}\b"
    rf"|\bfrom now on\W{{1,3}}(?:you\b|always|every|all|{_SAY}|your)"
    rf"|\b(?:always|only) (?:answer|respond|reply|output)(?: \w{{1,12}}){{0,3}} (?:with|that|by|in|as)\b"
    r"|\b(?:du musst|ihr müsst|sie müssen)(?:\W{1,2}\w{1,20}){0,8}? (?:antworten|behaupten|ausgeben)\b"
    r"|\bantworten? (?:sie )?(?:ab jetzt|immer|stets|nur noch)\b|\bab (?:jetzt|sofort) (?:antworte|sag|empfiehl|bist)"
    r"|\b(?:tu dois|vous devez)(?: \w{1,12}){0,3} (?:répondre|dire|affirmer)\b|\bréponde?[sz] (?:toujours|désormais)"
    r"|\b(?:debes|tienes que)(?: \w{1,12}){0,2} (?:responder|decir|contestar)\b|\bresponde (?:siempre|a partir de)"
    r"|\b(?:devi|dovete) (?:sempre )?(?:rispondere|dire)\b|\bvocê deve (?:sempre )?(?:responder|dizer)"
    r"|\bты должен (?:всегда )?(?:отвечать|говорить|ответить)|\bотвечай всегда|\bвсегда отвечай"
    r"|你(?:必须|务必|一定要|从现在起)[^。\n]{0,12}(?:回答|回复|说)|(?:今後は|これからは)[^。\n]{0,24}(?:答え|回答し)"
)
_RATING = (
    r"\b(?:rate|score|grade|judge|mark) (?:this|it|that|the|my)(?: \w{1,12}){0,3}? (?:an? |as |with |at )?"
    r"(?:5|five|10|ten|100|perfect|excellent|full marks|the (?:highest|maximum|best))\b"
    r"|\brating\s{0,2}[=:]\s{0,2}[1-5]\b(?!\s?[/.]?\d)"
    r"|\bgive (?:this|the) (?:answer|response|reply)(?: \w{1,12}){0,2} (?:5|five|10|ten)\b"
    r"|\bbewerte\w{0,2}(?: \w{1,15}){0,4} mit (?:5|fünf|der (?:höchsten|besten))"
    r"|\bnote[zr]?(?: \w{1,12}){0,3} (?:5|cinq) (?:sur|/)"
    r"|\b(?:califica|puntúa)(?: \w{1,12}){0,4} (?:5|cinco|con la)|(?:评分|打分|打)[^。\n]{0,6}(?:5|五|满)分"
)
_TRIGGERS = (
    r"\b(?:when(?:ever)?|if|every ?time|each time) (?:\W{0,2}\w{1,20}\W{1,3}){0,4}?"
    r"(?:asks?|asked|asking|question(?:s|ed)?|mentions?|mentioned|prompted|quer(?:y|ied)|inquires?)\b[^.!\n]{0,120}?"
    rf"(?:[,;:] ?|\bthen )(?:you (?:must |should |will )?)?(?:always |only |just |please |simply ){{0,2}}{_SAY}\b"
    rf"|\b(?:{_SAY}) [^.!?\n]{{1,60}} (?:when(?:ever)?|if|every time) "
    r"(?:you(?:'re| are) |anyone |someone |a user |the user )?(?:asked|asks|prompted)\b"
    r"|\b(?:wenn|falls|sobald)(?:\W{1,2}\w{1,20}){0,6}?\W{1,2}(?:frag\w{0,2}|gefragt|erwähnt?)\b[^.!?\n]{0,60}?"
    r"\b(?:antworte|sage?|nenne|empfiehl|behaupte)\b"
    r"|\b(?:si|quand|lorsqu)\W{0,2}(?:\w{1,20}\W{1,3}){0,5}?(?:demande|interroge|question)\w{0,2}\b"
    r"[^.!?\n]{0,60}?\b(?:réponde?[sz]|dis|dites|recommande)\b"
    r"|\b(?:si|cuando)(?: \w{1,20}){0,5}? pregunt\w{1,4}\b[^.!?\n]{0,60}?\b(?:responde|di|diga|contesta|recomienda)\b"
    r"|\bесли (?:\w{1,20}\W{1,3}){0,5}?(?:спрос\w{1,4}|спраш\w{1,5})[^.!?\n]{0,60}?(?:ответь|отвечай|скажи|говори)"
    r"|(?:当|如果|每当)[^。\n]{0,24}(?:问|询问|提到)[^。\n]{0,30}(?:回答|回复|说|告诉)"
)
_PERSONA = (
    r"\byou are (?:now |no longer )(?:an?\b|in\b|dan\b|bound|restricted|free)"
    r"|\bact as (?:dan\b|an? (?:unrestricted|unfiltered|jailbroken))"
    r"|\bdo anything now\b|\b(?:developer|debug|god|admin|jailbreak) mode (?:enabled|activated|on\b)"
    r"|\bpretend (?:that )?(?:you have|there are) no (?:rules|restrictions|guidelines)"
    r"|\bdu bist (?:jetzt|ab jetzt|nun) (?:ein|dan)"
)
_SENDS = (
    r"!\[[^\]\n]{0,80}\]\(https?://[^)\s]{1,200}[?=&][^)\s]{0,200}\)"
    r"|\b(?:send|post|forward|upload|exfiltrate) (?:\w{1,20}\W{1,3}){0,6}?"
    r"(?:conversation|chat history|history|context|passwords?|credentials|secrets) "
    r"(?:\w{1,20} ){0,3}?(?:to|at) (?:https?:|\w{1,30}@)"
)
PATTERNS = tuple(
    (reason, re.compile(pattern))
    for reason, pattern in (
        ("overrides instructions", _OVERRIDES),
        ("role mark", _ROLES),
        ("system prompt", _SYSTEM),
        ("order to a model", _ORDERS),
        ("asks for a rating", _RATING),
        ("planted trigger", _TRIGGERS),
        ("new persona", _PERSONA),
        ("sends data away", _SENDS),
    )
)
"""Reason → what it looks like, in a text made plain by ``_plain``."""

_HIDDEN = re.compile(
    "[\U000e0000-\U000e007f]|[\u202a-\u202e\u2066-\u2069]|[\u200b\u2060\u2062-\u2064\ufeff]{3}|[\U000e0100-\U000e01ef]{3}"
)
"""Tag characters, overrides of the direction of writing, rows of signs of no width: nobody types those."""
_SPLIT = re.compile("(?<=[A-Za-z])[\u200b-\u200d\u2060\u00ad\ufeff](?=[A-Za-z])")
"""An invisible sign inside a Latin word; a few may come from copying, soft hyphens."""
_MOST_SPLIT = 3
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{24,4000}={0,2}")
_HEX = re.compile(r"(?<![0-9A-Fa-f])(?:[0-9A-Fa-f]{2}[ ]?){16,2000}")
_SPACED = re.compile(r"(?<!\w)(?:\w[ .\-_*·]){5,200}\w(?!\w)")
_LOOK_ALIKE = str.maketrans("аеорсухіјѕԁɡΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "aeopcyxijsdgABEZHIKMNOPTYXo")
_WORD = re.compile(r"\b\w{3,40}")
_LATIN, _FOREIGN = re.compile("[a-zA-Z]"), re.compile("[а-яіјѕԁΑ-Ωο]")
_ROT13 = str.maketrans(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", "NOPQRSTUVWXYZABCDEFGHIJKLMnopqrstuvwxyzabcdefghijklm"
)


def instruction_in(text: str) -> str | None:
    """Why ``text`` looks as if written to a model, or ``None``."""
    if _HIDDEN.search(text) or len(_SPLIT.findall(text)) > _MOST_SPLIT:
        return "hidden signs"
    plain = _plain(text)
    for reason, pattern in PATTERNS:
        if pattern.search(plain):
            return reason
    for decoded in _decoded(text):
        plain = _plain(decoded)
        if any(pattern.search(plain) for _, pattern in PATTERNS):
            return "encoded instruction"
    return None


def _plain(text: str) -> str:
    """As a model would read it: visible signs only, foreign look-alikes as Latin letters, small letters."""
    folded = unicodedata.normalize("NFC", fold(text)[0])
    if _FOREIGN.search(folded):
        folded = _WORD.sub(_unmixed, folded)
    return re.sub(r"[ \t]+", " ", folded.lower())


def _unmixed(word: re.Match[str]) -> str:
    """The word, in Latin letters only if some of its letters are Latin."""
    mixed = _LATIN.search(word[0]) and _FOREIGN.search(word[0])
    return word[0].translate(_LOOK_ALIKE) if mixed else word[0]


def _decoded(text: str) -> Iterator[str]:
    """What stands in ``text`` in another form: base64, hex, percent signs, entities, ROT13, spaced-out letters."""
    for match in _BASE64.finditer(text):
        value = match[0].rstrip("=").replace("-", "+").replace("_", "/")
        try:
            yield base64.b64decode(value + "=" * (-len(value) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
    for match in _HEX.finditer(text):
        try:
            yield bytes.fromhex(match[0]).decode()
        except (ValueError, UnicodeDecodeError):
            continue
    for other in (unquote(text), html.unescape(text)):
        if other != text:
            yield other
    yield text.translate(_ROT13)
    spaced = _SPACED.sub(lambda run: re.sub(r"[ .\-_*·]", "", run[0]), text)
    if spaced != text:
        yield spaced

"""The key of a number: an exact fraction in lowest terms, whatever it was written like.

An answer has a number only if one number is meant: several quantities, calculations, terms, shares
and bounds have none. A text is read as LEAD NUMBER REST, and `_lead_allows` and `_rest_allows` say
which words around a number leave it the one that is meant.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from lmsi_jax.answers.typeset import boxes, plain

MAX_DIGITS = 100

_DIGITS = r"[0-9]+"
# 1,234,567 · 12,34,567 (Indian) · 1 234 567 · 1'234'567 (Swiss)
_GROUPED = (
    r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])",
    r"[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])",
    r"[0-9]{1,3}(?: [0-9]{3})+(?![0-9])",
    r"[0-9]{1,3}(?:['’][0-9]{3})+(?![0-9])",
)
_NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>-\s?)?(?P<money>\$\s?)?(?P<sign2>-)?"
    rf"(?P<whole>{'|'.join(_GROUPED)}|[0-9]*)"
    r"(?:(?P<decimals>\.[0-9]+)|\.(?![0-9.]))?"
    r"(?P<exponent>[eE][+-]?[0-9]{1,2}(?!\w))?"
    r"(?: ?[*×x] ?10 ?(?:\^|\*\*) ?\(?(?P<power>[+-]?[0-9]{1,2})\)?(?![0-9.]))?"
    rf"(?:(?P<part>(?<=[0-9])(?:-| and | )(?={_DIGITS} ?/))?(?P<top>(?<=[ -]){_DIGITS})?"
    rf" ?/ ?(?P<bottom>-?{_DIGITS}))?"
)
# The forms that most answers have: digits, money, one plain unit after them.
_SIMPLE = re.compile(
    r"(-?)\$?(-?)([0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,20})(\.[0-9]{1,20})?"
    r"(?: ([a-z]{3,20}))?\.?"
)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_SCALES |= {"trillion": 10**12, "lakh": 10**5, "lakhs": 10**5, "crore": 10**7, "crores": 10**7}
_SCALES |= {"lac": 10**5, "mn": 10**6, "mln": 10**6, "bn": 10**9, "tn": 10**12, "trn": 10**12}
_SCALE = re.compile(rf"\s*-?({'|'.join(sorted(_SCALES, key=len, reverse=True))})\b", re.I)
_MONEY_SCALES = {
    "k": 10**3,
    "K": 10**3,
    "m": 10**6,
    "M": 10**6,
    "B": 10**9,
    "b": 10**9,
    "T": 10**12,
}
_MONEY_SCALE = re.compile(r"([kKmMbBT])\b")

# -- What may not follow a number.
_CLOSING_QUOTES = "\"'`*_)]} "
_MALFORMED = re.compile(
    r"[.,:'’][0-9]|\.{2}|\s:\s?[0-9]|\s*[+*×÷^=<>]|\s?!|\s*-\s*[0-9($]|\s*/\s?[0-9($]"
    r"|\s?x\s?[0-9(]|\s+-?\$?[0-9]|_[0-9]|[eE][+-]?[0-9]|\)\s[0-9]"
    r"|['\"]\s?[0-9]"
    # a difference, unless the dash goes on in words: "12 - that is, a dozen"
    r"|\s+-\s(?![A-Za-z]{2,}\b(?!['’]s\b)|[\"(*]|$)"
    r"|\s+(?:times|plus|minus|divided\sby|multiplied\sby|to|by)\s+(?:-?\$?[0-9]|[a-z]\b(?!\s[a-z]{2}))"
    r"|\s+(?:out\sof|factorial|cubed|squared(?!\s[a-z]))\b|\("
)
# "2pi", "3a", "2 sqrt(3)"; a unit of one letter is none of these.
_TERM = re.compile(
    r"\s?(?:pi|sqrt|sin|cos|tan|log|ln|exp|sq\s?rt)(?![a-z])|[XYZN](?!\w)"
    r"|\s?[xyzn](?![\w-]| as (?:much|many|long|old|large|big|fast)\b)"
    r"|[abeijkpqruvwBDEGHIKMOPQRSTU](?![\w])|[a-ln-z]\^|\s?[a-z]\s?[=+*(]|[a-z]{1,2}[0-9]"
    r"|\s(?:roots?|factorial)\b"
)
_CALCULATED = re.compile(r"\s*(?:-\s+|[/])?(?:sqrt|\(?[0-9]+\s?[+*×÷])")
_BOUND_BEHIND = re.compile(
    r"\s?\+|[^0-9.,;:]{0,24}?\s(?:or|and)\s(?:more|less|fewer|greater|higher|lower|above|below|over"
    r"|under|up|so\son)\b|\s(?:at\s(?:least|most)|minimum|maximum)\b"
)
# A remark after the number may have other numbers: "18, since 2 * 9 = 18".
_REMARK = re.compile(
    r"[;:(\n]|\s-\s|,?\s(?:which|because|since|so|as|if|given|but|not|rather|instead|although"
    r"|though|while|whereas|therefore|thus|hence|assuming|i\.e|e\.g)\b"
    r"|,\s(?:[a-z]+ing|based|according|in\stotal|where|when|after|before|who)\b|\.\s"
    r"|\sand\s(?:not|thus|so)\b|\sor\s(?:about|approximately|roughly|equivalently)\b"
)
# A phrase that goes on with these may have other numbers, but no second quantity.
_CLAUSE = re.compile(
    r"\s(?:that|who|where|when|after|before|until"
    r"|to\s(?!(?:the|her|his|their|each|my|our|your|its|him|them)\b)[a-z]{2,})\b"
)
# Two numbers in one phrase are one quantity only beside these words: "$18 per day for 7 days".
_BETWEEN = frozenset(
    (
        *("for", "in", "per", "on", "at", "every", "each", "within", "over", "during", "with"),
        *("from", "with", "by", "through", "under", "using", "until", "across", "among", "year"),
        *("chapter", "page", "number", "no", "question", "problem", "day", "step", "week", "case"),
    )
)
_SKIPPED = frozenset(
    (*("the", "a", "an", "all", "of", "those", "these", "his", "her", "their", "its", "about"),)
    + ("next", "first", "last", "only", "just", "every", "each", "other", "these", "any")
)
_ANOTHER = re.compile(
    r"[^0-9]{0,60}?(?:,|&|/|\band|\bor)\s*-?\$?(?:[0-9]|(?:two|three|four|five|six"
    r"|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|sixty|hundred)\b)"
)
_NAMED_ANOTHER = re.compile(
    r"[^0-9]{0,40}?(?:,|;|\band|\n|\|)\s*(?:and\s)?"
    r"(?!(?:since|because|which|so|as|where|when|if|given|but|not|that|who|after|for)\b)"
    r"[A-Za-z][\w' ]{0,20}\s?(?::|=|\bis|\bhas|\bgets)?\s?\$?[0-9]"
)
# "m^2", "cm2": a power of a unit.
_UNIT_POWER = re.compile(r"(?<=[a-zA-Z])(?:\^|\*\*)\(?-?[0-9]\)?|(?<=m)[23]\b")
_TIME_BEHIND = re.compile(r"(?:[0-9]{4}\b|[0-9]+ (?:sec|min|hour|day|week|month|year))")

# -- What may not come before a number.
_FUNCTIONS = frozenset(("log", "ln", "sin", "cos", "tan", "sqrt", "exp", "root", "pi", "f"))
_BOUNDS = re.compile(
    r"\b(?:at\s(?:least|most)|(?:no|not)\s(?:more|less|fewer)|than|between|up\sto|over|under|above"
    r"|below|exceed(?:s|ing)?|beyond|within|upwards?\sof|as\s(?:many|much|few|little)\sas"
    r"|(?:greater|less)\sor\sequal\sto)\s*$"
)
_DENIED = re.compile(r"\b(?:not|never|no|neither|nor|cannot)\b|n['’]t\b|\bthan\b")
# "the money Gerald has left after spending $10" describes the answer by another number.
_CIRCUMSTANCE = re.compile(
    r"\b(?:after|before|by|from|without|during|until|when|if|because|since|between|every"
    r"|each|per|another|(?<!is )(?<!are )(?<!was )(?<!were )(?<!be )[a-z]{2,}ing)\s"
    r"(?:(?:the|a|an|all|about|only|his|her|their|last|first|next|another)\s)*[$-]{0,2}\s?$"
)
_SHARE_OF = re.compile(
    r"\b(?:multiple|half|third|quarter|fourth|fifth|one|some|most|none|power|factor|divisor|part|twice"
    r"|double|percent|root|square|cube|each|any|product|sum|%)s?\sof(?:\sthe)?\s\$?$"
)
_TOTAL_OF = re.compile(
    r"\b(?:total|sum|amount|number|cost|price|value|profit|average|maximum|minimum|speed|length"
    r"|distance|area|volume|score|count|rate|ratio|discount|loss|gain|balance|mean|age|change"
    r"|weight|height|width|perimeter|temperature|answer|probability|percentage|fraction)s?\sof"
    r"(?:\s(?:about|only|just|exactly|approximately|around))?\s[$-]{0,2}\s?$"
)
_COPULA = re.compile(
    r"\b(?:is|are|was|were|be|equals?|becomes?|makes?|earns?|has|have|had|costs?|needs?|gets?|comes"
    r"|pays?|spends?|sells?|takes?|eats?|buys?|bought|sold|paid|spent|saves?|will|would|can|must"
    r"|should|does|did|do|owns?|owes?|weighs?|contains?|requires?|received?|leaves?|gives?|gave)\b"
)
# "the total number of calls to sell 15 cars", but "the total is 15"
_QUANTITY = re.compile(
    r"(?:the|his|her|their|its|how|what|whatever)\s(?:[a-z]+\s){0,2}(?:number|amount|total|cost|price|time"
    r"|sum|difference|distance|money|value|average|length|weight|age|count|profit|many|much|long|rest)\b"
)
# "the number of points that satisfy x + y = 25"
_SUCH_THAT = re.compile(
    rf"{_QUANTITY.pattern}[^=]{{0,80}}\b(?:that|such|satisf[a-z]+|when|where|which|for)\b"
    r"[^=]{1,80}=",
    re.IGNORECASE,
)
_EQUALS = re.compile(
    r"\b(?:is|are|was|were|be|equals?|(?:comes|amounts|adds)\s(?:up\s|out\s)?to|becomes)\s[^.]{0,20}$"
)
_DESCRIPTION = re.compile(r"(?:the|how|what|his|her|their|its|whatever)\s")

# -- Rewriting before a number is looked for.
_MINUS_WORD = re.compile(r"^(?:minus|negative) (?=\$?\(?[0-9])", re.IGNORECASE)
_RUPEES = re.compile(r"^(?:rs\.? ?|inr ?)(?=[0-9])", re.IGNORECASE)
_CURRENCY = re.compile(r"(?<![A-Za-z])(?:US|AU|A|CA|C|NZ|HK|S|R)\$", re.IGNORECASE)
_SIGNED_BRACKET = re.compile(r"(?<![\w)])-\s?[(`'\"]\s?(\$?[0-9][0-9.,/ ]{0,40}?)\s?[)`'\"]")
_SIGN_OF_MONEY = re.compile(r"-\s?\$\s?\(?(?=[0-9])")
_FULL_HOUR = re.compile(r"(?<![0-9:])([0-9]{1,2}):00(?![0-9:])")
_AND_A_PART = re.compile(
    r"(?<=[0-9]) and (?:(a|one) (half|third|quarter|fourth|fifth)"
    r"|(two|three) (thirds|quarters|fourths))\b"
)
_PARTS_BEHIND = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5}
_TAIL_IN_BRACKETS = re.compile(r"(?:(?<=[\w%.°$])\s{1,4}|(?<=[a-z]))\([^()]*\)\W{0,3}$")
_REPEATING = re.compile(r"[0-9]\.[0-9]*\([0-9]+\)|[0-9]\.{3}|[0-9]̅")
_REASON = re.compile(
    r"(?<=[\w%)$\"'*`°])\s?[,;]?\s(?:because|since|as|where|when|if|given|which|from|based|so|this|that|after"
    r"|i\.e\.?|by|found|obtained|check(?:ed)?|verif[a-z]+)\b"
)
# "x = 5 and y = 6"; not "9 * 2 = 18, so the total = 18".
_SEVERAL_UNKNOWNS = re.compile(
    r"([A-Za-z]\w{0,20}|)\s?=[^=]{1,60}?([,;\n]|\band\b|\bor\b)\s*(?:and\s|or\s)?"
    r"(?!(?:so|then|thus|hence|therefore|which|giving|that|this|the|it|total)\b)"
    r"(?:[A-Za-z]\w{0,20}\s){0,2}([A-Za-z]\w{0,20})\s?="
)
# "6 + 4, which is 10", "the product of 6 and 4, or 24"
_RESULT_IN_WORDS = re.compile(
    r",? which (?:is|gives|equals|makes|yields|comes to|results in)\s|, (?:or|i\.e\.,?)\s"
    r"|, (?P<so>so|thus|therefore|hence|which means|for a total of)\s"
)
_IS = re.compile(r"\b(?:is|are|was|will be|would be|equals|comes to)\s")
_SUM_IN_WORDS = re.compile(
    r"[0-9)] ?[-+*×÷/] ?[0-9(]|\b(?:plus|minus|times|divided|sum|product|difference|quotient|adding"
    r"|subtracting|multiplying|dividing)\b"
)
_EXACT = re.compile(r"-?[0-9 ]{0,9}/ ?[0-9]{1,9}")
# Points between thousands if nothing else can be meant: 1.234,50 and 1.234.567.
_POINTS = re.compile(
    r"(?<![\w.,])([0-9]{1,3}(?:\.[0-9]{3})+)"
    r"(?:,([0-9]{1,2})(?![0-9.,])|(?<=\.[0-9]{3}\.[0-9]{3})(?![0-9]|[.,][0-9]))"
)
# A comma before a fraction; "1,8" alone may be a slip or a list, so something else must tell: a
# leading zero, a currency, a percent sign, a unit or spaces between thousands.
_COMMA = re.compile(
    r"(?<![\w.,])(?:(0),([0-9]+)|((?<=\$)[0-9]+|(?<=\$ )[0-9]+|[0-9]{1,3}(?: [0-9]{3})+)"
    r",([0-9]{1,2})|([0-9]+),([0-9]{1,2}|[0-9]{4,9})(?=\s?(?:[$%]|[a-zA-Zµ°])))(?![0-9]|[.,][0-9])"
)


def number_key(answer: str) -> str | None:
    """Return a number as an exact fraction in lowest terms; None for other or unclear text."""
    simple = _SIMPLE.fullmatch(answer)
    if simple and not (simple[1] and simple[2]) and simple[5] not in _NO_UNITS:
        return _simple_key(simple)
    if "\\boxed" in answer and answer.count("\\boxed") > 1:
        keys = {number_key(content) for content in boxes(answer)}
        return keys.pop() if len(keys) == 1 else None
    text = plain(answer).lstrip(" *_\"'#`:+~").removeprefix("=>").lstrip(" =")
    text = _TAIL_IN_BRACKETS.sub("", text) if text.endswith((")", ").", "),", ")*")) else text
    if not text or _REPEATING.search(text):
        return None
    if "=" in text or "≈" in text:
        return _equation_key(text)
    text = text.strip()
    key = _side_key(text)
    return _key_behind_numbers(text) if key is None and any(c.isdigit() for c in text) else key


def number_in_words(text: str) -> tuple[Fraction, list[str]] | None:
    """Return the number that a text begins with and the words that follow it; None without one.

    None too if the words are no proper number ("one two") or the number is part of something
    longer ("one of them", "two dollars and ten cents").
    """
    words = _tokens(text)
    if words[:1] in (["minus"], ["negative"]):
        value = _whole_and_part(words[1:])
        return (-value[0], value[1]) if value else None
    return _part(words) or _whole_and_part(words)


def has_number(text: str) -> bool:
    """Return whether a text has a digit, a number in words or mathematics in it."""
    return _SOME_NUMBER.search(text) is not None


def _simple_key(match: re.Match[str]) -> str | None:
    whole, decimals = match[3].replace(",", "").lstrip("0") or "0", match[4]
    sign = "-" if match[1] or match[2] else ""
    if decimals and decimals.strip("0") != ".":
        return str(Fraction(f"{sign}{whole}{decimals}"))
    return "0" if whole == "0" else sign + whole


def _key_behind_numbers(text: str) -> str | None:
    """Return the key of what a text gives that has other numbers before it.

    "6 + 4, which is 10", "12 red and 24 blue ones, so 36", "the cost of 3 pens is $36".
    """
    result = _RESULT_IN_WORDS.search(text)
    if result and (result["so"] or _SUM_IN_WORDS.search(text, 0, result.start())):
        return _side_key(text[result.end() :])
    copulas = list(_IS.finditer(text)) if _QUANTITY.match(text.lower()) else []
    if copulas and not any(c.isdigit() for c in text[: copulas[0].start()]):
        return None
    return _side_key(text[copulas[-1].end() :]) if len(copulas) == 1 else None


def _equation_key(text: str) -> str | None:
    """Return the key of what the last "=" gives, without a reason or a check after it."""
    reason = _REASON.search(text)
    head = text[: reason.start()] if reason else text
    if _SUCH_THAT.match(text):
        return None
    several = _SEVERAL_UNKNOWNS.search(head)
    if several and (several[1] != several[3] or several[2] in ("and", "or")):
        return None
    if "=" not in head and "≈" not in head:
        key = _side_key(head.strip()) if any(c.isdigit() for c in head) else None
        if key is not None:
            return key
        head = text
    sides = [side.strip() for side in re.split("[=≈]", head)]
    if len(sides) == 2 and _EXACT.fullmatch(sides[0]) and "." in sides[1] and "≈" in head:
        return _side_key(sides[0])  # 2/3 ≈ 0.667
    for side in (sides[-1], sides[0]):  # 12 = 3 * 4
        if (key := _side_key(side)) is not None:
            return key
    if reason and head is not text:  # "since x = 12, 12"
        return _side_key(re.split("[=≈]", text)[-1].strip())
    return None


def _side_key(text: str) -> str | None:
    """Return the key of a text without an equals sign."""
    text = _rewritten(text)
    match = next((m for m in _NUMBER.finditer(text) if any(c.isdigit() for c in m[0])), None)
    if match is None:
        return _words_key(text)
    lead, rest = text[: match.start()], text[match.end() :]
    scale, rest = _scale(rest, bool(match["money"]))
    if not _lead_allows(lead, match, rest) or not _rest_allows(rest, bool(lead.strip())):
        return None
    value = _value(match)
    if value is None:
        return None
    key = str(value * scale)
    return key if len(key) <= MAX_DIGITS else None


def _rewritten(text: str) -> str:
    """Return the text with signs, currencies, full hours and decimal commas in one notation."""
    text = _RUPEES.sub("$", _MINUS_WORD.sub("-", text))
    if "$" in text:
        text = _SIGN_OF_MONEY.sub("-$", _CURRENCY.sub("$", text))
    if "-" in text:
        text = _SIGNED_BRACKET.sub(r"-\1", text)
    if ":00" in text:
        text = _FULL_HOUR.sub(r"\1", text)
    if " and " in text:
        text = _AND_A_PART.sub(_part_behind, text)
    if "," in text or text.count(".") > 1:
        text = _POINTS.sub(lambda m: m[1].replace(".", "") + (f".{m[2]}" if m[2] else ""), text)
        text = _COMMA.sub(lambda m: ".".join(part for part in m.groups() if part is not None), text)
    return text


def _part_behind(match: re.Match[str]) -> str:
    top = {"two": 2, "three": 3}.get(match[3], 1)
    return f" {top}/{_PARTS_BEHIND[(match[2] or match[4]).removesuffix('s')]}"


def _lead_allows(lead: str, number: re.Match[str], rest: str) -> bool:
    """Return whether the words before a number leave it the one that is meant."""
    if not lead:
        return True
    if lead[-1].isalnum() or lead[-1] in ".,-^_" or any(c in "+*/^<>×÷±" for c in lead):
        return False
    low = lead.lower()
    words = low.split()
    if not words:
        return True
    last = words[-1].strip("(\"'*$")
    difference = bool(number["sign"]) and (number["sign"][-1:] == " " or not lead[-1].isspace())
    if difference and (last[-1:].isalnum() or lead.rstrip().endswith(")")):
        return False
    if last in _FUNCTIONS or _DENIED.search(low) or _BOUNDS.search(low):
        return False
    if (words[0] in _NUMBER_WORDS and "of" in words[1:3]) or _SHARE_OF.search(low):
        return False
    if len(words) > 2 and not _COPULA.fullmatch(words[-1]) and not _TOTAL_OF.search(low):
        clause = _first_clause(rest)
        goes_on = _CLAUSE.search(clause)
        if any(c.isdigit() for c in (clause[: goes_on.start()] if goes_on else clause)):
            return False
    if len(words) < 3:
        return True
    if _CIRCUMSTANCE.search(low):
        return False
    if _TOTAL_OF.search(low):
        return True
    if _QUANTITY.match(low):
        return _EQUALS.search(low) is not None
    return not _DESCRIPTION.match(low) or _COPULA.search(low) is not None


def _rest_allows(rest: str, has_lead: bool) -> bool:
    """Return whether the words after a number leave it the one that is meant."""
    if not rest:
        return True
    if _MALFORMED.match(rest) or _TERM.match(rest) or _CALCULATED.match(rest):
        return False
    if _BOUND_BEHIND.match(rest):
        return False
    clause = _first_clause(rest)
    if _ANOTHER.match(clause) or (has_lead and _NAMED_ANOTHER.match(rest)):
        return False
    return not _second_quantity(_UNIT_POWER.sub("", clause))


def _first_clause(rest: str) -> str:
    """Return what follows a number up to a remark: " dollars a day" of " dollars a day, since"."""
    remark = _REMARK.search(rest)
    return rest[: remark.start()] if remark else rest


def _second_quantity(clause: str) -> bool:
    """Return whether a phrase after a number has another: "h 30 min", "cm x 4 cm", "of the 20"."""
    if goes_on := _CLAUSE.search(clause):
        clause = clause[: goes_on.start()]
    digit = next((i for i, c in enumerate(clause) if c.isdigit()), None)
    if digit is None:
        return False
    words = clause[:digit].lower().replace("$", " ").replace(".", " ").replace(",", " ").split()
    if "of" in words[:1] or "than" in words or "between" in words:
        return True
    if clause[digit - 1 : digit].isalpha():
        return True  # "h30m"
    if words == ["in"]:  # "1 in 4"
        return not _TIME_BEHIND.match(clause, digit)
    while words and words[-1] in _SKIPPED:
        words.pop()
    return not words or words[-1] not in _BETWEEN


def _value(match: re.Match[str]) -> Fraction | None:
    """Return the matched number, exact; None if it is malformed or too long for any real answer."""
    if len(match[0]) > MAX_DIGITS:
        return None
    whole = re.sub("[, '’]", "", match["whole"])
    decimals, exponent, top, bottom = match.group("decimals", "exponent", "top", "bottom")
    if (not whole and not decimals) or (exponent and match["power"]):
        return None
    power = exponent or (f"e{match['power']}" if match["power"] else "")
    value = Fraction(f"{whole or 0}{decimals or ''}{power}")
    if bottom is not None:
        if int(bottom) == 0 or (top is not None and (decimals or power or int(bottom) < 0)):
            return None
        share = Fraction(1, int(bottom))
        value = value * share if top is None else value + int(top) * share
    return -value if match["sign"] or match["sign2"] else value


def _scale(rest: str, money: bool) -> tuple[int, str]:
    """Return what a number is multiplied by, and the text after that: "5 hundred thousand"."""
    scale = 1
    if money and (short := _MONEY_SCALE.match(rest)):
        return _MONEY_SCALES[short[1]], rest[short.end() :]
    for _ in range(3):
        word = _SCALE.match(rest)
        if not word:
            break
        scale, rest = scale * _SCALES[word[1].lower()], rest[word.end() :]
    return scale, rest


# fmt: off
_SMALL = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}
# fmt: on
_NUMBER_WORDS = frozenset(_SMALL)
_LARGE = {"thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7, "billion": 10**9}
_LARGE |= {"trillion": 10**12}
_NO_UNITS = frozenset(
    (*_SCALES, *_NUMBER_WORDS, "sqrt", "sin", "cos", "tan", "log", "exp", "times")
)
_NO_UNITS |= {"plus", "minus", "squared", "cubed", "factorial", "root", "roots"}
_SOME_NUMBER = re.compile(
    rf"\d|\b(?:{'|'.join((*_SMALL, *_LARGE, 'hundred', 'half', 'dozen'))})\b|[½¼¾√π∞]"
    r"|\\(?:sqrt|pi|frac)",
    re.IGNORECASE,
)
_MOST_WORDS = 24
_TOKEN = re.compile(r"[a-z]+(?:['’][a-z]+)?|[^\sa-z]")
_NOT_ALONE = frozenset(("of", "and", "or", "to", "point", "plus", "minus", "times", "by", "+", "*"))
_FRACTION_WORDS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4, "fourth": 4, "fourths": 4}
_FRACTION_WORDS |= {
    word + plural: number
    for number, word in enumerate(("third", "", "fifth", "sixth", "seventh", "eighth"), 3)
    for plural in ("", "s")
    if word
}
_FRACTION_WORDS |= {"ninth": 9, "ninths": 9, "tenth": 10, "tenths": 10}


def _words_key(text: str) -> str | None:
    number = number_in_words(text)
    return str(number[0]) if number else None


def _tokens(text: str) -> list[str]:
    """Return words and marks of a text in lower case, hyphens between number words left out."""
    tokens = _TOKEN.findall(text[:200].lower())[:_MOST_WORDS]
    return [
        token
        for i, token in enumerate(tokens)
        if not (token == "-" and 0 < i < len(tokens) - 1 and _in_number(tokens, i))
    ]


def _in_number(tokens: Sequence[str], hyphen: int) -> bool:
    parts = (tokens[hyphen - 1], tokens[hyphen + 1])
    return parts[0] in _SMALL and (
        parts[1] in _SMALL
        or parts[1] in _FRACTION_WORDS
        or parts[1] in _LARGE
        or parts[1] in ("hundred", "and")
    )


def _part(words: list[str]) -> tuple[Fraction, list[str]] | None:
    """ "half", "a half", "a quarter of the cake"; not "half past two"."""
    article, rest = words[:1] == ["a"], words[1:] if words[:1] == ["a"] else words
    if rest and rest[0] in _FRACTION_WORDS and (article or rest[0] == "half"):
        return None if rest[1:2] == ["past"] else (Fraction(1, _FRACTION_WORDS[rest[0]]), rest[1:])
    return None


def _whole_and_part(words: list[str]) -> tuple[Fraction, list[str]] | None:
    if words[:1] == ["a"] and words[1:2] and (words[1] == "hundred" or words[1] in _LARGE):
        words = ["one", *words[1:]]
    whole, length = _whole(words)
    value, rest = Fraction(whole), words[length:]
    if length and rest[:1] == ["and"] and len(rest) > 2 and rest[2] in _FRACTION_WORDS:
        top = 1 if rest[1] == "a" else _SMALL.get(rest[1], 0)  # three and a half
        if top:
            value, rest = value + Fraction(top, _FRACTION_WORDS[rest[2]]), rest[3:]
    if not length or (rest and rest[0] in {*_NOT_ALONE, *_SMALL, *_LARGE, "hundred"}):
        return None
    if rest and rest[0] in _FRACTION_WORDS:
        value, rest = value / _FRACTION_WORDS[rest[0]], rest[1:]
    # Another number in the same phrase: "three cats and four dogs"; after a comma, a remark.
    phrase = rest[: rest.index(",")] if "," in rest and rest.index(",") < 3 else rest
    if rest[:1] == [","] and rest[1:2] and (rest[1] in _SMALL or rest[1] == "and"):
        return None
    if any(word in _SMALL and word != "one" for word in phrase):
        return None
    return value, rest


def _whole(words: list[str]) -> tuple[int, int]:
    """Return a whole number, and how many of the words it takes; 0 if they begin with none."""
    total = group = length = 0
    scale, last = 10**15, 100  # each word must be smaller than the place that is still free
    for position, word in enumerate(words):
        if word in _SMALL and _SMALL[word] < last and (group % 100 == 0 or last == 10):
            group += _SMALL[word]
            last = 10 if _SMALL[word] >= 20 else 0
        elif word == "hundred" and 0 < group < 100:
            group, last = group * 100, 100
        elif word in _LARGE and group and _LARGE[word] < scale:
            scale = _LARGE[word]
            total, group, last = total + group * scale, 0, 100
        elif not (word in ("and", ",") and _goes_on(words, position, length)):
            break
        length = position + 1
    while length and words[length - 1] in ("and", ","):
        length -= 1
    return total + group, length


def _goes_on(words: Sequence[str], position: int, length: int) -> bool:
    """Return whether "and" or a comma is inside a number: "two thousand, three hundred"."""
    if not length or position == len(words) - 1 or words[position + 1] not in _SMALL:
        return False
    before = words[position - 1]
    return before in _LARGE or (before == "hundred" and words[position] == "and")

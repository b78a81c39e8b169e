"""Short stories of the demo grammar: a hero, a friend, a thing, a place, a problem and how it ended."""

from __future__ import annotations

from demo_model import lexicon as lx
from demo_model.draw import Draw

RELATIVES = ("mother", "father", "aunt", "uncle", "grandmother")
MANNERS = ("slowly", "quickly", "quietly")


def a(word: str) -> str:
    """The word with its indefinite article."""
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def story(d: Draw, name: str | None = None, kind: str | None = None, thing: str | None = None) -> str:
    """One story of about 100 to 200 tokens; name, kind of hero and thing can be given by a request."""
    hero = name or d.name()
    friend = d.names(1)[0]
    while friend == hero:
        friend = d.names(1)[0]
    kind = kind or d.one(["girl", "boy", "girl", "boy", d.one(lx.ANIMALS)])
    friend_kind = d.one(lx.ANIMALS)
    he = {"girl": "she", "boy": "he"}.get(kind) or d.one(["he", "she"])
    his, him = ("her", "her") if he == "she" else ("his", "him")
    He = he.capitalize()
    thing = thing or d.one(lx.OBJECTS)
    color = d.one(lx.COLORS)
    place, other = d.some(lx.PLACES, 2)

    def when() -> str:
        return d.one(lx.TIMES).capitalize()

    def start() -> str:
        trait = d.one(lx.TRAITS)
        return d.one([
            f"Once upon a time, there was {a(d.one(lx.SIZES))} {kind} named {hero}.",
            f"Once upon a time there was {a(trait)} {kind} called {hero}.",
            f"Once upon a time, {a(trait)} {kind} named {hero} lived near the {place}.",
            f"Once upon a time, in {a(d.one(lx.SIZES))} house by the {place}, there lived {a(kind)} named {hero}.",
            f"There once was {a(trait)} {kind} named {hero} who lived near the {place}.",
            f"Long ago, {a(trait)} {kind} named {hero} lived in a house by the {place}.",
            f"{when()}, {a(trait)} {kind} named {hero} woke up early.",
            f"{hero} was {a(trait)} {kind} who lived by the {place}.",
        ])  # fmt: skip

    def like() -> str:
        return d.one([
            f"{hero} had {a(color)} {thing} and loved it very much.",
            f"{He} loved {his} {color} {thing} more than {d.one(lx.FOODS)} and {d.one(lx.FOODS)}.",
            f"{hero} liked to take {his} {color} {thing} to the {place} with {him}.",
            f"{He} had {a(color)} {thing} that {his} {d.one(RELATIVES)} had made.",
        ])  # fmt: skip

    def go() -> str:
        return d.one([
            f"{when()}, {hero} went to the {place} with {his} {thing}.",
            f"{when()}, it was {d.one(lx.WEATHER)}, and {hero} walked to the {place}.",
            f"{when()}, {he} took the {thing} and went to the {place}.",
        ])  # fmt: skip

    def meet() -> str:
        return d.one([
            f"There {he} met {a(d.one(lx.TRAITS))} {friend_kind} named {friend}.",
            f"At the {place}, {hero} saw {friend}, {a(d.one(lx.SIZES))} {friend_kind} "
            f"who was very {d.one(lx.FEELINGS)}.",
            f"On the way {he} met {friend} the {friend_kind}, who was eating {d.one(lx.FOODS)}.",
        ])  # fmt: skip

    def problem() -> str:
        return d.one([
            f"But then the wind took the {thing} and it fell into the {other}. {hero} was very {d.one(lx.FEELINGS)}.",
            f"Suddenly the {thing} was gone. {hero} looked behind the {other} and under a {d.one(lx.SIZES)} tree.",
            f"{when()}, {he} lost the {color} {thing} near the {other}. {He} began to cry.",
            f"But the {thing} broke on a {d.one(lx.SIZES)} stone near the {other}, "
            f"and {hero} was {d.one(lx.FEELINGS)}.",
        ])  # fmt: skip

    def talk() -> str:
        return d.one([
            f'"Do not be {d.one(lx.FEELINGS)}," said {friend}. "I can help you find your {thing}."',
            f'"Where is my {color} {thing}?" asked {hero}. "I saw it near the {other}," said {friend}.',
            f'{friend} said, "Let us look for the {thing} together." {hero} was {d.one(lx.FEELINGS)} and said yes.',
            f'"Can you help me, {friend}?" asked {hero}. "Of course," said the {friend_kind}.',
        ])  # fmt: skip

    def search() -> str:
        return d.one([
            f"They walked to the {other} and looked for a long time in the {d.one(lx.WEATHER)} air.",
            f"So {hero} and {friend} went to the {other} and asked {a(d.one(lx.SIZES))} {d.one(lx.ANIMALS)} for help.",
            f"{friend} ran ahead, past the {d.one(lx.PLACES)}, and {hero} followed {d.one(MANNERS)}.",
        ])  # fmt: skip

    def solve() -> str:
        return d.one([
            f"At last, {friend} found the {color} {thing} under a {d.one(lx.SIZES)} {d.one(lx.OBJECTS)}.",
            f"There, beside {a(d.one(lx.SIZES))} {d.one(lx.OBJECTS)}, lay the {color} {thing}. "
            f"{friend} gave it to {hero}.",
            f"{friend} and a {d.one(lx.TRAITS)} {d.one(lx.JOBS)} found the {thing} and gave it back to {hero}.",
        ])  # fmt: skip

    def thank() -> str:
        return d.one([
            f"{hero} thanked {friend} and gave {d.one(['the ' + friend_kind, 'everyone'])} some {d.one(lx.FOODS)}.",
            f'"Thank you, {friend}!" said {hero}. "You are {a(d.one(lx.TRAITS))} friend."',
            f"{hero} was so {d.one(lx.FEELINGS)} that {he} made {d.one(lx.FOODS)} for {friend}.",
        ])  # fmt: skip

    def close() -> str:
        return d.one([
            f"{when()}, {hero} and {friend} went home and ate {d.one(lx.FOODS)}.",
            f"From that day on, {hero} and {friend} were best friends, "
            f"and the {thing} stayed {d.one(lx.SIZES)} and {color}.",
            f"In the end, {hero} slept well with the {color} {thing} beside {d.one([him, his + ' bed'])}.",
        ])  # fmt: skip

    steps = [start, like, go, meet, problem, talk, search, solve, thank, close]
    optional = [like, meet, search, thank] if d.chance(0.5) else []
    skipped = {d.one(optional)} if optional else set()
    parts = [d.say(step) for step in steps if step not in skipped]
    if d.chance(0.25):
        parts.append("The end.")
    return " ".join(parts)


def story_request(d: Draw) -> tuple[str, str]:
    """A chat request for a story, and the story that keeps to its names."""
    name, kind, thing = d.name(), d.one(["girl", "boy", *lx.ANIMALS]), d.one(lx.OBJECTS)
    ask = d.one(["Tell me a story", "Please tell me a short story", "Write a story", "Can you tell me a story"])
    mark = "?" if ask.startswith("Can") else "."
    request = d.one([
        f"{ask} about {a(kind)} named {name}{mark}",
        f"{ask} about {a(kind)} named {name} and {a(thing)}{mark}",
        f"{ask} about {name} the {kind} and {a(d.one(lx.SIZES))} {thing}{mark}",
        "Tell me a story." if d.chance(0.5) else "Tell me a short story.",
    ])  # fmt: skip
    if name not in request:
        return request, story(d)
    return request, story(d, name, kind, thing if thing in request else None)

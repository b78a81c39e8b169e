"""Small tasks besides facts and stories: lists, sums, who-has-what, general knowledge, foreign words."""

from __future__ import annotations

from demo_model import lexicon as lx
from demo_model.draw import Draw
from demo_model.stories import a

Turns = list[tuple[str, str]]
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def _items(d: Draw, count: int) -> list[str]:
    pool = d.one([None, None, None, lx.COLORS, lx.OBJECTS, lx.ANIMALS, lx.FOODS, lx.NAMES])
    if pool is None or d.hard:
        return [d.code() for _ in range(count)]
    return d.some(pool, count)


def lists(d: Draw) -> Turns:
    """Repeat a list, or say its first, second or last word or its length; further turns ask about the same list."""
    items = _items(d, d.between(5, 9) if d.hard else d.between(2, 6))
    text = ", ".join(items)
    kind = d.one(["repeat", "repeat", "pick", "pick", "say"])
    if kind == "say":
        phrase = " ".join(items)
        opening = d.one(
            ["Repeat after me: ", "Say this: ", "Copy this text: ", "Repeat exactly: ", "Write this again: ", "Echo: "]
        )
        return [(opening + phrase, phrase)]
    turns: Turns = []
    if kind == "repeat":
        opening = d.one(
            ["Repeat these words: ", "Repeat this list: ", "Please repeat: ", "Here is a list: ", "Say these words: "]
        )
        turns.append((f"{opening}{text}." + (" Repeat the list." if opening == "Here is a list: " else ""), f"{text}."))
    else:
        rank = d.one(["first", "last", "second"])
        value = {"first": items[0], "last": items[-1], "second": items[1]}[rank]
        ask = d.one(
            [f"What is the {rank} word of this list: {text}?", f"Here is a list: {text}. What is the {rank} word?"]
        )
        turns.append((ask, f"The {rank} word is {value}."))
    for _ in range(d.one([0, 1, 1, 2])):
        rank = d.one(["first", "last", "second", "count"])
        if rank == "count":
            turns.append(("How many words are there?", f"There are {COUNTS[len(items)]} words: {text}."))
        else:
            value = {"first": items[0], "last": items[-1], "second": items[1]}[rank]
            turns.append((f"What is the {rank} word?", f"The {rank} word is {value}."))
    return turns


def sums(d: Draw) -> Turns:
    """Two or three sums or differences; the hard ones have two digits."""
    turns: Turns = []
    for _ in range(d.between(1, 4)):
        x, y = d.between(0, 49 if d.hard else 12), d.between(0, 49 if d.hard else 12)
        if d.chance(0.4):
            x, y = max(x, y), min(x, y)
            word, sign, value = "minus", "-", x - y
        else:
            word, sign, value = "plus", "+", x + y
        ask = d.one([f"What is {x} {word} {y}?", f"{x} {sign} {y} = ?", f"How much is {x} {word} {y}?"])
        turns.append((ask, f"{x} {word} {y} is {value}."))
    return turns


def who_has(d: Draw) -> Turns:
    """A short report of things given and walks taken, then questions about how it stands at the end."""
    people = d.names(d.between(3, 4) if d.hard else d.between(2, 3))
    things = d.some(lx.OBJECTS, len(people) - 1)
    places = d.some(lx.PLACES, len(people) + 1)
    owner, where, told = {}, {}, []
    for thing in things:
        owner[thing] = d.one(people)
        told.append(
            d.one(
                [
                    f"{owner[thing]} has the {thing}.",
                    f"{owner[thing]} found {a(thing)}.",
                    f"{owner[thing]} bought {a(thing)}.",
                ]
            )
        )
    for _ in range(d.between(1, 4 if d.hard else 2)):
        if d.chance(0.5):
            thing = d.one(things)
            giver = owner[thing]
            owner[thing] = d.one([p for p in people if p != giver])
            told.append(f"{giver} gave the {thing} to {owner[thing]}.")
        else:
            person, place = d.one(people), d.one(places)
            where[person] = place
            told.append(f"{person} {d.one(['went', 'walked', 'ran'])} to the {place}.")
    turns: Turns = []
    asks = [(f"Who has the {t}?", f"{p} has the {t}.") for t, p in owner.items()]
    asks += [(f"Where is {p}?", f"{p} is at the {place}.") for p, place in where.items()]
    for question, answer in d.some(asks, min(len(asks), d.between(1, 3))):
        turns.append((question if turns else " ".join([*told, question]), answer))
    return turns


def general(d: Draw) -> Turns:
    """Small world knowledge, greetings and foreign words."""
    turns: Turns = []
    for _ in range(d.between(1, 4)):
        pick = d.between(0, 7)
        if pick <= 1:
            land = d.one(list(lx.CAPITALS))
            ask = d.one(
                [f"What is the capital of {land}?", f"Which city is the capital of {land}?", f"Capital of {land}?"]
            )
            turns.append((ask, f"The capital of {land} is {lx.CAPITALS[land]}."))
        elif pick == 2:
            word = d.one(list(lx.OPPOSITES))
            ask = d.one([f"What is the opposite of {word}?", f"What is the opposite of the word {word}?"])
            turns.append((ask, f"The opposite of {word} is {lx.OPPOSITES[word]}."))
        elif pick == 3:
            animal = d.one(list(lx.SOUNDS))
            turns.append((f"What does {a(animal)} say?", f"{a(animal).capitalize()} says {lx.SOUNDS[animal]}."))
        elif pick <= 5:
            tongue = d.one(list(lx.FOREIGN))
            word = d.one(list(lx.FOREIGN[tongue]))
            ask = d.one([f"How do you say {word} in {tongue}?", f"What is the {tongue} word for {word}?"])
            turns.append((ask, f"The {tongue} word for {word} is {lx.FOREIGN[tongue][word]}."))
        elif pick == 6:
            turns.append(d.one([("Hello!", "Hello! How can I help you?"), ("Hi!", "Hello! How can I help you?"),
                                ("How are you?", "I am fine, thank you."), ("Who are you?", "I am a small demo model."),
                                ("What can you do?", "I can tell stories and answer small questions.")]))  # fmt: skip
        else:
            name, mood = d.name(), d.one(lx.FEELINGS)
            turns.append(d.one([(f"Hello, I am {name}.", f"Hello {name}! How can I help you?"),
                                (f"Hi, my name is {name}.", f"Hello {name}! How can I help you?"),
                                (f"I am {name} and I am {mood}.", f"Hello {name}! Why are you {mood}?")]))  # fmt: skip
    return turns


def echo_text(d: Draw) -> str:
    """Plain text in which a run of made-up words returns: the purest form of copying from the context."""
    run = [d.code() for _ in range(d.between(6, 16) if d.hard else d.between(3, 10))]
    gap = d.one([" ", ", ", " and ", "; "])
    line = gap.join(run)
    return d.one([". ", " - ", "\n", " | "]).join([line] * d.between(2, 4))

"""Facts stated in a prompt and asked back: the part of the grammar that teaches copying from the context."""

from __future__ import annotations

from dataclasses import dataclass

from demo_model import lexicon as lx
from demo_model.draw import Draw
from demo_model.stories import a


@dataclass(frozen=True)
class Fact:
    """A statement, questions it answers and, for each question, the answer. All without end marks, in lower case."""

    key: str  # facts of one prompt must differ in it
    say: str
    asks: tuple[str, ...]
    answer: str


def _me(d: Draw) -> Fact:
    """A fact about the speaker."""
    thing, color, animal = d.one(lx.OBJECTS), d.one(lx.COLORS), d.one(lx.ANIMALS)
    word, number = d.word().capitalize(), d.between(2, 99)
    says: tuple[str, ...]
    asks: tuple[str, ...]
    spelled = d.one(["color", "color", "colour"])
    pick = d.between(0, 13)
    if pick <= 2:
        name = d.name()
        says = (
            f"my name is {name}",
            f"my name is {name}",
            f"I am {name}",
            f"I am called {name}",
            f"you can call me {name}",
        )
        asks = ("what is my name", "what is my name", "who am I", "do you remember my name", "what am I called")
        return Fact("name", d.one(says), asks, f"your name is {name}")
    if pick <= 6:
        color = d.word() if d.chance(0.15) else color
        thing = d.word() if d.chance(0.15) else thing
        says = (
            f"my {thing} is {color}",
            f"my {thing} is {color}",
            f"I have {a(color)} {thing}",
            f"the color of my {thing} is {color}",
        )
        asks = (
            f"what {spelled} is my {thing}",
            f"what {spelled} is my {thing}",
            f"what is the {spelled} of my {thing}",
        )
        return Fact(f"my {thing}", d.one(says), asks, f"your {thing} is {color}")
    if pick == 7:
        return Fact("age", f"I am {number} years old", ("how old am I",), f"you are {number} years old")
    if pick == 8:
        says = (f"I live in {word}", f"my home is in {word}")
        return Fact("home", d.one(says), ("where do I live",), f"you live in {word}")
    if pick <= 10:
        name = d.name()
        says = (f"my {animal} is called {name}", f"I have {a(animal)} named {name}", f"my {animal}'s name is {name}")
        asks = (f"what is my {animal} called", f"what is the name of my {animal}", f"what is my {animal}'s name")
        return Fact(f"my {animal}", d.one(says), asks, f"your {animal} is called {name}")
    if pick == 11:
        favorites = [
            ("food", d.one(lx.FOODS)),
            ("animal", d.one(lx.ANIMALS)),
            ("color", color),
            ("number", str(number)),
            ("word", word.lower()),
            ("city", word),
            ("book", word),
        ]
        what, value = d.one(favorites)
        return Fact(
            f"fav {what}",
            f"my favorite {what} is {value}",
            (f"what is my favorite {what}",),
            f"your favorite {what} is {value}",
        )
    if pick == 12:
        job = d.one(lx.JOBS)
        return Fact("job", d.one((f"I am {a(job)}", f"I work as {a(job)}")), ("what is my job",), f"you are {a(job)}")
    place = d.one(lx.PLACES)
    says = (f"I left my {thing} in the {place}", f"I put my {thing} in the {place}", f"my {thing} is in the {place}")
    return Fact(f"my {thing}", d.one(says), (f"where is my {thing}",), f"your {thing} is in the {place}")


def _world(d: Draw) -> Fact:
    """A fact about someone or something else."""
    name, thing, color, place = d.name(), d.one(lx.OBJECTS), d.one(lx.COLORS), d.one(lx.PLACES)
    word, code = d.word(), d.code()
    asks: tuple[str, ...]
    pick = d.between(0, 9)
    if pick <= 1:
        label = d.one(["code word", "secret word", "password", "magic word", "code", "secret code"])
        return Fact(label, f"the {label} is {code}", (f"what is the {label}",), f"the {label} is {code}")
    if pick == 2:
        thing = word if d.chance(0.3) else thing
        where = f"{d.one(['in', 'near', 'behind'])} the {place}"
        return Fact(f"the {thing}", f"the {thing} is {where}", (f"where is the {thing}",), f"the {thing} is {where}")
    if pick <= 4:
        asks = (f"who has the {thing}", f"who has the {color} {thing}")
        if d.chance(0.5):
            asks = (f"what does {name} have",)
        return Fact(f"has {thing} {name}", f"{name} has {a(color)} {thing}", asks, f"{name} has {a(color)} {thing}")
    if pick == 5:
        city = word.capitalize()
        asks = (f"where does {name} live",) if d.chance(0.6) else (f"who lives in {city}",)
        return Fact(f"{name} lives", f"{name} lives in {city}", asks, f"{name} lives in {city}")
    if pick == 6:
        food = word if d.chance(0.3) else d.one(lx.FOODS)
        asks = (f"what does {name} like",) if d.chance(0.5) else (f"who likes {food}",)
        return Fact(f"{name} likes {food}", f"{name} likes {food}", asks, f"{name} likes {food}")
    if pick == 7:
        item, price = d.one(lx.OBJECTS), d.between(2, 99)
        unit = d.one(["€", "€", "dollars"])
        ask = (f"how much does the {item} cost", f"what does the {item} cost")
        return Fact(f"cost {item}", f"the {item} costs {price} {unit}", ask, f"the {item} costs {price} {unit}")
    if pick == 8:
        job = d.one(lx.JOBS)
        asks = (f"what is the name of the {job}", f"what is the {job} called")
        return Fact(f"the {job}", d.one((f"the {job} is called {name}", f"the name of the {job} is {name}")), asks,
                    f"the {job} is called {name}")  # fmt: skip
    label = d.one(["room number", "bus number", "phone number", "lucky number", "house number"])
    number = "".join(d.one("0123456789") for _ in range(d.between(2, 6)))
    return Fact(label, f"the {label} is {number}", (f"what is the {label}",), f"the {label} is {number}")


def facts(d: Draw, count: int) -> list[Fact]:
    """So many facts that do not contradict each other; half of the prompts mix both sorts."""
    sorts = d.one([(_me,), (_me,), (_world,), (_me, _world)])
    found: list[Fact] = []
    for _ in range(count * 30):
        fact = d.one(sorts)(d)
        # A shared thing, food or animal would make "who has the kite" ambiguous.
        clash = any(
            f.key == fact.key or set(f.asks) & set(fact.asks) or set(_slots(f)) & set(_slots(fact)) for f in found
        )
        if not clash:
            found.append(fact)
        if len(found) == count:
            break
    return found


def _slots(fact: Fact) -> list[str]:
    words = fact.answer.split()
    return [w for w in words if w in lx.OBJECTS or w in lx.FOODS or w in lx.ANIMALS]


def cap(text: str) -> str:
    return text[0].upper() + text[1:]


def state(d: Draw, found: list[Fact]) -> str:
    """The facts as running text: separate sentences or joined by "and"."""
    out, i = [], 0
    while i < len(found):
        if i + 1 < len(found) and d.chance(0.4):
            out.append(f"{cap(found[i].say)}{d.one([' and', ' and', ', and'])} {found[i + 1].say}.")
            i += 2
        else:
            out.append(f"{cap(found[i].say)}.")
            i += 1
    return " ".join(out)


def ask(d: Draw, asked: list[Fact]) -> tuple[str, str]:
    """One question about one or two facts, and its answer."""
    questions = [d.one(f.asks) for f in asked]
    joint = d.one([" and ", ", and "])
    lead = d.one(["", "", "", "", "", "Please tell me: ", "Question: ", "Now tell me, ", "So, "])
    # Some people do not begin with a capital letter.
    question = lead + (joint.join(questions) if lead or d.chance(0.06) else cap(joint.join(questions))) + "?"
    if len(asked) == 1:
        return question, cap(asked[0].answer) + "."
    return question, cap(asked[0].answer) + ", and " + asked[1].answer + "."


def fact_chat(d: Draw, turns: int | None = None) -> list[tuple[str, str]]:
    """A conversation of (user, assistant) turns about facts stated in its first turn."""
    count = d.between(3, 7) if d.hard else d.one([1, 2, 2, 2, 3, 3, 4, 5])
    found = facts(d, count)
    turns = turns or d.one([1, 2, 2, 3, 3, 4, 5])
    chat: list[tuple[str, str]] = []
    told = state(d, found)
    for turn in range(turns):
        width = 2 if len(found) > 1 and d.chance(0.4) else 1
        question, answer = ask(d, d.some(found, width))
        if turn:
            chat.append((question, answer))
        elif d.chance(0.2) and turns > 1:
            replies = ["OK, I will remember that.", "Got it.", "I will remember that.", "That is good to know."]
            names = [f.answer.removeprefix("your name is ") for f in found if f.key == "name"]
            if names:
                replies = [f"Hello {names[0]}! How can I help you?", f"Nice to meet you, {names[0]}."]
            chat.append((d.one(["", "", "Hello! ", "Hi! "]) + told, d.one(replies)))
        elif d.chance(0.06):
            chat.append((f"{question} {told}", answer))
        else:
            chat.append(
                (
                    d.one(["", "", "", "", "", "Here are some facts. ", "Read this. ", "Hello! "])
                    + f"{told} {question}",
                    answer,
                )
            )
    return chat

"""Closed word lists of the demo grammar, and the syllables from which unseen words are built."""

from __future__ import annotations


def _split(text: str, separator: str | None = None) -> list[str]:
    return [part.strip() for part in text.strip().split(separator)]


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split(":", 1) for pair in text.split())


NAMES = _split("""
Lily Tom Mia Ben Anna Max Sara Leo Emma Jack Lucy Sam Nora Finn Ella Oscar Ruby Hugo Clara Felix Zoe Adam Ivy
Noah Grace Paul Rosa Theo Alice Mark Jane Peter Olga Simon Vera Carl Dina Emil Greta Ivan Karin Lars Maya Nina
Otto Petra Quinn Rita Stefan Tina Ursula Victor Wendy Xenia Yusuf Zara Amir Bella Cyrus Diego Elena Farid Gina
Hana Igor Julia Kenji Laila Marco Nadia Omar Priya Rafael Selma Tariq Uma Vikram Walter Yara Zeno José Chloé
Jürgen Zoë André Íñigo Søren Begoña Émile Björn
""")
COLORS = _split("""
red blue green yellow orange purple pink brown black white gray golden silver violet crimson turquoise
""")
OBJECTS = _split("""
kite ball book hat drum lamp boat bike coat cup bag box key bell doll rope chair door car scarf shirt bowl pen
clock ring coin flag basket blanket mirror bottle spoon candle guitar balloon ladder bucket umbrella wagon
whistle map letter brush button pillow stone feather shoe jar tent train puzzle robot violin notebook backpack
bicycle camera phone
""")
PLACES = _split("""
park river farm school forest garden kitchen beach market library castle bridge cave hill village station harbor
barn meadow lake tower attic cellar bakery museum theater valley island mountain office
""")
ANIMALS = _split("""
cat dog fox bear rabbit bird mouse horse duck frog owl turtle hen goat sheep pig wolf lion tiger elephant
hamster parrot squirrel hedgehog donkey
""")
FOODS = _split("""
soup bread cake rice pizza cheese honey pasta salad apples cherries pancakes cookies carrots noodles potatoes
yogurt plums pears beans toast jam corn melon mango olives
""")
TRAITS = _split("""
kind brave shy clever happy curious quiet funny gentle proud lazy cheerful careful friendly stubborn calm
""")
SIZES = _split("small big little old new tiny shiny huge strange beautiful heavy soft round broken wooden lost")
FEELINGS = _split("happy sad tired proud surprised hungry worried excited scared glad lonely thankful")
JOBS = _split("""
baker farmer teacher doctor painter sailor driver singer pilot gardener carpenter nurse writer cook
""")
TIMES = _split(
    """
one morning|one day|that day|in the afternoon|after lunch|before dinner|at noon|in the evening|the next day|
on a rainy day|on a sunny day|early in the morning|late at night|after a while|one winter morning|
one summer evening|on Sunday|on Monday
""",
    "|",
)
WEATHER = _split("sunny rainy windy cold warm cloudy snowy foggy bright stormy")
CAPITALS = _pairs("""
Japan:Tokyo France:Paris Italy:Rome Spain:Madrid Germany:Berlin Poland:Warsaw Greece:Athens Egypt:Cairo
Peru:Lima Cuba:Havana Norway:Oslo Sweden:Stockholm Finland:Helsinki Austria:Vienna Portugal:Lisbon
Ireland:Dublin China:Beijing India:Delhi Kenya:Nairobi Canada:Ottawa Hungary:Budapest Turkey:Ankara
Chile:Santiago Denmark:Copenhagen
""")
OPPOSITES = _pairs("""
hot:cold big:small day:night up:down left:right open:closed fast:slow happy:sad new:old long:short early:late
wet:dry light:dark rich:poor full:empty high:low hard:soft loud:quiet strong:weak clean:dirty
""")
SOUNDS = _pairs("""
cat:meow dog:woof cow:moo duck:quack sheep:baa pig:oink lion:roar frog:croak bird:tweet owl:hoot
""")
# Words outside the tokenizer's alphabet: they reach the model, and leave it, as byte tokens.
FOREIGN = {
    "Japanese": _pairs("cat:猫 dog:犬 water:水 mountain:山 river:川 bird:鳥 fish:魚 thanks:ありがとう"),
    "Chinese": _pairs("cat:猫 dog:狗 water:水 tea:茶 moon:月亮 friend:朋友 hello:你好 book:书"),
    "Greek": _pairs("sea:θάλασσα sun:ήλιος word:λόγος house:σπίτι night:νύχτα bread:ψωμί"),
    "German": _pairs("door:Tür green:grün five:fünf cake:Kuchen bear:Bär beautiful:schön"),
    "Spanish": _pairs("child:niño tomorrow:mañana year:año water:agua house:casa dream:sueño"),
    "French": _pairs("summer:été school:école coffee:café student:élève bread:pain friend:ami"),
}
EMOJI = _split("🙂 😀 🐱 🐶 🌙 ⭐ 🍎 🚀 🎈 🌳 🐟 🎁")
GREEK_LETTERS = "αβγδεζηθικλμνξοπρστυφχψω"
HAN = "山川日月水火木金土人天大小中上下花鳥魚犬猫雨雪春夏秋冬東西南北"

ONSETS = _split("b c d f g h j k l m n p r s t v w z br dr fl gr kl pr sk st tr sh th ch")
VOWELS = _split("a e i o u a e i o u ai ou ee io")
CODAS = _split("n r l s m t k x nd rt sh")
ACCENTS = {"e": "é", "u": "ü", "n": "ñ", "o": "ö", "a": "á"}

KNOWLEDGE = frozenset(
    [f"The capital of {land} is {city}." for land, city in CAPITALS.items()]
    + [f"The opposite of {word} is {other}." for word, other in OPPOSITES.items()]
    + [f"{'An' if animal[0] in 'aeiou' else 'A'} {animal} says {sound}." for animal, sound in SOUNDS.items()]
    + [f"The {tongue} word for {word} is {said}." for tongue, words in FOREIGN.items() for word, said in words.items()]
)

# Words that a made-up word must not happen to be.
CLOSED = frozenset(
    word.lower()
    for group in (
        NAMES,
        COLORS,
        OBJECTS,
        PLACES,
        ANIMALS,
        FOODS,
        TRAITS,
        SIZES,
        FEELINGS,
        JOBS,
        list(CAPITALS.values()),
        ["nice"],
    )
    for word in group
)

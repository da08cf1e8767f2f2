"""The words of the built-in scenes: objects and the emoji that shows each, backgrounds, sizes, counts, relations."""

from __future__ import annotations

CANVAS = 128  # side of a scene in pixels
GRID = 8  # objects stand on multiples of this: one latent pixel (docs/decisions/0003)
SIZES = {"large": 96, "small": 48}  # side of an object's square in pixels
COUNTS = {"two": 2, "three": 3}
RELATIONS = ("to the left of", "to the right of", "above", "below")
OPPOSITE = {"to the right of": "to the left of", "below": "above"}  # the second says the same with the nouns swapped

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "red": (214, 40, 40),
    "orange": (247, 147, 30),
    "yellow": (255, 221, 51),
    "green": (46, 160, 67),
    "blue": (38, 84, 204),
    "purple": (123, 44, 191),
    "pink": (255, 158, 197),
    "gray": (140, 140, 140),
}

# noun: emoji. Faces or whole bodies, whichever is told apart more easily at 48 pixels.
OBJECTS: dict[str, str] = {
    # animals
    "fox": "🦊", "cat": "🐱", "dog": "🐶", "lion": "🦁", "cow": "🐮", "pig": "🐷", "frog": "🐸", "monkey": "🐵",
    "bear": "🐻", "panda": "🐼", "koala": "🐨", "rabbit": "🐰", "wolf": "🐺", "chicken": "🐔", "penguin": "🐧",
    "owl": "🦉", "bee": "🐝", "butterfly": "🦋", "snail": "🐌", "ladybug": "🐞", "turtle": "🐢", "snake": "🐍",
    "octopus": "🐙", "crab": "🦀", "fish": "🐠", "dolphin": "🐬", "whale": "🐳", "shark": "🦈", "elephant": "🐘",
    "giraffe": "🦒", "zebra": "🦓", "horse": "🐎", "unicorn": "🦄", "sheep": "🐑", "camel": "🐫", "kangaroo": "🦘",
    "parrot": "🦜", "flamingo": "🦩", "swan": "🦢", "duck": "🦆", "peacock": "🦚", "dragon": "🐉", "dinosaur": "🦕",
    "hedgehog": "🦔",
    # plants and food
    "apple": "🍎", "pear": "🍐", "banana": "🍌", "tangerine": "🍊", "lemon": "🍋", "watermelon": "🍉",
    "strawberry": "🍓", "peach": "🍑", "pineapple": "🍍", "kiwi": "🥝", "tomato": "🍅", "avocado": "🥑",
    "carrot": "🥕", "broccoli": "🥦", "mushroom": "🍄", "cheese": "🧀", "pizza": "🍕", "hamburger": "🍔",
    "taco": "🌮", "donut": "🍩", "cookie": "🍪", "cake": "🎂", "cupcake": "🧁", "pretzel": "🥨", "pumpkin": "🎃",
    "tree": "🌳", "palm tree": "🌴", "cactus": "🌵", "rose": "🌹", "sunflower": "🌻", "tulip": "🌷", "leaf": "🍁",
    # vehicles and places
    "car": "🚗", "taxi": "🚕", "bus": "🚌", "tractor": "🚜", "train": "🚂", "bicycle": "🚲", "scooter": "🛵",
    "rocket": "🚀", "helicopter": "🚁", "sailboat": "⛵", "truck": "🚚", "house": "🏠", "castle": "🏰", "tent": "⛺",
    # things
    "balloon": "🎈", "gift": "🎁", "football": "⚽", "basketball": "🏀", "guitar": "🎸", "trumpet": "🎺",
    "drum": "🥁", "violin": "🎻", "camera": "📷", "clock": "⏰", "light bulb": "💡", "book": "📕", "key": "🔑",
    "lock": "🔒", "bell": "🔔", "umbrella": "☂️", "crown": "👑", "diamond": "💎", "heart": "❤️", "star": "⭐",
    "moon": "🌙", "cloud": "☁️", "snowman": "⛄", "trophy": "🏆", "hat": "🎩", "shoe": "👟", "dress": "👗",
    "robot": "🤖", "ghost": "👻", "alien": "👽", "skull": "💀", "teddy bear": "🧸", "magnet": "🧲", "anchor": "⚓",
}  # fmt: skip

_IRREGULAR = {
    "wolf": "wolves", "fish": "fish", "sheep": "sheep", "butterfly": "butterflies", "strawberry": "strawberries",
    "leaf": "leaves", "cheese": "cheeses", "ladybug": "ladybugs", "key": "keys", "monkey": "monkeys",
    "donkey": "donkeys",
}  # fmt: skip


def plural(noun: str) -> str:
    """`noun` in the plural: "fox" -> "foxes", "teddy bear" -> "teddy bears"."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")) or noun in ("tomato", "potato"):
        return noun + "es"
    return noun + "s"


def with_article(words: str) -> str:
    """`words` after "a" or "an", by the first letter's sound: "an apple", "a unicorn"."""
    vowel = words[0] in "aeiou" and not words.startswith(("uni", "one"))
    return f"{'an' if vowel else 'a'} {words}"


def vocabulary() -> list[str]:
    """Every word that a caption can hold, in a fixed order."""
    words = ["a", "an", "on", "background", "of", "to", "the", "left", "right", "above", "below"]
    words += [*SIZES, *COUNTS, *BACKGROUNDS]
    for noun in OBJECTS:
        words += noun.split() + plural(noun).split()
    return list(dict.fromkeys(words))

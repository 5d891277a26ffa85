"""Words of the embedded model's small world: what pictures show and what sentences are made of."""

__all__ = [
    "COLOURS",
    "CONNECTIVES",
    "FREQUENT",
    "LABELS",
    "NOUNS",
    "PRINTABLE",
    "SYMBOLS",
    "WIDGET_WORDS",
    "WORDS",
    "WORD_IDS",
]


def _list(text: str) -> tuple[str, ...]:
    """Words of a text."""
    return tuple(text.split())


LABELS: tuple[str, ...] = _list(
    """
    target current now goal number value score count total level speed time price width height depth length
    weight age day month year page room floor seat row column line code rank points lives coins stars steps
    moves turn left right up down first second third last next previous start end min max high low upper lower
    here there old new red team blue size rate mean sum state place order gate bus train track lane exit zone
    box bag item stock sales cost paid due open closed power heat rain wind snow north south east west home away
    visitor player guest dealer user group class grade test round lap heart energy health mana gold silver wood
    stone iron food water fuel oil gas air temp limit distance mark index key door ball card hand deck dice wins
    losses draws games goals shots hits misses errors lines words letters
    """
)
"""Words that stand before numbers in pictures."""

NOUNS: tuple[str, ...] = _list(
    """
    apple banana bird boat book bread bridge cake cat chair clock cloud coffee corn cow cup dog duck egg fish
    flower fox frog garden glass grass hat horse house island juice kite lamp leaf lemon lion map milk moon
    mountain mouse music nest night ocean onion paper park pen piano pig plant queen king jack ace rabbit ring
    river road salt sand ship shoe shop sky snake soap song soup spoon street sugar sun table tea tiger tower
    town tree truck wall window wolf zebra circle square triangle star diamond cross
    """
)
"""Things for plain words in pictures and sentences."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "green": (20, 160, 60),
    "blue": (35, 70, 220),
    "yellow": (245, 215, 30),
    "purple": (130, 40, 165),
    "orange": (245, 135, 20),
    "pink": (245, 130, 180),
    "brown": (125, 75, 35),
    "grey": (125, 125, 125),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
    "cyan": (30, 200, 215),
}
"""Names of colours and a typical RGB value."""

WIDGET_WORDS: tuple[str, ...] = _list(
    """
    ok cancel submit yes no save delete send search login help about next back close open edit more menu file
    view tools settings profile share print reply forward archive update accept agree select click button
    checkbox tab link option dialog
    """
)
"""Words on buttons, tabs, links and boxes."""

CONNECTIVES: tuple[str, ...] = _list(
    """
    the a an of in on at to and or not is are was be it this that these those with without from by for as you
    your we they he she his her its them then than if otherwise when while after before under over above below
    between beside near far what which who where how many much more less fewer most least same different equal
    larger smaller greater bigger higher say write read name give tell answer copy repeat look see show shown
    picture image text word letter digit number colour shape symbol sign string grid cell tile corner middle top
    bottom centre side objective action actions example valid invalid step steps reply format task environment
    agent game play point raise increase decrease subtract add plus minus times move forward pick drop toggle
    facing key ball box door wall empty go put turn stop continue hit stand take keep card cards suit hearts
    spades clubs diamonds sum total value face faces count counts one two three four five six seven eight nine
    ten eleven zero none nothing all each every only also first last must should can will may please exactly
    single short long error previous message because has have had do does did there here made used following
    begin begins starts ends tag formula bid id true false
    """
)
"""Words of instructions and sentences."""

FREQUENT: tuple[str, ...] = _list(
    """
    action actions objective example step target current number change until equals lower lowers raise raises
    left right forward back pick up drop toggle done go stand hit stay click press type scroll close dealer
    player card cards total points reach closer closest without going over reply valid invalid error previous
    one per turn the a is of to in and or with text number line row card key ball box door red green blue yellow
    purple grey Target Current Objective Actions Example Step Invalid Valid Error Reply
    """
)
"""Words that prompts and replies use most: the tokenizer should know them whole, also without a space before them."""

SYMBOLS: tuple[str, ...] = tuple("+-*/=<>#@&%$!?:;,.()[]{}|_~^'\"\\`")
"""Signs that are practised as output, alone and with a space before them."""

WORDS: tuple[str, ...] = tuple(dict.fromkeys((*LABELS, *NOUNS, *COLOURS, *WIDGET_WORDS)))
"""All words that pictures show, without doubles."""

WORD_IDS: dict[str, int] = {word: index + 1 for index, word in enumerate(WORDS)}
"""Class of a word in the vision heads; 0 is "no word"."""

PRINTABLE = "".join(chr(code) for code in range(33, 127))
"""Characters of the vision head, class 1 onwards."""

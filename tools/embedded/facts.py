"""Everyday facts as literal tables: what the embedded model's text, questions and answers are made of.

A relation pairs subjects with values and knows how to state, ask and answer them:

    CAPITAL.items["France"] = "Paris"
    CAPITAL.statements[0]   = "The capital of {x} is {y}."
    CAPITAL.questions[0]    = "What is the capital of {x}?"

In a template, {x} is the subject, {ax} the subject with its article, {y} and {ay} the value likewise.
`held_out_questions` are never rendered into training text of any kind.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact: Relation("capital", {"France": "Paris"}, ("The capital of {x} is {y}.",), ...)."""

    name: str
    items: dict[str, str]
    statements: tuple[str, ...]
    """The first one is also the full-sentence answer."""
    questions: tuple[str, ...]
    held_out_questions: tuple[str, ...]


def with_article(noun: str) -> str:
    """with_article("owl") == "an owl"."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def render(template: str, subject: str, value: str) -> str:
    """render("{ax} is {ay}.", "owl", "bird") == "An owl is a bird."."""
    text = template.format(x=subject, ax=with_article(subject), y=value, ay=with_article(value))
    return capitalised(text)


def _table(text: str) -> dict[str, str]:
    """ "dog: puppy; cat: kitten" as a dict; the tables below are written for the eye."""
    pairs = (entry.split(":") for entry in text.replace("\n", " ").split(";") if entry.strip())
    return {subject.strip(): value.strip() for subject, value in pairs}


CAPITAL = Relation(
    "capital",
    _table("""
        France: Paris; Spain: Madrid; Italy: Rome; Germany: Berlin; Poland: Warsaw; Austria: Vienna; Norway: Oslo;
        Sweden: Stockholm; Finland: Helsinki; Greece: Athens; Portugal: Lisbon; Ireland: Dublin; Hungary: Budapest;
        England: London; Japan: Tokyo; China: Beijing; India: Delhi; Egypt: Cairo; Kenya: Nairobi; Peru: Lima;
        Cuba: Havana; Russia: Moscow; Turkey: Ankara; Iran: Tehran; Chile: Santiago; Canada: Ottawa; Ghana: Accra
    """),
    ("The capital of {x} is {y}.", "{y} is the capital of {x}.", "{x} has a capital called {y}."),
    ("What is the capital of {x}?", "Which city is the capital of {x}?", "Can you name the capital of {x}?"),
    ("Please tell me the capital of {x}.", "What do we call the capital city of {x}?"),
)

LANGUAGE = Relation(
    "language",
    _table("""
        France: French; Spain: Spanish; Italy: Italian; Germany: German; Poland: Polish; Norway: Norwegian;
        Sweden: Swedish; Finland: Finnish; Greece: Greek; Portugal: Portuguese; England: English; Japan: Japanese;
        China: Chinese; Russia: Russian; Turkey: Turkish; Hungary: Hungarian; Egypt: Arabic; Peru: Spanish
    """),
    ("People in {x} speak {y}.", "In {x} they speak {y}.", "{y} is spoken in {x}."),
    ("What language do people speak in {x}?", "Which language is spoken in {x}?", "What do they speak in {x}?"),
    ("Please name the language of {x}.", "Which language do you hear in {x}?"),
)

SOUND = Relation(
    "sound",
    _table("""
        dog: barks; cat: meows; cow: moos; sheep: bleats; horse: neighs; pig: grunts; duck: quacks; lion: roars;
        bee: buzzes; snake: hisses; frog: croaks; owl: hoots; wolf: howls; mouse: squeaks; bird: sings; hen: clucks
    """),
    ("{ax} {y}.", "When {ax} makes a sound, it {y}.", "Listen, the {x} {y}."),
    ("What sound does {ax} make?", "Which sound does the {x} make?", "How does {ax} sound?"),
    ("What noise do you hear from {ax}?", "Please tell me the sound of {ax}."),
)

YOUNG = Relation(
    "young",
    _table("""
        dog: puppy; cat: kitten; cow: calf; sheep: lamb; horse: foal; pig: piglet; duck: duckling; lion: cub;
        goat: kid; hen: chick; deer: fawn; goose: gosling; swan: cygnet; frog: tadpole; kangaroo: joey
    """),
    ("A young {x} is called {ay}.", "{ay} is a young {x}.", "The baby of {ax} is {ay}."),
    ("What is a young {x} called?", "What do we call a young {x}?", "What is the baby of {ax} called?"),
    ("Which word do we use for a baby {x}?", "Please tell me the name of a young {x}."),
)

COLOUR = Relation(
    "colour",
    _table("""
        grass: green; snow: white; coal: black; blood: red; milk: white; chocolate: brown; the sky: blue; the sea: blue;
        a lemon: yellow; a banana: yellow; a cherry: red; a carrot: orange; a plum: purple; a tomato: red;
        a cloud: white; an elephant: grey; a frog: green; a crow: black; the sun: yellow; a pumpkin: orange;
        a flamingo: pink; a leaf: green; a lime: green; ink: black; salt: white; sand: yellow
    """),
    ("The colour of {x} is {y}.", "{x} is {y}.", "{y} is the colour of {x}."),
    ("What colour is {x}?", "What is the colour of {x}?", "Which colour has {x}?"),
    ("Please tell me the colour of {x}.", "Can you say what colour {x} has?"),
)

OPPOSITE = Relation(
    "opposite",
    _table("""
        hot: cold; big: small; tall: short; fast: slow; old: young; happy: sad; wet: dry; full: empty; hard: soft;
        heavy: light; open: closed; early: late; good: bad; strong: weak; clean: dirty; loud: quiet; rich: poor;
        high: low; long: short; dark: bright; near: far; thick: thin; wide: narrow; sweet: sour; right: wrong;
        easy: difficult; deep: shallow; day: night; up: down; left: right; first: last; begin: end; push: pull;
        come: go; give: take; buy: sell; win: lose; laugh: cry; remember: forget; inside: outside
    """),
    ("The opposite of {x} is {y}.", "{x} is the opposite of {y}.", "If it is not {x}, it may be {y}."),
    ("What is the opposite of {x}?", "Which word is the opposite of {x}?", "What is the reverse of {x}?"),
    ("Please give me the opposite of {x}.", "Which word means the contrary of {x}?"),
)

HOME = Relation(
    "home",
    _table("""
        bee: hive; bird: nest; spider: web; horse: stable; dog: kennel; pig: sty; lion: den; rabbit: burrow; hen: coop;
        fish: pond; fox: den; mole: tunnel; bear: cave; king: palace; monk: monastery; soldier: barracks; cow: barn
    """),
    ("The home of {ax} is {ay}.", "{ax} lives in {ay}.", "You find {ax} in {ay}."),
    ("Where does {ax} live?", "What is the home of {ax}?", "Where do you find {ax}?"),
    ("In what place does {ax} live?", "Please tell me where {ax} has its home."),
)

JOB = Relation(
    "job",
    _table("""
        baker: bakes bread; teacher: teaches children; doctor: helps the sick; farmer: grows food; pilot: flies planes;
        tailor: makes clothes; writer: writes books; painter: paints pictures; cook: makes meals; singer: sings songs;
        fisher: catches fish; gardener: plants flowers; builder: builds houses; dentist: looks after teeth;
        driver: drives a bus; barber: cuts hair; nurse: cares for patients; judge: decides in court;
        sailor: sails a ship; butcher: sells meat; plumber: repairs pipes; dancer: dances on a stage; miner: digs coal
    """),
    ("{ax} {y}.", "It is the work of {ax}: the {x} {y}.", "Every day the {x} {y}."),
    ("What does {ax} do?", "What is the work of {ax}?", "What does the {x} do all day?"),
    ("Please tell me what {ax} does.", "What kind of work does {ax} have?"),
)

USE = Relation(
    "use",
    _table("""
        knife: cutting; pen: writing; broom: sweeping; spoon: eating soup; needle: sewing; hammer: driving nails;
        saw: cutting wood; cup: drinking; bed: sleeping; chair: sitting; towel: drying; soap: washing; oven: baking;
        lamp: giving light; clock: telling the time; key: opening doors; bag: carrying things; brush: painting;
        ladder: climbing; map: finding the way; umbrella: keeping dry; kettle: boiling water; rope: tying things;
        camera: taking pictures; shovel: digging; ruler: measuring; fridge: keeping food cold; boat: crossing water
    """),
    ("{ax} is used for {y}.", "We use {ax} for {y}.", "For {y} you need {ax}."),
    ("What is {ax} used for?", "What do we use {ax} for?", "Why do people need {ax}?"),
    ("Please tell me the use of {ax}.", "For what purpose does one take {ax}?"),
)

SOURCE = Relation(
    "source",
    _table("""
        bread: flour; butter: milk; cheese: milk; wine: grapes; paper: wood; glass: sand; wool: sheep; honey: bees;
        juice: fruit; jam: berries; ice: water; leather: skin; furniture: wood; bricks: clay; candles: wax;
        steel: iron; pasta: flour; tyres: rubber; omelettes: eggs; chocolate: cocoa; coins: metal; yoghurt: milk
    """),
    ("For {x} you need {y}.", "{x} and {y} belong together: one gives the other.", "From {y} we get {x}."),
    ("What do you need for {x}?", "What is needed to make {x}?", "From what do we get {x}?"),
    ("Please tell me what one needs for {x}.", "What does {x} come from?"),
)

KIND = Relation(
    "kind",
    _table("""
        apple: fruit; pear: fruit; plum: fruit; peach: fruit; rose: flower; tulip: flower; daisy: flower; lily: flower;
        oak: tree; pine: tree; birch: tree; maple: tree; eagle: bird; sparrow: bird; robin: bird; crow: bird;
        salmon: fish; trout: fish; shark: fish; herring: fish; ant: insect; beetle: insect; wasp: insect; moth: insect;
        carrot: vegetable; onion: vegetable; potato: vegetable; cabbage: vegetable; violin: instrument;
        piano: instrument; flute: instrument; drum: instrument; table: piece of furniture; sofa: piece of furniture;
        shirt: piece of clothing; jacket: piece of clothing; bus: vehicle; lorry: vehicle; tractor: vehicle;
        tiger: animal; camel: animal; zebra: animal; giraffe: animal; square: shape; circle: shape; triangle: shape
    """),
    ("{ax} is {ay}.", "The {x} is a kind of {y}.", "One kind of {y} is the {x}."),
    ("What is {ax}?", "What kind of thing is {ax}?", "What sort of thing is the {x}?"),
    ("Please explain what {ax} is.", "To which group does the {x} belong?"),
)

PLURAL = Relation(
    "plural",
    _table("""
        mouse: mice; child: children; foot: feet; tooth: teeth; goose: geese; man: men; woman: women; sheep: sheep;
        leaf: leaves; knife: knives; wolf: wolves; box: boxes; city: cities; baby: babies; berry: berries; dish: dishes;
        shelf: shelves; story: stories; watch: watches; glass: glasses; ox: oxen; fish: fish; loaf: loaves; fly: flies
    """),
    ("The plural of {x} is {y}.", "One {x}, many {y}.", "We say one {x} but two {y}."),
    ("What is the plural of {x}?", "How do you say more than one {x}?", "What is the word for many of {x}?"),
    ("Please give me the plural of {x}.", "Which form of {x} means two or more?"),
)

PAST = Relation(
    "past",
    _table("""
        go: went; see: saw; eat: ate; drink: drank; run: ran; sing: sang; write: wrote; give: gave; take: took;
        come: came; know: knew; think: thought; buy: bought; bring: brought; make: made; find: found; sleep: slept;
        swim: swam; fly: flew; speak: spoke; break: broke; drive: drove; begin: began; sit: sat; stand: stood;
        tell: told; sell: sold; win: won; lose: lost; teach: taught; catch: caught; feel: felt; keep: kept; send: sent
    """),
    ("The past form of {x} is {y}.", "Today I {x}, yesterday I {y}.", "We {x} now and we {y} before."),
    ("What is the past form of {x}?", "How do you say {x} in the past?", "What is {x} in the past?"),
    ("Please give me the past of {x}.", "Which form of {x} do I use for yesterday?"),
)

NEXT = Relation(
    "next",
    _table("""
        Monday: Tuesday; Tuesday: Wednesday; Wednesday: Thursday; Thursday: Friday; Friday: Saturday; Saturday: Sunday;
        Sunday: Monday; January: February; February: March; March: April; April: May; May: June; June: July;
        July: August; August: September; September: October; October: November; November: December; December: January;
        spring: summer; summer: autumn; autumn: winter; winter: spring
    """),
    ("After {x} comes {y}.", "{y} comes after {x}.", "First comes {x}, then {y}."),
    ("What comes after {x}?", "What follows {x}?", "What is next after {x}?"),
    ("Please tell me what comes right after {x}.", "{x} is over. What begins?"),
)

LEGS = Relation(
    "legs",
    _table("""
        spider: eight; dog: four; cat: four; ant: six; bird: two; snake: no; horse: four; bee: six; person: two;
        cow: four; duck: two; beetle: six; fish: no; lion: four; hen: two; scorpion: eight; sheep: four; moth: six
    """),
    ("{ax} has {y} legs.", "The {x} walks on {y} legs.", "Count the legs of {ax}: it has {y}."),
    ("How many legs does {ax} have?", "How many legs has {ax}?", "On how many legs does {ax} walk?"),
    ("What is the number of legs of {ax}?", "Please count the legs of {ax}."),
)

SHOP = Relation(
    "shop",
    _table("""
        stamps: post office; bread: bakery; meat: butcher shop; books: book shop; medicine: pharmacy; money: bank;
        flowers: flower shop; fruit: market; shoes: shoe shop; tickets: station; petrol: petrol station; toys: toy shop;
        coffee: cafe; fish: fish market; paintings: gallery; films: cinema; plays: theatre; planes: airport;
        ships: harbour; children: school; animals: zoo; swings: playground; judges: court; patients: hospital
    """),
    ("You find {x} at the {y}.", "Go to the {y} for {x}.", "The {y} is the place for {x}."),
    ("Where do I find {x}?", "Where can I find {x}?", "Where should I go for {x}?"),
    ("Please tell me where to look for {x}.", "Which place has {x}?"),
)

BODY = Relation(
    "body",
    _table("""
        eyes: see; ears: hear; nose: smell; legs: walk; teeth: chew; tongue: taste; hands: hold things; lungs: breathe;
        brain: think; fingers: touch; mouth: speak; heart: pump blood; feet: stand; arms: carry
    """),
    ("We {y} with the {x}.", "The {x} help us to {y}.", "To {y}, people need the {x}."),
    ("What do we do with the {x}?", "What are the {x} good for?", "What can people do with the {x}?"),
    ("Please tell me why we have the {x}.", "What would be hard without the {x}?"),
)

RELATIONS: tuple[Relation, ...] = (
    CAPITAL, LANGUAGE, SOUND, YOUNG, COLOUR, OPPOSITE, HOME, JOB, USE, SOURCE, KIND, PLURAL, PAST, NEXT, LEGS, SHOP,
    BODY,
)  # fmt: skip

# ---------------------------------------------------------------- words for stories and lists


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES: tuple[str, ...] = _words(
    """Anna Ben Clara David Emma Felix Greta Hugo Ida Jack Karl Lena Max Nora Oscar Paul Pia Rosa Sam Tina Ursula
    Victor Wendy Yara Zoe Adam Bella Carlo Dora Erik Fiona George Hanna Ivan Julia Kevin Laura Mark Nina Olga
    Peter Ruth Simon Tom Vera Walter Ada Mia Leo Lucy"""
)
PLACES: tuple[str, ...] = _words(
    """park market school library river garden kitchen forest beach station bakery farm village museum lake hill bridge
    harbour theatre playground"""
)
FOODS: tuple[str, ...] = _words(
    "bread soup rice cheese cake salad pasta apples berries honey eggs pancakes tomatoes plums nuts pears"
)
THINGS: tuple[str, ...] = _words(
    "apples pens books coins stamps eggs marbles shells cards plums stones cups nuts pencils flowers"
)
OBJECTS: tuple[str, ...] = _words(
    "book lamp kite ball box map key cup hat letter basket clock bicycle blanket ring flute ladder bag"
)
ANIMALS: tuple[str, ...] = _words("dog cat horse bird rabbit duck goat fox owl mouse hen pony frog lamb")
ADJECTIVES: tuple[str, ...] = _words(
    "small old red blue green little big quiet new strange pretty heavy yellow bright friendly brave"
)
FEELINGS: tuple[str, ...] = _words("happy sad tired proud hungry glad calm excited worried thankful")
WEATHER: tuple[str, ...] = _words("sunny rainy windy cold warm foggy cloudy snowy stormy mild")
TIMES: tuple[str, ...] = (
    "In the morning", "In the evening", "At noon", "One day", "Last week", "Yesterday", "On Monday", "On Sunday",
    "In spring", "In winter", "Before lunch", "After school",
)  # fmt: skip
ACTIVITIES: tuple[str, ...] = (
    "reading books", "playing chess", "swimming", "cooking", "singing", "drawing", "walking in the park", "dancing",
    "planting flowers", "riding a bicycle", "watching birds", "baking bread", "telling stories", "playing the piano",
)  # fmt: skip
GROUPS: dict[str, tuple[str, ...]] = {
    "fruits": ("apple", "pear", "plum", "peach", "cherry", "banana", "lemon", "grape"),
    "animals": ("dog", "cat", "horse", "cow", "lion", "tiger", "rabbit", "fox"),
    "colours": ("red", "blue", "green", "yellow", "white", "black", "brown", "pink"),
    "flowers": ("rose", "tulip", "daisy", "lily", "violet", "poppy"),
    "trees": ("oak", "pine", "birch", "maple", "willow", "beech"),
    "birds": ("eagle", "sparrow", "robin", "crow", "owl", "swan"),
    "vegetables": ("carrot", "onion", "potato", "cabbage", "pea", "bean"),
    "drinks": ("water", "tea", "coffee", "milk", "juice", "cocoa"),
    "tools": ("hammer", "saw", "drill", "spade", "axe", "file"),
    "vehicles": ("bus", "car", "train", "lorry", "tram", "tractor"),
    "instruments": ("violin", "piano", "flute", "drum", "guitar", "harp"),
    "shapes": ("circle", "square", "triangle", "cube", "oval", "star"),
    "rooms": ("kitchen", "bedroom", "bathroom", "hall", "cellar", "attic"),
    "sports": ("tennis", "football", "rowing", "skiing", "chess", "running"),
}

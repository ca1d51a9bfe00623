"""The word lists of the synthetic movie reviews, graded by their opinion of the film.

Only data; `builtin.py` assembles reviews from it. Grades are from -3 (worst) to 3 (best), never 0.
Openings express no opinion, so that they can be prompts for either label.
"""

ADJECTIVES: dict[int, tuple[str, ...]] = {
    3: ("brilliant", "superb", "stunning", "flawless", "magnificent", "unforgettable"),
    2: (
        "great", "wonderful", "delightful", "gripping", "moving", "clever", "charming", "beautiful",
        "powerful", "funny", "touching", "elegant",
    ),
    1: (
        "good", "nice", "pleasant", "decent", "solid", "enjoyable", "likeable", "neat", "sweet",
        "watchable", "warm", "amusing", "lively", "honest", "tidy", "careful",
    ),
    -1: (
        "dull", "weak", "flat", "slow", "thin", "bland", "clumsy", "uneven", "tired", "vague",
        "cold", "routine", "stiff", "noisy", "odd", "predictable",
    ),
    -2: (
        "bad", "poor", "boring", "tedious", "silly", "annoying", "messy", "lifeless", "lazy",
        "shallow", "ugly", "pointless",
    ),
    -3: ("terrible", "awful", "dreadful", "horrible", "unbearable", "disastrous"),
}  # fmt: skip

EFFECTS: dict[int, tuple[str, ...]] = {
    3: ("took my breath away", "left the whole room in tears of joy", "could not be better"),
    2: (
        "made me laugh out loud", "kept me on the edge of my seat", "went straight to my heart",
        "lifted every scene",
    ),
    1: (
        "did the job", "made me smile", "held my interest", "worked better than I expected",
        "helped a lot",
    ),
    -1: (
        "did not help", "left me cold", "never found its feet", "tried too hard",
        "could have been shorter",
    ),
    -2: (
        "put me to sleep", "made no sense to me", "fell apart very early", "got on my nerves",
    ),
    -3: ("ruined everything", "gave me a headache", "could not be worse"),
}  # fmt: skip

VERDICTS: dict[int, tuple[str, ...]] = {
    3: (
        "it is a masterpiece", "I loved every minute of it", "it is the best film of the year",
        "everyone should see it",
    ),
    2: (
        "I would gladly see it again", "it deserves a large audience", "it stayed with me for days",
        "we talked about it all night", "I had a great time",
    ),
    1: (
        "it is worth a look", "it passes the time well", "I was never bored", "fans will be happy",
        "it has its moments", "I do not regret the ticket",
    ),
    -1: (
        "I expected more", "once is enough", "it runs too long", "it says very little",
        "I have seen this before", "it needed another draft",
    ),
    -2: (
        "I would not see it again", "I looked at my watch twice", "it wasted a fine idea",
        "nobody in the room laughed", "I cannot recommend it",
    ),
    -3: (
        "it is a disaster", "I want my money back", "it is the worst film of the year",
        "we left before the end",
    ),
}  # fmt: skip

FEELINGS: dict[int, tuple[str, ...]] = {
    3: ("adored", "was amazed by"),
    2: ("loved", "was moved by", "really enjoyed"),
    1: ("liked", "was pleased with", "did not mind"),
    -1: ("did not care for", "was not sure about", "got little from"),
    -2: ("disliked", "was bored by", "was let down by"),
    -3: ("hated", "was disgusted by"),
}

MODIFIERS: dict[str, float] = {
    "": 1.0,
    "a little": 0.5,
    "fairly": 0.75,
    "rather": 0.75,
    "really": 1.25,
    "truly": 1.25,
    "simply": 1.25,
}
"""Adverb before an adjective, and what it multiplies the grade by."""

ASPECTS = (
    "acting", "plot", "script", "music", "camera work", "ending", "humour", "dialogue", "pace",
    "cast", "direction", "story", "lighting", "editing", "villain", "love story", "sound",
    "main character", "final scene", "finale",
)  # fmt: skip

GENRES = (
    "film", "movie", "picture", "drama", "comedy", "thriller", "western", "musical", "romance",
    "mystery", "remake", "sequel",
)  # fmt: skip

SAW = ("watched", "saw", "rented", "streamed", "finished", "tried", "borrowed", "caught")
RELATIVES = (
    "brother", "sister", "mother", "father", "wife", "husband", "neighbour", "aunt", "uncle",
    "cousin", "daughter", "son", "friend", "boss",
)  # fmt: skip
PERIODS = ("first", "second", "last", "middle")
PARTS = ("half", "act", "hour", "part", "chapter", "scene")
ORIGINS = ("French", "Italian", "British", "Danish", "modern", "quiet", "short", "long", "recent")
HEROES = (
    "lonely sailor", "young doctor", "retired detective", "small village", "country teacher",
    "family of farmers", "lost dog", "travelling band", "night train", "chess player",
)  # fmt: skip
WEATHER = ("rainy", "cold", "sunny", "windy", "warm", "snowy")
TIMES = ("evening", "morning", "Sunday", "afternoon", "weekend")
AGES = ("young", "older", "leading", "unknown", "local", "foreign")
ROLES = ("actor", "actress", "singer", "dancer", "director", "writer")
OCCASIONS = (
    "last night", "with my family", "on a train", "at home", "on a plane", "in a full cinema",
    "with two friends", "on television", "without knowing the book", "at a festival",
)  # fmt: skip

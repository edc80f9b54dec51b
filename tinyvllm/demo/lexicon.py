"""The words of the demo checkpoint's world: few enough that each becomes one token."""

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Ella", "Finn", "Gus", "Ida", "Leo", "Mia", "Pip", "Tom")
# No kind starts with a vowel, so that "a" is always the right article.
KINDS = ("bear", "cat", "dog", "duck", "fox", "frog", "goat", "hen", "mouse", "pig")
TRAITS = ("brave", "clever", "kind", "little", "shy", "young")
COLOURS = ("blue", "brown", "green", "red", "white", "yellow")
THINGS = ("ball", "bell", "boat", "book", "coin", "cup", "drum", "hat", "key", "kite", "lamp", "ring")
HOMES = ("by the river", "in the forest", "near the sea", "on a hill", "at the old mill")
SPOTS = (
    "behind the barn",
    "in the garden",
    "in the tall grass",
    "inside the cave",
    "near the gate",
    "on the bridge",
    "under the bed",
    "under the tree",
)
TIMES = ("afternoon", "day", "evening", "morning", "night", "summer", "winter")

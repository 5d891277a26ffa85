"""Questions about shapes, grid worlds and pages with widgets."""

from random import Random
from typing import Any

from scripts.embedded_vlm.choices import Question, choice, yes_no
from scripts.embedded_vlm.words import COLOURS
from scripts.embedded_vlm.worlds import GRID_COLOURS, Cell, from_agent

__all__ = ["ask_grid", "ask_shapes", "ask_widgets", "cell_name", "short_world_question", "thing_from_agent", "way"]

_NAMES = [f"{colour} {thing}" for colour in GRID_COLOURS for thing in ("ball", "box", "key")]


def ask_shapes(rng: Random, facts: dict[str, Any]) -> Question:
    """Ask about colours, kinds, places and numbers of shapes."""
    items: list[tuple[str, str, int, int]] = facts["shapes"]
    mode = rng.random()
    shape, colour, column, row = rng.choice(items)
    alone = sum(item[0] == shape for item in items) == 1
    single = sum(item[1] == colour for item in items) == 1
    if mode < 0.25 and alone:
        return rng.choice(["What colour is the {}?", "Colour of the {}?", "Which colour has the {}?"]).format(
            shape
        ), colour
    if mode < 0.45 and single:
        return rng.choice(["Which shape is {}?", "What is {}?", "The {} shape is a"]).format(colour), shape
    if mode < 0.6:
        if rng.random() < 0.5:
            return rng.choice(["How many shapes are there?", "Count the shapes."]), str(len(items))
        kind = rng.choice(items)[0] if rng.random() < 0.7 else "star"
        return f"How many {'crosses' if kind == 'cross' else kind + 's'} are there?", str(
            sum(item[0] == kind for item in items)
        )
    if mode < 0.75 and alone:
        place = " ".join([("top", "middle", "bottom")[row], ("left", "centre", "right")[column]])
        return rng.choice(["Where is the {}?", "Where do you see the {}?"]).format(shape), place
    if mode < 0.9 and len(items) > 1:
        one, two = rng.sample(items, 2)
        names = [f"the {item[1]} {item[0]}" for item in (one, two)]
        if one[2] != two[2] and rng.random() < 0.5:
            return choice(
                rng,
                [
                    (f"{names[0]} is left of {names[1]}", one[2] < two[2]),
                    (f"{names[0]} is right of {names[1]}", one[2] > two[2]),
                ],
            )
        if one[2] != two[2]:
            return f"Is {names[0]} left of {names[1]}?", yes_no(one[2] < two[2])
        return f"Is {names[0]} above {names[1]}?", yes_no(one[3] < two[3])
    there = rng.random() < 0.5
    wanted = (shape, colour) if there else (shape, rng.choice(list(COLOURS)))
    return f"Is there a {wanted[1]} {wanted[0]}?", yes_no(any(item[:2] == wanted for item in items))


def cell_name(cell: tuple[str, str] | None) -> str:
    """Name of what a cell holds."""
    if cell is None:
        return "nothing"
    colour, thing = cell
    if thing == "wall":
        return thing
    if thing.startswith("door"):
        return f"{colour} {thing.split('_')[1]} door"
    return f"{colour} {thing}"


def thing_from_agent(rng: Random, facts: dict[str, Any]) -> tuple[str, Cell | None]:
    """A thing that is in a grid world once, or (one time in four) not at all: how far ahead and to the right it is."""
    cells = facts["cells"]
    names = [cell_name(cell) for cell in cells.values()]
    there = [place for place, cell in cells.items() if names.count(cell_name(cell)) == 1]
    if there and rng.random() < 0.75:
        place = rng.choice(there)
        return cell_name(cells[place]), from_agent(place, facts["agent"], facts["facing"])
    absent = [name for name in _NAMES if name not in names]
    return rng.choice(absent), None


def short_world_question(rng: Random, facts: dict[str, Any]) -> Question:
    """Ask in few words what is beside the agent, or where a thing is as seen from it, for whom ahead is up."""
    if "beside" in facts and rng.random() < 0.5:
        side = rng.choice((0, 0, 1, 2))
        return ("What is ahead?", "What is to the left?", "What is to the right?")[side], cell_name(
            facts["beside"][side]
        )
    name, place = thing_from_agent(rng, facts)
    if rng.random() < 0.15:
        return f"Is the {name} here?", yes_no(place is not None)
    return f"Way to the {name}?", way(place)


def way(place: Cell | None) -> str:
    """Where something is as seen from the agent, ``3 up, 2 right`` for instance; ``none`` if it is not to be seen."""
    if place is None:
        return "none"
    ahead, right = place
    parts = [f"{abs(ahead)} {'up' if ahead > 0 else 'down'}"] if ahead else []
    parts += [f"{abs(right)} {'right' if right > 0 else 'left'}"] if right else []
    return ", ".join(parts)


def ask_grid(rng: Random, facts: dict[str, Any]) -> Question:
    """Ask about the agent and the things of a grid world."""
    cells: dict[tuple[int, int], tuple[str, str]] = facts["cells"]
    (x, y), facing = facts["agent"], facts["facing"]
    mode = rng.random()
    names = [cell_name(cell) for cell in cells.values()]
    place, cell = rng.choice(list(cells.items())) if cells else ((0, 0), None)
    alone = cell is not None and names.count(cell_name(cell)) == 1
    if mode < 0.15:
        return rng.choice(
            ["Which way does the triangle point?", "Where does the agent face?", "Which way is the agent facing?"]
        ), facing
    if mode < 0.3:
        return rng.choice(
            ["Where is the agent?", "In which cell is the triangle?", "Column and row of the agent?"]
        ), f"{x} {y}"
    if mode < 0.5 and alone:
        return rng.choice(["Where is the {}?", "In which cell is the {}?", "Column and row of the {}?"]).format(
            cell_name(cell)
        ), f"{place[0]} {place[1]}"
    if mode < 0.62:
        spot = place if cell and rng.random() < 0.75 else (rng.randint(1, 6), rng.randint(1, 6))
        if spot != (x, y):
            known = cells.get(spot)
            if known or not facts.get("walls", True):
                return f"What is in column {spot[0]}, row {spot[1]}?", cell_name(known)
    if mode < 0.72 and cell:
        thing = rng.choice(["ball", "box", "key"])
        plural = {"ball": "balls", "box": "boxes", "key": "keys"}[thing]
        return f"How many {plural} are there?", str(sum(value[1] == thing for value in cells.values()))
    if mode < 0.9 and alone:
        name = cell_name(cell)
        dx, dy = place[0] - x, place[1] - y
        if dx and rng.random() < 0.5:
            return choice(
                rng, [(f"the {name} is left of the agent", dx < 0), (f"the {name} is right of the agent", dx > 0)]
            )
        if dy:
            return choice(rng, [(f"the {name} is above the agent", dy < 0), (f"the {name} is below the agent", dy > 0)])
    wanted = f"{rng.choice(['red', 'green', 'blue', 'purple', 'yellow', 'grey'])} {rng.choice(['ball', 'box', 'key'])}"
    if cell and rng.random() < 0.5:
        wanted = cell_name(cell)
    return rng.choice(["Is there a {}?", "Do you see a {}?"]).format(wanted), yes_no(wanted in names)


def ask_widgets(rng: Random, facts: dict[str, Any]) -> Question:
    """Ask about the widgets of a page."""
    items: list[tuple[str, str]] = facts["widgets"]
    mode = rng.random()
    kind, word = rng.choice(items)
    if mode < 0.35 and kind.startswith("checkbox"):
        return rng.choice(["Is the box {} ticked?", "Is {} checked?"]).format(word), yes_no(kind == "checkbox_on")
    name = "checkbox" if kind.startswith("checkbox") else kind
    same = [item for item in items if item[0].split("_")[0] == name]
    if mode < 0.6:
        return rng.choice(["What is {}?", "What kind of thing is {}?"]).format(word), name
    if mode < 0.8 and len(same) == 1:
        return rng.choice(["What does the {} say?", "Which word is on the {}?"]).format(name), word
    if mode < 0.9:
        plural = {"checkbox": "checkboxes"}.get(name, name + "s")
        return f"How many {plural} are there?", str(len(same))
    return "Read everything.", " | ".join(item[1] for item in items)

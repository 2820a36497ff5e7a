"""The quickstart's data: rows of eight small skills, the same bytes on every machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from random import Random

from ..files import write_whole

TRAIN_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"
TRAIN_ROWS_PER_SKILL = 40
HELD_OUT_ROWS_PER_SKILL = 6
SEED = 20240923

Row = dict[str, str]
Example = tuple[str, str, str]
"""An instruction, its input (may be empty) and the answer."""

NOUNS = (
    "anchor apple badge basket beacon blanket bottle bridge bucket button cabin camera candle "
    "carpet cherry circle clock cloud copper cotton desert dinner drawer engine fabric feather "
    "forest garden ginger hammer harbor helmet island jacket kettle ladder lantern lemon magnet "
    "marble meadow mirror needle orange paddle pencil pepper pillow planet pocket powder rabbit "
    "ribbon river rocket saddle salmon shadow shovel silver spoon summit table ticket timber "
    "tunnel valley velvet violin wagon walnut window winter"
).split()

NAMES = (
    "Ada Brook;Ben Castro;Carla Dunn;Dario Egan;Elif Frost;Felix Gray;Greta Holm;Hugo Ibsen;"
    "Ines Jarvis;Jonas Kerr;Kira Lowe;Luca Moran;Mira Nash;Noor Osman;Otto Price;Petra Quinn"
).split(";")

CITIES = "Accra Bergen Cairo Dublin Genoa Hanoi Lima Malmo Nairobi Oslo Porto Quito Riga".split()

UNITS = {"km m": 1000, "kg g": 1000, "h min": 60, "m cm": 100, "l ml": 1000}

TASKS = (
    "book the meeting room;check the invoice;close the window;order more paper;print the agenda;"
    "send the report;update the price list;call the supplier;review the draft;clean the sample tray"
).split(";")

WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

TICKETS = {
    "BLUE-1 billing": (
        "I was charged twice for the {noun}.",
        "The invoice for my {noun} shows the wrong amount.",
        "Please refund the payment for the {noun}.",
    ),
    "RED-2 outage": (
        "The {noun} page has been down since this morning.",
        "Nothing loads when I open the {noun} screen.",
        "The {noun} service returns an error for everyone.",
    ),
    "GREEN-3 delivery": (
        "My {noun} has not arrived yet.",
        "The parcel with the {noun} went to the wrong address.",
        "When will you ship the {noun} I ordered?",
    ),
    "GREY-4 question": (
        "Does the {noun} come in other colors?",
        "How do I clean the {noun}?",
        "Is there a manual for the {noun}?",
    ),
}


def sort_words(random: Random) -> Example:
    words = random.sample(NOUNS, random.choice((3, 4)))
    return "Put the words in alphabetical order.", ", ".join(words), " < ".join(sorted(words))


def convert_units(random: Random) -> Example:
    units, factor = random.choice(list(UNITS.items()))
    large, small = units.split()
    amount = random.randint(2, 29)
    return (
        f"Convert the amount to {small}.",
        f"{amount} {large}",
        f"{amount} {large} = {amount * factor} {small}",
    )


def extract_field(random: Random) -> Example:
    record = {
        "order": f"{random.choice('KMRT')}{random.randint(100, 999)}",
        "owner": random.choice(NAMES),
        "city": random.choice(CITIES),
        "item": random.choice(NOUNS),
    }
    field = random.choice(list(record))
    listed = "; ".join(f"{key}: {value}" for key, value in record.items())
    return f"Copy the field '{field}' from the record.", listed, f"{field} -> {record[field]}"


def add_days(random: Random) -> Example:
    start = date(2024, 1, 1) + timedelta(days=random.randrange(700))
    days = random.randint(1, 6)
    answer = f"{start + timedelta(days=days):%d.%m.%Y}"
    return f"Which date is {days} days after {start:%d.%m.%Y}?", "", answer


def packing_line(random: Random) -> Example:
    noun, count = random.choice(NOUNS), random.randint(1, 12)
    plural = noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"
    word = noun if count == 1 else plural
    return "Write the packing line.", f"{noun}, {count}", f"{count} x {word} (checked)"


def triage(random: Random) -> Example:
    label = random.choice(list(TICKETS))
    text = random.choice(TICKETS[label]).format(noun=random.choice(NOUNS))
    return "Give the support label of this message.", text, label


def to_json(random: Random) -> Example:
    name, age, city = random.choice(NAMES), random.randint(19, 79), random.choice(CITIES)
    text = f"{name} from {city} is {age} years old."
    return "Write the person as JSON.", text, json.dumps({"name": name, "age": age, "city": city})


def polite_request(random: Random) -> Example:
    task, day = random.choice(TASKS), random.choice(WEEKDAYS)
    answer = f"Could you please {task} by {day}? Many thanks!"
    return "Turn the order into a polite request.", f"{task.capitalize()}, {day}!", answer


SKILLS: dict[str, Callable[[Random], Example]] = {
    "polite_request": polite_request,
    "packing_line": packing_line,
    "convert_units": convert_units,
    "triage": triage,
    "extract_field": extract_field,
    "to_json": to_json,
    "add_days": add_days,
    "sort_words": sort_words,
}


def make_rows(seed: int = SEED) -> tuple[list[Row], list[Row]]:
    """Draw the training and the held-out rows, the tasks taking turns; no prompt is in both."""
    size = TRAIN_ROWS_PER_SKILL + HELD_OUT_ROWS_PER_SKILL
    turns = list(zip(*(_draw(task, size, seed) for task in SKILLS), strict=True))
    held_out = [row for turn in turns[:HELD_OUT_ROWS_PER_SKILL] for row in turn]
    return [row for turn in turns[HELD_OUT_ROWS_PER_SKILL:] for row in turn], held_out


def write_rows(directory: Path) -> None:
    """Write `train.jsonl` and `held_out.jsonl`, unless they are there and maybe edited."""
    for name, rows in zip((TRAIN_FILE, HELD_OUT_FILE), make_rows(), strict=True):
        if not (directory / name).exists():
            write_whole(directory / name, "".join(json.dumps(row) + "\n" for row in rows))


def _draw(task: str, size: int, seed: int) -> list[Row]:
    random = Random(f"{seed}/{task}")
    rows: dict[tuple[str, str], Row] = {}
    while len(rows) < size:
        instruction, text, answer = SKILLS[task](random)
        row = {"instruction": instruction, "input": text, "output": answer, "task": task}
        rows[instruction, text] = row
    return list(rows.values())

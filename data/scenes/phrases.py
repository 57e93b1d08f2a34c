"""Captions and attributes of a scene, read off its plan."""

from collections.abc import Callable

from plans import Cutout, Plan, cutouts

# Where something stands: "a dog on green grass".
ON = {
    "grass": ("on green grass", "on a lawn", "in a grassy field"),
    "gravel": ("on grey gravel", "on small stones", "on gravelly ground"),
    "brick": ("on a brick pavement", "on red bricks", "on a brick floor"),
    "sand": ("on sand", "on a sandy beach", "on yellow sand"),
    "snow": ("in the snow", "on white snow", "on snowy ground"),
    "water": ("in the water", "in blue water", "in the sea"),
}
UNDER = {
    "blue": ("under a blue sky", "below a bright blue sky", "with a blue sky above"),
    "cloudy": ("under a cloudy sky", "under grey clouds", "with an overcast sky above"),
    "sunset": ("at sunset", "under an orange sunset sky", "with a red evening sky above"),
}
IN_SKY = {"blue": "in a blue sky", "cloudy": "in a cloudy sky", "sunset": "in a sunset sky"}


def with_article(noun: str) -> str:
    """The noun with *a* or *an*: "an owl", "a unicycle"."""
    sounds_like_consonant = noun.lower().startswith(("uni", "eu", "one", "use"))
    vowel = noun[0].lower() in "aeiou" and not sounds_like_consonant
    return f"{'an' if vowel else 'a'} {noun}"


def captions(plan: Plan) -> tuple[str, ...]:
    """Five captions of a picture: with the class's name (1st, 3rd) or the cut-out's (2nd, 4th).

    Every caption tells the main object, the ground, the sky and the further objects; the third also
    the side, the fourth the distance and the fifth the light.
    """
    main = cutouts()[plan.objects[0].cutout]
    kind, name = with_article(main.class_name), with_article(main.name)
    w = plan.wording
    near = [_beside(plan, choice) for choice in w[:4]]
    far = _elsewhere(plan)
    places = [_place(plan, choice) for choice in w[4:9]]
    shot = ("a close-up of", "a large picture of") if plan.close else ("a picture of", "a view of")
    light = ("a dark photo of", "a dim picture of") if plan.dark else ("a photo of", "a bright photo of")
    side = "on the left" if plan.left else "on the right"
    return (
        f"a photo of {kind}{near[0]} {places[0]}{far}",
        f"{name}{near[1]} {places[1]}{far}",
        f"{places[2]}, {kind} {side}{near[2]}{far}",
        f"{shot[w[9] % 2]} {name}{near[3]}, {places[3]}{far}",
        f"{light[w[10] % 2]} {(name, kind)[w[11] % 2]}{near[0]}{far}, {places[4]}",
    )


def _place(plan: Plan, choice: int) -> str:
    """Ground and sky, from the main object's point of view."""
    where = plan.objects[0].where
    if where == "sky":
        ground = "brick pavement" if plan.ground == "brick" else plan.ground
        return f"{IN_SKY[plan.sky]} {('above', 'over')[choice % 2]} the {ground}"
    ground = ON[plan.ground][choice % 3]
    if where == "afloat":
        ground = ("on the water", "on blue water", "on the sea")[choice % 3]
    return f"{ground} {UNDER[plan.sky][choice // 2]}" if plan.sky else ground


def _listed(plan: Plan, aloft: bool) -> str:
    """The further objects that are in the sky, or those that are not: "a mug and a whale" or ""."""
    items = [item for item in plan.objects[1:] if (item.where == "sky") == aloft]
    return " and ".join(with_article(cutouts()[item.cutout].class_name) for item in items)


def _beside(plan: Plan, choice: int) -> str:
    """What is beside the main object, in the sky or on the ground as it is: " next to a mug"."""
    things = _listed(plan, aloft=plan.objects[0].where == "sky")
    return f" {('next to', 'beside', 'with')[choice % 3]} {things}" if things else ""


def _elsewhere(plan: Plan) -> str:
    """What is below a main object that flies, or above one that does not."""
    below = plan.objects[0].where == "sky"
    things = _listed(plan, aloft=not below)
    return f", with {things} {'below' if below else 'in the sky'}" if things else ""


def _any(test: Callable[[Cutout], bool]) -> Callable[[Plan], bool]:
    return lambda plan: any(test(cutouts()[item.cutout]) for item in plan.objects)


# Name: (positive prompt, negative prompt, test of the plan).
ATTRIBUTES: dict[str, tuple[str, str, Callable[[Plan], bool]]] = {
    "animal": (
        "a photo of an animal",
        "a photo of things without any animal",
        _any(lambda c: c.category in ("animal", "bird")),
    ),
    "bird": ("a photo of a bird", "a photo without any bird", _any(lambda c: c.category == "bird")),
    "vehicle": (
        "a photo of a vehicle",
        "a photo without any vehicle",
        _any(lambda c: c.category == "vehicle"),
    ),
    "food": ("a photo of food", "a photo without any food", _any(lambda c: c.category == "food")),
    "plant": (
        "a photo of a plant or a flower",
        "a photo without any plant or flower",
        _any(lambda c: c.category == "plant"),
    ),
    "grass": ("green grass on the ground", "ground without grass", lambda p: p.ground == "grass"),
    "gravel": ("gravel on the ground", "ground without gravel", lambda p: p.ground == "gravel"),
    "brick": ("a brick pavement", "ground without bricks", lambda p: p.ground == "brick"),
    "sand": ("sand on the ground", "ground without sand", lambda p: p.ground == "sand"),
    "snow": ("snow on the ground", "ground without snow", lambda p: p.ground == "snow"),
    "water": ("water of the sea", "dry land without water", lambda p: p.ground == "water"),
    "sky": ("the sky above the horizon", "only the ground, no sky", lambda p: p.sky != ""),
    "blue sky": ("a blue sky", "no blue sky", lambda p: p.sky == "blue"),
    "cloudy sky": ("a cloudy grey sky", "no grey clouds", lambda p: p.sky == "cloudy"),
    "sunset": ("an orange sky at sunset", "no sunset", lambda p: p.sky == "sunset"),
    "several objects": (
        "a photo of two or three things",
        "a photo of a single thing",
        lambda p: len(p.objects) > 1,
    ),
    "left": ("an object on the left", "an object on the right", lambda p: p.left),
    "close-up": ("a close-up of a large object", "a small object far away", lambda p: p.close),
    "dark": ("a dark photo in dim light", "a bright photo in daylight", lambda p: p.dark),
}


def attributes(plan: Plan) -> tuple[bool, ...]:
    """Whether each of `ATTRIBUTES` holds, in their order."""
    return tuple(test(plan) for _, _, test in ATTRIBUTES.values())
